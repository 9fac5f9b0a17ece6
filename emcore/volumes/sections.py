"""Folders that hold one file a section: which files count, and in which order."""

import re
from pathlib import Path

from emcore.errors import InputError


def sections_of(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder that end so, numbers in their names compared as numbers (2 before 10).

    Where only the zeros before a number differ, the name decides. Names that begin with a dot do not count.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.name[0] != "."]
    if not files:
        others = sorted({file.suffix for file in folder.iterdir()})
        raise InputError(f"the folder {folder} holds no slices (.tif, .png or .jpg); it has: "
                         f"{', '.join(others) or 'nothing'}")
    return sorted(files, key=lambda file: (in_order(file.name), file.name))


def in_order(name: str) -> list[int | str]:
    """A name as its letters and its numbers, in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]
