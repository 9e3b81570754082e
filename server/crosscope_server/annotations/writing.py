"""Changes of words, as functions of a connection in a transaction. Each change is recorded with what was there before.

What changes nothing is no change, so a call that is sent twice does the same as one.
"""

import json
import sqlite3
from collections.abc import Sequence

from crosscope_server.annotations.reading import dictionary_id, list_id
from crosscope_server.annotations.records import Dictionary, Said, What
from crosscope_server.errors import AlreadyExists, Conflict, Stale

MAX_LISTS = 1000
"""Lists of one dictionary."""
_SHOWN = 200
"""Characters of each text that an error repeats."""


def known_dictionary(connection: sqlite3.Connection, about: Dictionary) -> int:
    """The number of a dictionary, about which something is said under this name from now on."""
    connection.execute("INSERT OR IGNORE INTO dictionaries (weights) VALUES (?)", (about.weights,))
    number = dictionary_id(connection, about.weights)
    assert number is not None
    connection.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (about.crosscoder, number))
    return number


def all_said(connection: sqlite3.Connection, dictionary: int, latent: int) -> dict[What, Said]:
    """Everything that is said of a latent."""
    question = """SELECT what, text, author, written_at, revision, scores FROM words
        WHERE dictionary = ? AND latent = ?"""
    found = connection.execute(question, (dictionary, latent))
    return {
        What(what): Said(text, author, at, revision, json.loads(scores))
        for what, text, author, at, revision, scores in found
    }


def say(
    connection: sqlite3.Connection,
    dictionary: int,
    latent: int,
    what: What,
    said: Said | None,
    by: tuple[str, float],
    seen: int | None = None,
) -> bool:
    """Writes something about a latent, or clears it where `said` is None; whether that changed anything.

    `by` is who changes it and when; `seen` the revision that the writer saw, 0 for nothing. Raises Stale if another
    change came in between.
    """
    now = all_said(connection, dictionary, latent).get(what)
    present = 0 if now is None else now.revision
    if seen is not None and seen != present and not _is_same(now, said, what):
        raise _stale(latent, what, now, said)
    return write(connection, dictionary, latent, what, now, said, by)


