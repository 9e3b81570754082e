"""A real process that stands by: called, left alone, and left behind."""

import subprocess
import sys

from crosscope_proto.standby import Call, await_call

SOURCE = """
import os
from crosscope_proto.standby import STANDBY_FD, await_call
print("loaded", flush=True)
await_call()
print("called", STANDBY_FD in os.environ, flush=True)
"""


def started(call: Call) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SOURCE],
        env=call.environment,
        pass_fds=call.passed_on,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    call.started()
    assert process.stdout
    assert process.stdout.readline() == "loaded\n"
    return process


def test_a_standby_works_once_it_is_called() -> None:
    call = Call()
    with started(call) as process:
        assert process.poll() is None
        call.give()
        assert process.communicate() == ("called False\n", "")
    assert process.returncode == 0


def test_a_standby_ends_when_nobody_is_left_who_could_call() -> None:
    call = Call()
    with started(call) as process:
        call.close()
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert "the process that started this standby has ended" in err


def test_a_call_that_nobody_hears_is_no_error() -> None:
    call = Call()
    with started(call) as process:
        process.kill()
        process.wait()
        call.give()


def test_a_process_that_is_no_standby_goes_on_at_once(monkeypatch) -> None:
    monkeypatch.delenv("CROSSCOPE_STANDBY_FD", raising=False)
    await_call()
