"""Settings of a process. They are read from the environment once, at its start; errors name the variable.

Knows no process: each has its own class with its own fields.
"""

from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from crosscope_proto.access import DEFAULT_HOME


class SettingsError(ValueError):
    """An environment with which a process cannot start; the message has a line for each wrong variable."""


def _absolute(value: Path) -> Path:
    return value.expanduser().absolute()


def _redis_url(value: str) -> str:
    if not value.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    _ = urlsplit(value).port  # raises ValueError if the port is not a number
    return value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]


class ProcessSettings(BaseSettings):
    """The settings of every process. A subclass sets `env_prefix`. An empty variable counts as not set."""

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True, env_ignore_empty=True)

    home: AbsolutePath = Field(default=Path(DEFAULT_HOME), validation_alias="CROSSCOPE_HOME")
    """The artefact folder."""


S = TypeVar("S", bound=ProcessSettings)


def read_settings(kind: type[S]) -> S:
    """The settings in the environment. Raises SettingsError."""
    try:
        return kind()
    except ValidationError as error:
        prefix = str(kind.model_config.get("env_prefix", ""))
        lines: list[str] = []
        for detail in error.errors():
            name = ".".join(map(str, detail["loc"]))
            if not name:  # a rule about several variables, whose sentence names them; the input holds secrets
                lines.append(detail["msg"].removeprefix("Value error, "))
                continue
            variable = name if name.isupper() else f"{prefix}{name.upper()}"
            if detail["type"] == "missing":
                lines.append(f"{variable}: must be set")
            else:
                lines.append(f"{variable}: {detail['msg'].removeprefix('Value error, ')}, but is {detail['input']!r}")
        raise SettingsError("\n".join(lines)) from error
