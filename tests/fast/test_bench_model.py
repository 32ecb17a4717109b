"""`ttr bench` of whole models, of memory, and of the table of targets. No time is ever asserted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ttr_fast import cli
from ttr_fast.bench import attention, decode, gemm, step, targets
from ttr_fast.bench.case import Case, processors
from ttr_fast.bench.measure import Machine, Result, Timing, check_agreement, disagreement
from ttr_fast.bench.memory import MemoryOptions
from ttr_fast.bench.report import memory_table
from ttr_fast.bench.targets import FASTER, SLOWER, TableOptions, Target
from ttr_fast.errors import UserError
from ttr_ref.model import model_init
from ttr_ref.parameters import is_matrix
from ttr_ref.tree import named_leaves

QUICK = ["--samples", "2", "--least-ms", "1", "--threads", "1"]
SIZES = ["--embed-dim", "16", "--hidden-dim", "24", "--heads", "2", "--layers", "3", "--vocabulary", "40"]
STEP = step.Case(
    dtype="f32", threads=1, length=40, batch=2, embed_dim=16, hidden_dim=24, heads=2, layers=2, vocabulary=40, bias="log"
)
DECODE = decode.Case(
    dtype="f32", threads=1, position=9, window=4, batch=2, embed_dim=16, hidden_dim=24, heads=2, layers=2, vocabulary=40, bias="log"
)
GEMM = gemm.Case(dtype="f32", threads=1, m=20, k=20, n=20)


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    """What the command tells with --json -."""
    cli.run(["bench", *arguments, "--json", "-", *QUICK])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def result(case: Case, peer: str | None = None, **theirs: float) -> Result:
    """One that took 2 ms and 10 MiB, with activations of 4; the peer as told."""
    timing = None if peer is None else Timing(theirs["ms"], (1.0, 9.0), theirs["mib"], theirs["activations"])
    return Result(case, Machine(100.0, 10.0), Timing(2.0, (1.5, 3.0), 10.0, 4.0, (30.0, 2.0)), peer, timing)


def test_a_step_agrees_with_the_oracle() -> None:
    """Loss, norm and every gradient, as the command finds out before it measures."""
    check_agreement(STEP, "numpy")


def test_a_wrong_gradient_is_found() -> None:
    """The limits tell rounding from a mistake of a ten-thousandth."""
    side = step.SIDES["numpy"](STEP)
    right = side.named(side.call())
    assert disagreement(STEP, right, right) is None
    for name in ("loss", "norm", "dembedding", "dblocks.0.attention.w_qkv", "dblocks.1.feed_forward.w_out", "dnorm_final"):
        assert str(disagreement(STEP, right, right | {name: right[name] * 1.0001})).startswith(f"{name} differs")


def test_steps_with_and_without_checkpointing(capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept for backward shrinks; the gradients are the same, or nothing would have been timed."""
    sizes = ["--length", "64", "--batch", "2", *SIZES]
    (line,) = lines_of(capsys, "step", *sizes, "--checkpointing", "block", "--peer", "ours-none")
    assert line["case"] | {"kind": "step", "length": 64, "layers": 3, "checkpointing": "block", "bias": "log"} == line["case"]
    assert 0 < line["activations_mib"] < line["peer_activations_mib"]
    assert line["ratio"] == line["peer_ms"] / line["ours_ms"]


@pytest.mark.parametrize("case", [STEP, DECODE])
def test_what_is_counted(case: step.Case | decode.Case) -> None:
    """The number of weights is that of the model itself."""
    leaves = named_leaves(model_init(case.config, 0))
    assert case.weights == sum(a.size for name, a in leaves.items() if is_matrix(name))


def test_bytes_of_a_decoded_token() -> None:
    """Weights, and keys and values of the tokens seen, of the window at most."""
    for dtype, itemsize in (("f32", 4), ("bf16", 2), ("f16", 2)):
        for position, keys in ((1, 2), (9, 4)):
            case = replace(DECODE, dtype=dtype, position=position)
            assert case.bytes == itemsize * (case.weights + 2 * case.layers * case.batch * keys * case.embed_dim)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_decoding_agrees_with_the_oracle(dtype: str) -> None:
    check_agreement(replace(DECODE, dtype=dtype, position=100, window=100), "numpy")


