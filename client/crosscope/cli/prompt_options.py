"""The options that describe a prompt, and the arguments of the SDK that they stand for."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from crosscope.cli.options import Option, Options, apply, with_version
from crosscope_proto.template_kwargs import parse_template_kwargs

if TYPE_CHECKING:
    from crosscope import Client, Crosscoder, Pair, Tokens

_PROMPT_OPTIONS: tuple[Option, ...] = (
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
    click.option(
        "--generation-prompt/--no-generation-prompt",
        default=None,
        help="Append the header of an assistant's message; generate and steer do so if nothing is said.",
    ),
    click.option(
        "--template-kwargs",
        metavar="JSON",
        help='Arguments of the chat template, for instance {"enable_thinking": false}.',
    ),
    click.option("--control-tokens", is_flag=True, help='Read control tokens typed in the text ("<end_of_turn>").'),
)


def takes_prompt(function: Callable[..., None]) -> Callable[..., Any]:
    """Gives a command its crosscoder, and its prompt as arguments of the SDK."""
    with_prompt = _with_prompt(function)

    @wraps(function)
    def command(options: Options, crosscoder: str, **own: Any) -> None:
        with_prompt(options, crosscoder, **own)

    return apply((click.argument("crosscoder"), *_PROMPT_OPTIONS), with_version(command))


def takes_prompt_or_nothing(alone: Callable[[Options], None]) -> Callable[..., Any]:
    """Like takes_prompt, for a command that does something else, `alone`, if its name stands alone."""

    def decorate(function: Callable[..., None]) -> Callable[..., Any]:
        with_prompt = _with_prompt(function)

        @wraps(function)
        def command(options: Options, crosscoder: str | None, **own: Any) -> None:
            if crosscoder is not None:
                with_prompt(options, crosscoder, **own)
                return
            ctx = click.get_current_context()
            if any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in own):
                raise click.UsageError("Missing argument 'CROSSCODER'.")
            alone(options)

        return apply((click.argument("crosscoder", required=False), *_PROMPT_OPTIONS), with_version(command))

    return decorate


def takes_prompt_of_any(function: Callable[..., None]) -> Callable[..., Any]:
    """Like takes_prompt, for a command that also asks a pair of models: it gets a Source in place of the crosscoder."""
    with_prompt = _with_prompt(function)

    @wraps(function)
    def command(options: Options, crosscoder: str | None, *, pair: str | None, text: str | None, **own: Any) -> None:
        if pair is not None:
            if text is not None:
                raise click.UsageError("--pair stands in place of CROSSCODER; give one of the two")
            if options.version_id is not None:
                raise click.UsageError("--version is that of a crosscoder; a pair has none")
            crosscoder, text = None, crosscoder
        elif crosscoder is None:
            raise click.UsageError("give CROSSCODER, or --pair NAME for the models alone")
        with_prompt(options, Source(crosscoder, pair), text=text, **own)

    of_any = (
        click.argument("crosscoder", required=False),
        click.option("--pair", metavar="NAME", help="Ask this pair of models, in place of CROSSCODER."),
        *_PROMPT_OPTIONS,
    )
    return apply(of_any, with_version(command))


@dataclass(frozen=True)
class Source:
    """What is asked: a crosscoder, or a pair of models alone."""

    crosscoder: str | None
    pair: str | None

    def open(self, options: Options, client: "Client") -> "Crosscoder | Pair":
        """A handle of it."""
        return options.crosscoder(client, self.crosscoder) if self.crosscoder else client.pair(self.pair or "")


def _with_prompt(function: Callable[..., None]) -> Callable[..., Any]:
    """Gives a command its prompt as arguments of the SDK, from the options that describe a prompt."""

    @wraps(function)
    def command(
        options: Options,
        source: object,
        /,
        *,
        text: str | None,
        messages: tuple[str, ...],
        turns: tuple[str, ...],
        token_ids: str | None,
        stored_text: int | None,
        generation_prompt: bool | None,
        template_kwargs: str | None,
        control_tokens: bool,
        **own: Any,
    ) -> None:
        prompt = _prompt(text, messages, turns, token_ids, stored_text)
        prompt["parse_control_tokens"] = control_tokens
        if generation_prompt is not None:
            prompt["add_generation_prompt"] = generation_prompt
        if template_kwargs:
            prompt["chat_template_kwargs"] = _object(template_kwargs)
        function(options, source, prompt, **own)

    return command


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


def tell_dropped(tokens: "Tokens") -> None:
    """Says on stderr which messages' reasoning the chat template does not print."""
    for message in tokens.dropped_reasoning:
        click.echo(f"The chat template does not print the reasoning of message {message}, or not all of it.", err=True)


def _stdin() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
