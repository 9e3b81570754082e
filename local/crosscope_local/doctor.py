"""Checks of this machine for `crosscope doctor`: is everything here that crosscope needs? Changes nothing."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from crosscope import Client, CrosscopeError, Unavailable
from crosscope_local import preflight
from crosscope_local.programs import APP_PARTS, PARTS, authority, reachable
from crosscope_proto.artefacts import CURRENT, MANIFEST, PAIR_MANIFEST, version_folder
from crosscope_proto.manifest import ManifestError, parse_manifest, parse_pair_manifest
from crosscope_store.errors import StoreError
from crosscope_store.remote import Store

_TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(), "gpus": gpus}))
"""
_TORCH_TIMEOUT_S = 120
_SERVICE_S = 3.0


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    what: str
    verdict: Verdict
    detail: str


def examine(home: Path, host: str, port: int, app_port: int, store: str | None = None) -> list[Finding]:
    """Checks Python, packages, Redis binary, torch, home, disk, ports, store, what is published, and who serves."""
    return [
        _python(),
        *_packages(),
        _redis(),
        _torch(),
        _home(home),
        _disk(home),
        _port("server port", host, port, "--port"),
        _port("app port", host, app_port, "--app-port"),
        *([] if store is None else [_store(store)]),
        _pairs(home),
        _crosscoders(home),
        *examine_service(host, port),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("Python", Verdict.OK if good else Verdict.BAD, version if good else f"{version} is older than 3.11")


def _packages() -> list[Finding]:
    findings: list[Finding] = []
    for module, package in {"crosscope": "./client", **PARTS, **APP_PARTS}.items():
        if importlib.util.find_spec(module) is None:
            findings.append(Finding(module, Verdict.BAD, f"not installed; {preflight.how_to_install([package])}"))
        else:
            name = module.replace("_", "-")
            findings.append(Finding(module, Verdict.OK, importlib.metadata.version(name)))
    return findings


def _redis() -> Finding:
    return _checked("Redis binary", preflight.check_redis)


def _torch() -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("torch", Verdict.BAD, f"did not answer: {error}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return Finding("torch", Verdict.BAD, f"cannot be imported: {lines[-1]}")
    found = json.loads(done.stdout)
    gpus = ", ".join(found["gpus"]) or "no GPU"
    return Finding("torch", Verdict.OK, f"{found['version']}, {found['threads']} threads, {gpus}")


def _home(home: Path) -> Finding:
    found = _checked("home folder", lambda: _writable(home), f"{home} can be written to")
    if found.verdict is Verdict.OK and home.is_dir() and (mode := stat.S_IMODE(home.stat().st_mode)) & 0o007:
        detail = f"{home}: others on this machine may look into it (mode {mode:04o}); chmod 700 it, unless they shall"
        return Finding("home folder", Verdict.NOTE, detail)
    return found


def _writable(home: Path) -> None:
    folder = home
    while not folder.exists():
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise preflight.PreflightError(f"{folder} cannot be written to; choose another home with --home.")


def _disk(home: Path) -> Finding:
    folder = home
    while not folder.exists():
        folder = folder.parent
    return _checked(
        "disk",
        lambda: preflight.check_disk(folder),
        f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free",
    )


def _store(url: str) -> Finding:
    store = Store(url)
    try:
        store.check_rights()
    except StoreError as error:
        return Finding("store", Verdict.BAD, str(error))
    return Finding("store", Verdict.OK, f"{store.url} can be listed, read, written and cleared")


def _port(what: str, host: str, port: int, option: str) -> Finding:
    return _checked(
        what, lambda: preflight.check_port(host, port, option), f"{host}:{port} is free", otherwise=Verdict.NOTE
    )


def _checked(what: str, check: Callable[[], object], fine: str = "", otherwise: Verdict = Verdict.BAD) -> Finding:
    """The finding of a preflight check.

    If the check passes, the detail is `fine`, else what the check returned. If it refuses, the verdict is `otherwise`.
    """
    try:
        found = check()
    except preflight.PreflightError as error:
        return Finding(what, otherwise, str(error))
    return Finding(what, Verdict.OK, fine or str(found))


def examine_service(host: str, port: int) -> list[Finding]:
    """What is wrong with the installation that serves at an address; a note if none does."""
    what = "service"
    try:
        with Client(authority(reachable(host), port), timeout_s=_SERVICE_S) as client:
            found = client.capabilities()
    except Unavailable as error:
        if _listens(reachable(host), port):
            return [Finding(what, Verdict.BAD, str(error))]
        return [Finding(what, Verdict.NOTE, f"none runs at {host}:{port}; `crosscope up` starts one")]
    except CrosscopeError as error:
        return [Finding(what, Verdict.BAD, str(error))]
    if found.problems:
        return [Finding(what, Verdict.BAD, str(problem)) for problem in found.problems]
    return [Finding(what, Verdict.OK, f"version {found.version} serves {', '.join(found.features)}")]


def _listens(host: str, port: int) -> bool:
    """Whether something takes connections at an address, or is too busy to."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def _pairs(home: Path) -> Finding:
    manifests = sorted(home.glob(f"pairs/*/{PAIR_MANIFEST}"))
    return _published("pairs", {path.parent.name: _why_unread(path, parse_pair_manifest) for path in manifests})


def _crosscoders(home: Path) -> Finding:
    reasons: dict[str, str] = {}
    for current in sorted(home.glob(f"crosscoders/*/{CURRENT}")):
        name, version = current.parent.name, current.read_text(errors="replace").strip()
        manifest = home / version_folder(Path(), name, version) / MANIFEST
        reasons[name] = _why_unread(manifest, parse_manifest) if version else f"{CURRENT} names no version"
    return _published("crosscoders", reasons)


def _published(what: str, reasons: Mapping[str, str]) -> Finding:
    """Which of the published things can be read; `reasons` says by name why not, empty for those that can."""
    if bad := [f"{name}: {reason}" for name, reason in reasons.items() if reason]:
        return Finding(what, Verdict.BAD, "; ".join(bad))
    return Finding(what, Verdict.OK if reasons else Verdict.NOTE, ", ".join(reasons) or "none yet")


def _why_unread(path: Path, parse: Callable[[bytes], object]) -> str:
    """Why a manifest cannot be read; empty if it can."""
    try:
        parse(path.read_bytes())
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    except ManifestError as error:
        return f"{path.name} cannot be used: {error}"
    return ""
