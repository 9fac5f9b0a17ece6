"""The file of a tune: what it is bound to, then a line of JSON for every finished stage. A killed tune loses nothing.

Only one process writes, and only at the end: of a tune that died while it wrote the last line is not whole, and goes.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from emcore.errors import InputError
from emcore.files import append, reported
from emcore.locks import NoLocks, take

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


class Stages:
    """The stages of an open file."""

    def __init__(self, file: BinaryIO, rows: list[Row]):
        self.file, self.by_key = file, {}
        for row in rows:
            self.keep(row)

    def keep(self, row: Row) -> None:
        """Of two rows of one stage the first counts, unless it was given up."""
        if row.key not in self.by_key or self.by_key[row.key].kind == STOPPED:
            self.by_key[row.key] = row

    def add(self, row: Row) -> None:
        """Writes a stage and sees it on disk."""
        append(self.file, line(row._asdict()))
        with reported(self.file.name):
            os.fsync(self.file.fileno())
        self.keep(row)

    def rows(self) -> list[Row]:
        return [self.by_key[key] for key in sorted(self.by_key)]


@contextmanager
def opened(path: Path, inputs: dict[str, str]) -> Iterator[Stages]:
    """The stages of a file, held by this process alone; refused if it was made from other inputs (name -> digest)."""
    with reported(path):
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
    with file:
        try:
            if not take(file, wait=False):
                raise InputError(f"{path} is in use by another tune: wait until it has ended")
        except NoLocks:
            print(f"note: {path} cannot be locked: make sure that no other tune writes it")
        file.seek(0)
        *lines, torn = file.readall().split(b"\n")
        try:
            if not lines and torn[:1] not in (b"", b"{"):
                raise ValueError("it begins otherwise")
            known, *rows = [json.loads(text) for text in lines] or [inputs]
            rows = [Row(**row) for row in rows]
            other = sorted(name for name in known.keys() | inputs.keys() if known.get(name) != inputs.get(name))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} does not hold the stages of a tune ({error}): move it away") from None
        if other:
            raise InputError(f"{path} was made from other inputs, namely another {', another '.join(other)}: its "
                             "stages do not count here; move it away or delete it to start anew")
        file.truncate(file.tell() - len(torn))
        if not lines:
            append(file, line(inputs))
        yield Stages(file, rows)


def line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
