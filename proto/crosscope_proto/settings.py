"""Settings of a process. They are read from the environment once, at its start; errors name the variable.

Knows no process: each has its own class with its own fields.
"""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from crosscope_proto.access import DEFAULT_HOME
from crosscope_proto.ports import LAST_PORT, is_wrong_port


class SettingsError(ValueError):
    """An environment with which a process cannot start; the message has a line for each wrong variable."""


def _absolute(value: Path) -> Path:
    return value.expanduser().absolute()


def _redis_url(value: str) -> str:
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    _ = urlsplit(value).port  # raises ValueError if the port is not a number
    return value


def _listening(value: str) -> str:
    if is_wrong_port(value, first=0):
        raise ValueError(f"has a port that is not between 0 and {LAST_PORT}")
    return value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
ListenAddress = Annotated[str, AfterValidator(_listening)]
"""Where a gRPC server listens: host:port, port 0 for any that is free, or unix:PATH."""


class ProcessSettings(BaseSettings):
    """The settings of every process. A subclass sets `env_prefix`. An empty variable counts as not set."""

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True, env_ignore_empty=True)

    home: AbsolutePath = Field(default=Path(DEFAULT_HOME), validation_alias="CROSSCOPE_HOME")
    """The artefact folder."""


S = TypeVar("S", bound=ProcessSettings)
_WHO = re.compile(r"[^/\s'\"]+@")
"""User and password of a URL, also of one that is mistyped."""


def read_settings(kind: type[S]) -> S:
    """The settings in the environment. Raises SettingsError."""
    try:
        return kind()
    except ValidationError as error:
        lines: list[str] = []
        for detail in error.errors():
            name = ".".join(map(str, detail["loc"]))
            if not name:  # a rule about several variables, whose sentence names them; the input holds secrets
                lines.append(detail["msg"].removeprefix("Value error, "))
                continue
            variable = name if name.isupper() else variable_of(kind, name)
            if detail["type"] == "missing":
                lines.append(f"{variable}: must be set")
            else:
                said = f"{detail['msg'].removeprefix('Value error, ')}, but is {detail['input']!r}"
                lines.append(f"{variable}: {_WHO.sub('…@', said)}")
        raise SettingsError("\n".join(lines)) from error


def variable_of(kind: type[ProcessSettings], field: str) -> str:
    """The environment variable of a field."""
    alias = kind.model_fields[field].validation_alias if field in kind.model_fields else None
    return alias if isinstance(alias, str) else f"{kind.model_config.get('env_prefix', '')}{field.upper()}"


def unknown_variables(kind: type[ProcessSettings], *beside: type[ProcessSettings]) -> list[str]:
    """A line for each variable of the environment that begins like a setting of `kind` and is none.

    `beside` are the settings of other processes that share the prefix.
    """
    prefix = str(kind.model_config.get("env_prefix", ""))
    known = {variable_of(each, field) for each in (kind, *beside) for field in each.model_fields}
    lines: list[str] = []
    for name in sorted(os.environ):
        if prefix and name.startswith(prefix) and name not in known:
            near = difflib.get_close_matches(
                name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], 1
            )
            lines.append(f"{name}: there is no such setting{f'; did you mean {prefix}{near[0]}?' if near else ''}")
    return lines


def check_settings(kind: type[ProcessSettings], *beside: type[ProcessSettings], own: Sequence[str] = ()) -> int:
    """Prints a line for each setting in the environment that is wrong or unknown; returns the exit code.

    `own` are variables that were set for this process alone, so a setting that only one of `beside` has is wrong too.
    """
    lines = unknown_variables(kind, *beside)
    known = {variable_of(kind, field) for field in kind.model_fields}
    elsewhere = {variable_of(each, field) for each in beside for field in each.model_fields} - known
    lines += [f"{name}: is a setting of another process, and changes nothing here" for name in own if name in elsewhere]
    try:
        read_settings(kind)
    except SettingsError as error:
        lines = [*str(error).splitlines(), *lines]
    for line in lines:
        sys.stderr.write(f"{line}\n")
    return int(bool(lines))
