"""Requests that ask for a behaviour, and how often models show it. Knows no call.

A file of probes has a JSON object a line: {"behaviour", "messages", "pattern"}. The pattern is a regular expression; an
answer in which it is found shows the behaviour.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crosscope import _html, _tables
from crosscope._arms import Arm
from crosscope._errors import InvalidInput
from crosscope._prompts import check_text
from crosscope._public import public

if TYPE_CHECKING:
    import pandas as pd

_Z = 1.959963984540054
"""Standard normal quantile of a two-sided interval of 95 %."""
_FIELDS = ("behaviour", "messages", "pattern")


@public
@dataclass(frozen=True)
class Probe:
    """A request, and the pattern of an answer that shows a behaviour."""

    behaviour: str
    messages: Sequence[Mapping[str, Any]]
    """The conversation up to the answer, as `encode` takes it."""
    pattern: str
    """A regular expression, searched for in the answer without white space around it."""

    def __post_init__(self) -> None:
        check_text(self.behaviour, "behaviour")
        try:
            re.compile(check_text(self.pattern, "pattern"))
        except re.error as error:
            raise InvalidInput.of("pattern", f"{self.pattern!r} is no regular expression: {error}") from error

    @property
    def key(self) -> str:
        """The conversation as text, by which equal ones are known."""
        return json.dumps(list(self.messages), sort_keys=True, default=str)

    def is_shown_by(self, answer: str) -> bool:
        """Whether an answer shows the behaviour."""
        return re.search(self.pattern, answer.strip()) is not None

    @classmethod
    def read(cls, path: str | Path) -> "list[Probe]":
        """The probes of a file. Raises InvalidInput with the line of one that cannot be used, and OSError."""
        probes: list[Probe] = []
        for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                probes.append(cls(**{name: row[name] for name in _FIELDS}))
            except (ValueError, TypeError, KeyError, InvalidInput) as error:
                said = f"has no {error}" if isinstance(error, KeyError) else str(error)
                fields = ", ".join(_FIELDS)
                raise InvalidInput.of(
                    "probes", f"{path}, line {number}: {said}; a line is an object with {fields}"
                ) from error
        return probes


def by_behaviour(probes: Iterable[object]) -> dict[str, list[Probe]]:
    """Probes by behaviour, in their order, equal requests once. Raises InvalidInput if there is none."""
    found: dict[str, dict[str, Probe]] = {}
    for probe in probes:
        if not isinstance(probe, Probe):
            raise InvalidInput.of("probes", f"a Probe is needed, but {probe!r} was given")
        found.setdefault(probe.behaviour, {}).setdefault(probe.key, probe)
    if not found:
        raise InvalidInput.of("probes", "is empty; give at least one Probe")
    return {behaviour: list(each.values()) for behaviour, each in found.items()}


def halves(probes: Iterable[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Of each behaviour every second request, on which latents are chosen, and the others, which are scored.

    Raises InvalidInput for a behaviour with one request alone.
    """
    chosen_on: list[Probe] = []
    scored: list[Probe] = []
    for behaviour, each in by_behaviour(probes).items():
        if len(each) < 2:
            raise InvalidInput.of("probes", f"{behaviour!r} has one request; choosing and scoring need different ones")
        chosen_on += each[1::2]
        scored += each[::2]
    return chosen_on, scored


