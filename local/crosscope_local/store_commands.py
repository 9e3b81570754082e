"""The commands `store push` and `store pull`: what is published, between a home and the store that machines share."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from crosscope_local.options import HOME, OLD_HOME, STORE, json_option
from crosscope_local.terminal import Terminal
from crosscope_store.moves import Moved
from crosscope_store.moves import pull as pull_all
from crosscope_store.moves import push as push_all
from crosscope_store.remote import Store


@click.group()
def store() -> None:
    """Move what is published between a home and the store that machines share."""


@store.command()
@OLD_HOME
@STORE
@json_option("What was published, as JSON.")
def push(home: Path, store: str | None, as_json: bool) -> None:
    """Publish what only this home has: pairs, looks, and versions of crosscoders.

    crosscope may run meanwhile. What is in the store already stays.
    """
    _move(push_all, home, store, as_json)


@store.command()
@HOME
@STORE
@json_option("What is here, as JSON.")
def pull(home: Path, store: str | None, as_json: bool) -> None:
    """Bring every file of what is published, for a home that shall do without its store."""
    _move(pull_all, home, store, as_json)


def _move(work: Callable[[Path, Store], Iterator[Moved]], home: Path, url: str | None, as_json: bool) -> None:
    terminal = Terminal(to_stderr=as_json)
    if url is None:
        terminal.say("error", "no store is named: give --store URL, or set CROSSCOPE_STORE")
        sys.exit(2)
    found: list[Moved] = []
    failure = ""
    try:
        for moved in work(home.expanduser().absolute(), Store(url)):
            found.append(moved)
            where = f"{moved.key.kind[:-1]} {moved.key.name} {moved.key.id}"
            if moved.is_wrong:
                terminal.say("error", f"{where}: {moved.sentence}")
            else:
                terminal.say("info", f"{where}: {moved.sentence}, {moved.bytes / 1e6:.1f} MB")
    except OSError as error:
        failure = str(error)
        terminal.say("error", failure)
    if as_json:
        rows = [
            {**moved.key._asdict(), "bytes": moved.bytes, "what": moved.sentence, "is_wrong": moved.is_wrong}
            for moved in found
        ]
        click.echo(json.dumps({"moved": rows, "failure": failure}, indent=2))
    elif not found and not failure:
        terminal.say("info", "There is nothing to move.")
    sys.exit(bool(failure) or any(moved.is_wrong for moved in found))
