"""The README's Python runs as it stands, and its commands exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from ttr_fast import cli

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


PRINTED = {
    "transformer_block_decode": r"-?\d+\.\d+\n",
    "evaluate": r"\d\.\d+\n",
    "attention_backward": r"\[( *-?\d+\.\d+){4}\]\n",
}
"""What each example prints, by a name that it calls."""


@pytest.mark.parametrize("name", PRINTED)
def test_the_python_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As they stand, but for the number of steps and the backend, whose kernels for these sizes nobody else compiles."""
    monkeypatch.chdir(tmp_path)
    assert len(blocks("python")) == len(PRINTED)
    (example,) = (block for block in blocks("python") if f"{name}(" in block)
    quick = example.replace("steps=100", "steps=1").replace('load_backend("cpu")', 'load_backend("reference")')
    exec(compile(quick, "README.md", "exec"), {})
    assert re.fullmatch(PRINTED[name], capsys.readouterr().out)


def test_the_commands_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert {m[1] for line in lines if (m := re.search(r"\bttr (\w+)", line))} == set(cli.COMMANDS)
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for line in lines:
        if target := re.match(r"make ([\w-]+)", line):
            assert re.search(rf"^{target[1]}:", makefile, re.MULTILINE)


def test_the_commands_for_gpus_are_understood() -> None:
    """Every line of docs/BUILD_GPU.md that calls ttr has options that the command takes; nothing is run."""
    guide = (Path(__file__).parents[2] / "docs" / "BUILD_GPU.md").read_text().replace("\\\n", "")
    lines = re.findall(r"^    (?:.*[ /])?ttr (\w+)(.*)$", guide, re.MULTILINE)
    assert {name for name, _ in lines} == {"doctor", "demo", "train", "eval", "generate", "bench"}
    for name, options in lines:
        command = importlib.import_module(f"ttr_fast.commands.{name}").Command
        assert isinstance(cli.read_options(command, name, shlex.split(options)), command)
