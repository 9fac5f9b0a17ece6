"""A volume that many processes write: each block a small HDF5 file of its own, joined at the end by one that has them
as its parts, so that it is read like any other volume.

    write_block(folder / "blocks" / "0_0_1.h5", values)           # whole and on the disk, or not there
    values = read_block(folder / "blocks" / "0_0_1.h5", shape, dtype)              # as written, or Damaged
    with assembled(folder / "labels.h5") as path:
        join_blocks(path, "labels", shape, dtype, [(box, "blocks/0_0_1.h5"), ...], resolution, offset)

The names of the blocks are kept as seen from the folder of the joining file, so a copy of the folder is whole.
"""

import errno
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported
from emcore.reading import open_regular
from emcore.volumes import metadata
from emcore.volumes.hdf5 import CACHE, PACKING, attributes_of, opened, reader_of, store_attributes
from emcore.volumes.hdf5_names import find
from emcore.volumes.hdf5_stream import streamed
from emcore.volumes.hdf5_virtual import MOST_PARTS
from emcore.volumes.volume import BROKEN, check_volume, first_line, native
from emcore.volumes.writing import choose_chunks

DATASET = "labels"  # the dataset in a block's file
DIGEST = "crc32"  # the attribute that tells what was written
# what says nothing about the file: the same read may well succeed at another time, or by another user
TRANSIENT = {getattr(errno, name) for name in ("EMFILE", "ENFILE", "ENOMEM", "EACCES", "EPERM", "EINTR")}

Box = tuple[slice, ...]


class Damaged(InputError):
    """A block that is missing, or that does not hold what was written: write it again."""


def write_block(path: Path, values: np.ndarray, attributes: dict[str, Any] | None = None) -> None:
    """Writes a block as the dataset `labels` of a file of its own, with a digest of its values among its attributes."""
    values = np.ascontiguousarray(values, native(values.dtype))
    check_volume(str(path), values.shape, values.dtype)
    packing = PACKING if values.dtype.kind in "iu" and values.dtype.itemsize > 1 else {}
    with replaced(path) as temporary, streamed(path, temporary, "w") as (file, stream), reported(path):
        made = file.create_dataset(DATASET, data=values, chunks=choose_chunks(values.shape, values.dtype),
                                   fletcher32=True, **packing)
        store_attributes(made, {**metadata.plain(attributes or {}), DIGEST: digest_of(values)})
        stream.check()


def read_block(path: Path, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """The values of a block, or Damaged where the file does not hold what was written in that shape and type."""
    shape, dtype = tuple(shape), native(dtype)
    values = np.empty(shape, dtype)
    try:
        open_regular(path).close()
        with h5py.File(path, "r", locking=False, rdcc_nbytes=CACHE) as file:
            way = find(file, DATASET)
            found = way[-1] if way else None
            if not isinstance(found, h5py.Dataset) or not found.chunks:
                raise Damaged(f"{path} holds no block; write it again")
            if found.shape != shape or native(found.dtype) != dtype:
                raise Damaged(f"{path} holds a block of shape {found.shape} and type {found.dtype}; it should have "
                              f"{shape} and {dtype}; write it again")
            reader, inner = reader_of(str(path), found, dtype), tuple(slice(0, length, 1) for length in shape[1:])
            for low in range(0, shape[0], found.chunks[0]):  # by layers of chunks, which take little memory beside it
                high = min(low + found.chunks[0], shape[0])
                values[low:high] = reader[slice(low, high, 1), *inner]
            digest = attributes_of(str(path), found).get(DIGEST)
    except FileNotFoundError:
        raise Damaged(f"the block {path} is missing; write it again") from None
    except Damaged:
        raise
    except BROKEN as error:
        if getattr(error, "errno", None) in TRANSIENT:
            raise InputError(f"the block {path} cannot be read: {first_line(error)}") from error
        raise Damaged(f"the block {path} is damaged ({first_line(error)}); write it again") from error
    if digest != digest_of(values):
        raise Damaged(f"the block {path} does not hold what was written, as its digest tells; write it again")
    return values


def is_whole(path: Path, shape: Sequence[int], dtype: Any) -> bool:
    """Whether a block is there and holds what was written, in that shape and type; all of it is read."""
    try:
        read_block(path, shape, dtype)
    except Damaged:
        return False
    return True


def digest_of(values: np.ndarray) -> str:
    """The digest of an array, of its shape and type too; the byte order of the machine makes no difference."""
    about = zlib.crc32(f"{values.shape} {values.dtype.name} ".encode())
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1)
    return f"{zlib.crc32(flat.view(np.uint8), about):08x}"


def join_blocks(out: Path, dataset: str, shape: Sequence[int], dtype: Any, parts: Iterable[tuple[Box, str]],
                resolution: Sequence[float] | None = None, offset: Sequence[float] | None = None,
                attributes: dict[str, Any] | None = None) -> None:
    """Adds a dataset that is joined from blocks to the HDF5 file `out`, which is under construction (emcore/files.py).

    parts: where each block lies, and its name from the folder in which `out` will stand. What no block covers is 0.
    """
    shape, dtype = tuple(int(length) for length in shape), native(dtype)
    title = f"{out.name}:{dataset}"
    check_volume(title, shape, dtype)
    stored = metadata.written(resolution, offset, attributes)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.VIRTUAL)
    properties.set_obj_track_times(False)  # the same work makes the same bytes
    place = h5py.h5s.create_simple(shape)
    for count, (box, name) in enumerate(parts, start=1):
        if count > MOST_PARTS:
            raise InputError(f"{title} would be joined from more than {MOST_PARTS} blocks; choose larger ones")
        check_part(title, shape, box, name)
        extent = tuple(span.stop - span.start for span in box)
        place.select_hyperslab(tuple(span.start for span in box), (1,) * len(shape), block=extent)
        properties.set_virtual(place, os.fsencode(name), DATASET.encode(), h5py.h5s.create_simple(extent))
    with streamed(out, out, "r+" if out.exists() else "w") as (file, stream), reported(out):
        if dataset in file:
            raise InputError(f"{title} is there already")
        made = h5py.Dataset(h5py.h5d.create(file.id, None, h5py.h5t.py_create(dtype, logical=True),
                                            h5py.h5s.create_simple(shape), properties))
        file[dataset] = made
        store_attributes(made, stored)
        stream.check()


def check_part(title: str, shape: tuple[int, ...], box: Box, name: str) -> None:
    """Refuses a block beyond the volume, and a name that a reader of the joined dataset would refuse."""
    fits = len(box) == len(shape) and all(0 <= span.start < span.stop <= length and span.step in (None, 1)
                                          for span, length in zip(box, shape))
    if not fits:
        raise InputError(f"{title} has the shape {shape}; no block of it lies at {box}")
    if os.path.isabs(name) or set(name.split("/")) & {"", ".", ".."} or set(name) & set("%\\\0"):
        raise InputError(f"{title} is joined from files below its own folder, by names without % and \\; got {name!r}")


def attributes_joined(path: Path, dataset: str) -> dict[str, Any]:
    """The attributes of a joined dataset, also where a block is missing, without which it cannot be read."""
    with opened(path) as file:
        way = find(file, dataset)
        if way is None or not isinstance(way[-1], h5py.Dataset):
            raise InputError(f"{path} has no dataset {dataset}")
        return attributes_of(f"{path}:{dataset}", way[-1])
