"""Words out of the tables and into them, as rows: export and import, as functions of a connection.

An import is one step: all of it, or nothing. It never takes a person's words away unless it is told to.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from crosscope_server.annotations import reading, writing
from crosscope_server.annotations.records import Dictionary, LatentWords, Said

MAX_NAMED = 1000
"""Skipped parts of rows that an import names; it counts them all."""
_AT_ONCE = 500


@dataclass(frozen=True)
class Row:
    """A list, or a latent with words."""

    weights: str
    words: LatentWords | None = None
    list: str = ""
    """Name of a list, if the row is one."""
    wrong: str = ""
    """Why the row cannot be taken; empty if it can."""


@dataclass(frozen=True)
class Options:
    """How to import."""

    author: str
    """Who imports."""
    at: float
    """When, seconds since 1970."""
    replace: bool = False
    """Whether words that differ are written over."""
    any_weights: bool = False
    """Whether rows of other weights are taken."""


@dataclass(frozen=True)
class Skipped:
    """A part of a row that was skipped."""

    row: int
    latent: int | None
    what: str
    reason: str


@dataclass
class Report:
    """What an import changed."""

    num_rows: int = 0
    num_added: int = 0
    num_replaced: int = 0
    num_unchanged: int = 0
    num_lists: int = 0
    num_members: int = 0
    num_skipped: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, row: int, latent: int | None, what: str, reason: str) -> None:
        """Counts a part that is skipped, and names it if it is one of the first."""
        self.num_skipped += 1
        if len(self.skipped) < MAX_NAMED:
            self.skipped.append(Skipped(row, latent, what, reason))


def exported(connection: sqlite3.Connection, weights: Sequence[str]) -> Iterator[list[Row]]:
    """The rows of some dictionaries, some at a time: lists first, then latents by id."""
    for each in weights:
        dictionary = reading.dictionary_id(connection, each)
        lists = reading.lists(connection, dictionary)
        yield [Row(each, list=found.name) for found in lists]
        places: dict[int, dict[str, int]] = defaultdict(dict)
        for found in lists:
            for place, latent in enumerate(
                reading.members(connection, reading.list_id(connection, dictionary, found.name))
            ):
                places[latent][found.name] = place
        latents = reading.all_latents(connection, dictionary)
        for first in range(0, len(latents), _AT_ONCE):
            some = reading.words(connection, dictionary, latents[first : first + _AT_ONCE])
            yield [Row(each, replace(words, lists=places[words.latent])) for words in some]


def import_rows(connection: sqlite3.Connection, about: Dictionary, rows: Sequence[Row], options: Options) -> Report:
    """Writes rows into a dictionary. Words keep the author and the time that their row names."""
    report = Report(num_rows=len(rows))
    dictionary = writing.known_dictionary(connection, about)
    lists: dict[str, list[tuple[int, int, int]]] = {}
    """For each list the position, the row and the id of its latents."""
    for number, row in enumerate(rows):
        latent = None if row.words is None else row.words.latent
        if reason := _reason(row, about, options):
            report.skip(number, latent, "row", reason)
        elif row.words is None:
            lists.setdefault(row.list, [])
        else:
            _import_words(connection, dictionary, number, row.words, options, report)
            for name, position in row.words.lists.items():
                lists.setdefault(name, []).append((position, number, row.words.latent))
    _import_lists(connection, dictionary, lists, options, report)
    return report


def _reason(row: Row, about: Dictionary, options: Options) -> str:
    """Why a row cannot be taken; empty if it can."""
    if row.wrong:
        return row.wrong
    if row.weights and row.weights != about.weights and not options.any_weights:
        return f"it is about the weights {row.weights[:12]}…, not {about.weights[:12]}…; ask for any weights to take it"
    if row.words is not None and row.words.latent >= about.num_latents:
        return f"{about.crosscoder} has no latent {row.words.latent}; its latents are 0 to {about.num_latents - 1}"
    return ""


def _import_words(
    connection: sqlite3.Connection,
    dictionary: int,
    number: int,
    words: LatentWords,
    options: Options,
    report: Report,
) -> None:
    there = writing.all_said(connection, dictionary, words.latent)
    for what, given in words.said.items():
        said = Said(given.text, given.author or options.author, given.written_at or options.at, 0, given.scores)
        now = there.get(what)
        # A star has no text, so that it never differs.
        if now is not None and now.text != said.text and not options.replace:
            reason = f"it has another {what.replace('_', ' ')} already, by {now.author or 'somebody'}"
            report.skip(number, words.latent, what, reason)
        elif not writing.write(connection, dictionary, words.latent, what, now, said, (options.author, options.at)):
            report.num_unchanged += 1
        elif now is None:
            report.num_added += 1
        else:
            report.num_replaced += 1


def _import_lists(
    connection: sqlite3.Connection,
    dictionary: int,
    lists: dict[str, list[tuple[int, int, int]]],
    options: Options,
    report: Report,
) -> None:
    by = (options.author, options.at)
    there = {each.name for each in reading.lists(connection, dictionary)}
    for name, places in lists.items():
        if name not in there:
            if writing.has_all_lists(connection, dictionary):
                for _, number, latent in sorted(places) or [(0, 0, None)]:
                    report.skip(number, latent, "list", f"there are {writing.MAX_LISTS} lists already")
                continue
            writing.create_list(connection, dictionary, name, by)
            report.num_lists += 1
        latents = [latent for _, _, latent in sorted(places)]
        report.num_members += writing.add_members(connection, dictionary, name, latents, by)
