"""What people say about latents, as plain records that print well. Know nothing about gRPC."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crosscope import _html, _tables
from crosscope._names import latent_name
from crosscope._public import public
from crosscope._tables import counted, printable

if TYPE_CHECKING:
    import pandas as pd

HEADERS = ("latent", "label", "note", "star", "lists", "by")
LIST_HEADERS = ("list", "latents", "by", "made")
HISTORY_HEADERS = ("when", "who", "what", "before", "after")
_SHOWN = 60
"""Characters of a note in a table."""


@public
@dataclass(frozen=True)
class Words:
    """A label, a note or a star."""

    text: str
    """Empty for a star."""
    author: str
    """Who wrote it, as the client claimed; of an automatic label, the program that labelled."""
    written_at: float
    """Seconds since 1970."""
    revision: int
    """Number of the change that wrote it; `seen` of a write takes it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of an automatic label: how well it was found to fit, by the name of the measure."""

    @property
    def fit(self) -> str:
        """The scores in words, each with its standard error and its number of texts; "" without scores."""
        ends = {name: ("_se", "_n") for name in self.scores if f"{name}_se" in self.scores}
        parts = {f"{name}{end}" for name, of in ends.items() for end in of}
        said: list[str] = []
        for name, score in self.scores.items():
            if name in parts:
                continue
            text = f"{name} {_tables.number(score, 2)}"
            if name in ends:
                text += f" ± {_tables.number(self.scores[f'{name}_se'], 1)}"
            if f"{name}_n" in self.scores:
                text += f" (n {self.scores[f'{name}_n']:.0f})"
            said.append(text)
        return ", ".join(said)


@public
@dataclass(frozen=True)
class Annotation:
    """All words about one latent."""

    latent: int
    label: Words | None
    """A person's label."""
    automatic_label: Words | None
    """A program's label."""
    note: Words | None
    star: Words | None
    lists: Mapping[str, int]
    """Its position in each list that it is in, by the list's name."""

    @property
    def text(self) -> str:
        """The label that is shown: a person's, else a program's, else ""."""
        shown = self.label or self.automatic_label
        return shown.text if shown else ""

    def __str__(self) -> str:
        return _tables.card(f"words about latent {self.latent}", self._facts())

    def _repr_html_(self) -> str:
        return _html.page(_html.facts(f"words about latent {self.latent}", self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("label", _said(self.label))]
        if self.automatic_label:
            fit = self.automatic_label.fit
            facts.append(("automatic label", _said(self.automatic_label) + (f", {fit}" if fit else "")))
        return [
            *facts,
            ("note", _said(self.note)),
            ("star", f"by {self.star.author or 'somebody'}" if self.star else _tables.UNDEFINED),
            ("lists", ", ".join(self.lists) or _tables.UNDEFINED),
        ]


def _said(words: Words | None) -> str:
    if words is None:
        return _tables.UNDEFINED
    return f"{words.text}  (by {words.author or 'somebody'}, revision {words.revision})"


def annotation_cells(annotation: Annotation) -> tuple[str, ...]:
    """The cells of one latent under HEADERS."""
    said = (annotation.label, annotation.automatic_label, annotation.note, annotation.star)
    authors = dict.fromkeys(words.author for words in said if words and words.author)
    note = printable(annotation.note.text) if annotation.note else ""
    return (
        str(annotation.latent),
        printable(annotation.text),
        note if len(note) <= _SHOWN else f"{note[: _SHOWN - 1]}…",
        "★" if annotation.star else "",
        printable(", ".join(annotation.lists)),
        printable(", ".join(authors)),
    )


@public
class AnnotationList(list[Annotation]):
    """Latents that have words, by id."""

    notes: tuple[str, ...]
    """Sentences for the reader, for instance that words of this name belong to other weights."""
    num_matching: int
    """Latents that meet the conditions, whatever the limit."""
    num_labelled: int
    """Latents of this dictionary with a label, whatever the conditions; the same below."""
    num_starred: int
    num_noted: int
    revision: int
    """Number of the last change of any word about this dictionary."""

    def __init__(
        self,
        items: Iterable[Annotation],
        *,
        notes: Sequence[str] = (),
        num_matching: int = 0,
        num_labelled: int = 0,
        num_starred: int = 0,
        num_noted: int = 0,
        revision: int = 0,
    ) -> None:
        super().__init__(items)
        self.notes, self.num_matching, self.revision = tuple(notes), num_matching, revision
        self.num_labelled, self.num_starred, self.num_noted = num_labelled, num_starred, num_noted

    def __str__(self) -> str:
        if not self:
            return "\n".join(["no words", *self.notes])
        table = _tables.with_rest(_tables.aligned(HEADERS, map(annotation_cells, self)), len(self), self.num_matching)
        return "\n".join([table, *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rest = [f"… {self.num_matching - len(self)} more"] if self.num_matching > len(self) else []
        table = _html.table(HEADERS, map(annotation_cells, self)) if self else "no words"
        return _html.page(table + _html.remarks([*rest, *self.notes]))


@public
@dataclass(frozen=True)
class LatentName:
    """What a latent is called."""

    latent: int
    label: str
    """A person's label, else a program's; empty: it has none."""
    is_automatic: bool
    """Whether a program said the label."""
    is_starred: bool
    peak_context: tuple[str, ...]
    """The text before the peak of its strongest example, the peak, and the text behind it; or nothing."""
    top_tokens: tuple[str, ...]

    def __str__(self) -> str:
        """The label, else the strongest peak in its text, as in "I **cannot** help"."""
        return latent_name(self.label, self.peak_context, self.top_tokens)


@public
@dataclass(frozen=True)
class NamedList:
    """A list of latents that somebody keeps."""

    name: str
    num_latents: int
    author: str
    created_at: float
    """Seconds since 1970."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Its cells in a table of lists."""
        return printable(self.name), str(self.num_latents), printable(self.author), moment(self.created_at)


@public
@dataclass(frozen=True)
class Change:
    """A change of one thing that is said about a latent."""

    revision: int
    what: str
    """"label", "automatic_label", "note", "star" or "list"."""
    list: str
    """Of "list": the name that the list had then."""
    before: str | None
    """None: there was nothing. A star, and a place in a list, are an empty text."""
    after: str | None
    author: str
    changed_at: float
    """Seconds since 1970."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Its cells in a table of changes."""
        what = f"list {self.list}" if self.what == "list" else self.what.replace("_", " ")
        texts = [_tables.UNDEFINED if text is None else text or "yes" for text in (self.before, self.after)]
        return (moment(self.changed_at), printable(self.author), printable(what), *map(printable, texts))


@public
class History(list[Change]):
    """Changes of a latent, newest first."""

    def __str__(self) -> str:
        return _tables.aligned(HISTORY_HEADERS, (each.cells for each in self)) if self else "nothing was ever said"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _html.page(_html.table(HISTORY_HEADERS, (each.cells for each in self)))


@public
@dataclass(frozen=True)
class SkippedWords:
    """A part of a row that an import skipped."""

    row: int
    """Number of the row, from 0."""
    latent: int | None
    """None: the row is a list."""
    what: str
    """"row", "label", "automatic_label", "note" or "list"."""
    reason: str

    def __str__(self) -> str:
        of = "" if self.latent is None else f" of latent {self.latent}"
        return printable(f"row {self.row}: the {self.what.replace('_', ' ')}{of}: {self.reason}")


@public
@dataclass(frozen=True)
class ImportReport:
    """What an import changed; of a dry run, what it would change."""

    dry_run: bool
    num_rows: int
    num_added: int
    """Labels, notes and stars that were new."""
    num_replaced: int
    num_unchanged: int
    num_lists: int
    """Lists that were made."""
    num_members: int
    """Latents that were put into lists."""
    num_skipped: int
    """Parts of rows that were skipped."""
    skipped: tuple[SkippedWords, ...]
    """The first 1 000 of them."""

    def __str__(self) -> str:
        would = "would be " if self.dry_run else ""
        counts = (
            f"{counted(self.num_rows, 'row')}: {self.num_added} {would}added, {self.num_replaced} {would}replaced, "
            f"{self.num_unchanged} unchanged; {counted(self.num_lists, 'list')} {would}made, "
            f"{counted(self.num_members, 'latent')} {would}put into lists; {self.num_skipped} skipped"
        )
        rest = self.num_skipped - len(self.skipped)
        return "\n".join([counts, *map(str, self.skipped), *([f"… {rest} more skipped"] if rest else [])])


@public
class AnnotationExport(list[dict[str, Any]]):
    """Exported words: a row a list, and a row a latent that has words."""

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with the columns of a CSV export; needs pandas."""
        import pandas as pd

        from crosscope._annotation_files import COLUMNS, flat

        return pd.DataFrame([flat(row) for row in self], columns=list(COLUMNS))

    def __repr__(self) -> str:
        lists = sum("list" in row for row in self)
        return f"{counted(len(self) - lists, 'latent')} with words, {counted(lists, 'list')}"


def moment(seconds: float) -> str:
    """A moment as people read it, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
