"""The process of one attempt, as its job worker sees it: started, listened to, ended. Knows nothing about Redis or RQ.

It leads a group of its own, so a signal to the job worker's group does not reach it. It beats (crosscope_proto.beats):
its reporting thread all the time, its work with each report of progress.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from crosscope_proto.beats import Listener


class JobProcess:
    """A running or ended process of a job."""

    def __init__(self, attempt: str, environment: Mapping[str, str]) -> None:
        """Starts it and passes it the attempt, JSON, through its standard input."""
        self._beats = Listener()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crosscope_worker.jobs.entry"],
            stdin=subprocess.PIPE,
            process_group=0,
            env={**environment, **self._beats.environment},
            pass_fds=self._beats.passed_on,
        )
        self._beats.started()
        self._hung = ""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin:  # It has ended; its exit code says more.
            self._process.stdin.write(attempt.encode())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ends_within(self, seconds: float) -> bool:
        """Waits; returns whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        """Asks it to stop at its next step."""
        self._process.terminate()

    def kill(self) -> None:
        """Ends it with all that it has started in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def hung(self) -> str:
        """What has not moved for how long, as a part of a sentence; empty while everything beats in time."""
        if not self._hung and (silence := self._beats.silence()):
            self._hung = f"hung (no sign of life from its {silence.part} for {silence.for_s:.0f} s)"
        return self._hung

    def close(self) -> None:
        """Ends it if it still runs, and stops listening."""
        if self._process.poll() is None:
            self.kill()
            self._process.wait()
        self._beats.close()

    def ending(self) -> str:
        """How it ended, as a part of a sentence."""
        code = self._process.returncode
        if self._hung:
            return f"{self._hung} and was killed"
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    @property
    def may_have_run_out_of_memory(self) -> bool:
        """Whether it was killed by somebody else, as the system does when memory runs out."""
        return self._process.returncode == -signal.SIGKILL and not self._hung
