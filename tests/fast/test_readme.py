"""The README's Python runs as it stands, and its commands exist."""

import re
from pathlib import Path

import pytest

from ttr_fast import cli

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"\[( *-?\d+\.\d+){4}\]\n", capsys.readouterr().out)


def test_the_commands_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert {m[1] for line in lines if (m := re.search(r"\bttr (\w+)", line))} == set(cli.COMMANDS)
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for line in lines:
        if target := re.match(r"make ([\w-]+)", line):
            assert re.search(rf"^{target[1]}:", makefile, re.MULTILINE)
