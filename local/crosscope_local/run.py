"""One run of an installation: the checks, the processes with an actor beside them, and the end.

Does not know what the actor does.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crosscope_local import preflight
from crosscope_local.config import Config, ConfigError
from crosscope_local.leftovers import end_leftovers
from crosscope_local.logs import KEEP, Keep
from crosscope_local.programs import APP_PARTS, PARTS, Installation
from crosscope_local.room import RESERVE_BYTES, Room
from crosscope_local.supervise import Say, Supervisor, stopped_by_signals
from crosscope_local.terminal import Terminal

PROCESSES = "processes.json"
"""Name of the file in the home that notes which processes run."""
_ACTOR_ENDS_WITHIN_S = 1.0
_LOOK_EVERY_S = 1.0


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
    job_workers: int | None = None
    """Jobs that run at the same time; None: one."""
    label_addresses: tuple[str, ...] = ()
    """Addresses on other machines that jobs may have label latents."""
    keep_logs: Keep = KEEP
    """How much of each process's log is kept."""
    reserve_bytes: int = RESERVE_BYTES
    """What the reserve takes, which is freed when the disk is full; 0: none."""
    store: str | None = None
    """URL of the store that the home shares with others."""
    with_standby: bool = True
    """Whether a second inference worker waits for the end of the first."""
    config: Config = field(default_factory=Config)
    """The file that was given, if any; its options are in the fields above."""


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    signals: tuple[int, ...]
    """Signals that stopped it, in order."""
    failing: bool
    """Whether a process kept failing in the end."""
    error: Exception | None
    """The exception that the actor raised."""


@contextmanager
def installation(wanted: Wanted, say: Say) -> Generator[Installation]:
    """Checks that everything can start, and holds the home's lock. Raises PreflightError; starts nothing.

    Ends what a supervisor of this home left behind that was killed.
    """
    preflight.check_parts(PARTS if wanted.app_port is None else {**PARTS, **APP_PARTS})
    preflight.check_redis()
    of_server = wanted.config.settings.get("server", {})
    preflight.check_exposure(wanted.host, of_server, with_app=wanted.app_port is not None)
    home = wanted.home.expanduser().absolute()
    preflight.prepare_home(home)
    port = wanted.port or preflight.free_port(wanted.host)
    app_port = preflight.free_port(wanted.host) if wanted.app_port == 0 else wanted.app_port
    roots = tuple(folder.expanduser().absolute() for folder in wanted.data_roots)
    runtime = preflight.runtime_folder(home)
    found = Installation(
        *(home, wanted.host, port, app_port, runtime, roots, wanted.job_threads, wanted.job_workers or 1),
        label_addresses=wanted.label_addresses,
        store=wanted.store,
        settings=wanted.config.settings,
        app_key=preflight.app_key(home),
        with_standby=wanted.with_standby,
    )
    try:
        wanted.config.check(found.programs())
    except ConfigError as error:
        raise preflight.PreflightError(str(error)) from error
    with preflight.HomeLock(home, found.address):
        if ended := end_leftovers(home / PROCESSES):
            say("warning", f"Ended what an earlier run had left behind: {', '.join(ended)}.")
        preflight.check_disk(home)
        preflight.check_port(wanted.host, port, "--port")
        if app_port is not None:
            preflight.check_port(wanted.host, app_port, "--app-port")
        yield found


def run(
    found: Installation, wanted: Wanted, terminal: Terminal, act: Callable[[Supervisor], None], *, then_stop: bool
) -> Ending:
    """Keeps the processes running until a signal comes; with `then_stop`, also until `act` returns.

    `act` runs beside the processes, in a thread. An exception in it stops everything too.
    """
    home = found.home
    supervisor = Supervisor(found.programs(), home / "logs", terminal.say, wanted.keep_logs, home / PROCESSES)
    room = Room(home, terminal.say, reserve_bytes=wanted.reserve_bytes)
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

    def watch_room() -> None:
        while not supervisor.stopping:
            room.look()
            time.sleep(_LOOK_EVERY_S)

    with stopped_by_signals(supervisor) as received:
        threading.Thread(target=watch_room, daemon=True).start()
        actor = threading.Thread(target=beside, daemon=True)
        actor.start()
        fine = supervisor.run()
    actor.join(_ACTOR_ENDS_WITHIN_S)
    return Ending(tuple(received), not fine, errors[0] if errors else None)
