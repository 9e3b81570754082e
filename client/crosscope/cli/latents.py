"""`crosscope crosscoders`, `latents`, `latent`: the statistics that were measured."""

import click

from crosscope import _tables
from crosscope._latents import LATENT_HEADERS, latent_cells
from crosscope.cli.options import Options, with_version
from crosscope.cli.output import print_broken, print_json, print_table, print_text
from crosscope_proto.metrics import inlier_fve


@click.command()
@click.argument("name", required=False)
@with_version
def crosscoders(options: Options, name: str | None) -> None:
    """List published crosscoders, or show the one called NAME."""
    if options.version_id is not None and name is None:
        raise click.UsageError("--version goes with the NAME of a crosscoder")
    with options.client() as client:
        if name is not None:
            crosscoder = options.crosscoder(client, name)
            found = {"crosscoder": crosscoder.info, "detectors": crosscoder.detectors()}
            print_json(found) if options.as_json else print_text(str(crosscoder))
            return
        infos = [crosscoder.info for crosscoder in client.crosscoders()]
    if options.as_json:
        print_json(infos)
        return
    rows = [
        (
            info.name,
            info.variant,
            str(info.num_latents),
            info.pair,
            str(info.layer),
            *(_tables.number(inlier_fve(info.metrics, model)) for model in ("base", "chat")),
            _tables.number(info.metrics.get("l0")),
            info.version_id,
        )
        for info in infos
        if not info.broken
    ]
    fves = ("fve_base, inliers", "fve_chat, inliers")
    print_table(("name", "variant", "latents", "pair", "layer", *fves, "l0", "version"), rows)
    print_broken(infos)


@click.command()
@click.argument("crosscoder")
@click.option("--where", multiple=True, metavar="CONDITION", help='For instance "nu_err < 0.2"; all must hold.')
@click.option("--order-by", default="", metavar="COLUMN", help='A column; "-" in front for descending.')
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most this many.")
@with_version
def latents(options: Options, crosscoder: str, where: tuple[str, ...], order_by: str, limit: int) -> None:
    """List latents of CROSSCODER by conditions.

    \b
    crosscope latents demo --where "specific_to = chat" --where "verdict = supported" --order-by=-max
    """  # noqa: D301 (click wants the backspace itself)
    with options.client() as client:
        found = options.crosscoder(client, crosscoder).latents(list(where), order_by, limit)
        if options.as_json:
            print_json(
                {
                    "num_matching": found.num_matching,
                    "num_undefined": found.num_undefined,
                    "notes": found.notes,
                    "latents": found,
                }
            )
            return
        cells = [latent_cells(latent) for latent in found]
    print_table(LATENT_HEADERS, cells, rest=found.num_matching - len(cells))
    for remark in found.remarks:
        click.echo(remark, err=True)


@click.command()
@click.argument("crosscoder")
@click.argument("latent_id", metavar="LATENT", type=click.IntRange(min=0))
@click.option("--examples", "limit", type=click.IntRange(min=0), default=5, show_default=True, help="Examples to show.")
@click.option("--group", type=click.Choice(["top", "quantile", "silent"]), help="Only this group of examples.")
@click.option("--dataset", help="Only examples of this data set.")
@click.option("--context", type=click.IntRange(min=0), help="Tokens on each side of the peak [the whole text].")
@with_version
def latent(
    options: Options,
    crosscoder: str,
    latent_id: int,
    limit: int,
    group: str | None,
    dataset: str | None,
    context: int | None,
) -> None:
    """Show one latent of CROSSCODER and texts on which it fires."""
    with options.client() as client:
        whole = options.crosscoder(client, crosscoder)
        found = whole.latent(latent_id)
        examples = found.examples(limit, group, dataset, context) if limit else []
    if options.as_json:
        print_json({"latent": found, "examples": examples})
        return
    print_text(str(found))
    for name, reason in whole.info.unavailable.items():
        print_text(f"  no {name}: {reason}")
    if limit:
        print_text("")
        print_text(str(examples))