def test_decoded_logits_depend_on_the_past() -> None:
    """So a side that forgot or misplaced a token would be found out."""
    logits = {}
    for position in (8, 9):
        side = decode.SIDES["numpy"](replace(DECODE, position=position))
        logits[position] = side.named(side.call()), side.named(side.call())
    assert disagreement(DECODE, logits[8][1], logits[9][0]) is None
    assert disagreement(DECODE, logits[8][0], logits[9][0]) is not None


def test_events_go_on() -> None:
    """Past what is drawn at once, in time's order."""
    coming = decode.events(DECODE)
    times = np.array([next(coming)[1] for _ in range(decode.DRAWN_AT_ONCE + 5)])
    assert times.dtype == np.int64
    assert (np.diff(times, axis=0) >= 0).all()


def test_decode(capsys: pytest.CaptureFixture[str]) -> None:
    """Two positions, against a shorter past."""
    lines = lines_of(capsys, "decode", "--window", "8", "--position", "8", "20", *SIZES, "--peer", "ours-at-window")
    assert [line["case"]["position"] for line in lines] == [8, 20]
    for line in lines:
        assert line["share_of_reading"] == pytest.approx(line["gb_per_s"] / line["machine"]["read_gb_per_s"])


def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention at two lengths, and a plot."""
    plot = tmp_path / "memory.svg"
    cli.run(["bench", "memory", "--length", "64", "128", "--layers", "--against", "none", "--plot", str(plot), "--threads", "1"])
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["case", "ours", "MiB"]
    assert [row.split()[3] for row in rows] == ["T64", "T128"]
    assert "<svg" in plot.read_text()


def test_memory_of_models() -> None:
    """Checkpointing every block against none."""
    ((case, peer),) = MemoryOptions(length=(), layers=(7,), threads=(1,)).comparisons()
    assert isinstance(case, step.Case)
    assert (case.layers, case.checkpointing, peer) == (7, "block", "ours-none")


def test_memory_beyond_results() -> None:
    """Gradients are results; PyTorch's are of 16 bits where its inputs are."""
    case = attention.Case(dtype="bf16", threads=1, length=2**14, heads=2, head_dim=64, batch=1, bias="log", passes="both")
    r = result(case, "torch-plain", ms=4.0, mib=20.0, activations=1.0)
    assert (r.extra_mib, r.peer_extra_mib) == (10.0 - 4 * (1 + 3 * 2), 20.0 - 4 * 4)
    assert memory_table([r]).splitlines()[2].split()[-8:] == ["-18", "4", "2.00", "torch-plain", "4", "1", "4.00", "2.00"]


