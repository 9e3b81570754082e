"""`crosscope status`: what answers, what is published, and what is wrong."""

import click

from crosscope.cli.options import Options, with_options
from crosscope.cli.output import print_broken, print_json, print_table, print_text
from crosscope.cli.standing import parts_of, print_problems


@click.command()
@with_options
def status(options: Options) -> None:
    """Show which services answer, what is published, and what is wrong.

    Exits with 3 if no server answers. A server without an inference worker can still be browsed; a server without a
    queue takes no jobs. `crosscope top` shows the same live.
    """
    with options.client() as client:
        found = client.capabilities()
        infos = [crosscoder.info for crosscoder in client.crosscoders()]
        address = client.address
    services = {name: name in found.features for name in ("latents", "prompts", "jobs")}
    if options.as_json:
        document = {"address": address, "services": services, "crosscoders": infos}
        print_json(document | {"capabilities": found})
        return
    print_text(f"server   {address}, version {found.version}")
    for name, is_served in services.items():
        print_text(f"{name:<8} {'serving' if is_served else 'not serving'}")
    for name, said in parts_of(found):
        print_text(f"{name:<8} {said}")
    if infos:
        print_text("")
        rows = [
            (info.name, info.variant, str(info.num_latents), info.pair, info.version_id)
            for info in infos
            if not info.broken
        ]
        print_table(("crosscoder", "variant", "latents", "pair", "version"), rows)
        print_broken(infos)
    else:
        print_text("\nNothing is published yet. `crosscope demo` makes a first pair of crosscoders.")
    print_problems(found.problems)
