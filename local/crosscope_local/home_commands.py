"""The commands `backup`, `restore` and `gc`: what is done with a home as files. Other modules do the work."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from crosscope_local.backup import LEFT_OUT, BackupError, Copied, back_up
from crosscope_local.backup import restore as restore_archive
from crosscope_local.garbage import Keep, find, find_in_store, remove
from crosscope_local.options import HOME, OLD_HOME, STORE, FiniteRange, json_option
from crosscope_local.terminal import Terminal
from crosscope_store.remote import Store

_DAYS = FiniteRange(min=0)


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@OLD_HOME
@json_option("What was copied, as JSON.")
def backup(archive: Path, home: Path, as_json: bool) -> None:
    """Write the home as one ARCHIVE, .tar or .tar.gz; crosscope may run meanwhile.

    Left out is what is made again: activations, search indices, logs, checkpoints.
    """
    _copy(as_json, lambda: back_up(home, archive), f"{archive} holds")


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@HOME
@json_option("What was restored, as JSON.")
def restore(archive: Path, home: Path, as_json: bool) -> None:
    """Put the files of an ARCHIVE into a home that is empty or not there; every file is checked."""
    _copy(as_json, lambda: restore_archive(archive, home.expanduser()), f"{home} holds")


def _copy(as_json: bool, work: Callable[[], Copied], holds: str) -> None:
    terminal = Terminal(to_stderr=as_json)
    try:
        copied = work()
    except BackupError as error:
        terminal.say("error", str(error))
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(asdict(copied), indent=2))
        return
    terminal.say("info", f"{holds} {copied.files} files, {copied.bytes / 1e6:.1f} MB.")
    for kind, size in sorted(copied.left_out.items()):
        terminal.say("info", f"Left out, {size / 1e6:.1f} MB: {LEFT_OUT.get(kind, kind)}.")
    if copied.links:
        names = ", ".join(copied.links[:5])
        terminal.say(
            "warning", f"{len(copied.links)} links lead out of the home, and what they lead to is not in it: {names}"
        )
    if copied.gone:
        names = ", ".join(copied.gone[:5])
        terminal.say("warning", f"{len(copied.gone)} files were removed while they were to be copied: {names}")


@click.command()
@OLD_HOME
@click.option(
    "--versions",
    default=Keep.versions,
    show_default=True,
    type=click.IntRange(min=1),
    help="Versions of a crosscoder that stay.",
)
@click.option(
    "--jobs-days",
    default=Keep.jobs_days,
    show_default=True,
    type=_DAYS,
    help="Days for which logs and results of ended jobs stay.",
)
@click.option(
    "--activations-days",
    default=Keep.activations_days,
    show_default=True,
    type=_DAYS,
    help="Days for which activations of trainings stay.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@STORE
@json_option("What goes, as JSON.")
def gc(
    home: Path,
    versions: int,
    jobs_days: float,
    activations_days: float,
    dry_run: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Remove what is of no use any more; crosscope may run meanwhile.

    With --store also what uploads have left there that died more than a day ago.
    """
    garbage, failures = find(home, Keep(versions, jobs_days, activations_days)), []
    if store is not None:
        try:
            garbage += find_in_store(Store(store))
        except OSError as error:
            failures.append(str(error))
    stay: set[str] = set()
    for each in [] if dry_run else garbage:
        if (why := remove(each)) is not None:
            failures.append(why)
            stay.add(str(each.path))
    garbage = [each for each in garbage if str(each.path) not in stay]
    if as_json:
        rows = [{"path": str(each.path), "kind": each.kind, "bytes": each.bytes} for each in garbage]
        click.echo(json.dumps({"garbage": rows, "removed": not dry_run, "failures": failures}, indent=2))
    else:
        terminal = Terminal()
        sizes: Counter[str] = Counter()
        for each in garbage:
            sizes[each.kind] += each.bytes
        for kind, size in sizes.most_common():
            count = sum(each.kind == kind for each in garbage)
            terminal.say("info", f"{size / 1e6:10.1f} MB  {count:5d}  {kind}")
        total = f"{sum(sizes.values()) / 1e6:.1f} MB in {len(garbage)} places"
        terminal.say(
            "info", f"{'Would free' if dry_run else 'Freed'} {total}." if garbage else "There is nothing to free."
        )
        for why in failures:
            terminal.say("error", f"could not be removed: {why}")
    sys.exit(bool(failures))
