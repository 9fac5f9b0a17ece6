"""Where a work stands, by its files alone: from any machine that sees them, whoever is at work."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from emcore.blocks.alive import living
from emcore.blocks.work import Stage, Work
from emcore.files import TEMPORARY
from emcore.progress import duration, quantity

LATELY = 600.0  # seconds in which something should have been written


def status(work: Work) -> list[str]:
    """A line for every stage, one for every process that gives signs of life, and one that sums it up.

    Files are counted by their names; whether they are valid is seen by those who read them.
    """
    now, newest, lines, is_whole = time.time(), 0.0, [], True
    for stage in work.stages():
        done, latest, writing = count(work, stage)
        newest = max(newest, latest)
        is_whole = is_whole and done == stage.count
        ago = f", the last {_ago(now - latest)}" if done else ""
        open_files = f", {writing} being written" if writing else ""
        lines.append(f"{stage.name}: {quantity(done)} of {quantity(stage.count)} blocks{ago}{open_files}")
    for words, written in living(work.folder):
        at = f"is at {words['stage']} {words['number']}" if words["number"] is not None else "is at work"
        lines.append(f"process {words['process']} of {words['host']} {at}, as it said {_ago(now - written)}")
    if is_whole:
        return [*lines, "every stage is done"]
    if not newest:
        return [*lines, "nothing is there yet"]
    told = "" if now - newest < LATELY else ": if no process is at work, the same command goes on with the rest"
    return [*lines, f"the last file was written {_ago(now - newest)}{told}"]


def count(work: Work, stage: Stage) -> tuple[int, float, int]:
    """How many files of a stage are there, when the last one was written, and how many are being written."""
    names = {work.path(stage, number) for number in range(stage.count)}
    done, latest, writing = 0, 0.0, 0
    for folder in {path.parent for path in names}:
        for entry in _entries(folder):
            if folder / entry.name in names:
                try:
                    latest = max(latest, entry.stat().st_mtime)
                except OSError:
                    continue  # it is replaced just now
                done += 1
            elif TEMPORARY.fullmatch(entry.name):
                writing += 1
    return done, latest, writing


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"
