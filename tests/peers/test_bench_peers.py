"""What `ttr bench` times against PyTorch is the same mathematics: each peer's results against ours or the oracle's, within the command's own limits.

Each side runs in a worker process, as when it is timed.
"""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.ref.cases import BIASES
from ttr_fast import cli
from ttr_fast.bench import attention, decode, gemm, step
from ttr_fast.bench.measure import check_agreement, disagreement

CASE = attention.Case(dtype="f32", threads=1, length=96, heads=2, head_dim=16, batch=2, bias="log", passes="both")

STEP = step.Case(dtype="f32", threads=1, length=40, batch=2, embed_dim=32, hidden_dim=48, heads=2, layers=3, vocabulary=50, bias="log")
DECODE = decode.Case(
    dtype="f32", threads=1, position=60, window=24, batch=2, embed_dim=32, hidden_dim=48, heads=2, layers=2, vocabulary=50, bias="log"
)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("bias", BIASES)
def test_torch_bias_agrees_with_the_oracle(bias: str, dtype: str) -> None:
    """O and every gradient, those of the bias's parameters too."""
    case = replace(CASE, bias=bias, dtype=dtype)
    theirs, oracle = (side.named(side.call()) for side in (attention.SIDES[name](case) for name in ("torch-bias", "numpy")))
    assert disagreement(case, oracle, theirs) is None
    assert sum(name.startswith("dbias") for name in theirs) == {"none": 0, "linear": 1, "log": 2, "exp": 2, "table": 1}[bias]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of how slow it is uncompiled, and of what its tracer touches
@pytest.mark.parametrize("bias", BIASES)
def test_flex_attention_agrees_with_the_oracle(bias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """O and every gradient. PyTorch compiles it for GPUs and refuses gradients on the CPU: here it is traced and runs as it is written."""
    flex, compiler = importlib.import_module("torch.nn.attention.flex_attention"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, **(options | {"backend": "eager"})))
    monkeypatch.setattr(flex, "_validate_device", lambda *tensors: None)
    case = replace(CASE, bias=bias)
    theirs, oracle = (side.named(side.call()) for side in (attention.with_torch(case, "flex"), attention.SIDES["numpy"](case)))
    assert disagreement(case, oracle, theirs) is None


@pytest.mark.parametrize("passes", ["forward", "both"])
@pytest.mark.parametrize("peer", ["torch-plain", "torch-bias"])
def test_ours_agrees_with_torch(peer: str, passes: str) -> None:
    """torch-plain, which has no bias, with ours without."""
    check_agreement(replace(CASE, passes=passes), peer)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("peer", ["torch-plain", "torch-bias"])
def test_16_bits_agree(peer: str, dtype: str) -> None:
    """Each side rounds where it must."""
    check_agreement(replace(CASE, dtype=dtype), peer)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_torch_multiplies_the_same_matrices(dtype: str) -> None:
    """Against float64, whose own rounding does not show; y is written where it was given."""
    case = gemm.Case(dtype=dtype, threads=1, m=40, k=70, n=30)
    x, w, _ = gemm.inputs(case)
    side = gemm.SIDES["torch"](case)
    exact = {"y": x.astype(np.float64) @ w.astype(np.float64)}
    assert disagreement(case, side.named(side.call()), exact) is None


@pytest.mark.parametrize("bias", BIASES)
def test_a_step_of_torch_agrees_with_the_oracle(bias: str) -> None:
    """Loss, norm and every gradient after clipping; with any bias, none included."""
    case = replace(STEP, bias=bias)
    theirs, oracle = (side.named(side.call()) for side in (step.SIDES[name](case) for name in ("torch-bias", "numpy")))
    assert disagreement(case, oracle, theirs) is None
    assert theirs["norm"] > step.TRAIN.clip_norm  # or clipping would not show


@pytest.mark.parametrize(
    ("peer", "dtype", "checkpointing"),
    [("torch-plain", "f32", "none"), ("torch-bias", "f32", "every:2"), ("torch-compile", "f32", "none"), ("torch-plain", "bf16", "none"),
     ("torch-bias", "bf16", "none")]
)  # fmt: skip
def test_our_step_agrees_with_torch(peer: str, dtype: str, checkpointing: str) -> None:
    """As the command finds out before it measures."""
    check_agreement(replace(STEP, dtype=dtype, checkpointing=checkpointing), peer)


def test_torch_steps_move_the_weights() -> None:
    """A second step on the same batch has a smaller loss, as ours."""
    losses = {}
    for name in ("torch-bias", "numpy"):
        side = step.SIDES[name](STEP)
        losses[name] = [float(side.named(side.call())["loss"]) for _ in range(4)]
        assert losses[name] == sorted(losses[name], reverse=True)
    # a step of Adam is the rate times m/√v, of which little is left of a gradient's own rounding
    np.testing.assert_allclose(losses["torch-bias"], losses["numpy"], rtol=STEP.limit("loss") * len(losses["numpy"]))


def test_torch_decodes_what_the_oracle_does() -> None:
    """Before the window is full, when it is, and after; every token's logits."""
    case = replace(DECODE, bias="none", position=1)
    theirs, oracle = (decode.SIDES[name](case) for name in ("torch-plain", "numpy"))
    for _ in range(2 * case.window + 3):
        assert disagreement(case, oracle.named(oracle.call()), theirs.named(theirs.call())) is None


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_our_decoding_agrees_with_torch(dtype: str) -> None:
    check_agreement(replace(DECODE, dtype=dtype), "torch-plain")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Both of torch's peers unless told otherwise."""
    sizes = ["--length", "64", "--heads", "2", "--head-dim", "16"]
    cli.run(["bench", "attention", *sizes, "--samples", "2", "--least-ms", "1", "--threads", "1", "--json", "-"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["peer"] for line in lines] == ["torch-plain", "torch-bias"]
    assert all(line["ratio"] == line["peer_ms"] / line["ours_ms"] for line in lines)
