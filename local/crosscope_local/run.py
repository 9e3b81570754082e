"""One run of an installation: the checks, the processes with an actor beside them, and the end.

Does not know what the actor does.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crosscope_local import preflight
from crosscope_local.programs import APP_PARTS, PARTS, Installation
from crosscope_local.supervise import Supervisor, stopped_by_signals
from crosscope_local.terminal import Terminal

_ACTOR_ENDS_WITHIN_S = 1.0


@dataclass(frozen=True)
class Wanted:
    """The installation that the person asked for."""

    home: Path
    host: str
    port: int
    """0: any that is free."""
    app_port: int | None
    """None: no app; 0: any that is free."""
    data_roots: tuple[Path, ...] = ()
    """Folders beside the home from which jobs may read files."""
    job_threads: int | None = None
    """Threads of one operation of a job; None: torch decides."""
    label_addresses: tuple[str, ...] = ()
    """Addresses on other machines that jobs may have label latents."""


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    signals: tuple[int, ...]
    """Signals that stopped it, in order."""
    gave_up: bool
    """Whether a process had to be given up."""
    error: Exception | None
    """The exception that the actor raised."""


@contextmanager
def installation(wanted: Wanted) -> Generator[Installation]:
    """Checks that everything can start, and holds the home's lock. Raises PreflightError; starts nothing."""
    preflight.check_parts(PARTS if wanted.app_port is None else {**PARTS, **APP_PARTS})
    preflight.check_redis()
    preflight.check_exposure(wanted.host, with_app=wanted.app_port is not None)
    home = wanted.home.expanduser().absolute()
    preflight.prepare_home(home)
    port = wanted.port or preflight.free_port(wanted.host)
    app_port = preflight.free_port(wanted.host) if wanted.app_port == 0 else wanted.app_port
    roots = tuple(folder.expanduser().absolute() for folder in wanted.data_roots)
    runtime = preflight.runtime_folder(home)
    options = (roots, wanted.job_threads, wanted.label_addresses)
    found = Installation(home, wanted.host, port, app_port, runtime, *options, preflight.app_key(home))
    with preflight.HomeLock(home, found.address):
        preflight.check_disk(home)
        preflight.check_port(wanted.host, port, "--port")
        if app_port is not None:
            preflight.check_port(wanted.host, app_port, "--app-port")
        yield found


def run(found: Installation, terminal: Terminal, act: Callable[[Supervisor], None], *, then_stop: bool) -> Ending:
    """Keeps the processes running until a signal comes; with `then_stop`, also until `act` returns.

    `act` runs beside the processes, in a thread. An exception in it stops everything too.
    """
    supervisor = Supervisor(found.programs(), found.home / "logs", terminal.say)
    errors: list[Exception] = []

    def beside() -> None:
        try:
            act(supervisor)
        except Exception as error:
            if not supervisor.stopping:  # while everything stops, an error only says that no server answers
                errors.append(error)
                supervisor.stop()
        if then_stop:
            supervisor.stop()

    with stopped_by_signals(supervisor) as received:
        actor = threading.Thread(target=beside, daemon=True)
        actor.start()
        fine = supervisor.run()
    actor.join(_ACTOR_ENDS_WITHIN_S)
    return Ending(tuple(received), not fine, errors[0] if errors else None)
