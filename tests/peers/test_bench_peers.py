"""What `ttr bench` times against PyTorch is the same mathematics: each peer's results against ours or the oracle's, within the command's own limits.

Each side runs in a worker process, as when it is timed.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.ref.cases import BIASES
from ttr_fast import cli
from ttr_fast.bench import attention, gemm
from ttr_fast.bench.measure import check_agreement, disagreement

CASE = attention.Case(dtype="f32", threads=1, length=96, heads=2, head_dim=16, batch=2, bias="log", passes="both")


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("bias", BIASES)
def test_torch_bias_agrees_with_the_oracle(bias: str, dtype: str) -> None:
    """O and every gradient, those of the bias's parameters too."""
    case = replace(CASE, bias=bias, dtype=dtype)
    theirs, oracle = (side.named(side.call()) for side in (attention.SIDES[name](case) for name in ("torch-bias", "numpy")))
    assert disagreement(case, oracle, theirs) is None
    assert sum(name.startswith("dbias") for name in theirs) == {"none": 0, "linear": 1, "log": 2, "exp": 2, "table": 1}[bias]


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


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Both of torch's peers unless told otherwise."""
    sizes = ["--length", "64", "--heads", "2", "--head-dim", "16"]
    cli.run(["bench", "attention", *sizes, "--samples", "2", "--least-ms", "1", "--threads", "1", "--json", "-"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["peer"] for line in lines] == ["torch-plain", "torch-bias"]
    assert all(line["ratio"] == line["peer_ms"] / line["ours_ms"] for line in lines)
