"""`ttr doctor`, and what every command says of `--backend cuda` where it cannot run."""

import json
import sys
from pathlib import Path

import pytest

from ttr_fast import cli
from ttr_fast.cuda import found
from ttr_fast.cuda.found import Device, Driver, Obstacle
from ttr_fast.model import check_usable, load_backend

H200 = Device("NVIDIA H200", (9, 0), 139 * 2**30)


def shown(monkeypatch: pytest.MonkeyPatch, driver: Driver | Obstacle, packages: dict[str, str]) -> None:
    """A machine with this driver and these packages, and no toolkit."""
    monkeypatch.setattr(found, "driver", lambda: driver)
    monkeypatch.setattr(found, "package_version", packages.get)
    monkeypatch.setattr(found, "library_of_toolkit", lambda name: None)


ALL = {"numba-cuda": "0.30.4", "nvidia-nvvm": "13.0.88", "nvidia-cuda-nvrtc": "13.0.88"}
OLD_GPU = Driver((13, 0), (Device("Tesla T4", (7, 5), 2**34),))
MACHINES = [
    (Obstacle("there is no NVIDIA driver here (libcuda.so.1 cannot be loaded)", "install it"), {}, "there is no NVIDIA driver here"),
    (Driver((13, 0), ()), ALL, "the NVIDIA driver shows no GPU"),
    (OLD_GPU, ALL, r"the GPU is too old: Tesla T4 has compute capability 7\.5, 8\.0 is needed"),
    (Driver((12, 4), (H200,)), ALL, r"the NVIDIA driver is too old: it knows CUDA 12\.4, 13\.0 is needed"),
    (Driver((13, 0), (H200,)), {}, "numba-cuda is not installed"),
    (Driver((13, 0), (H200,)), {"numba-cuda": "0.30.4", "nvidia-nvvm": "13.0.88"}, "nvidia-cuda-nvrtc is not installed"),
]


@pytest.mark.parametrize("driver, packages, said", MACHINES, ids=[said[:30] for *_, said in MACHINES])
def test_the_sentence_for_each_machine(monkeypatch: pytest.MonkeyPatch, driver: Driver | Obstacle, packages: dict[str, str], said: str) -> None:
    shown(monkeypatch, driver, packages)
    with pytest.raises(cli.UserError, match=f"^--backend cuda: {said}.*; take --backend cpu, or see with `ttr doctor` what is here"):
        load_backend("cuda")


@pytest.mark.parametrize(
    "arguments", [["demo"], ["train", "--data", "a.csv"], ["generate", "checkpoint", "--data", "a.csv", "--entity", "a"]], ids=lambda a: a[0]
)
def test_commands_refuse_it_before_anything_else(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit code 2, no folder is made."""
    shown(monkeypatch, MACHINES[0][0], {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ttr", *arguments, "--backend", "cuda"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ttr: --backend cuda: there is no NVIDIA driver here (libcuda.so.1 cannot be loaded); take --backend cpu")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("driver, packages, said", MACHINES, ids=[said[:30] for *_, said in MACHINES])
def test_the_doctor_finds_the_same_and_tells_what_mends_it(
    driver: Driver | Obstacle, packages: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(monkeypatch, driver, packages)
    cli.run(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    wrong = [finding for finding in report["findings"] if finding["found"] is None and "missing" in finding]
    missing = found.obstacle()
    assert missing is not None
    assert any(f["missing"].startswith(missing.what) and f["mend"] == missing.mend for f in wrong)
    assert report["backends"] == {"cpu": True, "cuda": False, "reference": True}
    cli.run(["doctor"])
    text = capsys.readouterr().out
    assert all(f"  {f['missing']}\n    {f['mend']}\n" in text for f in wrong)


def test_a_whole_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown(monkeypatch, Driver((13, 1), (H200,)), ALL)
    cli.run(["doctor"])
    text = capsys.readouterr().out
    assert "\nGPU               NVIDIA H200, compute capability 9.0, 139.0 GiB\n" in text
    assert "\nNVIDIA driver     knows CUDA 13.1\n" in text
    assert "Missing" not in text
    assert text.endswith("\nBackends that run here: cpu, cuda, reference\n")
    check_usable("cuda")


def test_the_simulator_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """But greenlet."""
    shown(monkeypatch, MACHINES[0][0], {"greenlet": "3"})
    monkeypatch.setattr(found, "SIMULATED", True)
    check_usable("cuda")
    cli.run(["doctor"])
    said = capsys.readouterr().out
    assert "\nsimulator         NUMBA_ENABLE_CUDASIM=1 is set: cuda runs on the CPU, and no GPU is used\n" in said
    assert said.endswith("\nBackends that run here: cpu, cuda, reference\n")
    shown(monkeypatch, MACHINES[0][0], {})
    cli.run(["doctor"])
    said = capsys.readouterr().out
    assert "\nsimulator         missing\n" in said
    assert "\n  greenlet, which the simulator of NUMBA_ENABLE_CUDASIM=1 needs, is not installed\n    pip install greenlet\n" in said
    assert said.endswith("\nBackends that run here: cpu, reference\n")
    with pytest.raises(cli.UserError, match=r"^--backend cuda: greenlet, which the simulator of NUMBA_ENABLE_CUDASIM=1 needs, is not installed;"):
        check_usable("cuda")


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it is: the driver is asked, and the parts that are always there are named."""
    cli.run(["doctor"])
    text = capsys.readouterr().out
    for part in ("system", "Python", "numpy", "numba", "CPU", "NVIDIA driver", "numba-cuda", "nvidia-nvvm"):
        assert f"\n{part:<17} " in f"\n{text}"
    assert isinstance(found.driver(), Driver | Obstacle)


def test_a_toolkit_beside_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvvm" / "lib64").mkdir(parents=True)
    library = tmp_path / "nvvm" / "lib64" / "libnvvm.so.4"
    library.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(found, "package_version", lambda name: None)
    assert found.compiler_library("nvidia-nvvm") == str(library)