def write(
    connection: sqlite3.Connection,
    dictionary: int,
    latent: int,
    what: What,
    now: Said | None,
    said: Said | None,
    by: tuple[str, float],
) -> bool:
    """Puts `said` in the place of `now`, which is there; whether that changed anything."""
    if _is_same(now, said, what):
        return False
    before, after = (None if each is None else each.text for each in (now, said))
    revision = record(connection, dictionary, latent, what, "", before, after, by)
    if said is None:
        statement = "DELETE FROM words WHERE dictionary = ? AND latent = ? AND what = ?"
        connection.execute(statement, (dictionary, latent, what))
        return True
    row = (dictionary, latent, what, said.text, said.author, said.written_at, revision, json.dumps(dict(said.scores)))
    connection.execute("INSERT OR REPLACE INTO words VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    return True


def _is_same(now: Said | None, said: Said | None, what: What) -> bool:
    if now is None or said is None:
        return now is said
    if what is What.AUTOMATIC_LABEL:
        return (now.text, now.author, dict(now.scores)) == (said.text, said.author, dict(said.scores))
    return now.text == said.text


def _stale(latent: int, what: What, now: Said | None, said: Said | None) -> Stale:
    name = what.replace("_", " ")
    there = "it is cleared" if now is None else f"it is {_shown(now)}, by {now.author or 'somebody'}"
    yours = "clears it" if said is None else f"says {_shown(said)}"
    revision = 0 if now is None else now.revision
    return Stale(
        f"the {name} of latent {latent} has changed since you read it: now {there} (revision {revision}); yours "
        f"{yours}. Nothing was changed: read it again, or write without a revision to write over it",
        revision,
        "" if now is None else _cut(now.text),
    )


def _shown(said: Said) -> str:
    return repr(_cut(said.text))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def record(
    connection: sqlite3.Connection,
    dictionary: int,
    latent: int | None,
    what: str,
    list_name: str,
    before: str | None,
    after: str | None,
    by: tuple[str, float],
) -> int:
    """Records a change; returns its number."""
    statement = """INSERT INTO changes (dictionary, latent, what, list, before, after, author, changed_at)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
    values = (dictionary, latent, what, list_name, before, after, *by)
    number = connection.execute(statement, values).lastrowid
    assert number is not None
    return number


def create_list(connection: sqlite3.Connection, dictionary: int, name: str, by: tuple[str, float]) -> int:
    """Makes an empty list; returns its number. Raises AlreadyExists, or Conflict for one more than MAX_LISTS."""
    _check_free(connection, dictionary, name)
    if has_all_lists(connection, dictionary):
        raise Conflict(f"this dictionary has {MAX_LISTS} lists already, the most that it may have; delete one")
    statement = "INSERT INTO lists (dictionary, name, author, created_at) VALUES (?, ?, ?, ?)"
    number = connection.execute(statement, (dictionary, name, *by)).lastrowid
    assert number is not None
    record(connection, dictionary, None, "list", name, None, name, by)
    return number


def has_all_lists(connection: sqlite3.Connection, dictionary: int) -> bool:
    """Whether a dictionary has as many lists as it may have."""
    question = "SELECT count(*) FROM lists WHERE dictionary = ?"
    return connection.execute(question, (dictionary,)).fetchone()[0] >= MAX_LISTS


def rename_list(
    connection: sqlite3.Connection, dictionary: int, name: str, new_name: str, by: tuple[str, float]
) -> None:
    """Gives a list another name. Raises NotFound or AlreadyExists."""
    number = list_id(connection, dictionary, name)
    if new_name == name:
        return
    _check_free(connection, dictionary, new_name)
    connection.execute("UPDATE lists SET name = ? WHERE id = ?", (new_name, number))
    record(connection, dictionary, None, "list", new_name, name, new_name, by)


def _check_free(connection: sqlite3.Connection, dictionary: int, name: str) -> None:
    question = "SELECT 1 FROM lists WHERE dictionary = ? AND name = ?"
    if connection.execute(question, (dictionary, name)).fetchone():
        raise AlreadyExists(f"there is a list {name!r} already; choose another name, or put latents into that one")


def delete_list(connection: sqlite3.Connection, dictionary: int, name: str, by: tuple[str, float]) -> None:
    """Deletes a list, which each of its latents remembers. Raises NotFound."""
    number = list_id(connection, dictionary, name)
    statement = """INSERT INTO changes (dictionary, latent, what, list, before, after, author, changed_at)
        SELECT ?, latent, 'list', ?, '', NULL, ?, ? FROM members WHERE list = ? ORDER BY position"""
    connection.execute(statement, (dictionary, name, *by, number))
    connection.execute("DELETE FROM lists WHERE id = ?", (number,))
    record(connection, dictionary, None, "list", name, name, None, by)


def add_members(
    connection: sqlite3.Connection, dictionary: int, name: str, latents: Sequence[int], by: tuple[str, float]
) -> int:
    """Puts latents at the end of a list, in order; those that are in it stay where they are. Returns how many it put
    in. Raises NotFound.
    """
    number = list_id(connection, dictionary, name)
    question = "SELECT coalesce(max(position) + 1, 0) FROM members WHERE list = ?"
    position = connection.execute(question, (number,)).fetchone()[0]
    added = 0
    for latent in latents:
        row = (number, latent, position + added)
        if connection.execute("INSERT OR IGNORE INTO members VALUES (?, ?, ?)", row).rowcount:
            record(connection, dictionary, latent, "list", name, None, "", by)
            added += 1
    return added


def remove_members(
    connection: sqlite3.Connection, dictionary: int, name: str, latents: Sequence[int], by: tuple[str, float]
) -> int:
    """Takes latents out of a list; returns how many were in it. Raises NotFound."""
    number = list_id(connection, dictionary, name)
    removed = 0
    for latent in latents:
        if connection.execute("DELETE FROM members WHERE list = ? AND latent = ?", (number, latent)).rowcount:
            record(connection, dictionary, latent, "list", name, "", None, by)
            removed += 1
    return removed
