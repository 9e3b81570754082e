"""Examples under headings: the top, each quantile band with its range, the silent ones; near-duplicates folded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from crosscope._examples import Example
from crosscope._tables import number
from crosscope_proto.artefacts import ExampleGroup

ALIKE = 4
"""Tokens on each side of the peak that near-duplicates have in common."""


@dataclass(frozen=True)
class Folded:
    """An example, and the number of further texts that it stands for."""

    example: Example
    more: int

    @property
    def note(self) -> str:
        """How many texts are like it; empty for none."""
        return f"and {self.more:,} like it" if self.more else ""


@dataclass(frozen=True)
class Section:
    """Examples of one group and band."""

    title: str
    remark: str
    """Range and number of the texts from which they were chosen; empty if the version does not say."""
    examples: list[Folded]


def sections(examples: Iterable[Example], maximum: float, num_bands: int = 0) -> list[Section]:
    """Examples by group and band, in their own order; `maximum` is the latent's largest activation.

    `num_bands` is the number of quantile bands of the analysis, 0 if unknown.
    """
    groups: dict[tuple[ExampleGroup, int], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.group, example.quantile), []).append(example)
    return [
        Section(_title(group, band, num_bands), _remark(found, maximum), list(folded(found)))
        for (group, band), found in groups.items()
    ]


def folded(examples: Iterable[Example]) -> Iterator[Folded]:
    """Examples without those whose tokens up to ALIKE before and behind the peak are those of an earlier one."""
    first: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        start = max(0, example.peak - ALIKE)
        window = (example.peak - start, *example.tokens.ids[start : example.peak + ALIKE + 1])
        first.setdefault(window, []).append(example)
    for alike in first.values():
        yield Folded(alike[0], len(alike) - 1 + sum(example.repeats for example in alike))


def _title(group: ExampleGroup, band: int, num_bands: int) -> str:
    if group is ExampleGroup.TOP:
        return "Strongest"
    if group is ExampleGroup.SILENT:
        return "Silent on the same token"
    return f"Band {band + 1} of {num_bands}" if num_bands else f"Band {band + 1}"


def _remark(examples: list[Example], maximum: float) -> str:
    """One sentence; data sets have bands of their own, so the range is that of all of them together."""
    by_dataset = {example.dataset: example for example in examples}.values()
    texts = sum(example.group_texts for example in by_dataset)
    if not texts:
        return ""
    if examples[0].group is ExampleGroup.SILENT:
        return f"{texts:,} silent texts were found with the token of its peaks; the nearest are shown"
    low, high = min(e.group_low for e in by_dataset), max(e.group_high for e in by_dataset)
    share = f" ({low / maximum:.0%} to {high / maximum:.0%} of its maximum)" if maximum > 0 else ""
    chosen_from = "of" if examples[0].group is ExampleGroup.TOP else "from"
    return f"{chosen_from} {texts:,} {'text' if texts == 1 else 'texts'} of {number(low)} to {number(high)}{share}"
