"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from crosscope.cli.options import json_before_name
from crosscope_proto.access import DEFAULT_HOME


def _not_empty(_ctx: click.Context, _option: click.Parameter, home: Path) -> Path:
    if home == Path():
        raise click.BadParameter("is empty or the current folder; name the folder")
    return home


HOME = click.option(
    "--home",
    callback=_not_empty,
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_HOME,
    show_default=f"$CROSSCOPE_HOME or {DEFAULT_HOME}",
    envvar="CROSSCOPE_HOME",
    help="Folder of pairs, crosscoders, jobs and logs.",
)


def json_option(text: str) -> Callable[..., Any]:
    """The option --json, which may also stand before the command's name."""
    return click.option(
        "--json", "as_json", is_flag=True, help=text, callback=lambda _ctx, _option, given: json_before_name() or given
    )
