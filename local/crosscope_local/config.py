"""`crosscope up --config FILE`: one TOML file to options of the command and settings of its processes.

The section `up` holds options by name; every other section holds settings of one process, by the name of their
environment variable without its prefix, in small letters. What a process makes of a setting it says itself
(`check`), so this module knows no setting but those that `up` makes.
"""

import math
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crosscope_local.child import Program, environment_of

PREFIXES = {"server": "CROSSCOPE_SERVER_", "worker": "CROSSCOPE_WORKER_", "jobs": "CROSSCOPE_WORKER_"}
"""Sections of processes, by the program's name, and how the variables of their settings begin."""
_UP = "up"
_PATHS = {_UP: ("home", "data_root", "recipes"), "server": ("tls_cert", "tls_key", "tls_client_ca")}
"""Options and settings that name files or folders; a relative one lies beside the file."""
_NAME = re.compile("[a-z][a-z0-9_]*")
_WRITTEN: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: 'a list of texts, ["…", "…"]',
    str: 'a text, "…"',
}
"""How a value of each type is written."""
_MAX_BITS = 63
"""Of a whole number in TOML, less its sign. Python reads larger ones, and cannot print all of them."""
_NOT_IN_FILES = ("token", "password", "secret")
_MADE_BY_UP = {
    "server": ("listen", "workers", "queue_url", "cache_url"),
    "worker": ("listen",),
    "jobs": ("queue_url", "data_roots", "label_addresses", "job_threads"),
}
"""Settings that `up` makes from its options and its sockets."""
_CHECK_WITHIN_S = 120.0
"""How long a process may take to judge its settings: devices are judged by torch, which a cold disk reads for long."""


class ConfigError(Exception):
    """A file that cannot be used; the message has a line for each thing that is wrong, with the way out."""


@dataclass(frozen=True)
class Config:
    """What a file says."""

    file: Path | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    """Options of the command by name, as TOML values."""
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of each program, environment variables and their values."""

    def check(self, programs: list[Program]) -> None:
        """Lets each process that the file sets judge its settings. Raises ConfigError."""
        configured = [program for program in programs if program.name in self.settings]
        with ThreadPoolExecutor() as pool:
            found = [line for lines in pool.map(_judged, configured) for line in lines]
        if found:
            raise ConfigError("\n".join(f"{self.file}: {line}" for line in found))


def read_config(file: Path, options: Mapping[str, type]) -> Config:
    """What a file says; `options` are the names that the section `up` may hold, and their types. Raises ConfigError.

    A type is bool, int, float, str, or list for several texts.
    """
    sections = _parsed(file)
    wrong = [
        f"[{name}]: there is no such section; there are {', '.join([_UP, *PREFIXES])}"
        if isinstance(value, dict)
        else f"{name}: stands in no section; write it below [{_UP}]"
        for name, value in sections.items()
        if name not in (_UP, *PREFIXES) or not isinstance(value, dict)
    ]
    up = sections.get(_UP, {})
    if isinstance(up, dict):
        wrong += [line for name, value in up.items() if (line := _wrong_option(name, value, options))]
    settings: dict[str, dict[str, str]] = {}
    for section, prefix in PREFIXES.items():
        if isinstance(values := sections.get(section), dict):
            wrong += [line for name in values for line in _refusals(section, name)]
            settings[section] = {}
            for name, value in values.items():
                if (text := _text(_beside(file, section, name, value))) is None:
                    wrong.append(f"[{section}] {name}: write a number, a text, true, false, or a list of texts")
                else:
                    settings[section][f"{prefix}{name.upper()}"] = text
    if wrong:
        raise ConfigError("\n".join(f"{file}: {line}" for line in wrong))
    return Config(file, {name: _beside(file, _UP, name, value) for name, value in up.items()}, settings)


def _parsed(file: Path) -> dict[str, Any]:
    """The sections of a file. Raises ConfigError."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ConfigError(f"{file} is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file} nests its values too deeply") from error


def _wrong_option(name: str, value: object, options: Mapping[str, type]) -> str:
    """What is wrong with an option; empty if nothing is."""
    if (kind := options.get(name)) is None:
        return f"[up] {name}: up has no such option; it has {', '.join(options)}"
    if kind is list:
        fits = isinstance(value, list) and all(map(_is_text, value))
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
    else:
        fits = _is_text(value) if kind is str else type(value) is kind and _is_finite(value)
    return "" if fits else f"[up] {name}: write {_WRITTEN[kind]}; it is {_shown(value)!r}"


def _shown(value: object) -> str:
    """The beginning of a value, as far as Python prints it."""
    try:
        return str(value)[:40]
    except ValueError:
        return "a number of thousands of digits"


def _is_finite(value: object) -> bool:
    """Whether a number is one of TOML's, of 64 bits, and not infinite. Other values are."""
    if isinstance(value, int):
        return value.bit_length() <= _MAX_BITS
    return not isinstance(value, float) or math.isfinite(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _refusals(section: str, name: str) -> list[str]:
    if not _NAME.fullmatch(name):
        return [f"[{section}] {name[:40]!r}: a setting is named in small letters, digits and _"]
    if name in _MADE_BY_UP[section]:
        return [f"[{section}] {name}: up makes this one from its own options; see [up]"]
    if name.rpartition("_")[2] in _NOT_IN_FILES:
        return [f"[{section}] {name}: keep secrets out of files; set {PREFIXES[section]}{name.upper()} instead"]
    return []


def _text(value: object) -> str | None:
    """A TOML value as a process reads it from its environment; None for one that no setting has."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and not _is_finite(value):
        return None
    if isinstance(value, int | float) or (isinstance(value, str) and "\0" not in value):
        return str(value)
    if isinstance(value, list) and all(map(_is_text, value)):
        return ",".join(value)
    return None


def _beside(file: Path, section: str, name: str, value: object) -> object:
    """A value; a path is taken from the file's folder."""
    if name not in _PATHS.get(section, ()):
        return value
    if isinstance(value, list):
        return [_beside(file, section, name, each) for each in value]
    return os.fspath(file.absolute().parent / Path(value).expanduser()) if isinstance(value, str) and value else value


def _judged(program: Program) -> list[str]:
    """What a process says of its settings: a line for each that is wrong, in the file's words."""
    prefix = PREFIXES[program.name]
    command = [*program.command, "--check", *program.defaults]
    try:
        done = subprocess.run(
            command, env=environment_of(program), capture_output=True, text=True, timeout=_CHECK_WITHIN_S, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return [f"[{program.name}]: could not be checked ({type(error).__name__}): {' '.join(command)}"]
    lines = done.stderr.splitlines() if done.returncode else []
    return [_in_words_of_the_file(line, program, prefix) for line in lines]


def _in_words_of_the_file(line: str, program: Program, prefix: str) -> str:
    """A line about variables as one about settings of the file, where the file sets what it is about."""
    variable = line.partition(":")[0]
    if variable not in program.defaults or os.environ.get(variable):
        return line
    name = variable.removeprefix(prefix).lower()
    rest = line.removeprefix(variable)
    for other in (part.rstrip("?") for part in rest.split() if part.startswith(prefix)):
        rest = rest.replace(other, other.removeprefix(prefix).lower())
    return f"[{program.name}] {name}{rest}"
