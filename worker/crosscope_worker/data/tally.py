"""Counts what becomes of the texts of a data set. The counts survive a resume and are shown with the result.

Plain values in and out. Does not know how texts are read or why one is refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from crosscope_proto.left_out import OTHER

MAX_REASONS = 20
"""Reasons of a data set that are told apart; further ones count as OTHER."""
_LONGEST_REASON = 160
_QUOTED = re.compile(r"'[^']{25,}'|\"[^\"]{25,}\"")

State = Mapping[str, Any]


@dataclass
class Counts:
    """Counts over the texts of one data set, in all passes."""

    read: int = 0
    """Texts of the split that were looked at."""
    refused: dict[str, int] = field(default_factory=dict)
    """Texts that were left out, by reason."""
    cut: int = 0
    """Texts that were longer than max_length."""
    cut_tokens: int = 0
    """Tokens beyond max_length."""
    lost_behaviours: int = 0
    """Tagged behaviours that lie beyond max_length or that the template does not print."""
    without_tokens: int = 0
    """Texts without a token that the token policy keeps."""
    stopped: int = 0
    """Passes that ended at max_tokens."""
    retries: int = 0
    """Reads that failed and were tried again."""

    @property
    def num_refused(self) -> int:
        """Texts that were left out."""
        return sum(self.refused.values())

    @property
    def given(self) -> int:
        """Texts that were handed on."""
        return self.read - self.num_refused

    def refuse(self, reason: str) -> None:
        """Counts a text that is left out."""
        known = reason in self.refused or len(self.refused) < MAX_REASONS
        reason = reason if known else OTHER
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def plain(self) -> dict[str, int]:
        """The counts by name, without the reasons."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "refused"}


def reason_of(sentence: str) -> str:
    """The reason of a refusal, without numbers and long quotations, which differ from text to text."""
    reason = re.sub(r"\bturn \d+\b", "a turn", " ".join(sentence.split()))
    reason = re.sub(r"\d+", "N", _QUOTED.sub("'…'", reason))
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"


def as_state(counts: Sequence[Counts]) -> list[dict[str, Any]]:
    """The counts of data sets as plain values."""
    return [asdict(each) for each in counts]


def from_state(state: Sequence[State]) -> list[Counts]:
    """The counts that `as_state` gave."""
    return [Counts(**{**each, "refused": dict(each["refused"])}) for each in state]


def shifted(state: Sequence[State], by: Sequence[State], sign: int) -> list[dict[str, Any]]:
    """The sum (sign 1) or difference (-1) of two states of the same data sets."""
    return [
        _shifted(each, other, sign) | {"refused": _without_zeros(_shifted(each["refused"], other["refused"], sign))}
        for each, other in zip(state, by, strict=True)
    ]


def _shifted(counts: State, by: State, sign: int) -> dict[str, int]:
    names = dict.fromkeys((*counts, *by))
    return {name: counts.get(name, 0) + sign * by.get(name, 0) for name in names if name != "refused"}


def _without_zeros(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def total(*parts: Sequence[Counts]) -> list[Counts]:
    """The counts of the same data sets in several readings, added up; a part without counts adds nothing."""
    states: list[list[dict[str, Any]]] = [as_state(part) for part in parts if part]
    result = states[0] if states else []
    for state in states[1:]:
        result = shifted(result, state, 1)
    return from_state(result)


def together(*parts: Sequence[State]) -> list[Counts]:
    """The counts of the same data sets in parts of one reading (`part.Part`), as one reading of all would have them."""
    result = total(*map(from_state, parts))
    for index, counts in enumerate(result):
        counts.stopped = max(part[index]["stopped"] for part in parts)  # every part ends at its share of max_tokens
    return result
