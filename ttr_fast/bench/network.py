"""The sizes of a model, as benchmarks of whole models name them in their cases and take them as options."""

from dataclasses import dataclass

from ttr_fast.bench.case import at_least


@dataclass(frozen=True, kw_only=True)
class NetworkSizes:
    """L blocks of width E, feed-forward F and H heads over V tokens, the output tied to the embedding."""

    embed_dim: int = 256
    hidden_dim: int = 1024
    heads: int = 8
    layers: int = 4
    vocabulary: int = 4096

    @property
    def sizes(self) -> dict[str, int]:
        """By name."""
        return {name: getattr(self, name) for name in NetworkSizes.__dataclass_fields__}

    @property
    def weights(self) -> int:
        """Numbers in all matrices; the embedding serves at both ends."""
        return self.layers * self.embed_dim * (4 * self.embed_dim + 3 * self.hidden_dim) + self.vocabulary * self.embed_dim

    @property
    def network(self) -> str:
        """In words."""
        return f"E{self.embed_dim} F{self.hidden_dim} H{self.heads} L{self.layers} V{self.vocabulary}"

    def check_sizes(self) -> None:
        """Raises UserError for one below 1."""
        for name, size in self.sizes.items():
            at_least(f"--{name.replace('_', '-')}", size, 1)
