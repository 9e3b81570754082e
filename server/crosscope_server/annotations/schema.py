"""The tables of annotations.sqlite3, and the steps that lead to them from every earlier state of the file.

`PRAGMA user_version` is the number of steps that a file has gone through. A step is never changed once it was released;
a new one is put at the end.
"""

import sqlite3

from crosscope_server.errors import Conflict

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The weights that words belong to.
        """CREATE TABLE dictionaries (
            id INTEGER PRIMARY KEY,
            weights TEXT NOT NULL UNIQUE
        )""",
        # The names under which they were published when something was said.
        """CREATE TABLE names (
            crosscoder TEXT NOT NULL,
            dictionary INTEGER NOT NULL REFERENCES dictionaries (id),
            PRIMARY KEY (crosscoder, dictionary)
        ) WITHOUT ROWID""",
        # `what` is label, automatic_label, note or star. `revision` is the change that wrote it.
        """CREATE TABLE words (
            dictionary INTEGER NOT NULL REFERENCES dictionaries (id),
            latent INTEGER NOT NULL,
            what TEXT NOT NULL,
            text TEXT NOT NULL,
            author TEXT NOT NULL,
            written_at REAL NOT NULL,
            revision INTEGER NOT NULL REFERENCES changes (id),
            scores TEXT NOT NULL DEFAULT '{}',
            PRIMARY KEY (dictionary, latent, what)
        ) WITHOUT ROWID""",
        """CREATE TABLE lists (
            id INTEGER PRIMARY KEY,
            dictionary INTEGER NOT NULL REFERENCES dictionaries (id),
            name TEXT NOT NULL,
            author TEXT NOT NULL,
            created_at REAL NOT NULL,
            UNIQUE (dictionary, name)
        )""",
        """CREATE TABLE members (
            list INTEGER NOT NULL REFERENCES lists (id) ON DELETE CASCADE,
            latent INTEGER NOT NULL,
            position INTEGER NOT NULL,
            PRIMARY KEY (list, latent)
        ) WITHOUT ROWID""",
        # What was changed. `latent` is NULL where a list was made, renamed or deleted. NULL before: there was nothing.
        """CREATE TABLE changes (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            dictionary INTEGER NOT NULL REFERENCES dictionaries (id),
            latent INTEGER,
            what TEXT NOT NULL,
            list TEXT NOT NULL,
            before TEXT,
            after TEXT,
            author TEXT NOT NULL,
            changed_at REAL NOT NULL
        )""",
        "CREATE INDEX changes_by_latent ON changes (dictionary, latent)",
        "CREATE INDEX changes_by_dictionary ON changes (dictionary)",
    ),
)


def version_of(connection: sqlite3.Connection) -> int:
    """The number of steps that a file has gone through. Raises Conflict for a file that a newer program has written."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > len(MIGRATIONS):
        raise Conflict(
            f"the file of words has version {found}, but this server knows versions up to {len(MIGRATIONS)}: a newer "
            "crosscope has written it; update this server"
        )
    return found


def migrate(connection: sqlite3.Connection) -> None:
    """Takes the file through the steps that it lacks. For a connection in a transaction that holds the write lock."""
    for step in MIGRATIONS[version_of(connection) :]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
