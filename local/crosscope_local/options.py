"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from crosscope.cli.options import json_before_name
from crosscope_proto.access import DEFAULT_HOME
from crosscope_store.errors import StoreRefused
from crosscope_store.remote import check_url


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


def _store_url(_ctx: click.Context, _option: click.Parameter, url: str | None) -> str | None:
    try:
        return None if not url else check_url(url)
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
