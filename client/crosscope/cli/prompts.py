"""`crosscope encode`, `top`, `tokenize`: the tokens of a prompt and the latents that they fire."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from crosscope import Tokens, _tables
from crosscope._encoding import TOKEN_HEADERS, TOP_LATENT_HEADERS
from crosscope.cli.options import Option, Options, apply, with_version
from crosscope.cli.output import print_json, print_table
from crosscope_proto.template_kwargs import parse_template_kwargs

_PROMPT_OPTIONS: tuple[Option, ...] = (
    click.argument("crosscoder"),
    click.argument("text", required=False),
    click.option(
        "--message",
        "messages",
        multiple=True,
        metavar="ROLE:TEXT",
        help='A message, for instance "user:hello"; give it once a message, in order.',
    ),
    click.option("--turn", "turns", multiple=True, metavar="ROLE:TEXT", hidden=True),
    click.option("--token-ids", metavar="IDS", help='Token ids, read as they are, for instance "2 17 99".'),
    click.option(
        "--stored-text",
        type=click.IntRange(min=0),
        metavar="ID",
        help="A text that the analysis stored, exactly as it was read; an example names it as sequence_id.",
    ),
    click.option("--generation-prompt", is_flag=True, help="Append the header of an assistant's message."),
    click.option(
        "--template-kwargs",
        metavar="JSON",
        help='Arguments of the chat template, for instance {"enable_thinking": false}.',
    ),
    click.option("--control-tokens", is_flag=True, help='Read control tokens typed in the text ("<end_of_turn>").'),
)


def _takes_prompt(function: Callable[..., None]) -> Callable[..., Any]:
    """Gives a command its prompt as arguments of the SDK, from the options that describe a prompt."""

    @wraps(function)
    def command(
        options: Options,
        crosscoder: str,
        *,
        text: str | None,
        messages: tuple[str, ...],
        turns: tuple[str, ...],
        token_ids: str | None,
        stored_text: int | None,
        generation_prompt: bool,
        template_kwargs: str | None,
        control_tokens: bool,
        **own: Any,
    ) -> None:
        prompt = _prompt(text, messages, turns, token_ids, stored_text)
        prompt |= {"add_generation_prompt": generation_prompt, "parse_control_tokens": control_tokens}
        if template_kwargs:
            prompt["chat_template_kwargs"] = _object(template_kwargs)
        function(options, crosscoder, prompt, **own)

    return apply(_PROMPT_OPTIONS, with_version(command))


def _prompt(
    text: str | None,
    messages: tuple[str, ...],
    turns: tuple[str, ...],
    token_ids: str | None,
    stored_text: int | None,
) -> dict[str, Any]:
    """The prompt as arguments of the SDK: a text; messages, whose former name is turns; token ids; a stored text.

    The text "-" stands for stdin without its last line end. Raises UsageError.
    """
    ways = (text is not None, messages, turns, token_ids is not None, stored_text is not None)
    if sum(map(bool, ways)) != 1:
        raise click.UsageError(
            'give TEXT ("-" for stdin), --message ROLE:TEXT, --token-ids IDS or --stored-text ID, one of them'
        )
    if text is not None:
        return {"text": _stdin() if text == "-" else text}
    if token_ids is not None:
        return {"token_ids": _ids(token_ids)}
    if stored_text is not None:
        return {"stored_text": stored_text}
    word, given = ("messages", messages) if messages else ("turns", turns)
    split = [each.partition(":") for each in given]
    wrong = next((each for each, (_, colon, _) in zip(given, split, strict=True) if not colon), None)
    if wrong is not None:
        option = f"--{word.removesuffix('s')}"
        raise click.UsageError(f"{option} {wrong!r} has no role; write ROLE:TEXT, for instance user:hello")
    return {word: [{"role": role.strip(), "content": content} for role, _, content in split]}


def _ids(text: str) -> list[int]:
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None or not words:
        raise click.UsageError(f'--token-ids {wrong or text!r} is no token id; write for instance "2 17 99"')
    return [int(word) for word in words]


def _object(text: str) -> dict[str, Any]:
    try:
        return parse_template_kwargs(text)
    except ValueError as error:
        raise click.UsageError(f"--template-kwargs {error}") from error


def _tell_dropped(tokens: Tokens) -> None:
    for message in tokens.dropped_reasoning:
        click.echo(f"The chat template does not print the reasoning of message {message}, or not all of it.", err=True)


def _stdin() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


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
@_takes_prompt
def encode(options: Options, crosscoder: str, prompt: dict[str, Any], top_k: int | None) -> None:
    """Show which latents of CROSSCODER every token of TEXT fires; "-" reads TEXT from stdin."""
    with options.client() as client:
        encoding = options.crosscoder(client, crosscoder).encode(**prompt, top_k=top_k)
    _tell_dropped(encoding.tokens)
    if options.as_json:
        print_json(encoding)
        return
    print_table(TOKEN_HEADERS, encoding.token_rows())


@click.command()
@click.option("--rank", type=click.Choice(["max", "sum", "count", "share_of_max"]), default="max", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many.")
@click.option("--max-frequency", type=float, help="Leave out latents that fire on a larger share of tokens.")
@click.option(
    "--skip-template",
    is_flag=True,
    help="Leave out BOS, role headers and turn ends; the last token before an answer stays.",
)
@click.option("--tokens", type=_Range(), help='Tokens to look at, for instance "3:10", "-5:" or "-1".')
@click.option("--include-left-out", is_flag=True, help="Also rank tokens that training left out (BOS, outlying norms).")
@_takes_prompt
def top(
    options: Options,
    crosscoder: str,
    prompt: dict[str, Any],
    rank: Any,
    limit: int,
    max_frequency: float | None,
    skip_template: bool,
    tokens: slice | None,
    include_left_out: bool,
) -> None:
    """Rank the latents of CROSSCODER that TEXT fires; "-" reads TEXT from stdin."""
    with options.client() as client:
        found = options.crosscoder(client, crosscoder).top_latents(
            **prompt,
            rank=rank,
            limit=limit,
            max_frequency=max_frequency,
            skip_template_tokens=skip_template,
            include_left_out=include_left_out,
            tokens=tokens,
        )
    _tell_dropped(found.tokens)
    if options.as_json:
        print_json(found)
        return
    rows = found.rows()
    print_table(TOP_LATENT_HEADERS, rows, rest=found.num_latents - len(rows))
    for line in found.remarks:
        click.echo(f"{line} --include-left-out ranks them.", err=True)


@click.command()
@_takes_prompt
def tokenize(options: Options, crosscoder: str, prompt: dict[str, Any]) -> None:
    """Show the tokens of TEXT and their roles; "-" reads TEXT from stdin."""
    with options.client() as client:
        tokens = options.crosscoder(client, crosscoder).tokenize(**prompt)
    _tell_dropped(tokens)
    if options.as_json:
        print_json(tokens)
        return
    rows = [
        (str(i), str(token), _tables.visible(piece), role.name.lower()) for i, (token, piece, role) in enumerate(tokens)
    ]
    print_table(("token", "id", "piece", "role"), rows)
