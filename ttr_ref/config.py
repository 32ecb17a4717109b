"""Configurations: plain frozen dataclasses, validated when built. Everyone imports them from here.

Sizes carry the letters of the formulas: E embedding width, F hidden width of the feed-forward, H query heads, G key/value
heads, D = E / H width of one head, W attention window, V vocabulary, L blocks, M mixture components, K table knots.
"""

from dataclasses import dataclass, field
from typing import Literal

from .float_dtype import FloatDType
from .gradient_checkpointing import blocks_per_checkpoint

BiasKind = Literal["none", "linear", "log", "exp", "table"]
RopeKind = Literal["position", "time", "split"]
TimeHeadOrder = Literal["token_then_time", "time_then_token", "both"]
ScheduleKind = Literal["constant", "cosine", "wsd"]


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


@dataclass(frozen=True)
class DropoutConfig:
    """Probabilities of dropping: attention weights, feed-forward features, block outputs (residual), whole heads; each in [0, 1)."""

    attn: float = 0.0
    ff: float = 0.0
    block: float = 0.0
    head: float = 0.0

    def __post_init__(self) -> None:
        for name, p in vars(self).items():
            _require(0 <= p < 1, f"DropoutConfig: {name} must be in [0, 1), got {p}")


@dataclass(frozen=True)
class TimeConfig:
    """How a model measures time; fixed when training starts and stored with the model.

    All lengths are in the unit of the data's own times (one *tick*): seconds for UNIX seconds.
    """

    origin: int | float = 0
    """Subtracted from every absolute time before anything else, in the caller's own type."""
    unit: float = 1.0
    """Scale of one step of learned time: τ = (t − origin) / unit. A typical gap is a good choice."""
    shortest: float = 1.0
    """Shortest gap worth telling apart: the shortest period of Time2Vec and the first knot c₀ of the bias table."""
    span: float = 1000.0
    """Longest span seen: the longest period of Time2Vec."""
    resolution: float = 1.0
    """Recording resolution: no component of the next-time density is narrower."""
    tick_seconds: float | None = None
    """Seconds in one tick, when times are calendar times: gives Time2Vec a day, a week and a year."""

    def __post_init__(self) -> None:
        for name in ("unit", "shortest", "span", "resolution"):
            value = getattr(self, name)
            _require(0 < value < float("inf"), f"TimeConfig: {name} must be positive and finite, got {value}")
        _require(abs(self.origin) < float("inf"), f"TimeConfig: origin must be finite, got {self.origin}")
        _require(self.tick_seconds is None or self.tick_seconds > 0, f"TimeConfig: tick_seconds must be positive, got {self.tick_seconds}")


