"""Results as a table and as pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ttr_fast.bench.measure import Result, Timing

HEADING = ("case", "ours ms", "peer", "peer ms", "ratio", "GF/s", "of peak", "of reading", "MiB", "peer's")

MEMORY_HEADING = ("case", "ours MiB", "activations", "ours ms", "peer", "peer's MiB", "activations", "peer ms", "ratio")


def table(results: Sequence[Result]) -> str:
    """Medians with their quartiles, one comparison a row; a ratio above 1 says that ours is faster. MiB: how far memory rose beyond the inputs."""
    rows = [HEADING]
    for r in results:
        ratio = "–" if r.ratio is None else f"{r.ratio:.2f}"
        rows.append((
            r.case.label, spread(r.ours), r.peer_name or "–", spread(r.peer), ratio, f"{r.gflops(r.ours):.1f}", f"{r.share_of_peak:.0%}",
            f"{r.share_of_reading:.0%}", mebibytes(r.ours.peak_mib), mebibytes(r.peer.peak_mib if r.peer else None),
        ))  # fmt: skip
    return "\n".join(aligned(rows, {"case", "peer"}) + cold_lines(results))


def memory_table(results: Sequence[Result]) -> str:
    """How far memory rose beyond inputs and results, what backward needs of it where that is known, and the time."""
    rows = [MEMORY_HEADING]
    for r in results:
        ratio = "–" if r.ratio is None else f"{r.ratio:.2f}"
        rows.append((
            r.case.label, mebibytes(r.extra_mib), mebibytes(r.ours.activations_mib), figures(r.ours.ms), r.peer_name or "–",
            mebibytes(r.peer_extra_mib), mebibytes(r.peer.activations_mib if r.peer else None), figures(r.peer.ms) if r.peer else "–", ratio,
        ))  # fmt: skip
    return "\n".join(aligned(rows, {"case", "peer"}) + cold_lines(results))


def aligned(rows: Sequence[tuple[str, ...]], words: set[str]) -> list[str]:
    """Columns of words to the left, numbers to the right, a rule below the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    to_left = {i for i, name in enumerate(rows[0]) if name in words}
    lines = ["  ".join(f"{cell:{'<' if i in to_left else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def spread(timing: Timing | None) -> str:
    """Median [first quartile–third quartile]."""
    if timing is None:
        return "–"
    return f"{figures(timing.ms)} [{figures(timing.quartiles_ms[0])}–{figures(timing.quartiles_ms[1])}]"


def figures(ms: float) -> str:
    """Three or four of them."""
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.{max(0, 2 - int(np.floor(np.log10(max(ms, 1e-3)))))}f}"


def mebibytes(size: float | None) -> str:
    """A dash where unknown."""
    return "–" if size is None else f"{size:.0f}"


def cold_lines(results: Sequence[Result]) -> list[str]:
    """Cold starts, where they were asked for."""
    lines = []
    for r in results:
        for side, timing in (("ours", r.ours), (r.peer_name, r.peer)):
            if timing is not None and timing.cold_seconds is not None:
                empty, warm = timing.cold_seconds
                lines.append(f"  {r.case.label}, {side}: {empty:.1f} s without compiled kernels on disk, {warm:.1f} s with them")
    return ["", "from the start of a process to the end of a first call:", *lines] if lines else []


def save_plot(path: Path, results: Sequence[Result]) -> None:
    """Time, speed and memory against size, and the speed against what the memory and the arithmetic allow. One kind is drawn: that of the first."""
    from matplotlib.figure import Figure

    results = [r for r in results if r.case.kind == results[0].case.kind]

    figure = Figure(figsize=(11, 9), layout="constrained")
    (times, speeds), (memories, roofline) = figure.subplots(2, 2)
    curves: dict[str, dict[float, tuple[Result, Timing]]] = {}
    for r in results:
        for side, timing in (("ours", r.ours), (r.peer_name, r.peer)):
            if timing is not None:
                curves.setdefault(f"{side}: {r.case.series}", {}).setdefault(r.case.size, (r, timing))
    for n, (label, points) in enumerate(sorted(curves.items(), key=lambda item: not item[0].startswith("ours"))):
        sizes = sorted(points)
        at = [points[size] for size in sizes]
        style = {"marker": "o", "color": f"C{n % 10}", "linestyle": "-" if label.startswith("ours") else "--", "label": label}
        ms = np.array([timing.ms for _, timing in at])
        around = np.abs(np.array([timing.quartiles_ms for _, timing in at]).T - ms)
        times.errorbar(sizes, ms, yerr=around, capsize=2, **style)
        gflops = [r.gflops(timing) for r, timing in at]
        speeds.plot(sizes, gflops, **style)
        memories.plot(sizes, [np.nan if timing.peak_mib is None else timing.peak_mib for _, timing in at], **style)
        roofline.plot([r.case.flops / r.case.bytes for r, _ in at], gflops, **style)
    intensities = [r.case.flops / r.case.bytes for r in results]
    best = {(r.case.dtype == "f64", r.case.threads): r.machine for r in sorted(results, key=lambda r: r.machine.peak_gflops)}
    for machine in best.values():
        x = np.geomspace(min(0.5, *intensities), 2 * max(*intensities, machine.peak_gflops / machine.read_gb_per_s), 200)
        roofline.plot(x, np.minimum(machine.peak_gflops, machine.read_gb_per_s * x), color="0.4")
        speeds.axhline(machine.peak_gflops, color="0.4", linewidth=1)
    size = results[0].case.axis
    for axis in (times, speeds, memories):
        axis.set_xscale("log")
        sizes = sorted({r.case.size for r in results})
        axis.set_xticks(sizes, labels=[f"{x:.4g}" for x in sizes])
        axis.minorticks_off()
    times.set(yscale="log", xlabel=size, ylabel="ms", title="median time of a call, quartiles")
    speeds.set(xlabel=size, ylabel="GF/s", title="speed; the line is the machine's peak", ylim=(0, None))
    memories.set(xlabel=size, ylabel="MiB", title="peak of memory beyond the inputs", ylim=(0, None))
    roofline.set(xscale="log", yscale="log", xlabel="operations for each byte that must move", ylabel="GF/s", title="roofline")
    for axis in (times, speeds, memories, roofline):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    figure.savefig(path, dpi=130)
