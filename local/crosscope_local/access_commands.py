"""The commands `tokens`, `audit` and `certs`: options in, exit code out. They change and read files of the operator."""

import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from crosscope.cli.options import apply
from crosscope_local import tokens as token_list
from crosscope_local.options import HOME, OLD_HOME, json_option
from crosscope_local.terminal import Terminal
from crosscope_proto import access
from crosscope_proto.access import AccessError, TokenEntry

_DAY_S = 86400
_DAYS = click.IntRange(1, 36500)
_LIMITS = {
    "prompt_tokens_per_minute": "Tokens of prompts that may be read a minute.",
    "concurrent_calls": "Calls that may be under way at once.",
    "queued_jobs": "Jobs that may wait at once.",
    "gpu_seconds_per_day": "Seconds that jobs may hold devices, a day (UTC).",
}


@contextmanager
def _refusals() -> Generator[None]:
    """Prints a refusal as one sentence and ends the program with code 1."""
    try:
        yield
    except AccessError as error:
        Terminal(to_stderr=True).say("error", f"{str(error)[0].upper()}{str(error)[1:]}.")
        sys.exit(1)


def _limits(command: Any) -> Any:
    """The command with an option for each limit."""
    options = [
        click.option(f"--{name.replace('_', '-')}", name, type=click.IntRange(0), metavar="N", help=text)
        for name, text in _LIMITS.items()
    ]
    return apply(tuple(options), command)


@click.group()
def tokens() -> None:
    """Add, list and revoke the tokens by which others call the server of a home.

    A server learns of changes within a second. The person who runs it needs none: the home has a token of its own.
    """


@tokens.command()
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(access.ROLES),
    help="read: browse and search; run: prompts and words; submit: jobs; admin: everything. Can be given several "
    "times; each includes read.",
)
@click.option("--expires-in-days", type=_DAYS, metavar="N", help="After how many days it ends; never by default.")
@_limits
@HOME
@json_option("The token as JSON.")
def add(
    name: str, roles: tuple[str, ...], expires_in_days: int | None, home: Path, as_json: bool, **limits: int | None
) -> None:
    """Make the token NAME and print it, once: only its hash is kept."""
    given = {limit: value for limit, value in limits.items() if value is not None}
    expires_at = None if expires_in_days is None else time.time() + expires_in_days * _DAY_S
    home = home.expanduser().absolute()
    with _refusals():
        secret = token_list.add(home, name, roles, given, expires_at)
    if not (home / access.OWN_TOKEN).exists():
        warning = f"No server has served {home} yet. If yours has another home, name it with --home."
        Terminal(to_stderr=True).say("warning", warning)
    if as_json:
        made = {"name": name, "token": secret, "roles": access.with_read(roles), "limits": given}
        click.echo(json.dumps({**made, "expires_at": expires_at}))
        return
    click.echo(secret)
    said = f"This is the token of {name} for the home {home}, shown only now: they set CROSSCOPE_TOKEN to it."
    Terminal(to_stderr=True).say("info", said)


@tokens.command("list")
@OLD_HOME
@json_option("The tokens as JSON.")
def list_tokens(home: Path, as_json: bool) -> None:
    """Show the names of all tokens, with roles, limits and when they were last used."""
    with _refusals():
        entries = token_list.read(home)
    used = token_list.last_used(home)
    if as_json:
        click.echo(json.dumps([{**_facts(entry), "last_used_at": used.get(entry.name)} for entry in entries], indent=2))
        return
    table = Table("name", "roles", "limits", "made", "ends", "last used", box=None, pad_edge=False)
    own = "whoever reads the home" if (home / access.OWN_TOKEN).exists() else "none yet"
    table.add_row(access.OPERATOR, "admin", own, "", "never", _day(used.get(access.OPERATOR)))
    for entry in entries:
        limits = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in entry.limits.items()) or "none"
        ends = "never" if entry.expires_at is None else _day(entry.expires_at)
        row = (entry.name, " ".join(entry.roles), limits, _day(entry.created_at), ends, _day(used.get(entry.name)))
        table.add_row(*map(Text, row))
    Terminal().show(table)


@tokens.command()
@click.argument("name")
@OLD_HOME
def revoke(name: str, home: Path) -> None:
    """Take the token NAME away; servers refuse it within a second."""
    with _refusals():
        token_list.revoke(home, name)
    Terminal().say("info", f"The token {name} is revoked.")


@click.command()
@click.option("--lines", type=click.IntRange(1, 100_000), default=50, show_default=True, help="At most this many.")
@OLD_HOME
@json_option("The lines as they are, JSON.")
def audit(lines: int, home: Path, as_json: bool) -> None:
    """Show the end of the audit log: who changed what, and who was refused."""
    with _refusals():
        found = token_list.audit_lines(home, lines)
    if as_json:
        for line in found:
            click.echo(json.dumps(line))
        return
    table = Table("when", "who", "method", "on", "outcome", box=None, pad_edge=False)
    for line in found:
        on = line.get("on")
        about = " ".join(f"{key}={value}" for key, value in on.items()) if isinstance(on, dict) else ""
        at, method = line.get("at"), str(line.get("method", "")).removeprefix("/crosscope.v1.")
        when = _time(at) if isinstance(at, int | float) else ""
        table.add_row(*map(Text, (when, str(line.get("who")), method, about, str(line.get("outcome")))))
    Terminal().show(table)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A name or address of the server; several times.")
@click.option("--client", "clients", multiple=True, metavar="NAME", help="Make a client's certificate too (mTLS).")
@click.option("--days", type=_DAYS, default=365, show_default=True, help="How long they hold.")
def certs(folder: Path, hosts: tuple[str, ...], clients: tuple[str, ...], days: int) -> None:
    """Make certificates in FOLDER: an authority, a server's for its hosts, and clients'.

    A folder that has an authority keeps it, so that further certificates can be made later.
    """
    from crosscope_local.certs import CertsError, make

    if not hosts and not clients:
        raise click.UsageError("name the server's hosts with --host, or a client with --client")
    try:
        made = make(folder, hosts, clients, days)
    except CertsError as error:
        Terminal(to_stderr=True).say("error", f"{str(error)[0].upper()}{str(error)[1:]}.")
        sys.exit(1)
    for path in made:
        click.echo(path)


def _facts(entry: TokenEntry) -> dict[str, object]:
    """What may be shown of a token: everything but its hash."""
    facts: dict[str, object] = {"name": entry.name, "roles": entry.roles, "limits": dict(entry.limits)}
    return {**facts, "created_at": entry.created_at, "expires_at": entry.expires_at}


def _day(at: float | None) -> str:
    return "" if at is None else f"{datetime.fromtimestamp(at):%d %b %Y}"


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at):%d %b %H:%M:%S}"
