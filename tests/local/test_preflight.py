import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crosscope_local import preflight
from crosscope_local.preflight import PreflightError


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PreflightError, match=f"^Port {port} of 127.0.0.1 is in use; .* with --port.$"):
            preflight.check_port("127.0.0.1", port, "--port")
    preflight.check_port("127.0.0.1", preflight.free_port("127.0.0.1"), "--port")


def test_an_unknown_address_is_refused_in_a_sentence() -> None:
    with pytest.raises(PreflightError, match=r"The address 203.0.113.9:5 |Port 5 of 203.0.113.9 cannot be opened"):
        preflight.check_port("203.0.113.9", 5, "--port")


@pytest.mark.parametrize(
    ("host", "says"), [("203.0.113.9", "No port of 203.0.113.9"), ("no.such.invalid", "not known")]
)
def test_no_free_port_at_an_address_elsewhere(host: str, says: str) -> None:
    with pytest.raises(PreflightError, match=says):
        preflight.free_port(host)


def test_too_little_room_is_told_in_megabytes(tmp_path: Path) -> None:
    preflight.check_disk(tmp_path, 1)
    with pytest.raises(PreflightError, match=r"has \d+ MB left and 1000000000000 MB are needed; free some space"):
        preflight.check_disk(tmp_path, 10**18)


def test_a_home_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match=r"cannot be written to .Not a directory.; choose another one with --home"):
        preflight.prepare_home(tmp_path / "file" / "home")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for that of a socket; pytest's own folders may have longer ones."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_the_runtime_folder_is_private_short_and_always_the_same(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path / ("x" * 90)))
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    folder = preflight.runtime_folder(short_path / "home")
    assert folder.parent == short_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert preflight.runtime_folder(short_path / "home") == folder
    assert preflight.runtime_folder(short_path / "other") != folder


def test_a_runtime_folder_that_others_can_enter_is_not_used(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    folder = preflight.runtime_folder(short_path / "home")
    folder.chmod(0o777)
    elsewhere = preflight.runtime_folder(short_path / "home")
    assert elsewhere.parent == Path("/tmp")
    elsewhere.rmdir()


def test_the_second_supervisor_of_a_home_is_told_who_has_it(tmp_path: Path) -> None:
    with (
        preflight.HomeLock(tmp_path, "127.0.0.1:7"),
        pytest.raises(PreflightError, match=f"already runs for .*: process {os.getpid()}, server at 127.0.0.1:7;"),
    ):
        preflight.HomeLock(tmp_path, "127.0.0.1:8")
    with preflight.HomeLock(tmp_path, "127.0.0.1:8"):
        pass


def test_a_lock_is_free_when_its_process_has_ended(tmp_path: Path) -> None:
    source = (
        "import pathlib, sys; from crosscope_local import preflight as p; p.HomeLock(pathlib.Path(sys.argv[1]), '')"
    )
    subprocess.run([sys.executable, "-c", source, str(tmp_path)], check=True)
    with preflight.HomeLock(tmp_path, "b"), pytest.raises(PreflightError, match="server at b;"):
        preflight.HomeLock(tmp_path, "c")


def test_a_lock_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "supervisor.lock").mkdir()
    with pytest.raises(PreflightError, match=r"supervisor\.lock cannot be opened .*another account"):
        preflight.HomeLock(tmp_path, "a")


def test_parts_that_are_not_installed_are_named() -> None:
    preflight.check_parts({"crosscope_server": "./server"})
    says = (
        r"^Not installed here: crosscope_x; in the folder of crosscope's source: pip install \./proto \./store \./x\.$"
    )
    with pytest.raises(PreflightError, match=says):
        preflight.check_parts({"crosscope_x": "./x"})
