"""What differs between the models of a pair, as a look found it, and how it prints. Knows nothing about gRPC."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crosscope import _html, _tables
from crosscope._findings import (
    CONTINUATION_HEADERS,
    FINDING_HEADERS,
    TEXT_HEADERS,
    Continuation,
    Finding,
    FirstDifference,
    LookGroup,
    LookLayer,
    LookText,
)
from crosscope._public import public
from crosscope._tables import number
from crosscope._types import Estimate

if TYPE_CHECKING:
    import pandas as pd

LAYER_HEADERS = ("layer", "base's stream put into chat", "chat's stream put into base")
GROUP_HEADERS = ("", "tokens", "mean kl", "share of all")
_PRINTED = 15
"""Rows of findings and of texts that are printed."""


@public
@dataclass(frozen=True)
class LookInfo:
    """What a look is about, and what follows."""

    name: str
    pair: str
    base_model: str
    chat_model: str
    num_layers: int
    datasets: tuple[str, ...]
    num_tokens: int
    """Number of tokens that were compared: all texts are read, not only held-out ones."""
    num_texts: int
    figures: Mapping[str, float]
    """Over all tokens: mean_kl, mean_kl_se, median_kl, p99_kl, max_kl, sum_kl in nats; share_top: share of the sum in
    the largest hundredth of the tokens; share_findings: in the findings."""
    recommended_layer: int | None
    """The layer for a crosscoder; None if none is recommended."""
    reason: str
    """Why this layer, or why none."""
    left_out: tuple[str, ...]
    """Sentences about the data that were left out."""
    unavailable: Mapping[str, str]
    """Why a part was not measured, by its name."""
    sweep_tokens: int
    """Findings on which the sweep was measured."""
    sweep_texts: int
    num_folded: int
    """Tokens that differ as much as the least finding, but were left out for others of their text, or with the same
    tokens before them."""
    created_at: float
    """When its job loaded the models, seconds since 1970."""
    manifest_json: str = field(repr=False)
    broken: str = ""
    """Why the server cannot read it; empty if it can."""

    @property
    def mean_kl(self) -> Estimate:
        """Mean KL(chat ‖ base) of all tokens, nats, with its standard error over texts."""
        nan = float("nan")
        return Estimate(self.figures.get("mean_kl", nan), self.figures.get("mean_kl_se", nan))

    @property
    def recipe(self) -> dict[str, object]:
        """The recipe that made it, with every default."""
        return json.loads(self.manifest_json or "{}").get("recipe", {})


@dataclass(frozen=True, eq=False)
class LookContents:
    """All that a look found."""

    info: LookInfo
    layers: tuple[LookLayer, ...]
    """The swept layers, ascending."""
    groups: tuple[LookGroup, ...]
    """Data sets, then roles."""
    findings: tuple[Finding, ...]
    """The tokens that differ most, largest first."""
    conversations: tuple[LookText, ...]
    """The texts that differ most, by mean, with their tokens and KL."""
    first: tuple[FirstDifference, ...]
    continuations: tuple[Continuation, ...]
    num_findings: int
    """Findings before a limit."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    @property
    def recommended_layer(self) -> int | None:
        """The layer for a crosscoder; None if none is recommended."""
        return self.info.recommended_layer

    @property
    def reason(self) -> str:
        """Why this layer, or why none."""
        return self.info.reason

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each finding; needs pandas."""
        import pandas as pd

        return pd.DataFrame(
            {
                "kl": finding.kl,
                "piece": finding.piece,
                "role": finding.role,
                "dataset": finding.text.dataset,
                "place": finding.text.place,
                "position": finding.position,
                "base_next": finding.base[0].piece if finding.base else "",
                "chat_next": finding.chat[0].piece if finding.chat else "",
            }
            for finding in self.findings
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about what was left out, folded or not measured."""
        folded = (
            f"{self.info.num_folded} more tokens differ as much, in texts that have findings already or after the "
            "same tokens."
        )
        missing = (f"not measured, {name}: {reason}" for name, reason in self.info.unavailable.items())
        return (*([folded] if self.info.num_folded else []), *self.info.left_out, *missing)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The facts on its card, as (what, value)."""
        info = self.info
        figures = info.figures
        facts = [
            ("pair", f"{info.pair}: {info.base_model} | {info.chat_model}, {info.num_layers} layers"),
            ("compared", f"{info.num_tokens} tokens of {info.num_texts} texts: {', '.join(info.datasets)}"),
            ("KL(chat ‖ base)", f"mean {info.mean_kl} nats, largest {number(figures.get('max_kl'))}"),
        ]
        if "share_top" in figures:
            facts.append(("where", f"{figures['share_top']:.0%} of it lies in the largest hundredth of the tokens"))
        return facts

    @property
    def sections(self) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """The tables that are printed: title, headers and rows."""
        swept = f"what the streams carry, on {self.info.sweep_tokens} findings of {self.info.sweep_texts} texts"
        layers = [(_layer(self, each), *map(_share, (each.share_chat, each.share_base))) for each in self.layers]
        groups = [
            (f"{each.kind} {each.name}", str(each.num_tokens), str(each.mean), f"{each.share:.1%}")
            for each in self.groups
        ]
        alike = Counter(each.pattern for each in self.findings)
        largest = {each.pattern: each for each in reversed(self.findings)}
        patterns = [each.cells(alike[each.pattern]) for each in sorted(largest.values(), key=lambda each: -each.kl)]
        tables = [
            (swept, LAYER_HEADERS, layers),
            ("by data set and role", GROUP_HEADERS, groups),
            ("tokens that differ most", FINDING_HEADERS, patterns[:_PRINTED]),
            ("texts that differ most", TEXT_HEADERS, [each.cells() for each in self.conversations[:_PRINTED]]),
            ("greedy continuations", CONTINUATION_HEADERS, [each.cells() for each in self.continuations]),
        ]
        return [table for table in tables if table[2]]

    @property
    def recipe_line(self) -> str:
        """The line for a recipe; empty if no layer is recommended."""
        return "" if self.recommended_layer is None else f"layer: {self.recommended_layer}"

    def __str__(self) -> str:
        lines = [_tables.card(f"look {self.name}", self.facts)]
        for title, headers, rows in self.sections:
            lines += ["", title, _tables.aligned(headers, rows)]
        return "\n".join([*lines, "", *self.remarks, self.reason, self.recipe_line]).rstrip()

    def __repr__(self) -> str:
        return f"Look({self.name!r}, pair {self.info.pair!r}, {len(self.findings)} findings)"

    def _repr_html_(self) -> str:
        parts = [_html.facts(f"look {self.name}", self.facts)]
        for title, headers, rows in self.sections:
            parts += [_html.remarks([title]), _html.table(headers, rows)]
        return _html.page("".join([*parts, _html.remarks([*self.remarks, self.reason, self.recipe_line])]))


def _layer(look: LookContents, each: LookLayer) -> str:
    return f"{each.layer} ←" if each.layer == look.recommended_layer else str(each.layer)


def _share(share: Estimate) -> str:
    bar = "█" * round(20 * min(1.0, max(0.0, share.value)))
    error = "" if share.se != share.se else f" ± {share.se:.0%}"
    return f"{share.value:>4.0%}{error} {bar}"