@dataclass(frozen=True)
class BlockConfig:
    """One transformer block: sizes, what it does with time, what it drops, in which type it stores."""

    embed_dim: int
    hidden_dim: int
    heads: int
    kv_heads: int | None = None
    """G: heads of keys and values, each shared by heads / kv_heads query heads; None: as many as heads."""
    causal: bool = True
    window: int | None = None
    """W: how many keys a query sees, itself included; None: everything before."""
    rope: RopeKind = "position"
    rope_base: float = 10000.0
    time2vec: bool = True
    time_bias: BiasKind = "log"
    exp_terms: int = 2
    table_knots: int = 32
    norm_eps: float = 1e-6
    time: TimeConfig = field(default_factory=TimeConfig)
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    float_dtype: FloatDType = FloatDType.F64

    def __post_init__(self) -> None:
        for name in ("embed_dim", "hidden_dim", "heads", "groups"):
            _require(getattr(self, name) > 0, f"BlockConfig: {name} must be positive, got {getattr(self, name)}")
        _require(self.embed_dim % self.heads == 0, f"BlockConfig: embed_dim {self.embed_dim} is not a multiple of heads {self.heads}")
        _require(self.head_dim % 2 == 0, f"BlockConfig: head width {self.head_dim} (embed_dim / heads) must be even for rotary pairs")
        _require(self.heads % self.groups == 0, f"BlockConfig: heads {self.heads} is not a multiple of kv_heads {self.groups}")
        _require(self.window is None or self.window > 0, f"BlockConfig: window must be at least 1, got {self.window}")
        _require(1 <= self.exp_terms <= 4, f"BlockConfig: exp_terms must be 1 to 4, got {self.exp_terms}")
        _require(self.table_knots >= 2, f"BlockConfig: table_knots must be at least 2, got {self.table_knots}")
        _require(self.rope_base > 1, f"BlockConfig: rope_base must be above 1, got {self.rope_base}")
        _require(self.norm_eps > 0, f"BlockConfig: norm_eps must be positive, got {self.norm_eps}")

    @property
    def head_dim(self) -> int:
        """D, the width of one head."""
        return self.embed_dim // self.heads

    @property
    def groups(self) -> int:
        """G, the number of key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads


@dataclass(frozen=True)
class TimeHeadConfig:
    """The density of the next gap: a mixture of M log-normals, and which of time and token is predicted first."""

    components: int = 8
    order: TimeHeadOrder = "token_then_time"

    def __post_init__(self) -> None:
        _require(self.components > 0, f"TimeHeadConfig: components must be positive, got {self.components}")

    @property
    def orders(self) -> tuple[TimeHeadOrder, ...]:
        """The factorisations trained: one, or for "both" the two, half the loss each."""
        return ("token_then_time", "time_then_token") if self.order == "both" else (self.order,)


@dataclass(frozen=True)
class ModelConfig:
    """The whole network: V tokens, L equal blocks, output tied to the embedding unless told otherwise."""

    vocab_size: int
    layers: int
    block: BlockConfig
    tied: bool = True
    time_head: TimeHeadConfig | None = None
    loss_chunk: int = 1024
    """Positions whose logits exist at the same time."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "loss_chunk"):
            _require(getattr(self, name) > 0, f"ModelConfig: {name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig:
    """One training run: how many steps of which size, the optimiser and its schedule, the seed of everything random."""

    steps: int = 400
    rows: int = 16
    """Rows of one batch."""
    length: int = 128
    """Positions of one row."""
    learning_rate: float = 3e-3
    schedule: ScheduleKind = "cosine"
    warmup: int = 20
    """Steps of linear warm-up."""
    final_fraction: float = 0.05
    """The last learning rate as a share of the highest."""
    decay_steps: int = 100
    """WSD only: the steps of decay at the end."""
    beta1: float = 0.9
    beta2: float = 0.98
    adam_eps: float = 1e-9
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    z_loss: float = 0.0
    time_weight: float = 0.1
    """Weight of the gap's nats in the loss beside the token's. A density narrow to σ has gradients of size 1/σ, which at weight 1
    leave the token little say in the common states."""
    checkpointing: str = "none"
    """"none", "block" or "every:k": which activations are kept for backward."""
    accumulate: int = 1
    """Equal parts of a batch's rows that are computed one after the other; what they add up to is the gradient of the batch."""
    targets_after: str | None = None
    """Only what follows this token is predicted, up to the next </s>, it included: "Assistant:" trains on answers alone. None: everything."""
    evaluate_every: int | None = None
    """Steps between two evaluations on held-out data; None: six of them, evenly."""
    patience: int | None = None
    """Training ends after so many evaluations without an improvement, and the best model is the result; None: all steps are done."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rows", "length", "decay_steps", "accumulate"):
            _require(getattr(self, name) > 0, f"TrainConfig: {name} must be positive, got {getattr(self, name)}")
        _require(self.rows % self.accumulate == 0, f"TrainConfig: rows {self.rows} is not a multiple of accumulate {self.accumulate}")
        for name in ("evaluate_every", "patience"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"TrainConfig: {name} must be positive, got {value}")
        for name in ("learning_rate", "adam_eps", "clip_norm"):
            value = getattr(self, name)
            _require(0 < value < float("inf"), f"TrainConfig: {name} must be positive and finite, got {value}")
        for name in ("beta1", "beta2", "final_fraction"):
            _require(0 <= getattr(self, name) < 1, f"TrainConfig: {name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "z_loss", "time_weight"):
            _require(getattr(self, name) >= 0, f"TrainConfig: {name} must not be negative, got {getattr(self, name)}")
        blocks_per_checkpoint(self.checkpointing)
        _require(0 <= self.seed < 2**32, f"TrainConfig: seed must be in [0, 2³²), got {self.seed}")
