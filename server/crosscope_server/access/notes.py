"""Notes which home a server of this machine serves, so that this person's clients find the home's own token."""

import contextlib
import logging
import os
from collections.abc import Generator
from pathlib import Path

from crosscope_proto.access import NOTES, note_of

log = logging.getLogger(__name__)


@contextlib.contextmanager
def noted(listen: str, port: int, home: Path) -> Generator[None]:
    """The note is there for as long as the context lasts. Addresses that others can reach get none."""
    name = note_of(listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}")
    if name is None:
        yield
        return
    path = notes_folder() / name
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = path.with_name(f".{name}.{os.getpid()}")
        beside.write_text(str(home))
        beside.replace(path)
    except OSError as error:  # a read-only or missing home directory: clients need CROSSCOPE_HOME or CROSSCOPE_TOKEN
        log.info("no note of the home for clients", extra={"path": str(path), "error": str(error)})
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text() == str(home):
                path.unlink()


def notes_folder() -> Path:
    """The folder of the notes of whoever runs this process."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / NOTES
