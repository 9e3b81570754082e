"""`crosscope look`."""

from typing import TYPE_CHECKING, Any

import click

from crosscope import _tables
from crosscope.cli.jobs import follow_job
from crosscope.cli.options import Options, with_options
from crosscope.cli.output import print_json, print_table, print_text

if TYPE_CHECKING:
    from crosscope import Client, Look
    from crosscope._findings import Finding


@click.command()
@click.argument("pair", required=False)
@click.argument("data", nargs=-1)
@click.option("--name", help="Name of the look [the pair's].")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Compare about this many tokens [200000].")
@click.option("--every", type=click.IntRange(min=1), help="Sweep every n-th layer [so that there are at most 16].")
@click.option("--text-column", help="Column of the data files that holds documents [told by their first line].")
@click.option("--chat-column", help="Column of the data files that holds conversations [the same].")
@click.option("--watch", "follow", is_flag=True, help="Follow the job, then show what it found.")
@click.option("--show", metavar="NAME", help="Show the look NAME; make none.")
@click.option("--explain", metavar="CROSSCODER", help="Show which latents of CROSSCODER carry the findings.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="With --explain: findings.")
@with_options
def look(options: Options, pair: str | None, data: tuple[str, ...], **own: Any) -> None:
    """Show where the models of PAIR differ on DATA, and at which layer, before any dictionary is trained.

    PAIR is the name of a pair, or a recipe file whose pair and data are taken. DATA are JSONL, Parquet or text files,
    or recipe files whose data are taken. Without PAIR: list the looks that there are.
    """
    making = pair is not None
    if making and (own["show"] or own["explain"]):
        raise click.UsageError("--show and --explain read a look that is there: leave PAIR and DATA out")
    with options.client() as client:
        if pair is not None:
            _make(options, client, pair, data, own)
        elif own["explain"]:
            _explain(options, client, own["explain"], own["show"], own["limit"])
        elif own["show"]:
            _show(options, client.look(own["show"]))
        else:
            _list(options, client)


def _make(options: Options, client: "Client", pair: str, data: tuple[str, ...], own: dict[str, Any]) -> None:
    from crosscope.cli.look_recipe import look_recipe

    columns = {name: own[name] for name in ("text_column", "chat_column") if own[name]}
    if len(columns) > 1:
        raise click.UsageError("give --text-column or --chat-column, one of the two")
    recipe = look_recipe(pair, data, columns)
    recipe |= {name: own[name] for name in ("name", "max_tokens", "every") if own[name] is not None}
    job = client.jobs.submit(recipe)
    for warning in job.warnings:
        click.echo(f"warning: {warning}".encode("utf-8", "backslashreplace").decode(), err=True)
    if not own["follow"]:
        hint = f"follow it with: crosscope watch {job.id}\nthen: crosscope look --show {job.info.name}"
        print_json(job.info) if options.as_json else print_text(f"{job.id}\n{hint}")
        return
    if options.as_json:
        job.wait(progress=False)
    else:
        follow_job(options, job)
    _show(options, client.look(job.info.name))


def _list(options: Options, client: "Client") -> None:
    infos = client.looks()
    if options.as_json:
        print_json(infos)
        return
    if not infos:
        print_text("there is no look yet; `crosscope look PAIR DATA` makes one")
        return
    headers = ("look", "pair", "tokens", "mean kl", "layer")
    rows = [
        (info.name, info.pair, str(info.num_tokens), str(info.mean_kl), _tables.number(info.recommended_layer))
        for info in infos
        if not info.broken
    ]
    print_table(headers, rows)
    for info in infos:
        if info.broken:
            click.echo(f"{info.name} is broken: {info.broken}".encode("utf-8", "backslashreplace").decode(), err=True)


def _show(options: Options, found: "Look") -> None:
    if options.as_json:
        print_json(_document(found))
        return
    print_text(_tables.card(f"look {found.name}", found.facts))
    for title, headers, rows in found.sections:
        print_text(f"\n{title}")
        print_table(headers, rows)
    for line in ("", *found.remarks, found.reason, found.recipe_line):
        print_text(line)


def _document(found: "Look") -> dict[str, Any]:
    """A look as JSON; a finding has the tokens of its text up to it."""
    names = ("info", "layers", "groups", "conversations", "first", "continuations", "num_findings", "recipe_line")
    return {**{name: getattr(found, name) for name in names}, "findings": [_finding(each) for each in found.findings]}


def _finding(finding: "Finding") -> dict[str, Any]:
    tokens = finding.text.tokens
    return {
        "kl": finding.kl,
        "dataset": finding.text.dataset,
        "place": finding.text.place,
        "position": finding.position,
        "piece": finding.piece,
        "role": finding.role,
        "token_ids": tokens.ids[: finding.position + 1],
        "base": finding.base,
        "chat": finding.chat,
    }


def _explain(options: Options, client: "Client", name: str, look_name: str | None, limit: int) -> None:
    from crosscope._explained_looks import EXPLAINED_HEADERS

    crosscoder = options.crosscoder(client, name)
    if look_name is None:
        models = crosscoder.info.base_model, crosscoder.info.chat_model
        infos = [info for info in client.looks() if (info.base_model, info.chat_model) == models]
        if not infos:
            raise click.UsageError(
                f"there is no look at the pair {crosscoder.info.pair!r} of {name}; "
                f"make one: crosscope look {crosscoder.info.pair} DATA"
            )
        look_name = infos[0].name
    explained = client.look(look_name, max_findings=limit).explain(crosscoder, limit=limit)
    if options.as_json:
        print_json([{"finding": _finding(each.finding), "latents": each.latents} for each in explained])
        return
    print_table(EXPLAINED_HEADERS, explained.rows())
    for line in explained.remarks:
        click.echo(line, err=True)
