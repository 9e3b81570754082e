"""Groups of latents that are specific to one model and fire together, and what they say in sentences (math §13).

`grouped` is the rule: a pure function of ids, co-activations and detectors. Knows no call.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from crosscope import _html, _tables
from crosscope._examples import ExampleList
from crosscope._latents import LatentStatistics
from crosscope._public import public
from crosscope._tables import counted, number, visible
from crosscope._types import Detector, Estimate
from crosscope_proto.verdict import Verdict

MIN_INDEX = 0.1
"""Two latents fire together from this Jaccard index on: one in ten of the tokens on which either fires. Two independent
latents that each fire on one token in a hundred have 0.005."""
MOST_GROUPED = 1000
"""Latents that are grouped, best verdict first; the others are counted."""
PEAK_CONTEXT = 3
"""Tokens on each side of a peak that a group is called by."""
_ORDER = {verdict: number for number, verdict in enumerate(Verdict)}
_HEADS = ("group", "latents", "texts", "supported", "ablated, nats", "transplanted, nats", "example")

Pairs = Mapping[int, Iterable[tuple[int, float]]]
"""By latent: the latents that fire on the same tokens, each with the Jaccard index."""


@public
@dataclass(frozen=True)
class LatentGroup:
    """Latents that are specific to one model and fire together."""

    latents: tuple[LatentStatistics, ...]
    """Best verdict first, then the highest base uselessness (of a difference dictionary: the β ratio nearest 0)."""
    behaviour: str
    """The tagged behaviour that its latents detect, or fire together with a detector of; empty: none."""
    detectors: tuple[Detector, ...]
    """The best detectors of that behaviour. They need not be among the latents."""
    examples: ExampleList = field(repr=False)
    """Whole texts on which its first latent fires, strongest first."""
    called: str = ""
    """A person's label of the first of its latents that has one; empty: none has."""

    @property
    def tagged(self) -> str:
        """The behaviour as people read it."""
        return self.behaviour.replace("_", " ")

    @property
    def name(self) -> str:
        """A person's label, else the behaviour, else the text around its strongest peak, else tokens at its peaks."""
        if self.called or self.behaviour:
            return self.called or self.tagged
        if self.examples:
            tokens, peak = self.examples[0].tokens, self.examples[0].peak
            near = range(max(0, peak - PEAK_CONTEXT), min(len(tokens), peak + PEAK_CONTEXT + 1))
            around = [tokens.pieces[i] for i in near if i == peak or not tokens.is_template[i]]
            return f"“{' '.join(''.join(around).split())}”"
        return " ".join(map(visible, self.latents[0].top_tokens[:3])) or f"latent {self.latents[0].id}"

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of its latents."""
        return tuple(latent.id for latent in self.latents)

    @property
    def num_supported(self) -> int:
        """Number of its latents with the verdict "supported"."""
        return sum(latent.verdict.verdict is Verdict.SUPPORTED for latent in self.latents)

    @property
    def num_texts(self) -> int:
        """Texts in which it fires, at the least: those of the latent with the most; 0 where texts were not counted."""
        return int(max((latent.more.get("num_texts", 0.0) for latent in self.latents), default=0.0))

    @property
    def measured(self) -> LatentStatistics | None:
        """The latent whose ablation closes most of the gap between the models, of those that were measured."""
        known = [latent for latent in self.latents if "ablation_gap_all" in latent.more]
        return max(known, key=lambda latent: latent.more["ablation_gap_all"], default=None)

    @property
    def ablation(self) -> Estimate:
        """Fall of the KL between the models when `measured` is taken out of chat, nats a prediction (math §11)."""
        return self._effect("ablation_gap_all")

    @property
    def transplant(self) -> Estimate:
        """Fall of the KL between the models when chat's row of `measured` is put into base, nats (math §11)."""
        return self._effect("transplant_gap_all")

    def _effect(self, column: str) -> Estimate:
        more = self.measured.more if self.measured else {}
        return Estimate(more.get(column, math.nan), more.get(f"{column}_se", math.nan))