@public
@dataclass(frozen=True)
class Rate:
    """How often one arm shows one behaviour."""

    num_shown: int
    num: int
    """Answers."""

    @property
    def rate(self) -> float:
        """The share of the answers that show it."""
        return self.num_shown / self.num

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 %."""
        n, p = self.num, self.rate
        middle, half = p + _Z**2 / (2 * n), _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        scale = 1 + _Z**2 / n
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.0%} ({low:.0%} to {high:.0%})"


@public
@dataclass(frozen=True)
class BehaviourLatents:
    """The latents that carry a behaviour on some requests, and as many others to compare with."""

    behaviour: str
    latents: tuple[int, ...]
    """Those with the largest mean effect, largest first."""
    effects: tuple[float, ...]
    """Their effects: mean share of KL(chat‖base), over requests and both models."""
    control: tuple[int, ...]
    """As many at random of those that fire on the same texts about as strongly, and are not among `latents`."""
    num_requests: int
    """Requests on which they were chosen."""


@public
@dataclass(frozen=True)
class BehaviourRates:
    """How often each arm shows each behaviour; prints as a table."""

    crosscoder: str
    version_id: str
    rates: Mapping[str, Mapping[str, Rate]]
    """By behaviour and arm."""
    num_cut: int = 0
    """Answers that did not end by themselves within max_new_tokens; they were judged as far as they went."""
    chosen: Mapping[str, BehaviourLatents] = field(default_factory=dict)
    """By behaviour: the latents that the arms change, where they were chosen."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms."""
        return tuple(dict.fromkeys(arm for each in self.rates.values() for arm in each))

    @property
    def all(self) -> dict[str, Rate]:
        """The rates over all requests, by arm."""
        each = {arm: [rates[arm] for rates in self.rates.values() if arm in rates] for arm in self.arms}
        return {arm: Rate(sum(r.num_shown for r in some), sum(r.num for r in some)) for arm, some in each.items()}

    def _rows(self) -> list[list[str]]:
        lines = {**self.rates, "all": self.all} if len(self.rates) > 1 else self.rates
        return [
            [behaviour, str(max(rate.num for rate in rates.values()))]
            + [str(rates[arm]) if arm in rates else "–" for arm in self.arms]
            for behaviour, rates in lines.items()
        ]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about how the figures came about."""
        said = ["In brackets: Wilson's interval of 95 %."]
        if self.chosen:
            some = max(self.chosen.values(), key=lambda each: len(each.latents))
            said.append(
                f"Up to {len(some.latents)} latents a behaviour, chosen by their effect on {some.num_requests} other "
                "requests. The control are as many random latents that fire there about as strongly."
            )
        if self.num_cut:
            said.append(f"{self.num_cut} answers were cut at max_new_tokens, and judged as far as they went.")
        return tuple(said)

    def to_pandas(self) -> "pd.DataFrame":
        """A row for each behaviour and arm. Needs pandas."""
        import pandas as pd

        rows = [
            {"behaviour": behaviour, "arm": arm, "num_shown": rate.num_shown, "num": rate.num, "rate": rate.rate}
            | dict(zip(("low", "high"), rate.interval, strict=True))
            for behaviour, rates in self.rates.items()
            for arm, rate in rates.items()
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return "\n".join([_tables.aligned(("behaviour", "n", *self.arms), self._rows()), *self.remarks])

    def _repr_html_(self) -> str:
        return _html.page(_html.table(("behaviour", "n", *self.arms), self._rows()) + _html.remarks(self.remarks))


ArmsByBehaviour = Mapping[str, Arm | Mapping[str, Arm]]
"""Arms by name; a mapping has an arm for each behaviour."""


def arms_for(behaviour: str, arms: ArmsByBehaviour) -> dict[str, Arm]:
    """The arms of one behaviour by name. Raises InvalidInput for one that is not there."""
    found: dict[str, Arm] = {}
    for name, arm in arms.items():
        own = arm if isinstance(arm, Arm) else arm.get(behaviour) if isinstance(arm, Mapping) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        if not isinstance(own, Arm):
            raise InvalidInput.of("arms", f"{name!r} has no Arm for the behaviour {behaviour!r}")
        if (own.num_samples or 1) > 1:
            raise InvalidInput.of("arms", f"{name!r} has {own.num_samples} samples; a rate is of one answer a request")
        found[name] = own
    if not found:
        raise InvalidInput.of("arms", "is empty; give at least one Arm")
    return found


def nearest_at_random(wanted: Sequence[float], strengths: Mapping[int, float], draw: Any) -> list[int]:
    """For each strength in `wanted` one of the _NEAREST latents with the nearest strength, each at most once.

    Returns fewer if there are too few. `draw` is a random.Random.
    """
    left = dict(strengths)
    found: list[int] = []
    for strength in wanted[: len(left)]:
        nearest = sorted(left, key=lambda latent: (abs(left[latent] - strength), latent))[:_NEAREST]
        found.append(chosen := draw.choice(nearest))
        del left[chosen]
    return found


_NEAREST = 5
