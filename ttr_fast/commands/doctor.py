"""`ttr doctor`: what this machine has, what is missing, and the command that mends it."""

import platform
from dataclasses import dataclass

import msgspec

from ttr_fast.cuda import found
from ttr_fast.model import BACKENDS

CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512bf16", "amx-bf16", "neon", "bf16")
"""Those that make a difference to kernels."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line: a part of the machine, what it is, and what mends it if it is missing."""

    part: str
    found: str | None
    missing: str | None = None
    mend: str | None = None


class Report(msgspec.Struct, frozen=True):
    """All findings, and which backends can run."""

    findings: list[Finding]
    backends: dict[str, bool]


@dataclass(frozen=True)
class Command:
    """Show what is here for each backend: Python and its packages, the CPU, NVIDIA's driver, devices and compiler, and what mends what is missing.

    Examples:

        ttr doctor

        ttr doctor --json
    """

    json: bool = False
    """Print the findings as JSON."""

    def run(self) -> None:
        """Look and tell."""
        report = examined()
        print(msgspec.json.encode(report).decode() if self.json else text_of(report))


def examined() -> Report:
    """Look at everything. Nothing is compiled and nothing is installed."""
    shown = found.driver()
    findings = [
        Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        Finding("Python", platform.python_version()),
        *(Finding(name, found.package_version(name)) for name in ("numpy", "numba", "llvmlite")),
        processor(),
        *devices(shown),
        *compilers(),
        *simulator(),
    ]
    return Report(findings, {name: name != "cuda" or found.obstacle() is None for name in BACKENDS})


def processor() -> Finding:
    """The CPU as the compiler sees it."""
    from llvmlite import binding
    from numba import get_num_threads

    features = [name for name in CPU_FEATURES if binding.get_host_cpu_features().get(name)]
    listed = ", ".join(features) or "no vector instructions of interest"
    return Finding("CPU", f"{binding.get_host_cpu_name()}, {get_num_threads()} threads, {listed}")


def devices(shown: found.Driver | found.Obstacle) -> list[Finding]:
    """The driver and each GPU."""
    wrong = found.device_obstacle(shown)
    if isinstance(shown, found.Obstacle):
        return [Finding("NVIDIA driver", None, shown.what, shown.mend)]
    lines = [Finding("NVIDIA driver", f"knows CUDA {shown.cuda[0]}.{shown.cuda[1]}")]
    for gpu in shown.devices:
        lines.append(Finding("GPU", f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, {gpu.memory / 2**30:.1f} GiB"))
    if wrong is not None:
        lines.append(Finding("GPU", None, wrong.what, wrong.mend))
    return lines


def compilers() -> list[Finding]:
    """numba.cuda and the libraries that it compiles with."""
    versions = {"numba-cuda": found.package_version("numba-cuda")} | {name: found.compiler_library(name) for name in found.LIBRARIES}
    missing = "is not installed; kernels for the GPU cannot be compiled"
    return [Finding(name, v) if v is not None else Finding(name, None, f"{name} {missing}", found.INSTALL) for name, v in versions.items()]


def simulator() -> list[Finding]:
    """What runs kernels on the CPU, if it was asked for."""
    if not found.SIMULATED:
        return []
    wrong = found.simulator_obstacle()
    if wrong is not None:
        return [Finding("simulator", None, wrong.what, wrong.mend)]
    return [Finding("simulator", "NUMBA_ENABLE_CUDASIM=1 is set: cuda runs on the CPU, and no GPU is used")]


def text_of(report: Report) -> str:
    """A table, what is missing below it."""
    lines = [f"{finding.part:<17} {finding.found or 'missing'}" for finding in report.findings]
    wrong = [finding for finding in report.findings if finding.missing is not None]
    if wrong:
        lines += ["", "Missing for the GPU:"]
        for finding in wrong:
            lines += [f"  {finding.missing}", f"    {finding.mend}"]
    runs = ", ".join(name for name, works in report.backends.items() if works)
    lines += ["", f"Backends that run here: {runs}"]
    return "\n".join(lines)
