"""`crosscope generate`, `steer`: answers as they come, with latents as they are or changed."""

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import click

from crosscope._answers import heading
from crosscope._arms import Arm
from crosscope._steering import SYNTAX, ModelName, Steer
from crosscope._tables import counted, lines
from crosscope.cli.options import Option, Options, apply
from crosscope.cli.output import console, print_json, shade
from crosscope.cli.prompt_options import Source, takes_prompt, takes_prompt_of_any, tell_dropped

if TYPE_CHECKING:
    from crosscope import Answer, Crosscoder, Generation, NewToken, Pair

_SURPRISE = 8.0
"""Nats of surprise that have the strongest colour."""
_STEER_HELP = f"""A change: "{SYNTAX}"; repeat it."""
_SYNTAX_HELP = """
\b
A change is LATENT[,LATENT…] ACTION [AMOUNT] [where]:
  7 add 4                  add 4 times the latent's maximum along its decoder row
  7,12 ablate generated    take them away in what is generated ("prompt": in the prompt)
  7 scale 0.5 user         halve it on the user's tokens (roles, with commas)
  7 set 1 difference       make it its maximum, along chat's row less base's (own, other, difference)
  12 transplant @3,8:12    give it the other model's row, at tokens 3 and 8 to 11
  swap_stream              exchange the whole stream for the other model's
"include_left_out" behind it also changes tokens that training left out (BOS, attention sinks).
"""

_SETTINGS: tuple[Option, ...] = (
    click.option("--model", type=click.Choice(["chat", "base", "both"]), default="chat", show_default=True),
    click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most probable token."),
    click.option("--top-p", type=float, help="Draw from the most probable tokens that reach this sum [all]."),
    click.option("--seed", type=int, default=0, show_default=True, help="Equal seeds give equal answers."),
    click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True),
    click.option("--stop", multiple=True, help="End an answer behind this text; repeat it."),
    click.option("--samples", "num_samples", type=click.IntRange(min=1), default=1, show_default=True),
    click.option("--code", "with_code", is_flag=True, help="Also the latents that every token fires; colours by them."),
)


def _settings(function: Any) -> Any:
    return apply(_SETTINGS, function)


@click.command(epilog=_SYNTAX_HELP)
@click.option("--steer", "changes", multiple=True, metavar="CHANGE", help=_STEER_HELP)
@_settings
@takes_prompt_of_any
def generate(
    options: Options, source: Source, prompt: dict[str, Any], changes: tuple[str, ...], model: str, **settings: Any
) -> None:
    """Continue TEXT with a model, as it is or with latents changed; "-" reads TEXT from stdin.

    Tokens are shown as they come, on a terminal coloured by their surprise (with --code by their strongest latent).
    """
    steer = _parsed(changes)
    with options.client() as client:
        _generate(options, source.open(options, client), prompt, _arms(model, steer), settings)


@click.command(epilog=_SYNTAX_HELP)
@click.option("--latent", "latents", type=click.IntRange(min=0), multiple=True, help="A latent to change; repeat it.")
@click.option("--add", type=float, help="Add so many times its maximum.")
@click.option("--scale", type=float, help="Multiply its contribution.")
@click.option("--set", type=float, help="Make it so many times its maximum.")
@click.option("--ablate", is_flag=True, help="Take it away.")
@click.option("--transplant", is_flag=True, help="Give it the other model's decoder row.")
@click.option("--steer", "changes", multiple=True, metavar="CHANGE", help=f"{_STEER_HELP[:-1]}, in place of --latent.")
@_settings
@takes_prompt
def steer(
    options: Options,
    crosscoder: str,
    prompt: dict[str, Any],
    latents: tuple[int, ...],
    changes: tuple[str, ...],
    model: str,
    **said: Any,
) -> None:
    """Continue TEXT twice: with the model as it is, and with latents of CROSSCODER changed.

    `--latent 7 --add 4` is `--steer "7 add 4"`.
    """
    actions = {name: said.pop(name) for name in ("add", "scale", "set", "ablate", "transplant")}
    steers = _parsed(changes)
    if latents or any(value not in (None, False) for value in actions.values()):
        steers += (Steer(latents=latents, **actions),)
    if not steers:
        raise click.UsageError('give --latent 7 --add 4, or --steer "7 add 4"')
    arms = [arm for plain in _arms(model, ()) for arm in (plain, Arm(model=plain.model, steer=steers))]
    with options.client() as client:
        _generate(options, options.crosscoder(client, crosscoder), prompt, arms, said)


