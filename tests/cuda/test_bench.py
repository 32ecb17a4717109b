"""`ttr bench … --backend cuda`: in the simulator from the command to the table, on a device the same. No time is ever asserted."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ttr_fast import cli
from ttr_fast.bench import attention, decode, device, gemm, step, targets
from ttr_fast.bench.case import OURS, Case, Prepared
from ttr_fast.bench.measure import disagreement
from ttr_fast.bench.targets import FASTER, OF_PEAK, TFLOPS, Target
from ttr_fast.bench.worker import Session, side_of
from ttr_fast.cuda.jit import SIMULATED
from ttr_fast.errors import UserError

QUICK = ["--samples", "1", "--least-ms", "0.01"]
ON: dict[str, Any] = {"threads": 1, "backend": "cuda"}
ATTENTION = attention.Case(dtype="f32", length=20, heads=2, head_dim=4, batch=1, bias="log", passes="both", **ON)
GEMM = gemm.Case(dtype="f32", m=20, k=17, n=9, **ON)
DECODE = decode.Case(
    dtype="f32", position=3, window=2, batch=1, embed_dim=8, hidden_dim=12, heads=2, layers=1, vocabulary=11, bias="log", **ON
)  # fmt: skip
STEP = step.Case(dtype="f32", length=4, batch=1, embed_dim=8, hidden_dim=12, heads=2, layers=1, vocabulary=11, bias="log", **ON)
SIZES = ["--embed-dim", "8", "--hidden-dim", "12", "--heads", "2", "--layers", "1", "--vocabulary", "11"]
KINDS = {
    "attention": ["--length", "5", "--heads", "1", "--head-dim", "4", "--pass", "both", "--peer", "numpy"],
    "gemm": ["--shape", "9", "8", "7", "--dtype", "bf16", "--against", "none"],
    "step": ["--length", "4", "--batch", "1", *SIZES, "--checkpointing", "block", "--against", "none"],
    "decode": ["--window", "2", *SIZES, "--against", "none"],
}


class Here:
    """A worker that is no process: what it does is the same, and starts at once."""

    def __init__(self, side: str, threads: int, limit_s: float | None = None) -> None:
        self.side, self.session = side, Session(side, threads)

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        try:
            return self.session.answer({"do": do} | more)
        except Exception as error:
            raise UserError(f"{self.side}: {error}") from error

    def ask_case(self, do: str, case: Case, **more: Any) -> dict[str, Any]:
        return self.ask(do, kind=case.kind, case=asdict(case), **more)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttr_fast.bench.measure.Worker", Here)
    monkeypatch.setattr("ttr_fast.bench.measure.PAUSE", 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_command_to_the_line(kind: str, here: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object; in the simulator it says so, and so does the last line on stderr."""
    cli.run(["bench", kind, "--backend", "cuda", *KINDS[kind], "--json", "-", *QUICK])
    captured = capsys.readouterr()
    (line,) = map(json.loads, captured.out.splitlines())
    assert line["case"] | {"kind": kind, "backend": "cuda"} == line["case"]
    assert line["ours_ms"] > 0
    assert line["share_of_peak"] == pytest.approx(line["gflops"] / line["machine"]["peak_gflops"])
    assert line["peak_mib"] == 0 if kind == "gemm" else line["peak_mib"] > 0
    assert line.get("simulated", False) == SIMULATED
    assert ("say nothing of a GPU" in captured.err) == SIMULATED
    assert "the machine: " in captured.err


def test_in_processes(capsys: pytest.CaptureFixture[str]) -> None:
    """As users run it; the table names the GPU where it names threads on the CPU."""
    cli.run(["bench", "gemm", "--backend", "cuda", "--shape", "9", "8", "7", "--against", "none", *QUICK])
    assert capsys.readouterr().out.splitlines()[2].startswith("gemm f32 9 × 8 × 7, GPU  ")


@pytest.mark.parametrize("case", [
    ATTENTION, replace(ATTENTION, bias="table", dropout=0.3), replace(ATTENTION, dtype="bf16", heads=1, head_dim=16), replace(ATTENTION, bias="none"),
    DECODE, replace(DECODE, dtype="f16"), STEP, GEMM,
], ids=lambda case: case.label)  # fmt: skip
def test_ours_agrees_with_the_oracle(case: Case) -> None:
    """Within the limits of the command, and these find a mistake of a thousandth in float32."""
    mine, oracle = (side.named(side.call()) for side in (side_of(case, name) for name in (OURS, "numpy")))
    assert disagreement(case, mine, oracle) is None
    if case.dtype == "f32":
        for name, a in mine.items():
            assert not a.any() or str(disagreement(case, mine | {name: a * 1.001}, oracle)).startswith(f"{name} differs")