def test_the_targets_are_possible() -> None:
    """Models that can be, sides that exist; each is asked for once."""
    found = targets.all_targets(1, 0)
    sides = {"attention": attention.SIDES, "gemm": gemm.SIDES, "step": step.SIDES, "decode": decode.SIDES}
    for t in found:
        assert t.peer is None or t.peer in sides[t.case.kind]
        assert t.case.flops > 0
        assert t.case.config if isinstance(t.case, step.Case | decode.Case) else True
    assert len({t[:3] for t in found}) == len(found)


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was measured is judged, a comparison that fails leaves the others alone, torch is left out when nothing is to be compared with it."""
    wrong = replace(GEMM, n=24)
    rows = [
        Target(GEMM, "numpy", FASTER, True, 1e-9), Target(GEMM, "numpy", SLOWER, False, 1e-9), Target(GEMM, "torch", FASTER, True, 1.0),
        Target(wrong, "numpy", FASTER, True, 1.0), Target(GEMM, None, targets.OF_PEAK, True, 1e-9),
    ]  # fmt: skip
    monkeypatch.setattr(targets, "all_targets", lambda threads, seed, backend: rows)
    monkeypatch.setattr("ttr_fast.bench.measure.disagreement", lambda case, *outputs: "y is wrong" if case == wrong else None)
    file = tmp_path / "table.jsonl"
    cli.run(["bench", "table", "--quick", "--against", "none", "--json", str(file), "--threads", "1"])
    captured = capsys.readouterr()
    verdicts = [line.split("  ")[-1] for line in captured.out.splitlines()[2:]]
    assert verdicts == ["met", "falls short", "not measured", "not measured", "met"]
    assert "ours and numpy disagree, so nothing was timed: gemm f32 20 × 20 × 24, 1 threads: y is wrong" in captured.err
    first, failed, second = map(json.loads, file.read_text().splitlines())
    assert failed["error"].endswith("y is wrong")
    assert failed["targets"] == [{"measure": FASTER, "measured": None, "at least": 1.0, "met": None}]
    ratio, inverse = first["targets"]
    assert (ratio["measured"], ratio["at least"], ratio["met"]) == (first["ratio"], 1e-9, True)
    assert (inverse["measured"], inverse["at most"], inverse["met"]) == (first["ours_ms"] / first["peer_ms"], 1e-9, False)
    assert (second["peer"], second["targets"][0]["measured"]) == (None, second["share_of_peak"])


def test_every_measure() -> None:
    """Of a known result."""
    r = result(GEMM, "numpy", ms=4.0, mib=40.0, activations=16.0)
    measured = {name: measure(r) for name, measure in targets.MEASURES.items()}
    assert measured == {
        FASTER: 2.0, SLOWER: 0.5, targets.LESS_MEMORY: 0.25, targets.FEWER_ACTIVATIONS: 0.25, targets.OF_PEAK: r.gflops(r.ours) / 100.0,
        targets.OF_READING: r.gb_per_s / 10.0, targets.TFLOPS: r.gflops(r.ours) / 1e3, targets.EXTRA: 10.0, targets.COLD: 30.0, targets.WARM: 2.0,
    }  # fmt: skip
    alone = result(GEMM)
    assert all(targets.MEASURES[name](alone) is None for name in (FASTER, SLOWER, targets.LESS_MEMORY, targets.FEWER_ACTIVATIONS))
    at_most, at_least = (Target(GEMM, None, SLOWER, least, 2.0) for least in (False, True))
    assert (at_most.is_met(1.0), at_most.share(1.0), at_least.is_met(1.0), at_least.share(1.0)) == (True, 2.0, False, 0.5)


def test_how_the_table_samples() -> None:
    """A row that takes half a minute is measured once."""
    long = next(t.case for t in targets.all_targets(1, 0) if t.measure == targets.EXTRA)
    assert TableOptions().sampling(long) == (1, 50.0)
    assert TableOptions().sampling(GEMM) == (9, 50.0)
    assert TableOptions(quick=True).sampling(GEMM) == targets.QUICK
    (cold,) = [c for c in TableOptions(threads=(1,), against="none").comparisons() if TableOptions(threads=(1,)).starts_cold(*c)]
    assert cold[0].kind == "step"
    assert cold[1] is None


REFUSED = {
    "heads": (["step", "--embed-dim", "30", "--heads", "4"], "BlockConfig: embed_dim 30 is not a multiple of heads 4"),
    "checkpointing": (
        ["step", "--checkpointing", "some"], "checkpointing must be none, block or every:k with k of at least 1, got 'some'"
    ),
    "no layers": (["step", "--layers", "0"], "--layers must be at least 1, got 0"),
    "window": (["decode", "--window", "0"], "--window must be at least 1, got 0"),
    "position": (["decode", "--position", "0"], "--position must be at least 1, got 0"),
    "odd heads": (["decode", "--embed-dim", "12", "--heads", "4"], "BlockConfig: head width 3 (embed_dim / heads) must be even for rotary pairs"),
    "nothing": (["memory", "--length", "--layers"], "--length or --layers must be given a value"),
    "too many scores": (
        ["memory", "--peer", "torch-bias"],
        "--peer torch-bias holds all B·H·T² scores at once, 268,435,456 at most, got 536,870,912: try a smaller --length",
    ),
    "plot of the table": (
        ["table", "--plot", "x.png"],
        "--plot draws what one benchmark measures at several sizes: use it with attention, gemm, step, decode or memory",
    ),
    "cold table": (
        ["table", "--cold"],
        "the table has cold starts of its own and takes one number of --threads: leave --cold and further numbers out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, before any process is started."""
    monkeypatch.setattr("ttr_fast.bench.case.torch_is_installed", lambda: True)
    arguments, sentence = REFUSED[name]
    with pytest.raises(UserError) as caught:
        cli.run(["bench", *arguments])
    assert (str(caught.value), capsys.readouterr().out) == (sentence, "")


def test_threads_are_given() -> None:
    """Those of the machine unless told otherwise."""
    assert {t.case.threads for t in TableOptions().targets()} == {processors()}