def _parsed(changes: tuple[str, ...]) -> tuple[Steer, ...]:
    return tuple(Steer.parse(change) for change in changes)


def _arms(model: str, steers: tuple[Steer, ...]) -> list[Arm]:
    both: tuple[ModelName, ...] = ("base", "chat")
    return [Arm(model=each, steer=steers) for each in both if model in (each, "both")]


def _generate(
    options: Options, handle: "Crosscoder | Pair", prompt: dict[str, Any], arms: list[Arm], settings: dict[str, Any]
) -> None:
    """Generates and prints; on Ctrl-C ends the call, and says what has come."""
    with handle.generate(**prompt, arms=arms, **settings) as generation:
        tell_dropped(generation.prompt)
        try:
            if options.as_json:
                _print_lines(generation)
            else:
                _print_answers(generation)
        except KeyboardInterrupt:
            generation.close()
            if options.as_json:
                _print_ends(generation.received)
            came = ", ".join(f"{counted(len(each.tokens), 'token')} of {heading(each)}" for each in generation.received)
            click.echo(f"Stopped. Received: {came}.", err=True)
            raise


def _print_lines(generation: "Generation") -> None:
    """A line of JSON for the prompt, for each new token, and for each answer."""
    arms = [arm.name for arm in generation.arms]
    print_json({"prompt": generation.prompt, "arms": arms, "version_id": generation.version_id})
    for token in generation:
        print_json({"token": token})
    _print_ends(generation.received)


def _print_ends(answers: "list[Answer]") -> None:
    for answer in answers:
        arm = {"name": answer.arm.name, "model": answer.arm.model, "steer": [str(each) for each in answer.arm.changes]}
        print_json({"answer": {name: value for name, value in vars(answer).items() if name != "arm"} | {"arm": arm}})


def _print_answers(generation: "Generation") -> None:
    """Prints each answer below its heading while it comes; those behind it wait until it has ended."""
    printer = _Printer(generation)
    try:
        for token in generation:
            printer.add(token)
    except BaseException:
        print(flush=True)  # what stopped it stands on a line of its own
        raise
    printer.finish()


class _Printer:
    """Prints several answers one below the other: the first that has not ended as it comes, the others from memory."""

    def __init__(self, generation: "Generation") -> None:
        self._generation, self._console, self._colours = generation, console(), sys.stdout.isatty()
        received = generation.received
        self._order = deque((answer.arm_index, answer.sample) for answer in received)
        self._headings = dict(zip(self._order, map(heading, received), strict=True))
        self._waiting: dict[tuple[int, int], list[NewToken]] = {key: [] for key in self._order}
        self._largest = 0.0
        self._begin()

    def _begin(self) -> None:
        """Prints the heading of the answer that is next, if there are several."""
        if self._order and len(self._headings) > 1:
            self._write(f"── {self._headings[self._order[0]]} ──\n", "bold")

    def add(self, token: "NewToken") -> None:
        """Takes a new token, and prints what can be printed."""
        self._waiting[token.arm, token.sample].append(token)
        self._print_waiting()

    def _print_waiting(self) -> None:
        while self._order:
            current = self._order[0]
            for token in self._waiting[current]:
                self._write(token.piece, self._style(token))
            self._waiting[current].clear()
            if current not in self._generation.ended:
                break
            self._order.popleft()
            self._write("\n", "")
            self._begin()

    def finish(self) -> None:
        """Prints what is left, and how each answer ended on stderr."""
        self._print_waiting()
        for answer in self._generation.received:
            said = f"{heading(answer)}: {' '.join(answer.remarks)}"
            click.echo(said.encode("utf-8", "backslashreplace").decode(), err=True)

    def _style(self, token: "NewToken") -> str:
        strongest = max(token.activations, default=0.0)
        if not token.left_out:  # latents are far stronger where training left tokens out
            self._largest = max(self._largest, strongest)
        return shade(strongest / self._largest if self._largest else -token.log_probability / _SURPRISE)

    def _write(self, text: str, style: str) -> None:
        if self._colours:
            from rich.text import Text

            self._console.print(Text(lines(text), style), end="")
        else:
            print(text, end="", flush=True)
