"""`ttr bench`: what it prints, refuses and compares. No time is ever asserted."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba import get_num_threads

from ttr_fast import cli
from ttr_fast.bench import attention, gemm, machine
from ttr_fast.bench.case import OURS, chosen_peers, processors, torch_has_gpu
from ttr_fast.bench.client import Worker
from ttr_fast.bench.events import MEAN_GAP
from ttr_fast.bench.measure import Machine, Result, Timing, check_agreement, disagreement
from ttr_fast.bench.report import figures, save_plot, table
from ttr_fast.cpu.peak import TileProducts, read_through
from ttr_fast.cuda import found
from ttr_fast.errors import UserError

QUICK = ["--samples", "2", "--least-ms", "1", "--threads", "1"]
SMALL = ["attention", "--length", "64", "--heads", "2", "--head-dim", "16"]
CASE = attention.Case(dtype="f32", threads=1, length=64, heads=2, head_dim=16, batch=1, bias="log", passes="both")
FIELDS = {
    "case", "ours_ms", "ours_quartiles_ms", "peer", "peer_ms", "peer_quartiles_ms", "ratio", "threads", "gflops", "peer_gflops", "share_of_peak",
    "gb_per_s", "share_of_reading", "peak_mib", "peer_peak_mib", "results_mib", "activations_mib", "peer_activations_mib", "machine",
}  # fmt: skip


def test_json_lines_agree_with_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against the oracle, forward and both: one object a line and nothing else on stdout, and a plot."""
    plot = tmp_path / "plot.png"
    cli.run(["bench", *SMALL, "--pass", "forward", "both", "--peer", "numpy", "--json", "-", "--plot", str(plot), *QUICK])
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["case"]["passes"] for line in lines] == ["forward", "both"]
    for line in lines:
        assert line.keys() == FIELDS
        assert line["case"] | {"kind": "attention", "length": 64, "heads": 2, "head_dim": 16, "bias": "log", "dtype": "f32"} == line["case"]
        assert (line["peer"], line["threads"]) == ("numpy", 1)
        assert line["ratio"] == line["peer_ms"] / line["ours_ms"] > 0
        for side in ("ours", "peer"):
            low, high = line[f"{side}_quartiles_ms"]
            assert 0 < low <= line[f"{side}_ms"] <= high
        flops = 2 * 2 * 64**2 * 16 * (1 if line["case"]["passes"] == "forward" else 3.5)
        assert line["gflops"] == pytest.approx(flops / line["ours_ms"] / 1e6)
        assert line["share_of_peak"] == pytest.approx(line["gflops"] / line["machine"]["peak_gflops"])
        assert line["machine"]["read_gb_per_s"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "numpy: NumPy " in captured.err
    assert "the machine: " in captured.err


def test_our_side_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table on stdout, the same in a file, cold starts on request."""
    file = tmp_path / "lines.jsonl"
    cli.run(["bench", *SMALL, "--against", "none", "--pass", "forward", "--cold", "--json", str(file), *QUICK])
    out = capsys.readouterr().out
    heading, rule, row, *cold = out.splitlines()
    assert heading.split()[:3] == ["case", "ours", "ms"]
    assert set(rule) == {"-"}
    assert row.startswith("attention f32 B1 T64 H2 D16 log forward, 1 threads  ")
    assert "without compiled kernels on disk" in cold[-1]
    (line,) = map(json.loads, file.read_text().splitlines())
    assert line["peer"] is line["peer_ms"] is line["ratio"] is line["peer_cold_seconds"] is None
    assert len(line["ours_cold_seconds"]) == 2


REFUSED = {
    "no events": ([*SMALL[:1], "--length", "0"], "--length must be at least 1, got 0"),
    "nothing": ([*SMALL, "--heads"], "--heads must be at least 1, got nothing"),
    "no samples": ([*SMALL, "--samples", "0"], "--samples must be at least 1, got 0"),
    "no bias": ([*SMALL, "--bias"], "--bias must be given a value"),
    "dropout": ([*SMALL, "--dropout", "1"], "--dropout must be in [0, 1), got 1"),
    "no duration": ([*SMALL, "--least-ms", "0"], "--least-ms must be positive, got 0.0"),
    "threads": (
        [*SMALL, "--threads", "1", "9999"], f"--threads must be from 1 to {processors()}, the processors there are, got 1 9999"
    ),
    "both": (
        [*SMALL, "--against", "none", "--peer", "numpy"],
        "--against none compares with nothing, but --peer numpy was given: leave one of them out",
    ),
    "too long": (
        ["attention", "--length", "10000", "--peer", "numpy"],
        "--peer numpy holds all B·H·T² scores at once, 33,554,432 at most, got 800,000,000: try a smaller --length",
    ),
    "mask too large": (
        ["attention", "--length", "20000", "--peer", "torch-bias", "ours-plain"],
        "--peer torch-bias holds all B·H·T² scores at once, 268,435,456 at most, got 3,200,000,000: try a smaller --length",
    ),
    "plot": ([*SMALL, "--plot", "x.txt"], "--plot x.txt: expected a file that ends in .png, .pdf, .svg"),
    "folder": ([*SMALL, "--json", "no/where.jsonl"], "--json no/where.jsonl: there is no folder no"),
    "shape": (["gemm", "--shape", "3", "0", "4", "--against", "none"], "--shape must be at least 1, got 3 0 4"),
    "compiled for GPUs": ([*SMALL, "--peer", "torch-flex"], "--peer torch-flex is compiled for GPUs: take --backend cuda with it"),
    "16-bit numpy": (
        ["gemm", "--dtype", "bf16", "--peer", "numpy"], "--peer numpy multiplies f32 only: NumPy's BLAS knows no 16-bit matrices"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before any process is started, so PyTorch need not be there."""
    monkeypatch.setattr("ttr_fast.bench.case.torch_is_installed", lambda: True)
    arguments, sentence = REFUSED[name]
    with pytest.raises(UserError) as caught:
        cli.run(["bench", *arguments])
    assert (str(caught.value), capsys.readouterr().out) == (sentence, "")


@pytest.mark.parametrize("arguments", [[], ["sort"], ["attention", "--dtype", "f8"], ["attention", "--shape", "3"]])
def test_what_the_options_do_not_allow(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run(["bench", *arguments])
    assert stopped.value.code == 2


@pytest.mark.parametrize("kind", ["attention", "gemm", "step", "decode", "memory", "table"])
def test_help_of_each_kind_shows_examples(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.run(["bench", kind, "--help"])
    assert stopped.value.code == 0
    assert f"ttr bench {kind}" in capsys.readouterr().out.split("Examples:")[1]


def test_gemm(capsys: pytest.CaptureFixture[str]) -> None:
    """Against NumPy's BLAS."""
    cli.run(["bench", "gemm", "--shape", "33", "20", "17", "--peer", "numpy", "--json", "-", *QUICK])
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line.keys() == FIELDS
    assert line["gflops"] == pytest.approx(2 * 33 * 20 * 17 / line["ours_ms"] / 1e6)
    assert line["gb_per_s"] == pytest.approx(4 * (33 * 20 + 20 * 17 + 33 * 17) / line["ours_ms"] / 1e6)
    assert line["share_of_reading"] == pytest.approx(line["gb_per_s"] / line["machine"]["read_gb_per_s"])


def test_numpy_side_of_gemm() -> None:
    case = gemm.Case(dtype="f32", threads=1, m=5, k=7, n=3)
    x, w, _ = gemm.inputs(case)
    side = gemm.SIDES["numpy"](case)
    np.testing.assert_array_equal(side.named(side.call())["y"], (x @ w).astype(np.float64))


def test_the_worker_protocol() -> None:
    """Answers come one for one; what fails is told, and the worker goes on."""
    with Worker("numpy", 1) as worker:
        assert worker.ask("describe", backend="cpu")["text"].startswith("NumPy ")
        for do in ("sample", "peak", "dance"):
            with pytest.raises(UserError, match=f"numpy: ValueError: there is no request '{do}' here"):
                worker.ask(do)
        assert worker.ask("memory") == {"peak_mib": None, "activations_mib": None}
        assert worker.ask_case("prepare", CASE, least_ms=0.1)["calls"] >= 1
        assert worker.ask("sample")["ms"] > 0
        peak = worker.ask("memory")["peak_mib"]
        assert peak is None or peak >= 0
        with pytest.raises(UserError, match="numpy: "):
            worker.ask("prepare", kind="attention", case={"dtype": "f32"}, least_ms=1)
        worker.process.kill()
        with pytest.raises(UserError, match="numpy: the process that measures it ended with signal 9"):
            worker.ask("describe", backend="cpu")
    assert worker.process.returncode == -9


def test_an_answer_that_does_not_come() -> None:
    """Is not waited for, and the process is gone."""
    with Worker("numpy", 1, limit_s=0.2) as worker, pytest.raises(UserError, match=r"numpy: no answer within 0\.2 s"):
        worker.ask_case("prepare", CASE, least_ms=1e6)
    assert worker.process.returncode == -9


@pytest.mark.parametrize("kind", ["attention", "gemm", "step", "decode", "memory", "table"])
def test_without_a_gpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before any process is started."""
    monkeypatch.setattr("ttr_fast.cuda.found.obstacle", lambda: found.Obstacle("there is no GPU here", "buy one"))
    monkeypatch.setattr("ttr_fast.bench.measure.Worker", None)
    with pytest.raises(UserError, match="--backend cuda: there is no GPU here; "):
        cli.run(["bench", kind, "--backend", "cuda"])


def test_a_torch_that_finds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is no peer on a GPU, and one on the CPU."""
    fake = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr("ttr_fast.bench.case.torch_is_installed", lambda: True)
    for available in (False, True):
        torch_has_gpu.cache_clear()
        fake.cuda.is_available = lambda available=available: available
        assert chosen_peers("torch", (), ("torch", "numpy"), "cuda") == (("torch", "numpy") if available else ("numpy",))
        assert chosen_peers("torch", (), ("torch",)) == ("torch",)
    torch_has_gpu.cache_clear()


def test_the_same_inputs_everywhere() -> None:
    """They depend on the case alone, and times are those of a Poisson process in whole UNIX seconds."""
    a, b = attention.inputs(CASE), attention.inputs(replace(CASE))
    for x, y in zip((*a[:4], a.at.time), (*b[:4], b.at.time), strict=True):
        assert x.tobytes() == y.tobytes()
    times = attention.inputs(replace(CASE, length=4096)).at.time
    assert times.dtype == np.int64
    gaps = np.diff(times[0])
    assert gaps.min() >= 0
    assert gaps.mean() == pytest.approx(MEAN_GAP, rel=5 / 64)  # five standard errors of the mean of 4096 exponentials
    assert gaps.std() == pytest.approx(MEAN_GAP, rel=5 * 2**0.5 / 64 * 2)


@pytest.mark.parametrize(
    ("dtype", "bias", "dropout"),
    [("f32", "none", 0), ("f32", "log", 0), ("f32", "log", 0.3), ("f64", "table", 0), ("bf16", "log", 0), ("f16", "log", 0)]
)  # fmt: skip
def test_ours_agrees_with_the_oracle(dtype: str, bias: str, dropout: float) -> None:
    """As the command finds out before it measures; with dropout the masks are the same."""
    case = replace(CASE, bias=bias, dtype=dtype, dropout=dropout)
    assert case.shared_with("numpy") == case
    check_agreement(case, "numpy")


def test_what_is_compared() -> None:
    """Without what the peer does not know: the bias, the mask of dropout."""
    case = replace(CASE, dropout=0.1, length=10_000)
    assert case.shared_with("torch-plain") == replace(case, bias="none", dropout=0.0, length=4096)
    assert case.shared_with("torch-bias") == case.shared_with("ours-plain") == replace(case, dropout=0.0, length=4096)
    small = replace(CASE, length=32, bias="log")
    dropping, plain = (attention.SIDES[side](replace(small, dropout=0.5)) for side in (OURS, "ours-plain"))
    o = attention.SIDES[OURS](small).call()[0]
    np.testing.assert_array_equal(plain.call()[0], o)
    assert not np.array_equal(dropping.call()[0], o)


def test_a_disagreement_is_found() -> None:
    right = {"o": np.ones((2, 3)), "dq": np.full(4, 2.0)}
    assert disagreement(CASE, right, right) is None
    assert disagreement(CASE, right, right | {"dq": np.full(4, 2.0001)}) is None
    for wrong in (np.full(4, 2.1), np.full(4, np.nan), np.full(5, 2.0)):
        assert str(disagreement(CASE, right, right | {"dq": wrong})).startswith("dq ")
    assert str(disagreement(CASE, right, {"o": right["o"]})).startswith("ours gives o, dq, ")


def test_who_is_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyTorch our side is measured alone, once."""
    monkeypatch.setattr("ttr_fast.bench.case.torch_is_installed", lambda: True)
    assert chosen_peers("torch", (), ("torch-plain", "torch-bias")) == ("torch-plain", "torch-bias")
    assert chosen_peers("torch", ("numpy",), ("torch",)) == ("numpy",)
    assert chosen_peers("none", (), ("torch",)) == (None,)
    monkeypatch.setattr("ttr_fast.bench.case.torch_is_installed", lambda: False)
    assert chosen_peers("torch", (), ("torch-plain", "torch-bias")) == (None,)
    assert chosen_peers("torch", ("numpy", "torch-bias"), ("torch",)) == ("numpy",)


def test_without_torch_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ttr_fast.bench.case.torch_is_installed", lambda: False)
    cli.run(["bench", *SMALL, "--pass", "forward", "--json", "-", *QUICK])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["peer"] is None
    assert "PyTorch is not installed, so our side is measured alone" in captured.err


def test_table_and_plot(tmp_path: Path) -> None:
    """Of a peer that is twice as slow, one that is not there, and memory that is not known."""
    ours, theirs = Timing(2.0, (1.5, 3.0), 10.0), Timing(4.0, (4.0, 5.0), None)
    results = [
        Result(replace(CASE, length=n), Machine(100.0, 10.0), ours, peer, None if peer is None else theirs)
        for n in (64, 128) for peer in ("numpy", None)
    ]  # fmt: skip
    lines = table(results).splitlines()
    assert len(lines) == 2 + len(results)
    assert "2.00 [1.50–3.00]  numpy  4.00 [4.00–5.00]   2.00" in lines[2]
    assert lines[3].rstrip().endswith("10       –")
    assert "of reading" in lines[0]
    assert [figures(ms) for ms in (0.01234, 1.234, 12.34, 123.4, 1234.5)] == ["0.0123", "1.23", "12.3", "123", "1234"]
    save_plot(tmp_path / "x.svg", results)
    assert "<svg" in (tmp_path / "x.svg").read_text()


def test_the_machine() -> None:
    """Sums read every number once; a peak is positive; the number of calls follows the time they take."""
    x = np.arange(64 * 3 * get_num_threads(), dtype=np.float32)
    assert read_through(x).sum() == pytest.approx(x.sum(dtype=np.float64), rel=1e-6)
    tiles = TileProducts(8, 2, np.float32)
    tiles.run(3)
    thread, width = tiles.c.shape[0] - 1, 32
    product = tiles.a[thread, : 8 * 128].reshape(8, 128).astype(np.float64) @ tiles.b[thread, : 128 * width].reshape(128, width)
    np.testing.assert_allclose(tiles.c[thread, : 8 * width].reshape(8, width), 3 * product, rtol=130 * np.finfo(np.float32).eps)
    assert (tiles.c[:, 8 * width :] == 0).all()
    assert machine.MatrixPeak("f32").gflops() > 0
    assert OURS in attention.SIDES
    assert OURS in gemm.SIDES