@public
class LatentGroupList(list[LatentGroup]):
    """Groups: most supported latents first, then most latents, then most texts. Prints as sentences and a table."""

    crosscoder: str = ""
    version_id: str = ""
    specific_to: str = "chat"
    num_latents: int = 0
    """Latents of the crosscoder."""
    num_specific: int = 0
    """Latents that are specific to the model by their measurements."""
    num_supported: int = 0
    """Of these, the grouped ones with the verdict "supported"."""
    num_grouped: int = 0
    """Latents that were grouped: all of them, or the first MOST_GROUPED."""
    num_groups: int = 0
    """Groups that there are; the list may hold fewer."""
    gap: float = math.nan
    """Mean KL(chat‖base) of the predictions of the causal effects, nats; NaN where they were not measured."""

    @property
    def sentences(self) -> list[str]:
        """What the groups say, as plain sentences; each figure is one of this list's or of a group's."""
        other = "base" if self.specific_to == "chat" else "chat"
        has = "is" if self.num_specific == 1 else "are"
        specific = f"{_whole(self.num_specific)} {has} specific to {self.specific_to} by the measurements"
        supported = {0: "None of them has", 1: "1 of them has"}.get(self.num_supported)
        supported = f"{supported or f'{_whole(self.num_supported)} of them have'} the verdict “supported”"
        said = [f"Of {_whole(self.num_latents)} latents, {specific}: {other} lacks what they write. {supported}."]
        if not self:
            return [f"None of {_whole(self.num_latents)} latents is shown to be specific to {self.specific_to}."]
        named = [group.tagged for group in self if group.behaviour]
        groups = counted(self.num_groups, "group")
        carry = "1 of them carries" if len(named) == 1 else f"{len(named)} of them carry"
        tagged = f"; {carry} a behaviour that the data tags: {', '.join(named)}" if named else ""
        said.append(f"By what fires on the same tokens they fall into {groups}{tagged}.")
        largest = max(self, key=lambda group: (len(group.latents), group.num_texts))
        texts = f" and fires in at least {_whole(largest.num_texts)} held-out texts" if largest.num_texts else ""
        said.append(f"The largest, {largest.name}, has {counted(len(largest.latents), 'latent')}{texts}.")
        known = [group for group in self if group.measured]
        if known:
            group = max(known, key=lambda group: group.ablation.value)
            of = f" of {number(self.gap, 3)}" if self.gap == self.gap else ""
            said.append(
                f"The largest measured effect is that of latent {group.measured.id if group.measured else ''} "
                f"({group.name}): without it chat is {rounded(group.ablation)}{of} nats nearer to base on the "
                "assistant's tokens, means of KL(chat‖base)."
            )
        return said

    @property
    def remarks(self) -> list[str]:
        """Sentences about what is not in the list."""
        said = []
        if self.num_grouped < self.num_specific:
            said.append(
                f"{self.num_specific - self.num_grouped} latents behind the first {self.num_grouped} are in no group."
            )
        if len(self) < self.num_groups:
            said.append(f"{counted(self.num_groups - len(self), 'more group')} left out by the limit.")
        return said

    def _rows(self) -> list[list[str]]:
        return [
            [
                group.name,
                ", ".join(map(str, group.ids[:8])) + (f" … {len(group.ids) - 8} more" if len(group.ids) > 8 else ""),
                _whole(group.num_texts) if group.num_texts else _tables.UNDEFINED,
                f"{group.num_supported} of {len(group.latents)}",
                rounded(group.ablation),
                rounded(group.transplant),
                str(group.examples[0]).strip()[:100] if group.examples else "",
            ]
            for group in self
        ]

    def __str__(self) -> str:
        table = [_tables.aligned(_HEADS, self._rows())] if self else []
        return "\n".join([*self.sentences, *table, *self.remarks])

    def _repr_html_(self) -> str:
        table = _html.table(_HEADS, self._rows()) if self else ""
        said = "".join(f"<p>{_html.escape(sentence)}</p>" for sentence in self.sentences)
        return _html.page(said + table + _html.remarks(self.remarks))


