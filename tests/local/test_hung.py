"""A program that is not dead but does not move is killed and started again; one that is slow, or not asked, is not."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

from fixtures_waiting import PATIENCE_S, until

from crosscope_local.readiness import redis_answers
from crosscope_local.supervise import State, Supervisor
from tests.local.small_programs import SLEEPER, Stage, alive, program

BEATS = """
import time
from crosscope_proto.beats import Beats
beats = Beats.from_environment()
while True:
    beats("event loop", 2)
    print("beats", flush=True)
    time.sleep(0.1)
"""


def has_beaten(stage: Stage) -> None:
    """Waits for the first beat of the program `one`."""
    log = stage.logs / "one.log"
    until(lambda: log.exists() and "beats" in log.read_text())


def test_a_stopped_program_that_beats_is_started_again(stage: Stage) -> None:
    def script(supervisor: Supervisor) -> None:
        has_beaten(stage)
        first = supervisor.pids()["one"]
        os.kill(first, signal.SIGSTOP)
        until(lambda: supervisor.pids().get("one", first) != first)
        assert not alive(first)
        until(lambda: supervisor.states()["one"] is State.READY)

    assert stage.play([program("one", BEATS)], script)
    (told,) = stage.texts("warning")
    assert told.startswith(
        "one hung (no sign of life from its event loop for 2 s) and was killed. Starting it again in"
    )


def test_a_program_whose_loop_stands_while_a_thread_of_it_runs_is_hung(stage: Stage) -> None:
    source = "import threading, time\n" + BEATS.replace("while True", "for _ in range(8)") + "time.sleep(1e6)"

    def script(supervisor: Supervisor) -> None:
        until(lambda: stage.texts("warning"))

    stage.play([program("one", source)], script)
    assert "one hung" in stage.texts("warning")[0]


def test_a_program_that_does_not_beat_is_left_alone(stage: Stage) -> None:
    def script(supervisor: Supervisor) -> None:
        assert supervisor.wait_ready("one", PATIENCE_S)
        first = supervisor.pids()["one"]
        os.kill(first, signal.SIGSTOP)
        time.sleep(1)
        assert supervisor.pids()["one"] == first
        os.kill(first, signal.SIGCONT)

    assert stage.play([program("one", SLEEPER)], script)


def test_a_program_that_no_longer_answers_is_started_again(stage: Stage, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("crosscope_local.supervise._ASK_EVERY_S", 0.1)
    place = tmp_path / "s"
    source = f"""
import os, pathlib, socket
pathlib.Path({str(place)!r}).unlink(missing_ok=True)
listening = socket.socket(socket.AF_UNIX)
listening.bind({str(place)!r})
listening.listen()
while True:
    connection = listening.accept()[0]
    connection.recv(64)
    connection.sendall(b"+PONG\\r\\n")
    print("answered", flush=True)
"""
    probe, log = redis_answers(str(place)), stage.logs / "cache.log"

    def script(supervisor: Supervisor) -> None:
        until(lambda: log.exists() and log.read_text().count("answered") > 2)  # also after it was ready
        first = supervisor.pids()["cache"]
        os.kill(first, signal.SIGSTOP)  # its socket still takes connections
        until(lambda: supervisor.pids().get("cache", first) != first)
        until(lambda: supervisor.states()["cache"] is State.READY)

    assert stage.play([program("cache", source, probe=probe, answers=probe, answers_within_s=1)], script)
    assert stage.texts("warning")[0].startswith("cache hung (no sign of life from its socket for 1 s) and was killed.")


def test_nobody_is_killed_because_the_supervisor_stood_still(stage: Stage) -> None:
    """Stops the supervisor's loop for longer than the program has time, as a closed lid stops everything."""
    held = threading.Event()

    def script(supervisor: Supervisor) -> None:
        has_beaten(stage)
        first = supervisor.pids()["one"]
        os.kill(first, signal.SIGSTOP)
        signal.raise_signal(signal.SIGUSR1)  # the handler runs in the main thread, which is the supervisor's
        assert held.wait(PATIENCE_S)
        os.kill(first, signal.SIGCONT)
        time.sleep(0.5)
        assert supervisor.pids()["one"] == first

    def stand(*_: object) -> None:
        time.sleep(3.5)
        held.set()

    before = signal.signal(signal.SIGUSR1, stand)
    try:
        stage.play([program("one", BEATS)], script)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not stage.texts("warning")


def test_a_probe_of_a_socket_that_takes_connections_but_never_answers_is_false(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        assert not redis_answers(str(tmp_path / "s"))()
