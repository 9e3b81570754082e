"""`crosscope annotations`: all words about the latents of a crosscoder."""

from pathlib import Path
from typing import Any

import click

from crosscope._annotations import HEADERS, HISTORY_HEADERS, annotation_cells
from crosscope.cli.options import Options, with_version
from crosscope.cli.output import print_json, print_table, print_text


@click.group()
def annotations() -> None:
    """List, export and import labels, notes, stars and lists."""


@annotations.command(name="list")
@click.argument("crosscoder")
@click.option("--text", default="", help="Only latents whose label or note contains this.")
@click.option("--labelled", is_flag=True, help="Only latents with a label.")
@click.option("--noted", is_flag=True, help="Only latents with a note.")
@click.option("--starred", is_flag=True, help="Only latents with a star.")
@click.option("--list", "in_list", default="", metavar="NAME", help="Only latents of this list.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@with_version
def list_(options: Options, crosscoder: str, text: str, in_list: str, limit: int, **own: bool) -> None:
    """List the latents of CROSSCODER that have words."""
    conditions = {f"is_{name}": value for name, value in own.items()}
    with options.client() as client:
        words = options.crosscoder(client, crosscoder).annotations
        found = words.all(text, in_list=in_list, limit=limit, **conditions)
    if options.as_json:
        print_json({"num_matching": found.num_matching, "notes": found.notes, "annotations": found})
        return
    if found:
        print_table(HEADERS, map(annotation_cells, found), rest=found.num_matching - len(found))
    else:
        print_text("no words")
    for note in found.notes:
        click.echo(note, err=True)


@annotations.command()
@click.argument("crosscoder")
@click.argument("latent", type=click.IntRange(min=0))
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@with_version
def history(options: Options, crosscoder: str, latent: int, limit: int) -> None:
    """Show who changed what about LATENT of CROSSCODER, newest first."""
    with options.client() as client:
        found = options.crosscoder(client, crosscoder).annotations.history(latent, limit)
    if options.as_json:
        print_json(found)
    elif found:
        print_table(HISTORY_HEADERS, [each.cells for each in found])
    else:
        print_text("nothing was ever said about it")


@annotations.command()
@click.argument("crosscoder")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--earlier", is_flag=True, help="Also words about other weights that were published under this name.")
@with_version
def export(options: Options, crosscoder: str, file: Path, earlier: bool) -> None:
    """Write all words about CROSSCODER to FILE, as its ending says: .json or .csv."""
    with options.client() as client:
        # Its name is enough: words outlive their crosscoder.
        found = client.annotations(crosscoder, options.version_id).export(file, with_earlier=earlier)
    summary: dict[str, Any] = {"file": str(file), "rows": len(found)}
    print_json(summary) if options.as_json else print_text(f"{file}: {found!r}")


@annotations.command(name="import")
@click.argument("crosscoder")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Count what would change, and change nothing.")
@click.option("--replace", is_flag=True, help="Write over words that differ; without it they stay.")
@click.option("--any-weights", is_flag=True, help="Take words about other weights too.")
@with_version
def import_(options: Options, crosscoder: str, file: Path, **how: bool) -> None:
    """Write the words of FILE, a .json or .csv export, about CROSSCODER."""
    with options.client() as client:
        report = options.crosscoder(client, crosscoder).annotations.import_(file, **how)
    print_json(report) if options.as_json else print_text(str(report))
