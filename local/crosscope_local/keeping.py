"""The commands `backup` and `restore`: options in, exit code out."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from crosscope_local.backup import BackupError, Made, back_up
from crosscope_local.backup import restore as put_back
from crosscope_local.commands import HOME, json_option

_FILE = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
_JSON = json_option("What was done as JSON.")


@click.command()
@_FILE
@HOME
@_JSON
def backup(file: Path, home: Path, as_json: bool) -> None:
    """Write everything of a home that cannot be made again to FILE.

    Works while crosscope runs; then the queue and the folders of jobs are left out. FILE holds tokens, and is readable
    by you alone.
    """
    made = _done(lambda: back_up(home.expanduser().absolute(), file.absolute()))
    _tell(made, f"Wrote {file}", as_json)
    if made.left_out and not as_json:
        click.echo(
            f"crosscope runs, so {' and '.join(made.left_out)} are not in it; stop it first to have them.", err=True
        )


@click.command()
@_FILE
@HOME
@_JSON
def restore(file: Path, home: Path, as_json: bool) -> None:
    """Put the backup FILE where no home is yet."""
    _tell(_done(lambda: put_back(file.absolute(), home.expanduser().absolute())), f"Restored {home}", as_json)


def _done(work: Callable[[], Made]) -> Made:
    """What was done; a refusal is printed as one sentence and ends the program with code 1."""
    try:
        return work()
    except BackupError as error:
        click.echo(f"error: {error}", err=True)
    except OSError as error:
        click.echo(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), err=True)
    sys.exit(1)


def _tell(made: Made, what: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(made)))
        return
    vanished = f"; {made.num_vanished} vanished meanwhile" if made.num_vanished else ""
    click.echo(f"{what}: {made.num_files} files, {made.num_bytes / 1e6:.1f} MB{vanished}.")
