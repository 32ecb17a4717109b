"""CPUs that are not here, as far as code is generated for them."""

from typing import NamedTuple


class Cpu(NamedTuple):
    """What an emitter asks of Numba's context."""

    triple: str
    features: str

    def codegen(self) -> "Cpu":
        """Itself."""
        return self

    def magic_tuple(self) -> tuple[str, str, str]:
        """As Numba has it."""
        return self.triple, "generic", self.features


ARM = Cpu("aarch64-unknown-linux-gnu", "")
