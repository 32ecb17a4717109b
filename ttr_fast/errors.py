"""The one error meant for the user's eyes."""

SHOWN_CHARACTERS = 40


class UserError(Exception):
    """Bad input that the user can mend; str(error) is one sentence: where, what came, what was expected."""


def quoted(text: str) -> str:
    """Input text as it stands in a message: quoted, on one line, cut after SHOWN_CHARACTERS."""
    return repr(text) if len(text) <= SHOWN_CHARACTERS else repr(text[:SHOWN_CHARACTERS]) + "…"
