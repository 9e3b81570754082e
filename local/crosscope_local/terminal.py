"""Output for the person at the terminal: sentences, and the progress of jobs. Knows no process and asks no server.

The terminal may be gone (a closed window, a broken pipe), and the processes must still be stopped. So errors of writing
are ignored here; the log files have everything.
"""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from rich.console import Console, ConsoleRenderable, RichCast
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crosscope import JobInfo, JobState
from crosscope.cli.progress import time_left

_STYLES = {"info": "", "warning": "yellow", "error": "bold red"}
_STATE_STYLES = {
    JobState.QUEUED: "dim",
    JobState.RUNNING: "cyan",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "yellow",
}
_PLAIN_WIDTH = 140
"""Width of tables, in columns, if there is no terminal: in files and in the logs of CI."""
_BAR = 8
"""Width of a bar, in columns: a terminal of 80 has room for the time left and a message beside it."""
_PLAIN_STEPS = 4
"""Number of lines about the progress of a stage if there is no terminal."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class JobBoard:
    """The state of the jobs of one run; rich can draw it. Several threads may update it."""

    def __init__(self) -> None:
        self._rows: dict[str, JobInfo | None] = {}
        self._told: dict[str, tuple[str, str, int]] = {}
        self._lock = threading.Lock()

    def put(self, name: str, job: JobInfo | None) -> str | None:
        """Notes the state of a job, None for a result of an earlier run; returns a plain line if there is news."""
        with self._lock:
            self._rows[name] = job
            if job is None:
                return f"{name}: finished in an earlier run"
            news = (job.state, job.stage, int(job.fraction * _PLAIN_STEPS))
            if self._told.get(name) == news:
                return None
            self._told[name] = news
            return _plain_line(name, job)

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for name, job in self._rows.items():
                if job is None:
                    table.add_row(name, Text("reused", "green"), "", "", Text("finished in an earlier run", "dim"))
                    continue
                style = _STATE_STYLES[job.state]
                stage = job.stage if job.state is JobState.RUNNING else str(job.state)
                bar = ProgressBar(total=1, completed=1 if job.state is JobState.SUCCEEDED else job.fraction, width=_BAR)
                left = time_left(job) if job.state is JobState.RUNNING else ""
                message = Text(job.message, "dim", no_wrap=True, overflow="ellipsis")
                table.add_row(name, Text(stage, style), bar, Text(left, no_wrap=True), message)
        return table


def _plain_line(name: str, job: JobInfo) -> str:
    state = f"{job.stage} {job.fraction:.0%}" if job.state is JobState.RUNNING and job.stage else str(job.state)
    return f"{name}: {state}" + (f": {job.message}" if job.message else "")


class Terminal:
    """Writes for a person; safe to use from several threads."""

    def __init__(self, *, to_stderr: bool = False, as_json: bool = False) -> None:
        """`to_stderr` keeps standard output free for a result in JSON; `as_json` makes each sentence a JSON line."""
        self._as_json = as_json
        self._console = _Console(stderr=to_stderr, highlight=False, soft_wrap=True)
        if not self._console.is_terminal:
            self._console.width = _PLAIN_WIDTH
        self._board: JobBoard | None = None

    def say(self, level: str, text: str) -> None:
        """Writes a sentence; `level` is "info", "warning" or "error"."""
        if self._as_json:
            with suppress(OSError):
                print(json.dumps({"level": level, "message": text}), file=self._console.file, flush=True)
            return
        self.show(Text(text, _STYLES[level]))

    def show(self, what: ConsoleRenderable | RichCast) -> None:
        """Writes a table or a text."""
        with suppress(OSError):
            self._console.print(what)

    @contextmanager
    def progress(self, board: JobBoard) -> Generator[None]:
        """Keeps the board below all other output; without a terminal, each change is a plain line."""
        self._board = board
        live = Live(board, console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        with suppress(OSError):
            if live:
                live.start()
        try:
            yield
        finally:
            with suppress(OSError):
                if live:
                    live.stop()

    def job(self, name: str, job: JobInfo | None) -> None:
        """Notes the state of a job on the board."""
        if self._board and (line := self._board.put(name, job)) and not self._console.is_terminal:
            self.say("info", line)
