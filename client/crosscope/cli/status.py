"""`crosscope status`."""

import click

from crosscope.cli.options import Options, with_options
from crosscope.cli.output import print_broken, print_json, print_table, print_text


@click.command()
@with_options
def status(options: Options) -> None:
    """Show which services answer and what is published.

    Exits with 3 if no server answers. A server without an inference worker can still be browsed; a server without a
    queue takes no jobs.
    """
    with options.client() as client:
        services = client.health()
        infos = [crosscoder.info for crosscoder in client.crosscoders()]
        if options.as_json:
            print_json({"address": client.address, "services": services, "crosscoders": infos})
            return
        print_text(f"server   {client.address}")
    for name, serving in services.items():
        print_text(f"{name:<8} {'serving' if serving else 'not serving'}")
    if not infos:
        print_text("\nNothing is published yet. `crosscope demo` makes a first pair of crosscoders.")
        return
    print_text("")
    rows = [
        (info.name, info.variant, str(info.num_latents), info.pair, info.version_id)
        for info in infos
        if not info.broken
    ]
    print_table(("crosscoder", "variant", "latents", "pair", "version"), rows)
    print_broken(infos)
