"""Is everything here that crosscope needs? Looks, changes nothing, starts nothing that stays."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from crosscope_local import preflight
from crosscope_local.programs import APP_PARTS, PARTS
from crosscope_proto.artefacts import CURRENT, MANIFEST, PAIR_MANIFEST, pair_folder, version_folder

_TORCH_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(), "gpus": gpus}))
"""
_TORCH_TIMEOUT_S = 120


class Verdict(StrEnum):
    """What a check found."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    detail: str


def examine(home: Path, host: str, port: int, app_port: int) -> list[Finding]:
    """Looks at packages, binary, ports, disk, torch and the home folder."""
    return [
        _python(),
        *_packages(),
        _redis(),
        _torch(),
        _checked("home folder", lambda: _writable(home), f"{home} can be written to"),
        _disk(home),
        _port("server port", host, port, "--port"),
        _port("app port", host, app_port, "--app-port"),
        _pairs(home),
        _crosscoders(home),
    ]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("Python", Verdict.OK if good else Verdict.BAD, version if good else f"{version} is older than 3.11")


def _packages() -> list[Finding]:
    findings: list[Finding] = []
    for module, package in {"crosscope": "crosscope", **PARTS, **APP_PARTS}.items():
        if importlib.util.find_spec(module) is None:
            findings.append(Finding(module, Verdict.BAD, f"not installed; pip install {package}"))
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
        return Finding("torch", Verdict.BAD, f"could not be asked: {error}")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return Finding("torch", Verdict.BAD, f"cannot be imported: {lines[-1]}")
    found = json.loads(done.stdout)
    gpus = ", ".join(found["gpus"]) or "no GPU"
    return Finding("torch", Verdict.OK, f"{found['version']}, {found['threads']} threads, {gpus}")


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


def _port(what: str, host: str, port: int, option: str) -> Finding:
    return _checked(
        what, lambda: preflight.check_port(host, port, option), f"{host}:{port} is free", otherwise=Verdict.NOTE
    )


def _checked(what: str, check: Callable[[], object], fine: str = "", otherwise: Verdict = Verdict.BAD) -> Finding:
    """What a check of the preflight finds; `fine` is said where it passes, by default what it returns."""
    try:
        found = check()
    except preflight.PreflightError as error:
        return Finding(what, otherwise, str(error))
    return Finding(what, Verdict.OK, fine or str(found))


def _pairs(home: Path) -> Finding:
    names = sorted(path.parent.name for path in home.glob(f"pairs/*/{PAIR_MANIFEST}"))
    bad = [name for name in names if not _is_json(home / pair_folder(Path(), name) / PAIR_MANIFEST)]
    if bad:
        return Finding("pairs", Verdict.BAD, f"{PAIR_MANIFEST} cannot be read: {', '.join(bad)}")
    return Finding("pairs", Verdict.OK if names else Verdict.NOTE, ", ".join(names) or "none yet")


def _crosscoders(home: Path) -> Finding:
    currents = sorted(home.glob(f"crosscoders/*/{CURRENT}"))
    bad: list[str] = []
    for current in currents:
        name, version = current.parent.name, current.read_text(errors="replace").strip()
        if not version or not _is_json(home / version_folder(Path(), name, version) / MANIFEST):
            bad.append(name)
    if bad:
        return Finding("crosscoders", Verdict.BAD, f"the current version cannot be read: {', '.join(bad)}")
    names = ", ".join(current.parent.name for current in currents)
    return Finding("crosscoders", Verdict.OK if names else Verdict.NOTE, names or "none yet")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True
