"""Files of edits: CSV, a decision about one or two places a row, as a proofreader or a viewer writes them.

    edit,z,y,x,to_z,to_y,to_x
    join,10,200,310,12,204,330      these two voxels are one neuron
    split,10,200,310,44,120,90      these two are not
    drop,7,30,31,,,                 the object of this voxel is no neuron

Places are indices of voxels in the volume of the labels.
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import NamedTuple

from emcore.errors import InputError
from emcore.files import csv_text, write_text
from emcore.reading import read_text, shown

HEADER = ("edit", "z", "y", "x", "to_z", "to_y", "to_x")
JOIN, SPLIT, DROP = "join", "split", "drop"
MOST_BYTES = 2**28  # A file of so many bytes has some millions of edits; a larger one is refused.
LARGEST = 2**40  # No index of a voxel reaches it.
MOST_DIGITS = 20  # An index has fewer, also with leading zeros.
Place = tuple[int, int, int]


class Edit(NamedTuple):
    """A decision about a place, or about two.

    Attributes:
        kind: "join" (the two places are of one neuron), "split" (they are not) or "drop" (the object is no neuron).
        place: a voxel z, y, x.
        other: the second voxel; None for a drop.
        where: the file and the line that it stands in, for messages.

    Examples:
        >>> from emcore import segment
        >>> print(segment.Edit("join", (10, 200, 310), (12, 204, 330)))
        join 10 200 310 and 12 204 330
    """

    kind: str
    place: Place
    other: Place | None = None
    where: str = ""

    def __str__(self) -> str:
        places = " and ".join(" ".join(map(str, place)) for place in (self.place, self.other) if place is not None)
        return f"{self.where} ({self.kind} {places})" if self.where else f"{self.kind} {places}"


def read_edits(path: str | PathLike) -> list[Edit]:
    """Reads a file of edits.

    Args:
        path: a CSV file with the columns edit, z, y, x, to_z, to_y, to_x.

    Returns:
        The edits in the order of the file, which means nothing.

    Raises:
        InputError: the file cannot be read, or a row is no edit; its line is named.

    Cost:
        A thousand edits take some milliseconds.

    Examples:
        >>> import tempfile
        >>> from emcore import segment
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     segment.write_edits(f"{folder}/edits.csv", [segment.Edit("drop", (7, 30, 31))])
        ...     segment.read_edits(f"{folder}/edits.csv")[0].place
        (7, 30, 31)
    """
    try:
        text = read_text(path, MOST_BYTES)
    except OSError as error:
        raise InputError(f"cannot read the edits {path}: {error.strerror or error}") from None
    rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    edits = []
    try:
        if tuple(cell.strip() for cell in next(rows, ())) != HEADER:
            raise InputError(f"{path} holds no edits: its first line must be {','.join(HEADER)}")
        for cells in rows:
            if any(cell.strip() for cell in cells):
                edits.append(_edit_of([cell.strip() for cell in cells], f"{path}, line {rows.line_num}"))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}, is no row of CSV: {error}") from None
    return edits


def write_edits(path: str | PathLike, edits: Iterable[Edit]) -> None:
    """Writes edits as a file that `read_edits` takes.

    Args:
        path: the CSV file to write.
        edits: the decisions.

    Cost:
        A thousand edits take some milliseconds.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from emcore import segment
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     segment.write_edits(f"{folder}/edits.csv", [segment.Edit("join", (0, 1, 2), (3, 4, 5))])
        ...     Path(folder, "edits.csv").read_text().split()
        ['edit,z,y,x,to_z,to_y,to_x', 'join,0,1,2,3,4,5']
    """
    rows = [(edit.kind, *edit.place, *(edit.other or ("", "", ""))) for edit in edits]
    write_text(path, csv_text([HEADER, *rows]))


def digest_of_edits(edits: Iterable[Edit]) -> str:
    """A digest of what is decided: the order of rows, the order of two places and repeated rows do not count."""
    text = csv_text(canonical(edits))
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(edits: Iterable[Edit]) -> list[tuple]:
    """Every decision once, in one order, without the lines that it stands in."""
    return sorted({(edit.kind, *sorted(place for place in (edit.place, edit.other) if place is not None))
                   for edit in edits})


def check_edits(edits: Iterable[Edit]) -> list[Edit]:
    """The edits, if each is one: what a program hands over is held to the same rules as a file."""
    found = []
    for edit in edits:
        where = edit.where or str(edit)
        for place in (edit.place, edit.other or (0, 0, 0)):
            if len(place) != 3:
                raise InputError(f"{where}: a place is the three indices z, y, x of a voxel; got {tuple(place)}")
        cells = [str(edit.kind), *map(str, edit.place), *map(str, edit.other or ())]
        found.append(_edit_of(cells, where)._replace(where=edit.where))
    return found


def _is_index(cell: str) -> bool:
    """Whether a cell is the index of a voxel; its length comes first, as Python refuses to read a very long number."""
    return cell.isascii() and cell.isdigit() and len(cell) <= MOST_DIGITS and int(cell) < LARGEST


def _edit_of(cells: Sequence[str], where: str) -> Edit:
    """The edit of a row."""
    cells = [*cells, *[""] * (len(HEADER) - len(cells))]
    kind, *places = cells
    count = {JOIN: 6, SPLIT: 6, DROP: 3}.get(kind)
    if count is None:
        raise InputError(f"{where}: an edit is {JOIN}, {SPLIT} or {DROP}; got {shown(kind)}")
    given, empty = places[:count], places[count:]
    if any(empty) or not all(map(_is_index, given)):
        wanted = "the six numbers z,y,x,to_z,to_y,to_x" if count == 6 else "the three numbers z,y,x and nothing else"
        raise InputError(f"{where}: a {kind} takes {wanted}, indices of voxels from 0 on; got "
                         f"{shown(','.join(places))}")
    numbers = tuple(map(int, given))
    return Edit(kind, numbers[:3], numbers[3:] or None, where)
