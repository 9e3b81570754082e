"""`--data-root` reaches the job worker's settings."""

import os
from pathlib import Path

import click
import pytest

from crosscope_local.commands import demo, up
from crosscope_local.run import Wanted, installation


@pytest.mark.parametrize("command", [up, demo])
def test_the_folders_come_from_the_option_or_the_variable(
    command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CROSSCOPE_WORKER_DATA_ROOTS", raising=False)
    context = command.make_context("x", ["--data-root", str(tmp_path), "--data-root", "/usr"])
    assert context.params["data_roots"] == (tmp_path, Path("/usr"))
    assert command.make_context("x", []).params["data_roots"] == ()
    monkeypatch.setenv("CROSSCOPE_WORKER_DATA_ROOTS", f"{tmp_path}{os.pathsep}/usr")
    assert command.make_context("x", []).params["data_roots"] == (tmp_path, Path("/usr"))
    with pytest.raises(click.BadParameter, match="/nowhere"):
        command.make_context("x", ["--data-root", "/nowhere"])


def test_only_the_job_worker_gets_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with installation(
        Wanted(tmp_path / "home", "127.0.0.1", 0, None, (Path("data"), Path("/usr"))), lambda *_: None
    ) as found:
        told = {program.name: program.environment.get("CROSSCOPE_WORKER_DATA_ROOTS") for program in found.programs()}
    assert told.pop("jobs") == f"{tmp_path}/data{os.pathsep}/usr"
    assert set(told.values()) == {None}
