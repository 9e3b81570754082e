"""deploy/crosscope.toml and the systemd unit: what they name exists, and what they say is taken."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from crosscope_local.commands import options_of, up
from crosscope_local.config import read_config
from crosscope_local.programs import Installation

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "deploy/systemd/crosscope.service"
EXAMPLE = ROOT / "deploy/crosscope.toml"


def test_the_example_is_taken_with_every_line(tmp_path: Path) -> None:
    config = read_config(EXAMPLE, options_of(up))
    assert config.options == {"home": "/var/lib/crosscope"}
    written_out = re.sub(r"^# (\w+ = .*?)(   .*)?$", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    file = tmp_path / "crosscope.toml"
    file.write_text(written_out.replace('"cuda"', '"cpu"'))
    config = read_config(file, options_of(up))
    assert {len(config.options), *map(len, config.settings.values())} == {11, 4, 3}
    config.check(Installation(tmp_path, "127.0.0.1", 1, None, tmp_path, settings=config.settings).programs())


def test_the_units_command_is_one_of_ours() -> None:
    line = re.search(r"^ExecStart=(\S+)/crosscope (.*)$", UNIT.read_text(), re.MULTILINE)
    assert line is not None
    command, *arguments = line[2].split()
    assert command == "up"
    with pytest.raises(click.BadParameter, match=re.escape(arguments[1])):  # no such file here
        up.make_context("up", arguments)


def test_the_units_folders_are_its_users_alone() -> None:
    assert {"StateDirectoryMode=0700", "CacheDirectoryMode=0700"} <= set(UNIT.read_text().splitlines())


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("no systemd-analyze here")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/crosscope/bin/crosscope", sys.executable))
    done = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
