"""Several rows grow at the same time and are shown one after the other: the first as it grows, the others when it is their turn."""


class Turns:
    """What each row has to say, printed in the order of the rows."""

    def __init__(self, rows: int) -> None:
        self.waiting, self.finished, self.turn = [""] * rows, [False] * rows, 0

    def write(self, row: int, text: str, last: bool = False) -> None:
        """More of a row; `last`: the end of it, so that the next may speak."""
        self.waiting[row] += text
        self.finished[row] = last
        while self.turn < len(self.waiting):
            text, self.waiting[self.turn] = self.waiting[self.turn], ""
            print(text, end="", flush=True)
            if not self.finished[self.turn]:
                return
            self.turn += 1
