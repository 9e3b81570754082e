"""`crosscope label` and `crosscope lists`: words about latents."""

import sys
from typing import Any

import click

from crosscope._annotations import LIST_HEADERS
from crosscope.cli.options import Options, latent_ids, with_version
from crosscope.cli.output import print_json, print_table, print_text


class _Label(click.Command):
    """A command before which another one may stand: `crosscope label auto`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["auto"]:
            from crosscope.cli.auto_label import auto

            return auto.make_context(f"{info_name} auto", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Label, epilog="`crosscope label auto CROSSCODER` has a model label many; see its --help.")
@click.argument("crosscoder")
@click.argument("latent", type=click.IntRange(min=0))
@click.argument("text", required=False)
@click.option("--clear", is_flag=True, help="Take the label away.")
@click.option("--note", help="Write a note; - reads it from standard input, '' takes it away.")
@click.option("--star/--no-star", default=None, help="Set the star, or take it.")
@click.option(
    "--seen", type=click.IntRange(min=0), help="Write only if the label still has this revision; 0: has none."
)
@with_version
def label(
    options: Options,
    crosscoder: str,
    latent: int,
    text: str | None,
    clear: bool,
    note: str | None,
    star: bool | None,
    seen: int | None,
) -> None:
    """Give LATENT of CROSSCODER the label TEXT; without TEXT and options, show what is said about it.

    \b
    crosscope label demo 7 "refusals" --star --note "fires where the answer begins"
    """  # noqa: D301 (click wants the backspace itself)
    if clear and text is not None:
        raise click.UsageError("give TEXT or --clear, one of the two")
    if seen is not None and text is None and not clear:
        raise click.UsageError("--seen goes with a label: give TEXT or --clear")
    if text == "":
        raise click.UsageError("TEXT is empty; --clear takes the label away")
    with options.client() as client:
        words = options.crosscoder(client, crosscoder).annotations
        if text is not None or clear:
            words.label(latent, text, seen=seen)
        if note is not None:
            words.note(latent, sys.stdin.read() if note == "-" else note)
        if star is not None:
            words.star(latent, star)
        found = words.get(latent)
    print_json(found) if options.as_json else print_text(str(found))


@click.command()
@click.argument("crosscoder")
@click.argument("name", required=False)
@click.option("--create", is_flag=True, help="Make the list.")
@click.option("--delete", is_flag=True, help="Delete the list.")
@click.option("--rename", "new_name", metavar="NAME", help="Give the list another name.")
@click.option("--add", multiple=True, metavar="IDS", help="Put latents at its end: 7 or 3,5,9.")
@click.option("--remove", multiple=True, metavar="IDS", help="Take latents out.")
@with_version
def lists(
    options: Options,
    crosscoder: str,
    name: str | None,
    create: bool,
    delete: bool,
    new_name: str | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
) -> None:
    """List the lists of CROSSCODER; with NAME, show its latents in order, or change it.

    \b
    crosscope lists demo refusals --create --add 7,12,3
    """  # noqa: D301 (click wants the backspace itself)
    changes = create or delete or new_name or add or remove
    if name is None and changes:
        raise click.UsageError("name the list to change")
    if delete and (create or new_name or add or remove):
        raise click.UsageError("--delete goes alone")
    added, removed = latent_ids(add, "--add"), latent_ids(remove, "--remove")
    with options.client() as client:
        whole = options.crosscoder(client, crosscoder)
        words = whole.annotations
        if name is None:
            found = words.lists()
            if options.as_json:
                print_json(found)
            elif found:
                print_table(LIST_HEADERS, [each.cells for each in found])
            else:
                print_text("there is no list yet; `crosscope lists CROSSCODER NAME --create` makes one")
            return
        if delete:
            gone = words.delete_list(name)
            print_json(gone) if options.as_json else print_text(f"deleted {name}, which had {gone.num_latents} latents")
            return
        if create:
            words.create_list(name)
        if new_name:
            name = words.rename_list(name, new_name).name
        if removed:
            words.remove(name, removed)
        if added:
            words.add(name, added)
        members = words.members(name)
        names = words.names(members)
    if options.as_json:
        print_json({"name": name, "latents": [names[latent] for latent in members]})
        return
    rows = [(str(latent), "★" if names[latent].is_starred else "", str(names[latent])) for latent in members]
    print_table(("latent", "star", "name"), rows) if rows else print_text(f"{name} is empty; --add puts latents in")
