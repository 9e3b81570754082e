"""The file annotations.sqlite3: a thread that writes and one that reads, each with a connection of its own.

Several servers may use one home. SQLite's write-ahead log keeps them apart: a reader never waits, a writer waits for
another one at most BUSY_S. What a write answers is on disk. Knows nothing about what the tables mean.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from crosscope_server.annotations.schema import MIGRATIONS, migrate, version_of
from crosscope_server.errors import CallError, Conflict, Unavailable

BUSY_S = 5.0
"""How long a write waits for the write of another process."""

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_FULL = {sqlite3.SQLITE_FULL}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CLOSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Database:
    """The file, which is made when something is first written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer, self._reader = _Lane(path, "write"), _Lane(path, "read")

    async def read(self, work: Work[T], without: T) -> T:
        """What `work` finds in one state of the file; `without` while there is no file.

        Raises Unavailable or Conflict, with what to do, where the file cannot be read.
        """
        if not self._path.exists():
            return without
        try:
            return await self._reader.run(work)
        except _Older:
            await self._writer.run(lambda _: None)
            return await self._reader.run(work)

    async def write(self, work: Work[T], *, is_kept: bool = True) -> T:
        """What `work` returns, once all that it wrote is on disk. Nothing stays if it raises, or if not `is_kept`.

        Raises Unavailable or Conflict, with what to do, where the file cannot be written.
        """
        return await self._writer.run(work, is_kept=is_kept)

    async def close(self) -> None:
        """Closes the file, after the work that has begun."""
        await self._reader.close()
        await self._writer.close()


class _Older(Exception):
    """The file lacks steps of schema.MIGRATIONS."""


class _Lane:
    """A thread with a connection, which does one work at a time."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._writes = path, kind == "write"
        self._thread = ThreadPoolExecutor(1, f"annotations-{kind}")
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        """Device and number of the file that the connection is of; somebody may put a backup in its place."""

    async def run(self, work: Work[T], *, is_kept: bool = True) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work, is_kept)

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._forget)
        self._thread.shutdown()

    def _run(self, work: Work[T], is_kept: bool) -> T:
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
            try:
                result = work(connection)
                connection.execute("COMMIT" if is_kept else "ROLLBACK")
            except BaseException:
                if connection.in_transaction:  # SQLite may have rolled back by itself
                    connection.execute("ROLLBACK")
                raise
            return result
        except sqlite3.Error as error:
            self._forget()
            known = _explained(error, self._path, "written" if self._writes else "read")
            if known is None:
                raise
            raise known from error

    def _open(self) -> sqlite3.Connection:
        """The connection to the file that lies there now."""
        if self._connection is not None and self._file == _identity(self._path):
            return self._connection
        self._forget()
        mode = "rwc" if self._writes else "rw"
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_S, isolation_level=None
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.create_function("contains", 2, _contains, deterministic=True)
            if self._writes:
                _use_log(connection)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                migrate(connection)
                connection.execute("COMMIT")
            elif version_of(connection) < len(MIGRATIONS):
                raise _Older
        except BaseException:
            connection.close()
            raise
        self._connection, self._file = connection, _identity(self._path)
        return connection

    def _forget(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _use_log(connection: sqlite3.Connection) -> None:
    """Turns the write-ahead log on. Two processes that do so at once do not wait for each other by themselves."""
    ends_at = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > ends_at:
                raise
            time.sleep(0.01)
        else:
            return


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _contains(text: str, part: str) -> bool:
    """The SQL function: whether a text contains another, upper and lower case alike."""
    return part.casefold() in text.casefold()


def _explained(error: sqlite3.Error, path: Path, done: str) -> CallError | None:
    """The error for the caller; None for a bug of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    what = f"{path} cannot be {done}"
    if code in _FULL:
        return Unavailable(f"{what}: the disk is full; nothing was changed: free some room and try again")
    if code in _BUSY:
        return Unavailable(f"{what}: another process has held it for {BUSY_S:g} s; try again", retry_after_s=1)
    if code == sqlite3.SQLITE_IOERR:
        return Unavailable(f"{what}: {error}; nothing was changed: look at the disk, then try again")
    if code in _CLOSED:
        hint = "let the server's user write it and its folder, or start the server with another CROSSCOPE_HOME"
        return Conflict(f"{what}: {error}; {hint}")
    if code in _DAMAGED:
        hint = "put a backup in its place, or move it away: a new one is made when something is next written"
        return Conflict(f"{what}: it is damaged ({error}); {hint}")
    return None
