"""A process that gives way, alone or with its session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GIVES_WAY = """
import os
from crosscope_worker.priority import give_way
give_way({nice}, leader=os.{leader}())
print(os.nice(0), os.popen("nice").read())
if os.path.exists("/proc/self/autogroup"):
    print(open("/proc/self/autogroup").read().split()[-1])
"""


def after(nice: int, leader: str) -> list[str]:
    """Nice values of a process, of its child and of its session, after it gave way."""
    command = [sys.executable, "-c", GIVES_WAY.format(nice=nice, leader=leader)]
    return subprocess.check_output(command, text=True, start_new_session=True).split()


@pytest.mark.skipif(sys.platform != "linux", reason="sessions share cores on Linux")
def test_a_session_gives_way_with_the_process_that_leads_it() -> None:
    own = os.nice(0)
    session = ["7"] if Path("/proc/self/autogroup").exists() else []
    assert after(7, "getpid") == [str(own + 7), str(own + 7), *session]


@pytest.mark.skipif(sys.platform != "linux", reason="sessions share cores on Linux")
def test_a_session_that_another_leads_keeps_its_share() -> None:
    own = os.nice(0)
    session = ["0"] if Path("/proc/self/autogroup").exists() else []
    assert after(7, "getppid") == [str(own + 7), str(own + 7), *session]
    assert after(0, "getpid") == [str(own), str(own), *session]
