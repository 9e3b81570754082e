"""`crosscope groups`, `match`: what one model alone has, and what two crosscoders have in common."""

import click

from crosscope.cli.options import Options, with_version
from crosscope.cli.output import print_json, print_text


@click.command()
@click.argument("crosscoder")
@click.option("--specific-to", type=click.Choice(["chat", "base"]), default="chat", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), default=24, show_default=True, help="At most this many groups.")
@with_version
def groups(options: Options, crosscoder: str, specific_to: str, limit: int) -> None:
    """Show the latents of CROSSCODER that one model alone has, in groups that fire together."""
    with options.client() as client:
        found = options.crosscoder(client, crosscoder).groups(specific_to, limit, num_examples=1)
    if not options.as_json:
        print_text(str(found))
        return
    print_json(
        {
            "sentences": found.sentences,
            "remarks": found.remarks,
            "version_id": found.version_id,
            "num_specific": found.num_specific,
            "num_supported": found.num_supported,
            "num_grouped": found.num_grouped,
            "num_groups": found.num_groups,
            "groups": [
                {
                    "name": group.name,
                    "behaviour": group.behaviour,
                    "latents": group.ids,
                    "num_supported": group.num_supported,
                    "num_texts": group.num_texts,
                    "ablation": group.ablation,
                    "transplant": group.transplant,
                    "examples": group.examples,
                }
                for group in found
            ],
        }
    )


@click.command()
@click.argument("crosscoder")
@click.argument("other")
@click.option("--other-version", metavar="ID", help="Version of OTHER [the current one].")
@click.option("--latents", "with_latents", is_flag=True, help="With --json: the nearest latent of each, too.")
@with_version
def match(options: Options, crosscoder: str, other: str, other_version: str | None, with_latents: bool) -> None:
    """Show which latents of CROSSCODER and OTHER are the same, by their decoder rows."""
    if with_latents and not options.as_json:
        raise click.UsageError("--latents goes with --json; without it the counts alone are printed")
    with options.client() as client:
        second = client.crosscoder(other, version=other_version)
        found = options.crosscoder(client, crosscoder).match(second)
    if not options.as_json:
        print_text(str(found))
        return
    sides = [
        {"crosscoder": side.crosscoder, "version_id": side.version_id, "num_dead": side.num_dead, "counts": side.counts}
        | (
            {"latents": side.latents, "nearest": side.nearest, "cosines": side.cosines, "mutual": side.mutual}
            if with_latents
            else {}
        )
        for side in found.sides
    ]
    print_json({"min_cosine": found.min_cosine, "sides": sides})
