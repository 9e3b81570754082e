"""What the tables say, as functions of a connection. Change nothing."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from crosscope_server.annotations.records import Change, Conditions, LatentWords, ListInfo, Said, Totals, What
from crosscope_server.errors import NotFound

_AT_ONCE = 500
"""Latents in one question; SQLite takes a bounded number of values."""
_SOME = """SELECT latent FROM words WHERE dictionary = :dictionary
    UNION SELECT members.latent FROM members JOIN lists ON lists.id = members.list
    WHERE lists.dictionary = :dictionary"""
"""The latents that have words."""


def dictionary_id(connection: sqlite3.Connection, weights: str) -> int | None:
    """The number of a dictionary in the tables; None if nothing was ever said about it."""
    row = connection.execute("SELECT id FROM dictionaries WHERE weights = ?", (weights,)).fetchone()
    return None if row is None else row[0]


def revision(connection: sqlite3.Connection, dictionary: int | None) -> int:
    """The number of a dictionary's last change; 0 for none."""
    question = "SELECT id FROM changes WHERE dictionary = ? ORDER BY id DESC LIMIT 1"
    row = connection.execute(question, (dictionary,)).fetchone()
    return 0 if row is None else row[0]


def changed_kinds(connection: sqlite3.Connection, dictionary: int | None, since: int) -> set[str]:
    """The kinds of words that have changed since a revision."""
    question = "SELECT DISTINCT what FROM changes WHERE dictionary = ? AND id > ?"
    return {row[0] for row in connection.execute(question, (dictionary, since))}


def words(connection: sqlite3.Connection, dictionary: int | None, latents: Sequence[int]) -> list[LatentWords]:
    """All words about some latents, in their order."""
    said: dict[int, dict[What, Said]] = defaultdict(dict)
    lists: dict[int, dict[str, int]] = defaultdict(dict)
    for first in range(0, len(latents), _AT_ONCE):
        some = latents[first : first + _AT_ONCE]
        marks = ",".join("?" * len(some))
        question = f"""SELECT latent, what, text, author, written_at, revision, scores FROM words
            WHERE dictionary = ? AND latent IN ({marks})"""
        for latent, what, text, author, at, revision, scores in connection.execute(question, (dictionary, *some)):
            said[latent][What(what)] = Said(text, author, at, revision, json.loads(scores))
        question = f"""SELECT members.latent, lists.name, members.position FROM lists
            JOIN members ON members.list = lists.id
            WHERE lists.dictionary = ? AND members.latent IN ({marks}) ORDER BY lists.name"""
        for latent, name, position in connection.execute(question, (dictionary, *some)):
            lists[latent][name] = position
    return [LatentWords(latent, said.get(latent, {}), lists.get(latent, {})) for latent in latents]


def matching(
    connection: sqlite3.Connection, dictionary: int | None, conditions: Conditions, after: int, size: int
) -> tuple[list[int], int]:
    """Ids above `after` of latents that have words and meet conditions, `size` at most; and how many do in all."""
    having: list[str] = []
    values: dict[str, object] = {"dictionary": dictionary, "after": after, "size": size, "text": conditions.text}
    if conditions.text:
        having.append(_has("words.what != 'star' AND contains(words.text, :text)"))
    if conditions.is_labelled:
        having.append(_has("words.what IN ('label', 'automatic_label')"))
    if conditions.is_noted:
        having.append(_has("words.what = 'note'"))
    if conditions.is_starred:
        having.append(_has("words.what = 'star'"))
    if conditions.list:
        values["list"] = list_id(connection, dictionary, conditions.list)
        having.append("EXISTS (SELECT 1 FROM members WHERE members.list = :list AND members.latent = some.latent)")
    met = f"FROM ({_SOME}) AS some WHERE {' AND '.join(having) or 'TRUE'}"
    found = connection.execute(f"SELECT latent {met} AND latent > :after ORDER BY latent LIMIT :size", values)
    ids = [row[0] for row in found]
    return ids, connection.execute(f"SELECT count(*) {met}", values).fetchone()[0]


def _has(condition: str) -> str:
    return f"""EXISTS (SELECT 1 FROM words WHERE words.dictionary = :dictionary AND words.latent = some.latent
        AND {condition})"""


def history(
    connection: sqlite3.Connection, dictionary: int | None, latent: int, before: int | None, size: int
) -> list[Change]:
    """Changes of a latent, newest first, at most `size`; those before a revision if one is given."""
    question = """SELECT id, what, list, before, after, author, changed_at FROM changes
        WHERE dictionary = ? AND latent = ? AND id < ? ORDER BY id DESC LIMIT ?"""
    end = 2**62 if before is None else before
    return [Change(*row) for row in connection.execute(question, (dictionary, latent, end, size))]


