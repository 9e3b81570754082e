"""`crosscope compare`, `attribute`, `explain`, `contrast`: how both models differ, and by which latents."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crosscope._attribution import ATTRIBUTION_HEADERS
from crosscope._comparison import COMPARISON_HEADERS
from crosscope._contrast import CONTRAST_HEADERS
from crosscope._explanation import EXPLANATION_HEADERS
from crosscope._tables import counted
from crosscope._tagged import tagged_sets
from crosscope.cli.options import Options, with_version
from crosscope.cli.output import print_json, print_shaded, print_table, print_text
from crosscope.cli.prompt_options import Source, takes_prompt, takes_prompt_of_any, tell_dropped

if TYPE_CHECKING:
    from crosscope import Comparison

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_PROMPT_KEYS = ("text", "messages", "stored_text", "token_ids")


@click.command()
@click.option("--next", "top_n", type=click.IntRange(min=0), default=5, show_default=True, help="Next tokens a model.")
@click.option("--most-different", type=click.IntRange(min=1), metavar="N", help="Only the N tokens that differ most.")
@takes_prompt_of_any
def compare(options: Options, source: Source, prompt: dict[str, Any], top_n: int, most_different: int | None) -> None:
    """Show how both models' predictions differ at every token of TEXT; "-" reads TEXT from stdin.

    KL(chat‖base) is in nats. On a terminal the text comes first, coloured by it.
    """
    with options.client() as client:
        comparison = source.open(options, client).compare(**prompt, top_n=top_n)
    tell_dropped(comparison.tokens)
    if options.as_json:
        print_json(comparison)
        return
    _print_strip(comparison)
    shown = comparison.most_different(most_different) if most_different else None
    print_table(COMPARISON_HEADERS, comparison.rows(shown))


def _print_strip(comparison: "Comparison") -> None:
    """Prints the tokens on a terminal, coloured by KL; nothing in a pipe."""
    import numpy as np

    values = np.nan_to_num(comparison.kl_chat_base)
    largest = float(values.max(initial=0.0)) or 1.0
    print_shaded(zip(comparison.tokens.pieces, (values / largest).tolist(), strict=True))


@click.command()
@click.option("--at", "tokens", type=int, multiple=True, metavar="TOKEN", help="Explain this token's KL; repeat it.")
@click.option(
    "--model", type=click.Choice(["chat", "base"]), default="chat", show_default=True, help="Change this one."
)
@click.option("--first", help="Explain log p(FIRST) - log p(SECOND) instead, two continuations of the prompt.")
@click.option("--second", help="The other continuation.")
@click.option("--exact", type=click.IntRange(min=0), default=32, show_default=True, help="Latents measured exactly.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most this many.")
@click.option("--include-left-out", is_flag=True, help="Also at tokens that training left out (BOS, outlying norms).")
@takes_prompt
def attribute(
    options: Options, crosscoder: str, prompt: dict[str, Any], tokens: tuple[int, ...], exact: int, **asked: Any
) -> None:
    """Rank the latents of CROSSCODER that carry a difference between the models on TEXT, or work against it.

    Explained is the KL(chat‖base) at the tokens that --at names (-1 is the last), by default where it is largest. "-"
    reads TEXT from stdin.
    """
    with options.client() as client:
        handle = options.crosscoder(client, crosscoder)
        found = handle.attribute(**prompt, tokens=tokens or None, num_exact=exact, **asked)
    tell_dropped(found.tokens)
    if options.as_json:
        print_json(found)
        return
    print_text(found.figure)
    print_table(ATTRIBUTION_HEADERS, found.rows())
    for line in found.remarks:
        click.echo(line, err=True)


@click.command()
@click.option("--num-tokens", type=click.IntRange(min=1), default=3, show_default=True, help="Tokens to explain.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="Latents a token.")
@click.option("--include-template", is_flag=True, help="Also tokens of the chat template.")
@click.option("--include-left-out", is_flag=True, help="Also tokens that training left out (BOS, outlying norms).")
@takes_prompt
def explain(options: Options, crosscoder: str, prompt: dict[str, Any], include_template: bool, **asked: Any) -> None:
    """Say why the models differ on TEXT: where most, and which latents of CROSSCODER carry it there.

    A latent has two figures, each a share of the KL(chat‖base) at the token: how much goes when chat's row is put INTO
    BASE, and how much goes when the latent is taken OUT OF CHAT. Where several latents carry the same, the second is
    small for each of them. Below 0 the models then differ more; "~" marks an estimate, "–" what was not measured.
    """
    with options.client() as client:
        handle = options.crosscoder(client, crosscoder)
        found = handle.explain(**prompt, skip_template_tokens=not include_template, **asked)
    tell_dropped(found.comparison.tokens)
    if options.as_json:
        rows = [{"sentence": str(each), **vars(each)} for each in found]
        print_json({"rows": rows, "remarks": found.remarks, "attributions": found.attributions})
        return
    _print_strip(found.comparison)
    if found:
        print_table(EXPLANATION_HEADERS, found.rows())
    else:
        print_text("No latent carries a difference here.")
    for line in found.remarks:
        click.echo(line.encode("utf-8", "backslashreplace").decode(), err=True)


@click.command()
@click.argument("crosscoder")
@click.argument("first", required=False, type=_FILE)
@click.argument("second", required=False, type=_FILE)
@click.option("--data", type=_FILE, help="Conversations with tags (JSONL), in place of FIRST and SECOND.")
@click.option("--tag", help="With --data: conversations with this tag against those without.")
@click.option("--with-answer", is_flag=True, help="With --data: prompts end with the answer, not where it begins.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Latents a place.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of folds and shuffled labels.")
@click.option("--generation-prompt", is_flag=True, help="Append the header of an assistant's message to messages.")
@with_version
def contrast(
    options: Options,
    crosscoder: str,
    first: Path | None,
    second: Path | None,
    data: Path | None,
    tag: str | None,
    with_answer: bool,
    limit: int,
    seed: int,
    generation_prompt: bool,
) -> None:
    """Rank the latents of CROSSCODER that tell the prompts of the file FIRST from those of SECOND.

    A file holds a prompt a line. One that ends in .jsonl holds JSON: a text, a list of messages, or an object with
    "text", "messages", "stored_text" or "token_ids". With --data and --tag the sets are made of conversations: up to
    an answer with the tag, and up to one of a conversation without it.
    """
    if data is not None and tag is not None and first is None:
        sets = tagged_sets(data, tag, upto="answer" if with_answer else "decision", seed=seed)
        click.echo(str(sets), err=True)
        prompts, generation_prompt = (sets.first, sets.second), sets.add_generation_prompt
    elif first is not None and second is not None and data is None and tag is None and not with_answer:
        prompts = read_prompts(first), read_prompts(second)
    else:
        raise click.UsageError("give the files FIRST and SECOND, or --data FILE and --tag TAG, one of the two")
    with options.client() as client:
        handle = options.crosscoder(client, crosscoder)
        found = handle.contrast(*prompts, limit=limit, seed=seed, add_generation_prompt=generation_prompt)
    if options.as_json:
        print_json(found)
        return
    print_text(found.heading)
    for place in found:
        print_text(f"\n{place.heading}")
        print_table(CONTRAST_HEADERS, place.rows())


def read_prompts(path: Path) -> list[Any]:
    """The prompts of a file, a line each. Says on stderr how many lines are empty. Raises UsageError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is no UTF-8 text: {error}") from error
    said = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(said) < len(lines):
        click.echo(f"{path}: {counted(len(lines) - len(said), 'empty line')} passed over.", err=True)
    if path.suffix != ".jsonl":
        return [line for _, line in said]
    return [_prompt_of(line, f"{path}, line {number}") for number, line in said]


def _prompt_of(line: str, where: str) -> Any:
    """The prompt of a line of JSON; of an object, the one key that is a prompt."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"{where} is no JSON: {error}") from error
    if not isinstance(value, dict):
        return value
    found = [key for key in _PROMPT_KEYS if key in value]
    if len(found) != 1:
        keys = ", ".join(map(repr, value)) or "no key"
        raise click.UsageError(f"{where} needs one of {', '.join(_PROMPT_KEYS)}, but has {keys}")
    return {found[0]: value[found[0]]}
