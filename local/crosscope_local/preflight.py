"""Checks before anything starts: home, disk, ports, parts, one supervisor for each home. Starts nothing.

A check that fails raises a PreflightError, whose text is one sentence for the person at the terminal.
"""

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from crosscope_local.disk import make_home, write_whole
from crosscope_local.redis import RedisStartError, find_binary
from crosscope_proto.access import APP_KEY, is_loopback

MIN_FREE_BYTES = 500_000_000
"""Room that the demo's models, texts, tables and logs need."""

_MAX_SOCKET_PATH = 100
"""Bytes of a unix socket's path that every system takes (macOS: 104, Linux: 108)."""
_LONGEST_SOCKET_NAME = "/worker.sock"
_NOT_IN_URLS = set("?#%,")
"""Characters that a socket's path cannot have in the URLs and lists by which processes are told of it."""


class PreflightError(Exception):
    """A check failed, so nothing can be started; the text is one sentence."""


def prepare_home(home: Path) -> None:
    """Makes the home folder and its log folder, and checks that they can be written to."""
    try:
        make_home(home)
        (home / "logs").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"x" * 4096)
            probe.flush()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise PreflightError(
                f"The disk of {home} is full; free some space or choose another folder with --home."
            ) from error
        raise PreflightError(
            f"The home folder {home} cannot be written to ({error.strerror}); choose another one with --home."
        ) from error


def check_disk(home: Path, needed_bytes: int = MIN_FREE_BYTES) -> None:
    """Checks that the disk of `home` has room."""
    free = shutil.disk_usage(home).free
    if free < needed_bytes:
        raise PreflightError(
            f"The disk of {home} has {free / 1e6:.0f} MB left and {needed_bytes / 1e6:.0f} MB are needed; "
            "free some space or choose another folder with --home."
        )


def check_port(host: str, port: int, option: str) -> None:
    """Checks that nothing listens on a port; `option` is how to choose another."""
    family, address = _resolve(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                text = f"Port {port} of {host} is in use; stop what uses it or choose another with {option}."
            else:
                text = f"Port {port} of {host} cannot be opened ({error.strerror}); choose another with {option}."
            raise PreflightError(text) from error


def free_port(host: str) -> int:
    """A port that nothing listens on at the moment."""
    family, address = _resolve(host, 0)
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address)
        except OSError as error:
            text = f"No port of {host} can be opened ({error.strerror}); choose an address of this machine."
            raise PreflightError(text) from error
        return int(probe.getsockname()[1])


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise PreflightError(f"The address {host}:{port} is not known here ({error.strerror}).") from error
    return family, address


def check_exposure(host: str, defaults: Mapping[str, str], *, with_app: bool) -> None:
    """Checks that an address which others reach has TLS, unless the settings say by name that it needs none.

    `defaults` are settings that hold where the environment says nothing.
    """
    if is_loopback(f"{host}:0"):
        return
    settings = {**defaults, **{name: value for name, value in os.environ.items() if value}}
    for prefix in ("CROSSCOPE_SERVER", *(["CROSSCOPE_APP"] if with_app else [])):
        allows = settings.get(f"{prefix}_ALLOW_PLAINTEXT", "").lower() in ("1", "true", "yes", "on", "t", "y")
        if not (settings.get(f"{prefix}_TLS_CERT") or allows):
            raise PreflightError(
                f"Others can reach {host}, so it needs TLS: make certificates with `crosscope certs` and set "
                f"{prefix}_TLS_CERT and {prefix}_TLS_KEY, or set {prefix}_ALLOW_PLAINTEXT=true."
            )


def app_key(home: Path) -> str:
    """The secret of the app's start address, which is made once a home."""
    path = home / APP_KEY
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            write_whole(path, secrets.token_urlsafe(32), mode=0o600)
        return path.read_text().strip()
    except OSError as error:
        raise PreflightError(f"{path} cannot be made or read ({error.strerror}).") from error


def check_parts(modules: dict[str, str]) -> None:
    """Checks that modules are installed beside this one; `modules` maps each to what installs it (`how_to_install`)."""
    missing = {module: part for module, part in modules.items() if importlib.util.find_spec(module) is None}
    if missing:
        raise PreflightError(f"Not installed here: {', '.join(sorted(missing))}; {how_to_install(missing.values())}.")


def how_to_install(parts: Iterable[str]) -> str:
    """How parts of crosscope are installed: from folders of its source. No package index has them."""
    return f"in the folder of crosscope's source: pip install {' '.join(sorted({'./proto', './store', *parts}))}"


def check_redis() -> Path:
    """Checks that there is a Redis-protocol server, and returns its binary."""
    try:
        return find_binary()
    except RedisStartError as error:
        raise PreflightError(f"Queue and cache cannot be started: {error}.") from error


def runtime_folder(home: Path) -> Path:
    """A private folder (0700) with a short path for the sockets of one home; it is made if it does not exist."""
    digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]
    parents = [tempfile.gettempdir(), "/tmp"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        parents.insert(0, runtime)
    candidates = [Path(parent) / f"crosscope-{os.getuid()}-{digest}" for parent in parents]
    short = [
        path
        for path in candidates
        if len(os.fsencode(path)) + len(_LONGEST_SOCKET_NAME) <= _MAX_SOCKET_PATH and not set(str(path)) & _NOT_IN_URLS
    ]
    refusals: list[str] = []
    for folder in short:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            refusals.append(f"{folder}: {error.strerror}")
            continue
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700:
            return folder
        refusals.append(f"{folder} is not a folder that is yours alone (mode 0700)")
    raise PreflightError(f"No private folder for sockets: {'; '.join(refusals)}. Set XDG_RUNTIME_DIR to one.")


@dataclass(frozen=True)
class Holder:
    """The process that supervises a home."""

    pid: int
    address: str


class HomeLock:
    """The lock of the one supervisor that runs a home. The system frees it when the process ends, however it ends."""

    def __init__(self, home: Path, address: str) -> None:
        """Takes the lock; raises PreflightError, which names the process that has it."""
        self._holder = home / "supervisor.json"
        lock = home / "supervisor.lock"
        try:
            self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            sentence = f"{lock} cannot be opened ({error.strerror}); does the home belong to another account?"
            raise PreflightError(sentence) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise PreflightError(_held(home, self._holder)) from None
        self._holder.unlink(missing_ok=True)
        write_whole(self._holder, json.dumps({"pid": os.getpid(), "address": address}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.unlink(missing_ok=True)
        os.close(self._descriptor)


def _held(home: Path, file: Path) -> str:
    try:
        entry = json.loads(file.read_bytes())
        holder = Holder(pid=int(entry["pid"]), address=str(entry["address"]))
    except (OSError, ValueError, KeyError, TypeError):
        return f"Another crosscope has just been started for {home}; use it, or choose another folder with --home."
    return (
        f"crosscope already runs for {home}: process {holder.pid}, server at {holder.address}; "
        "use it, stop it, or choose another folder with --home."
    )
