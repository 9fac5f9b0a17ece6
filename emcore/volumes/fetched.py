"""Parts of volumes, and blocks of remote ones that stay on this disk until the copy that wants them is whole."""

import hashlib
import json
import pickle
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.files import remove, reported, write_text
from emcore.reading import read_text
from emcore.volumes.blocks import Box, Damaged, read_block, write_block
from emcore.volumes.stamp import stamp
from emcore.volumes.volume import Volume

BOX = re.compile(r"(\d{1,18}):(\d{1,18})")
ABOUT = "source.json"


@dataclass(frozen=True)
class Part:
    """The voxels of a box of a volume, counted from its first one."""

    volume: Volume
    low: tuple[int, ...]

    def __getitem__(self, box: Box) -> np.ndarray:
        return self.volume[tuple(slice(span.start + low, span.stop + low, span.step)
                                 for span, low in zip(box, self.low))]


def box_of(text: str, shape: Sequence[int]) -> list[tuple[int, int]]:
    """The box z0:z1,y0:y1,x0:x1 of a volume of that shape."""
    found = [BOX.fullmatch(span.strip()) for span in text.split(",")]
    if len(found) != 3 or not all(found):
        raise InputError(f"a box is z0:z1,y0:y1,x0:x1 in voxels from the first one; got {text[:80]}")
    box = [(int(match[1]), int(match[2])) for match in found]
    if not all(low < high <= length for (low, high), length in zip(box, shape[-3:])):
        raise InputError(f"the box {text} does not lie within the volume of {list(shape[-3:])} voxels (z, y, x), each "
                         "end above its start")
    return box


def part_of(volume: Volume, box: Sequence[tuple[int, int]]) -> Volume:
    """The box (low, high) along z, y, x of a volume, as a volume that lies where it did."""
    low = (0,) * (volume.ndim - 3) + tuple(start for start, _ in box)
    shape = (*volume.shape[:-3], *(stop - start for start, stop in box))
    offset = volume.offset
    if volume.resolution is not None:
        offset = tuple(place + start * size for place, (start, _), size in zip(offset, box, volume.resolution))
    chunks = volume.chunks and tuple(min(chunk, length) for chunk, length in zip(volume.chunks, shape))
    return replace(volume, shape=shape, offset=offset, chunks=chunks, connect=partial(Part, volume, low))


@contextmanager
def fetching(source: Volume, reference: str, beside: Path, boxes: Iterable[Box]) -> Iterator[Iterator[tuple]]:
    """The boxes of a remote volume with their voxels, of which the next one is fetched while one is used.

    Each is kept in a folder beside the target until the with block ends without an error, so that the same command
    goes on after a break; blocks of another source, or of one that has changed, are thrown away.
    """
    folder = beside.with_name(f"{beside.name}.fetched")
    said = {"source": source.name, "stamp": stamp(reference), "offset": list(source.offset),
            "shape": list(source.shape), "dtype": str(source.dtype),
            "opens": hashlib.sha256(pickle.dumps(source.connect)).hexdigest()}  # tells boxes and scales apart
    said["stamp"] = said["stamp"] or secrets.token_hex(8)  # nobody can tell whether the source is the same
    mark = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
    with reported(folder):
        if folder.exists() and about(folder) != said:
            if not (folder / ABOUT).exists():
                raise InputError(f"{folder} stands where fetched blocks would be kept: move it away")
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ABOUT, json.dumps(said))
    with ThreadPoolExecutor(1) as pool:
        yield in_turn(pool, partial(block_of, source, folder, mark), boxes)
    remove(folder)


def about(folder: Path) -> dict:
    try:
        return json.loads(read_text(folder / ABOUT))
    except (OSError, ValueError, InputError):
        return {}


def in_turn(pool: ThreadPoolExecutor, get, boxes: Iterable[Box]) -> Iterator[tuple[Box, np.ndarray]]:
    waiting = None
    for box in boxes:
        ahead = pool.submit(get, box)
        if waiting is not None:
            yield waiting[0], waiting[1].result()
        waiting = box, ahead
    if waiting is not None:
        yield waiting[0], waiting[1].result()


def block_of(source: Volume, folder: Path, mark: str, box: Box) -> np.ndarray:
    """A block, from the disk where it was kept before."""
    path = folder / ("_".join([mark, *(f"{span.start}-{span.stop}" for span in box)]) + ".h5")
    shape = tuple(span.stop - span.start for span in box)
    try:
        return read_block(path, shape, source.dtype)
    except Damaged:
        values = source[box]
    write_block(path, values)
    return values
