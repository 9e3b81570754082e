"""What a search for latents gives, as people and notebooks see it. Knows nothing about gRPC."""

from dataclasses import dataclass
from enum import StrEnum
from html import escape

from crosscope import _html, _tables
from crosscope._latents import LatentStatistics
from crosscope._public import public
from crosscope._tables import number, printable


@public
class SearchPlace(StrEnum):
    """Where a search looks."""

    LABEL = "label"
    PEAK = "peak"
    """Each of the tokens at its peaks."""
    LOGIT_BASE = "logit_base"
    """Each of the tokens that it raises in base."""
    LOGIT_CHAT = "logit_chat"
    """Each of the tokens that it raises in chat."""
    EXAMPLE = "example"
    """The whole texts of its examples."""
    NOTE = "note"


@public
@dataclass(frozen=True)
class SearchMatch:
    """A place where a latent was found, with what stands around it."""

    place: SearchPlace
    before: str
    matched: str
    behind: str
    activation: float | None
    """Of an example: its largest scaled activation on a token of the match; None where it is silent there."""
    sequence_id: int | None
    """Of an example: the text, as in `Example.sequence_id`."""
    token_start: int
    """Of an example: the first token of the match in its text."""
    token_end: int
    """Of an example: the token behind the match."""

    def __str__(self) -> str:
        """The match in brackets, with what stands around it."""
        return printable(f"{self.before}⟦{self.matched}⟧{self.behind}")


@public
@dataclass(frozen=True)
class SearchResult:
    """A latent that was found."""

    latent: LatentStatistics
    matches: tuple[SearchMatch, ...]
    """One for each place where it was found; of its examples the one whose match it fires on most."""
    num_examples: int
    """Its examples, each text counted once; 0 where examples were not searched."""
    num_matching: int
    """Its examples that have a match."""
    num_firing: int
    """Its examples in which it fires on a token of a match."""
    num_peaking: int
    """Its examples whose peak is a token of a match."""

    @property
    def example(self) -> SearchMatch | None:
        """The match in an example, if there is one."""
        return next((each for each in self.matches if each.place == SearchPlace.EXAMPLE), None)

    @property
    def why(self) -> str:
        """How its examples match, in words."""
        if not self.num_matching:
            return ""
        if not self.num_firing:
            return f"silent on it in {_tables.counted(self.num_matching, 'example')}"
        return f"fires on it in {self.num_firing} of {self.num_examples} examples, peaks on it in {self.num_peaking}"


@public
@dataclass(frozen=True)
class SearchCount:
    """What was found in a place."""

    place: SearchPlace
    num_latents: int
    not_searched: str
    """Why the place was not searched, or not to its end; empty: it was searched whole."""


@public
class SearchResults(list[SearchResult]):
    """Latents that were found, best first: see `Crosscoder.search`."""

    def __init__(
        self,
        results: list[SearchResult],
        num_matching: int,
        counts: tuple[SearchCount, ...],
        text_matches: tuple[int, int],
        building: float | None,
        notes: tuple[str, ...],
    ) -> None:
        super().__init__(results)
        self.num_matching = num_matching
        """Latents that were found, whatever the limit."""
        self.counts = counts
        """A count for each place that was searched."""
        self.num_text_matches, self.num_texts = text_matches
        """Matches in the texts of examples, and texts that have one."""
        self.building = building
        """The share of the index of examples that is built; None: it is not being built."""
        self.notes = notes

    @property
    def remarks(self) -> tuple[str, ...]:
        """Where latents were found, what was not searched, and `notes`."""
        found = ", ".join(f"{each.place} {each.num_latents}" for each in self.counts)
        texts = f"; {self.num_text_matches} matches in {self.num_texts} texts" if self.num_texts else ""
        missing = [f"not searched in {each.place}: {each.not_searched}" for each in self.counts if each.not_searched]
        return (f"latents by place: {found}{texts}", *missing, *self.notes)

    def __str__(self) -> str:
        if not self:
            return "\n".join(["no latents", *self.remarks])
        table = _tables.aligned(SEARCH_HEADERS, [row for each in self for row in search_rows(each)])
        return "\n".join([_tables.with_rest(table, len(self), self.num_matching), *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for each in self for row in search_rows(each))
        head = "".join(f"<th>{escape(header)}</th>" for header in SEARCH_HEADERS)
        rest = self.num_matching - len(self)
        remarks = [*([f"… {rest} more"] if rest else []), *self.remarks]
        return _html.page(f"<table><tr>{head}</tr>{rows}</table>{_html.remarks(remarks)}")


SEARCH_HEADERS = ("latent", "class", "name", "in", "activation", "match")


def search_rows(result: SearchResult) -> list[tuple[str, ...]]:
    """The cells of a result under SEARCH_HEADERS, a row for each place."""
    latent = result.latent
    named = (str(latent.id), str(latent.latent_class), printable(latent.name))
    return [
        (
            *(named if i == 0 else ("", "", "")),
            str(match.place),
            _tables.UNDEFINED if match.activation is None else f"{number(match.activation)} of {number(latent.max)}",
            str(match),
        )
        for i, match in enumerate(result.matches)
    ]


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>"
