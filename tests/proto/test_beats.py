"""Promises through a real pipe, by a clock of the test's."""

import os
import subprocess
import sys

from crosscope_proto.beats import BEAT_FD, Beats, Listener, Silence


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passed(listener: Listener, clock: Clock, seconds: float, step: float = 0.5) -> Silence | None:
    """What a listener that looks every `step` finds after some seconds."""
    found = listener.silence()
    for _ in range(round(seconds / step)):
        clock.now += step
        found = listener.silence()
    return found


def test_a_broken_promise_is_found_by_part_and_age() -> None:
    clock = Clock()
    listener = Listener(clock)
    beats = Beats(listener.passed_on[0])
    beats("loop", 3)
    beats("device", 60)
    assert passed(listener, clock, 3) is None
    assert passed(listener, clock, 0.5) == Silence("loop", 3.5)
    Beats(listener.passed_on[0])("loop", 3)
    assert passed(listener, clock, 1) is None
    listener.close()


def test_a_part_that_never_beat_is_not_judged() -> None:
    clock = Clock()
    listener = Listener(clock)
    assert passed(listener, clock, 1000, 1.0) is None
    listener.close()


def test_a_first_beat_that_is_expected_and_does_not_come_is_found() -> None:
    clock = Clock()
    silent, beating = Listener(clock), Listener(clock)
    for each in (silent, beating):
        each.expect(10)
    Beats(beating.passed_on[0])("loop", 1000)
    assert passed(silent, clock, 10.5) == Silence("start", 10.5)
    assert passed(beating, clock, 20) is None
    for each in (silent, beating):
        each.close()


def test_a_clock_that_jumps_breaks_no_promise() -> None:
    clock = Clock()
    listener = Listener(clock)
    listener.promise("loop", 10)
    clock.now += 3600  # the machine slept, or the listener was stopped
    assert listener.silence() is None
    assert passed(listener, clock, 9) is None
    assert passed(listener, clock, 1) == Silence("loop", 11)
    listener.close()


def test_beats_pile_up_while_nobody_listens_and_count_when_they_are_read() -> None:
    clock = Clock()
    listener = Listener(clock)
    descriptor = listener.passed_on[0]
    for _ in range(20_000):  # more than a pipe holds
        Beats(descriptor)("loop", 10)
    assert passed(listener, clock, 9.5) is None
    assert passed(listener, clock, 1) == Silence("loop", 10.5)
    listener.close()
    Beats(descriptor)("loop", 10)  # nobody reads any more: no error


def test_a_process_beats_through_its_descriptor_and_its_children_do_not_see_it() -> None:
    listener = Listener()
    source = (
        "import os; from crosscope_proto.beats import *; beats = Beats.from_environment(); "
        "assert BEAT_FD not in os.environ; beats('loop', 0); beats('loop', 0)"
    )
    environment = {**os.environ, **listener.environment}
    subprocess.run([sys.executable, "-c", source], env=environment, pass_fds=listener.passed_on, check=True)
    listener.started()
    found = None
    while found is None:
        found = listener.silence()
    assert found.part == "loop"
    listener.close()


def test_without_a_listener_nothing_happens(monkeypatch) -> None:
    monkeypatch.delenv(BEAT_FD, raising=False)
    beats = Beats.from_environment()
    beats("loop", 1)
    assert 0 <= beats.ages.age_s("loop") < 60  # metrics know of it all the same
    for odd in ("x", "999999"):
        monkeypatch.setenv(BEAT_FD, odd)
        Beats.from_environment()("loop", 1)
