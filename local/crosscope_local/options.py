"""Options that several commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from crosscope.cli.options import json_before_name
from crosscope_proto.access import DEFAULT_HOME
from crosscope_store.errors import StoreRefused
from crosscope_store.remote import check_shared


def _not_empty(_ctx: click.Context, _option: click.Parameter, home: Path) -> Path:
    if home == Path():
        raise click.BadParameter("is empty or the current folder; name the folder")
    return home


class FiniteRange(click.FloatRange):
    """A number that is finite: no range refuses nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises BadParameter."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def _there(ctx: click.Context, option: click.Parameter, home: Path) -> Path:
    found = _not_empty(ctx, option, home).expanduser().absolute()
    try:
        is_there = found.is_dir()
    except OSError as error:
        raise click.BadParameter(f"{found} cannot be looked at: {error.strerror}") from error
    if not is_there:
        raise click.BadParameter(f"there is no home at {found}; name yours with --home, or set CROSSCOPE_HOME")
    return found


def _home(callback: Callable[[click.Context, click.Parameter, Path], Path]) -> Callable[..., Any]:
    return click.option(
        "--home",
        callback=callback,
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_HOME,
        show_default=f"$CROSSCOPE_HOME or {DEFAULT_HOME}",
        envvar="CROSSCOPE_HOME",
        help="Folder of pairs, crosscoders, jobs and logs.",
    )


HOME = _home(_not_empty)
OLD_HOME = _home(_there)
"""A home that is there already: of another one there is nothing to say, and its name is most likely a mistake."""


def _store_url(_ctx: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    try:
        return None if not url else check_shared(url)
    except StoreRefused as error:
        raise click.BadParameter(str(error)) from error


STORE = click.option(
    "--store",
    callback=_store_url,
    metavar="URL",
    default=None,
    envvar="CROSSCOPE_STORE",
    show_envvar=True,
    help="The store that machines share what is published on: s3://BUCKET/FOLDER or file:///FOLDER.",
)


def json_option(text: str) -> Callable[..., Any]:
    """The option --json, which may also stand before the command's name."""
    return click.option(
        "--json", "as_json", is_flag=True, help=text, callback=lambda _ctx, _option, given: json_before_name() or given
    )