_LISTS = """SELECT name, (SELECT count(*) FROM members WHERE members.list = lists.id), author, created_at
    FROM lists WHERE dictionary = ?"""


def lists(connection: sqlite3.Connection, dictionary: int | None) -> list[ListInfo]:
    """All lists of a dictionary, by name."""
    return [ListInfo(*row) for row in connection.execute(f"{_LISTS} ORDER BY name", (dictionary,))]


def list_info(connection: sqlite3.Connection, dictionary: int | None, name: str) -> ListInfo:
    """One list. Raises NotFound."""
    list_id(connection, dictionary, name)
    return ListInfo(*connection.execute(f"{_LISTS} AND name = ?", (dictionary, name)).fetchone())


def list_id(connection: sqlite3.Connection, dictionary: int | None, name: str) -> int:
    """The number of a list. Raises NotFound, with some names that there are."""
    question = "SELECT id FROM lists WHERE dictionary = ? AND name = ?"
    if (row := connection.execute(question, (dictionary, name)).fetchone()) is not None:
        return row[0]
    there = [each.name for each in lists(connection, dictionary)]
    more = ", …" if len(there) > 10 else ""
    hint = f"there are {', '.join(map(repr, there[:10]))}{more}" if there else "there is no list yet; make one"
    raise NotFound(f"no list {name!r}; {hint}")


def members(connection: sqlite3.Connection, list_number: int) -> list[int]:
    """Ids of the latents of a list, in its order."""
    question = "SELECT latent FROM members WHERE list = ? ORDER BY position, latent"
    return [row[0] for row in connection.execute(question, (list_number,))]


def all_latents(connection: sqlite3.Connection, dictionary: int | None) -> list[int]:
    """Ids of all latents that have words, ascending."""
    question = f"SELECT latent FROM ({_SOME}) ORDER BY latent"
    return [row[0] for row in connection.execute(question, {"dictionary": dictionary})]


def totals(connection: sqlite3.Connection, dictionaries: Iterable[int | None]) -> Totals:
    """Numbers of latents with words in some dictionaries."""
    counts = [_totals(connection, dictionary) for dictionary in dictionaries]
    return Totals(*(sum(column) for column in zip(*counts, strict=True))) if counts else Totals()


def _totals(connection: sqlite3.Connection, dictionary: int | None) -> tuple[int, int, int, int]:
    question = """SELECT count(DISTINCT CASE WHEN what IN ('label', 'automatic_label') THEN latent END),
        count(CASE WHEN what = 'star' THEN 1 END), count(CASE WHEN what = 'note' THEN 1 END),
        (SELECT count(*) FROM lists WHERE dictionary = :d) FROM words WHERE dictionary = :d"""
    return connection.execute(question, {"d": dictionary}).fetchone()


def named(connection: sqlite3.Connection, crosscoder: str) -> dict[str, int]:
    """The dictionaries about which something was said under a name: number by weights, in the order of the first."""
    question = """SELECT weights, id FROM dictionaries JOIN names ON names.dictionary = dictionaries.id
        WHERE crosscoder = ? ORDER BY id"""
    return dict(connection.execute(question, (crosscoder,)))


def labels(connection: sqlite3.Connection, dictionary: int | None) -> Iterator[tuple[int, str, bool]]:
    """For each labelled latent its id, its label (a person's before a program's), and whether a program said it."""
    question = """SELECT latent, text, what FROM words
        WHERE dictionary = ? AND what IN ('label', 'automatic_label') ORDER BY latent, what DESC"""
    last = -1
    for latent, text, what in connection.execute(question, (dictionary,)):
        if latent != last:  # of the two, "label" comes first
            yield latent, text, what == What.AUTOMATIC_LABEL
        last = latent


def scores(connection: sqlite3.Connection, dictionary: int | None) -> Iterator[tuple[int, dict[str, float]]]:
    """For each latent with an automatic label its id and the label's scores."""
    question = "SELECT latent, scores FROM words WHERE dictionary = ? AND what = ?"
    for latent, found in connection.execute(question, (dictionary, What.AUTOMATIC_LABEL)):
        yield latent, json.loads(found)


def notes(connection: sqlite3.Connection, dictionary: int | None) -> dict[int, str]:
    """The notes by latent, ascending."""
    question = "SELECT latent, text FROM words WHERE dictionary = ? AND what = ? ORDER BY latent"
    return dict(connection.execute(question, (dictionary, What.NOTE)))


def with_word(connection: sqlite3.Connection, dictionary: int | None, what: What) -> list[int]:
    """Ids of the latents of which something of a kind is said, ascending."""
    question = "SELECT latent FROM words WHERE dictionary = ? AND what = ? ORDER BY latent"
    return [row[0] for row in connection.execute(question, (dictionary, what))]
