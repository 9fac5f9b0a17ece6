"""Files of columns, the only thing that tasks leave behind: named arrays, each with a checksum, whole or not there.

    write(path, {"names": names, "sizes": sizes})
    names, sizes = read(path, "names", "sizes")     # only these columns are read; a damaged one raises Damaged
    is_whole(path)                                  # every byte is looked at

A file is a line of magic, a header in JSON with a checksum of its own, and the columns one after the other. What a
header claims is held against the size of the file before memory is taken.
"""

import json
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from emcore.errors import InputError
from emcore.files import reported, writing

MAGIC = b"emcore columns 1\n"
LONGEST_HEADER = 2**28
TYPES = frozenset(np.dtype(name).str for name in (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"))


class Damaged(Exception):
    """A file that a task needs is missing or does not hold what was written: the task that makes it must run again."""

    def __init__(self, path: Path, what: str):
        super().__init__(str(path), what)
        self.path, self.what = path, what

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def write(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes the columns; the name appears when all of them are on the disk."""
    arrays = {name: np.ascontiguousarray(values) for name, values in columns.items()}
    listed, offset = [], 0
    for name, values in arrays.items():
        if values.dtype.str not in TYPES:
            raise InputError(f"a column holds numbers; {name} is {values.dtype}")
        listed.append([name, values.dtype.str, list(values.shape), offset, zlib.crc32(values.data.cast("B"))
                       if values.size else 0])
        offset += values.nbytes
    header = json.dumps(listed, separators=(",", ":")).encode()
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        file.write(MAGIC + f"{len(header):08x} {zlib.crc32(header):08x}\n".encode() + header)
        for values in arrays.values():
            if values.size:
                file.write(values.data.cast("B"))


def read(path: Path, *names: str) -> list[np.ndarray]:
    """The named columns, in this order."""
    with _opened(path) as file:
        start, listed = _header(path, file)
        return [_column(path, file, start, name, listed) for name in names]


def read_rows(path: Path, spans: Mapping[str, tuple[int, int]]) -> list[np.ndarray]:
    """Rows start to stop of columns of one axis or more. No checksum is looked at: they need some of their own."""
    with _opened(path) as file:
        start, listed = _header(path, file)
        found = []
        for name, (first, stop) in spans.items():
            if name not in listed or not listed[name][1]:
                raise Damaged(path, f"holds no rows of {name}")
            dtype, shape, offset, _ = listed[name]
            row = dtype.itemsize * prod(shape[1:])
            if not 0 <= first <= stop <= shape[0]:
                raise Damaged(path, f"has fewer rows of {name} than are looked for")
            found.append(_values(path, file, start + offset + first * row, dtype, (stop - first, *shape[1:])))
        return found


def read_all(path: Path) -> dict[str, np.ndarray]:
    """Every column by its name."""
    with _opened(path) as file:
        start, listed = _header(path, file)
        return {name: _column(path, file, start, name, listed) for name in listed}


def names_of(path: Path) -> list[str]:
    """The names of the columns."""
    with _opened(path) as file:
        return list(_header(path, file)[1])


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every column by its name; of the columns themselves nothing is read."""
    with _opened(path) as file:
        return {name: shape for name, (_, shape, *_) in _header(path, file)[1].items()}


def is_whole(path: Path) -> bool:
    """Whether the file is there and every column is the one that was written."""
    try:
        with _opened(path) as file:
            start, listed = _header(path, file)
            for name in listed:
                _column(path, file, start, name, listed)
    except Damaged:
        return False
    return True


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise Damaged(path, "is missing") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _header(path: Path, file: BinaryIO) -> tuple[int, dict[str, tuple]]:
    """Where the columns begin, and type, shape, offset and checksum of each."""
    try:
        line = file.read(len(MAGIC) + 18)
        length, checksum = int(line[len(MAGIC):][:8], 16), int(line[len(MAGIC):][9:17], 16)
        if line[:len(MAGIC)] != MAGIC or length > LONGEST_HEADER:
            raise ValueError
        header = file.read(length)
        if zlib.crc32(header) != checksum:
            raise ValueError
        listed, end = {}, 0
        for name, dtype, shape, offset, check in json.loads(header):
            if dtype not in TYPES or offset != end or min(shape, default=0) < 0:
                raise ValueError
            end += prod(shape) * np.dtype(dtype).itemsize
            listed[name] = (np.dtype(dtype), tuple(shape), offset, check)
        start = len(line) + length
        if file.seek(0, 2) != start + end:
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise Damaged(path, "is damaged") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return start, listed


def _column(path: Path, file: BinaryIO, start: int, name: str, listed: Mapping[str, tuple]) -> np.ndarray:
    if name not in listed:
        raise Damaged(path, f"holds no column {name}")
    dtype, shape, offset, checksum = listed[name]
    values = _values(path, file, start + offset, dtype, shape)
    if values.size and zlib.crc32(values.data.cast("B")) != checksum:
        raise Damaged(path, f"is damaged: its column {name} has another checksum")
    return values


def _values(path: Path, file: BinaryIO, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty(shape, dtype)
    try:
        file.seek(start)
        if values.size and file.readinto(values.data.cast("B")) != values.nbytes:
            raise Damaged(path, "is cut off")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return values