def test_sixteen_bit_products_agree_with_float32() -> None:
    """The numbers are drawn in the same order and rounded."""
    case = replace(GEMM, dtype="bf16")
    half, single = (side.named(side.call()) for side in (side_of(case, name) for name in (OURS, "ours-f32")))
    x, w, _ = gemm.inputs(case)
    np.testing.assert_allclose(half["y"], x.astype(np.float64) @ w.astype(np.float64), rtol=2**-7, atol=case.limit("y"))
    assert not np.array_equal(half["y"], single["y"])


def test_without_dropout() -> None:
    case = replace(ATTENTION, dropout=0.5)
    dropping, plain, never = (side_of(c, s).call()[0] for c, s in ((case, OURS), (case, "ours-plain"), (ATTENTION, OURS)))
    o = [side_of(ATTENTION, OURS).named((a,))["o"] for a in (dropping, plain, never)]
    np.testing.assert_array_equal(o[1], o[2])
    assert not np.array_equal(o[0], o[2])


def test_inputs_take_turns() -> None:
    """As many copies as exceed the cache twice, one where one does; 64 at most."""
    made: list[int] = []

    def make() -> Prepared:
        number = len(made)
        made.append(number)
        return Prepared(lambda: number, lambda result: {})

    for size, copies in ((10, 20), (99, 3), (1000, 1), (1, device.MOST_COPIES)):
        made.clear()
        side = device.rotated(make, size, 100)
        assert len(made) == copies
        assert [side.call() for _ in range(copies + 1)] == [*range(copies), 0]


def test_the_clock_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events around the calls, the last one waited for, milliseconds shared out."""
    told: list[str] = []

    def event() -> Any:
        name = f"event {sum(t.startswith('new') for t in told)}"
        told.append(f"new {name}")
        return SimpleNamespace(name=name, record=lambda: told.append(f"{name} recorded"), synchronize=lambda: told.append(f"{name} reached"))

    fake = SimpleNamespace(event=event, event_elapsed_time=lambda a, b: 8.0 if (a.name, b.name) == ("event 0", "event 1") else -1)
    monkeypatch.setattr(device, "SIMULATED", False)
    monkeypatch.setattr(device, "cuda", fake)
    assert device.seconds_of(lambda: told.append("call"), 4) == 0.002
    assert told == ["new event 0", "new event 1", "event 0 recorded", *["call"] * 4, "event 1 recorded", "event 1 reached"]


def test_peaks() -> None:
    """Positive, and said what of."""
    for dtype, what in (("f32", "multiply-adds"), ("f64", "multiply-adds"), ("bf16", "by our own product"), ("f16", "by our own product")):
        peak = device.matrix_peak(OURS, dtype)
        assert peak.gflops() > 0
        assert peak.text.startswith(f"{dtype} ")
        assert what in peak.text
    assert device.bandwidth(OURS) > 0


def test_the_table(here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without PyTorch are measured, those that need it are not; one that fails leaves the others alone, and says why."""
    rows = [
        Target(GEMM, None, OF_PEAK, True, 1e-9), Target(replace(ATTENTION, head_dim=4000, length=2), None, TFLOPS, True, 1.0),
        Target(GEMM, "torch", FASTER, True, 1.0), Target(replace(GEMM, n=8), None, TFLOPS, True, 1e9),
    ]  # fmt: skip
    monkeypatch.setattr(targets, "gpu_targets", lambda seed: rows)
    file = tmp_path / "table.jsonl"
    cli.run(["bench", "table", "--backend", "cuda", "--against", "none", "--quick", "--json", str(file)])
    captured = capsys.readouterr()
    assert [line.split("  ")[-1] for line in captured.out.splitlines()[2:]] == ["met", "not measured", "not measured", "falls short"]
    good, failed, short = map(json.loads, file.read_text().splitlines())
    assert (good["label"], good["targets"][0]["met"]) == ("gemm f32 20 × 17 × 9, GPU", True)
    assert "a head has at most 128 features in float32, got 4000" in failed["error"]
    assert failed["error"] in captured.err
    assert failed["targets"] == [{"measure": TFLOPS, "measured": None, "at least": 1.0, "met": None}]
    assert short["targets"][0]["met"] is False


def test_the_targets_are_possible() -> None:
    """Sides that exist; each is asked for once, and none of them is cut short on the CPU's account."""
    found = targets.gpu_targets(0)
    assert len({t[:3] for t in found}) == len(found)
    for t in found:
        assert t.case.backend == "cuda"
        assert t.case.flops > 0
        assert t.case.config if hasattr(t.case, "config") else True
    attention.checked([(t.case, t.peer) for t in found])


def test_threads_are_not_for_the_gpu() -> None:
    with pytest.raises(UserError, match="--threads is for the CPU: leave it out with --backend cuda"):
        cli.run(["bench", "gemm", "--backend", "cuda", "--threads", "1", "2"])
