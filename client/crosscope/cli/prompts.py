"""`crosscope encode`, `top`, `tokenize`: the tokens of a prompt and the latents that they fire."""

from typing import Any, get_args

import click

from crosscope import _tables
from crosscope._encoding import TOKEN_HEADERS, TOP_LATENT_HEADERS, Rank
from crosscope.cli.options import Options
from crosscope.cli.output import print_json, print_table
from crosscope.cli.prompt_options import takes_prompt, takes_prompt_or_nothing, tell_dropped


class _Range(click.ParamType):
    """A slice as Python writes it, or a single token; negative ends count from the prompt's last token."""

    name = "START:END"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> slice:
        """The slice that the text stands for; fails for any other text."""
        start, colon, end = str(value).partition(":")
        try:
            first, last = (int(each) if each.strip() else None for each in (start, end))
        except ValueError:
            self.fail(f'{value!r} is no range; write START:END, for instance "3:10", "-5:" or "-1"', param, ctx)
        if colon:
            return slice(first, last)
        if first is None:
            self.fail("a range is empty", param, ctx)
        return slice(first, None if first == -1 else first + 1)


@click.command()
@click.option("--top-k", type=click.IntRange(min=1), help="Latents a token, the strongest [all that fire].")
@takes_prompt
def encode(options: Options, crosscoder: str, prompt: dict[str, Any], top_k: int | None) -> None:
    """Show which latents of CROSSCODER every token of TEXT fires; "-" reads TEXT from stdin."""
    with options.client() as client:
        encoding = options.crosscoder(client, crosscoder).encode(**prompt, top_k=top_k)
    tell_dropped(encoding.tokens)
    if options.as_json:
        print_json(encoding)
        return
    print_table(TOKEN_HEADERS, encoding.token_rows())


def _show_live(options: Options) -> None:
    from crosscope.cli.live import show_live

    show_live(options)


@click.command()
@click.option("--rank", type=click.Choice(get_args(Rank)), default="max", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many.")
@click.option("--max-frequency", type=float, help="Leave out latents that fire on a larger share of tokens.")
@click.option("--where", multiple=True, help='A condition on the latents, as for "latents"; may be given again.')
@click.option(
    "--skip-template",
    is_flag=True,
    help="Leave out BOS, role headers and turn ends; the last token before an answer stays.",
)
@click.option("--tokens", type=_Range(), help='Tokens to look at, for instance "3:10", "-5:" or "-1".')
@click.option("--include-left-out", is_flag=True, help="Also rank tokens that training left out (BOS, outlying norms).")
@takes_prompt_or_nothing(_show_live)
def top(
    options: Options,
    crosscoder: str,
    prompt: dict[str, Any],
    rank: Any,
    limit: int,
    max_frequency: float | None,
    where: tuple[str, ...],
    skip_template: bool,
    tokens: slice | None,
    include_left_out: bool,
) -> None:
    """Rank the latents of CROSSCODER that TEXT fires; "-" reads TEXT from stdin.

    `crosscope top` alone shows the installation live: calls, latency, workers, queue, jobs, and what is wrong. q or
    Ctrl-C ends it; in a pipe it prints one picture.
    """
    with options.client() as client:
        found = options.crosscoder(client, crosscoder).top_latents(
            **prompt,
            rank=rank,
            limit=limit,
            max_frequency=max_frequency,
            where=where,
            skip_template_tokens=skip_template,
            include_left_out=include_left_out,
            tokens=tokens,
        )
    tell_dropped(found.tokens)
    if options.as_json:
        print_json(found)
        return
    rows = found.rows()
    print_table(TOP_LATENT_HEADERS, rows, rest=found.num_latents - len(rows))
    for index, line in enumerate(found.remarks):
        hint = " --include-left-out ranks them." if found.num_left_out and not index else ""
        click.echo(f"{line}{hint}", err=True)


@click.command()
@takes_prompt
def tokenize(options: Options, crosscoder: str, prompt: dict[str, Any]) -> None:
    """Show the tokens of TEXT and their roles; "-" reads TEXT from stdin."""
    with options.client() as client:
        tokens = options.crosscoder(client, crosscoder).tokenize(**prompt)
    tell_dropped(tokens)
    if options.as_json:
        print_json(tokens)
        return
    rows = [
        (str(i), str(token), _tables.visible(piece), role.name.lower()) for i, (token, piece, role) in enumerate(tokens)
    ]
    print_table(("token", "id", "piece", "role"), rows)