def grouped(
    latents: Sequence[int], together: Pairs, detectors: Mapping[str, Iterable[int]], min_index: float = MIN_INDEX
) -> list[tuple[str, tuple[int, ...]]]:
    """Groups of latents that fire together, as (behaviour, latents); behaviour is "" for most (math §13).

    Pairs with an index of at least `min_index` are joined, strongest first, ties by id. `detectors` are the detectors
    of each tagged behaviour: they stand in one group from the start, and join latents without being grouped themselves
    unless they are among `latents`. A pair that would unite two behaviours is left out. Groups come in the order of
    their first latent in `latents`, and latents in that order too.
    """
    place = {latent: i for i, latent in enumerate(latents)}
    parent: dict[int, int] = {}
    behaviour: dict[int, str] = {}

    def root(latent: int) -> int:
        while (above := parent.setdefault(latent, latent)) != latent:
            parent[latent] = parent[above]
            latent = parent[above]
        return latent

    def join(one: int, other: int) -> None:
        one, other = root(one), root(other)
        names = {behaviour[each] for each in (one, other) if each in behaviour}
        if one != other and len(names) < 2:
            parent[other] = one
            if names:
                behaviour[one] = names.pop()

    for name, ids in sorted(detectors.items()):
        # A latent that detects two behaviours stands for the first.
        own = [latent for latent in ids if latent not in parent]
        for latent in own:
            behaviour[root(latent)] = name
            join(own[0], latent)
    known = place.keys() | parent.keys()
    pairs = {
        (min(latent, other), max(latent, other)): index
        for latent in latents
        for other, index in together.get(latent, ())
        if other in known and other != latent and index >= min_index
    }
    for one, other in sorted(pairs, key=lambda pair: (-pairs[pair], pair)):
        join(one, other)
    groups: dict[int, list[int]] = {}
    for latent in latents:
        groups.setdefault(root(latent), []).append(latent)
    return [(behaviour.get(top, ""), tuple(ids)) for top, ids in groups.items()]


def groups_of(
    latents: Iterable[LatentStatistics], detectors: Iterable[Detector]
) -> list[tuple[str, tuple[LatentStatistics, ...], tuple[Detector, ...]]]:
    """The groups of latents as (behaviour, latents, detectors), in the order of LatentGroupList."""
    latents = sorted(latents, key=_telling)
    by_id = {latent.id: latent for latent in latents}
    found: dict[str, list[Detector]] = {}
    for detector in detectors:
        found.setdefault(detector.behaviour, []).append(detector)
    together = {latent.id: [(each.latent, each.index) for each in latent.coactive] for latent in latents}
    anchors = {name: [each.latent for each in some] for name, some in found.items()}
    groups = [
        (name, tuple(by_id[each] for each in ids), tuple(found.get(name, ())))
        for name, ids in grouped(list(by_id), together, anchors)
    ]
    return sorted(groups, key=lambda group: _size(group[1]))


def _telling(latent: LatentStatistics) -> tuple[int, float, int]:
    """The order of latents in a group: verdict, then how telling it is, then its id."""
    uselessness, ratio = latent.base_uselessness_single, latent.beta_ratio.value
    by = -uselessness if uselessness is not None else abs(ratio)
    return _ORDER[latent.verdict.verdict], by if by == by else math.inf, latent.id


def _size(latents: Sequence[LatentStatistics]) -> tuple[int, int, float, int]:
    supported = sum(latent.verdict.verdict is Verdict.SUPPORTED for latent in latents)
    texts = max(latent.more.get("num_texts", 0.0) for latent in latents)
    return -supported, -len(latents), -texts, latents[0].id


def _whole(value: int) -> str:
    return f"{value:,}".replace(",", "\u202f")


def rounded(effect: Estimate) -> str:
    """An effect with its error in two digits, rounded alike, with a true minus; a dash where it was not measured."""
    value, se = effect.value, effect.se
    if math.isnan(value):
        return _tables.UNDEFINED
    if math.isnan(se) or se <= 0:
        return number(value, 2).replace("-", "−")
    places = max(0, 1 - int(f"{se:.1e}".partition("e")[2]))
    return f"{value:.{places}f} ± {se:.{places}f}".replace("-", "−")
