"""`crosscope export html`: latents or a prompt as one file that opens without a server."""

from pathlib import Path

import click

from crosscope._export import write_page
from crosscope.cli.options import Options, with_version
from crosscope.cli.output import print_json, print_text


@click.group()
def export() -> None:
    """Write latents or a prompt as a file."""


@export.command()
@click.argument("crosscoder")
@click.argument("latents", nargs=-1, type=click.IntRange(min=0))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@click.option("--prompt", help="Write the tokens of this text, and the latents that fire on them, instead of latents.")
@click.option("--list", "in_list", help="Write the latents of this list, in its order, instead of LATENTS.")
@click.option("--examples", "limit", type=click.IntRange(min=1), default=10, show_default=True, help="Of each group.")
@click.option("--context", type=click.IntRange(min=0), default=32, show_default=True, help="Tokens beside the peak.")
@with_version
def html(
    options: Options,
    crosscoder: str,
    latents: tuple[int, ...],
    out: Path,
    prompt: str | None,
    in_list: str | None,
    limit: int,
    context: int,
) -> None:
    """Write LATENTS of CROSSCODER with their examples, a list, or a prompt, as one HTML file that loads nothing.

    \b
    crosscope export html demo 7 8 9 --out latents.html
    """  # noqa: D301 (click wants the backspace itself)
    if sum((prompt is not None, in_list is not None, bool(latents))) != 1:
        raise click.UsageError("name latents, give --list a name, or give --prompt a text; one of the three")
    with options.client() as client:
        found = options.crosscoder(client, crosscoder)
        if prompt is not None:
            document = found.encode(prompt).html()
        elif in_list is not None:
            ids = [latent.id for latent in found.latents([("list", "=", in_list)], order_by="list", limit=None)]
            document = found.html(ids, limit=limit, context=context, title=f"{crosscoder}: {in_list}")
        else:
            document = found.html(latents, limit=limit, context=context)
    try:
        size_bytes = write_page(out, document)
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error.strerror}; name another file") from error
    if options.as_json:
        print_json({"path": str(out), "size_bytes": size_bytes})
    else:
        print_text(f"{out}: {size_bytes:,} bytes")
