"""`crosscope up` as a person starts it: the real processes, killed one by one, and stopped."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fixtures_waiting import PATIENCE_S, until

from crosscope import Client, Unauthorized
from crosscope_local.run import PROCESSES
from crosscope_local.supervise import STANDBY_OF
from crosscope_proto import access
from tests.local.small_programs import alive

COMMAND = [sys.executable, "-c", "from crosscope.cli import main; main()"]


class Up:
    """A running `crosscope up` and what it has said."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*COMMAND, "up", "--home", str(home), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        self.lines.extend(line.rstrip() for line in iter(self.process.stdout.readline, ""))

    def said(self, pattern: str) -> re.Match[str] | None:
        return next((found for line in list(self.lines) if (found := re.search(pattern, line))), None)

    def times_said(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in list(self.lines))

    def children(self) -> dict[int, str]:
        """Command lines of the processes that the supervisor has started, by id."""
        found: dict[int, str] = {}
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found[child.pid] = " ".join(child.cmdline())
        return found

    def standbys(self) -> set[int]:
        """Ids of processes that wait in case another ends."""
        noted = json.loads((self.home / PROCESSES).read_text())["processes"]
        return {pid for name, (pid, _) in noted.items() if name.startswith(STANDBY_OF)}

    def descendants(self) -> set[int]:
        return {each.pid for each in psutil.Process(self.process.pid).children(recursive=True)}

    def end(self, number: signal.Signals) -> int:
        """Sends a signal; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    started = Up(tmp_path_factory.mktemp("up") / "home", "--no-app")
    try:
        until(lambda: started.said("^Ready after") or started.process.poll() is not None, 2 * PATIENCE_S)
        assert started.said("^Ready after"), started.lines
        yield started
    finally:
        started.close()


def process_of(up: Up, name: str) -> int | None:
    """The id of one of the processes, once it has become what it is to be."""
    marks = {
        "queue": "queue.sock",
        "cache": "cache.sock",
        "server": "-m crosscope_server ",
        "worker": "-m crosscope_worker serve",
        "jobs": "-m crosscope_worker jobs",
    }
    return next(
        (
            pid
            for pid, line in up.children().items()
            if marks[name] in f"{line} " and "launch.py" not in line and pid not in up.standbys()
        ),
        None,
    )


@pytest.mark.parametrize("name", ["queue", "cache", "server", "worker", "jobs"])
def test_a_process_that_is_killed_comes_back(up: Up, name: str) -> None:
    first = process_of(up, name)
    assert first
    up_before = up.times_said(f"^{name} is back")
    os.kill(first, signal.SIGKILL)
    until(lambda: up.times_said(f"^{name} is back") > up_before, seen=lambda: up.lines)
    assert up.said(f"^{name} was killed by SIGKILL. Starting it again in ")
    assert process_of(up, name) not in (None, first)
    assert up.process.poll() is None


def test_a_worker_that_is_killed_is_replaced_by_its_standby(up: Up) -> None:
    until(up.standbys, seen=lambda: up.lines)
    (standby,), first = up.standbys(), process_of(up, "worker")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: process_of(up, "worker") == standby, seen=lambda: up.lines)


def test_a_server_that_is_stopped_comes_back(up: Up) -> None:
    first = process_of(up, "server")
    assert first
    back_before = up.times_said("^server is back")
    os.kill(first, signal.SIGSTOP)
    until(lambda: up.said("^server hung") and process_of(up, "server") not in (None, first), seen=lambda: up.lines)
    assert up.said("^server hung .no sign of life from its event loop for 1. s. and was killed. Starting it again in ")
    assert not alive(first)
    until(lambda: up.times_said("^server is back") > back_before, seen=lambda: up.lines)


def test_this_person_is_known_by_the_home_and_others_are_refused(up: Up) -> None:
    server = up.said(r"^Server: (\S+)")
    assert server
    own = up.home / access.OWN_TOKEN
    assert (own.stat().st_mode & 0o777, own.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with Client(server[1]) as client:
        assert client.crosscoders() == []
    with Client(server[1], token="") as stranger, pytest.raises(Unauthorized, match="asks for a token"):
        stranger.crosscoders()
    listing = [*COMMAND, "--address", server[1], "crosscoders", "--json"]
    assert subprocess.run(listing, capture_output=True, text=True).returncode == 0


def test_an_address_that_others_reach_is_refused_without_tls(tmp_path: Path) -> None:
    command = [*COMMAND, "up", "--home", str(tmp_path / "home"), "--address", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert flat(done.stdout).startswith("Others can reach 0.0.0.0, so it needs TLS: make certificates with")
    assert not (tmp_path / "home").exists()


def test_a_second_supervisor_of_the_home_is_refused(up: Up) -> None:
    done = subprocess.run([*COMMAND, "up", "--home", str(up.home), "--no-app"], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        rf"crosscope already runs for \S+: process {up.process.pid}, server at 127.0.0.1:\d+; .*\n", flat(done.stdout)
    )


def flat(text: str) -> str:
    return " ".join(text.split()) + "\n"


def test_sigterm_stops_everything_and_leaves_nothing(up: Up) -> None:
    running = up.descendants()
    assert len(running) >= 5
    assert up.end(signal.SIGTERM) == 0
    assert not [pid for pid in running if alive(pid)]
    assert up.lines[-1] == "Stopped."


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home = tmp_path / "home"
        done = subprocess.run(
            [*COMMAND, "up", "--home", str(home), "--no-app", "--port", str(port)], capture_output=True, text=True
        )
    assert (done.returncode, flat(done.stdout)) == (
        1,
        f"Port {port} of 127.0.0.1 is in use; stop what uses it or choose another with --port.\n",
    )
    assert not list((home / "logs").iterdir())


def test_what_happens_as_json(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [*COMMAND, "--json", "up", "--home", str(tmp_path / "file" / "home"), "--no-app"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["level"], "cannot be written to" in line["message"]) == ("error", True)


def test_a_home_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run([*COMMAND, "up", "--home", str(tmp_path / "file" / "x")], capture_output=True, text=True)
    assert done.returncode == 1
    assert flat(done.stdout).startswith(
        f"The home folder {tmp_path / 'file' / 'x'} cannot be written to (Not a directory)"
    )
