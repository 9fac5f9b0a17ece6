"""The database of a tune: one row a finished stage, SQLite. Only one process writes; a killed one loses nothing."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from emcore.errors import InputError

TABLES = """
create table if not exists inputs (name text primary key, digest text not null) without rowid;
create table if not exists stages (number integer primary key, key text unique not null, kind text not null,
                                   decode text not null, found text not null, seconds real not null);
"""


STOPPED = "stopped"


class Row(NamedTuple):
    """A finished stage: its kind, `curve` or `decoded`, its [decode] settings and what was found, by objective.

    Or one that was given up, of the kind STOPPED: nothing was found, and its seconds are those that it had.
    """

    key: str
    kind: str
    decode: dict[str, Any]
    found: dict[str, Any]
    seconds: float


@contextmanager
def opened(path: Path, inputs: dict[str, str]) -> Iterator[sqlite3.Connection]:
    """The database, held by this process alone; refused if it was made from other inputs (name -> digest)."""
    with closing(sqlite3.connect(path, timeout=1)) as database:
        try:
            database.execute("pragma locking_mode = exclusive")
            database.execute("begin exclusive")
            database.commit()
            database.executescript(TABLES)
            known = dict(database.execute("select name, digest from inputs"))
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise InputError(f"{path} is in use by another tune: wait until it has ended") from None
            raise InputError(f"{path} cannot be used as a database: {error}") from None
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path} is no database of a tune ({error}): move it away") from None
        other = sorted(name for name in known.keys() | inputs.keys() if known.get(name) != inputs.get(name))
        if known and other:
            raise InputError(f"{path} was made from other inputs, namely another {', another '.join(other)}: its "
                             "stages do not count here; move it away or delete it to start anew")
        try:
            with database:
                database.executemany("insert or ignore into inputs values (?, ?)", inputs.items())
            yield database
        except sqlite3.OperationalError as error:  # "database or disk is full"
            raise InputError(f"cannot write {path}: {error}; make room, and the same command goes on") from None


def add(database: sqlite3.Connection, row: Row) -> None:
    """Writes a stage and sees it on disk; one that was given up before makes room for it."""
    with database:
        database.execute("delete from stages where key = ? and kind = ?", (row.key, STOPPED))
        database.execute("insert or ignore into stages (key, kind, decode, found, seconds) values (?, ?, ?, ?, ?)",
                         (row.key, row.kind, json.dumps(row.decode), json.dumps(row.found), row.seconds))


def rows(database: sqlite3.Connection) -> list[Row]:
    """Every finished stage, in the order of their keys."""
    found = database.execute("select key, kind, decode, found, seconds from stages order by key")
    return [Row(key, kind, json.loads(decode), json.loads(values), seconds)
            for key, kind, decode, values, seconds in found]
