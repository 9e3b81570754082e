"""`crosscope rates`: how often models show behaviours."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crosscope.cli.options import Options, with_version
from crosscope.cli.output import print_json, print_text

if TYPE_CHECKING:
    from crosscope import Arm, BehaviourRates


def _arm(text: str) -> "tuple[str, Arm]":
    """The name and the arm that NAME=MODEL or NAME=MODEL:CHANGE stands for. Raises UsageError."""
    from crosscope import Arm, InvalidInput

    name, equals, rest = text.partition("=")
    model, _, changes = rest.partition(":")
    if not equals or not name.strip():
        raise click.UsageError(f'--arm {text!r} has no name; write NAME=MODEL, for instance "plain=chat"')
    try:
        steer = [change.strip() for change in changes.split(";") if change.strip()]
        return name.strip(), Arm(model=model.strip(), steer=steer)  # pyright: ignore[reportArgumentType]
    except InvalidInput as error:
        raise click.UsageError(f"--arm {text!r}: {error}") from error


@click.command()
@click.argument("crosscoder")
@click.argument("probes", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--arm",
    "arms",
    multiple=True,
    metavar="NAME=MODEL[:CHANGE]",
    help='For instance "without=chat:7,12 ablate"; give it once an arm, changes joined by ";".',
)
@click.option(
    "--choose",
    type=click.IntRange(min=1),
    metavar="N",
    help="Choose N latents a behaviour on every second request, and score the others with and without these.",
)
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="An answer's longest length."
)
@with_version
def rates(
    options: Options, crosscoder: str, probes: Path, arms: tuple[str, ...], choose: int | None, max_new_tokens: int
) -> None:
    """Show how often models show the behaviours of the file PROBES; by default chat and base as they are.

    A line of PROBES is {"behaviour", "messages", "pattern"}: a request, and a regular expression of the answers that
    show the behaviour.
    """
    from crosscope import Probe

    if arms and choose:
        raise click.UsageError("--choose has arms of its own; leave --arm out")
    given = dict(map(_arm, arms))
    with options.client() as client:
        asked = options.crosscoder(client, crosscoder)
        read = Probe.read(probes)
        if choose:
            found = asked.behaviour_effects(read, choose, max_new_tokens)
        else:
            found = asked.behaviour_rates(read, given or None, max_new_tokens)
    print_json(_document(found)) if options.as_json else print_text(str(found))


def _document(found: "BehaviourRates") -> dict[str, object]:
    return {
        "version_id": found.version_id,
        "num_cut": found.num_cut,
        "rates": [
            {"behaviour": behaviour, "arm": arm, "num_shown": rate.num_shown, "num": rate.num, "rate": rate.rate}
            | dict(zip(("low", "high"), rate.interval, strict=True))
            for behaviour, arms in found.rates.items()
            for arm, rate in arms.items()
        ],
        "chosen": list(found.chosen.values()),
    }
