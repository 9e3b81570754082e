"""Every snippet of the README, run as it stands against a real stack."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures_snippets import run_snippet

from crosscope import Job

from .conftest import ROOT, Stack

pytestmark = pytest.mark.slow

SNIPPETS = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def snippets(language: str) -> list[str]:
    return [text for name, text in SNIPPETS if name == language]


def test_the_commands_are_those_of_the_makefile():
    commands = [line for line in snippets("")[0].splitlines() if line]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert commands == ["make demo", "make test"]
    assert {command.split()[1] for command in commands} <= targets


@pytest.mark.parametrize("number", range(len(snippets("bash"))))
def test_shell(stack: Stack, made: tuple[Job, Job], number: int):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CROSSCOPE_ADDRESS": stack.address,
    }
    for line in snippets("bash")[number].splitlines():
        done = subprocess.run(line, shell=True, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), line


def test_python(
    stack: Stack, made: tuple[Job, Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CROSSCOPE_ADDRESS", stack.address)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for text in snippets("python"):
        run_snippet(text, names)
    assert len(names["table"]) > 0
    assert len(names["encoding"].tokens.pieces) > 3
    assert [len(each) > 3 for each in names["encodings"]] == [True, True]
    assert names["job"].info.version_id
    assert "publish" in capsys.readouterr().out
    names["client"].close()


def test_the_tree_names_what_there_is():
    tree = next(text for text in snippets("") if text.startswith("README.md"))
    for line in tree.splitlines():
        if match := re.match(r"^([\w.-]+/?)( |$)", line):
            assert (ROOT / match[1]).exists(), line
    named = set(re.findall(r"^([\w.-]+)/", tree, re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {name.split("/")[0] for name in tracked.split("\n") if "/" in name and not name.startswith(".")}
    assert named == folders
