"""Volumes in any format: `open_volume` reads what is sliced, `create_volume` writes block by block.

    raw = open_volume("sample.h5:volumes/raw")        # also .npy, .tif, a folder of .tif, .zarr, .n5, or an array
    raw = open_volume("gs://bucket/em", scale=1)       # an address of precomputed, zarr or N5, by the extra remote
    raw.shape, raw.dtype, raw.resolution, raw.offset, raw.attrs, raw.chunks
    block = raw[10:20, :512, :512]                     # a new numpy array, the dtype as stored
    with create_volume("out.h5:labels", raw.shape, "uint64", raw.resolution, raw.offset) as out:
        out[10:20, :512, :512] = labels                # the name out.h5 appears when the block ends without an error

Blocks that are whole multiples of `chunks` are fastest, in reading and in writing.

Axes are (z, y, x) or (c, z, y, x); resolution and offset in nm, z y x. Nothing is read on opening, nothing here
imports torch, and a volume may be pickled and may cross a fork: every process opens its own handle on first use.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.volumes import metadata
from emcore.volumes.address import is_address, without_secrets
from emcore.volumes.formats import format_of, named, refuse_dataset, split_reference
from emcore.volumes.multiscale import Layout
from emcore.volumes.ome_zarr import write_ome_zarr
from emcore.volumes.precomputed_writing import write_precomputed
from emcore.volumes.remote import CACHE_BYTES, folder, keeping, list_address, open_address
from emcore.volumes.volume import (
    KEYS,
    Listed,
    Listing,
    Volume,
    check_labels,
    check_volume,
    native,
    placement,
)
from emcore.volumes.writing import Writer

__all__ = [
    "Layout",
    "Listed",
    "Volume",
    "Writer",
    "check_labels",
    "create_volume",
    "list_datasets",
    "open_volume",
    "placement",
    "split_reference",
    "write_ome_zarr",
    "write_precomputed",
]

def open_volume(reference: Any, dataset: str | None = None, kind: str | None = None,
                scale: str | float | Sequence[float] | None = None, cache_bytes: int = CACHE_BYTES) -> Volume:
    """The volume that `path`, `path:dataset`, an address or an array (shape, dtype, slicing) refers to; reads no voxel.

    Without a dataset: the only one of the file, else the first of the usual keys for kind "image" or "labels"
    (None: either). kind "labels" also refuses what cannot be labels.
    resolution is None where the file does not say it; offset is then (0, 0, 0).
    scale: of what has several: its name, its number (an integer from 0), its resolution in nm (a float for y and x, or
    three numbers z, y, x), or None for the finest. It needs the extra remote, like every address (address.py).
    cache_bytes: what each process keeps of the unpacked chunks of volumes that are read through tensorstore; all that
    are opened with the same number share that much.
    """
    if kind not in KEYS:
        raise InputError(f'kind is "image", "labels" or None; got {kind!r}')
    if isinstance(reference, Volume):
        volume = reference
    elif is_address(reference):
        volume = open_address(reference, kind, dataset if scale is None else scale, cache_bytes)
    elif scale is not None:
        path, named = split_reference(reference)
        volume = open_address(folder(path, None).at(dataset or named or ""), kind, scale, cache_bytes)
    elif isinstance(reference, str | PathLike):
        path, named = split_reference(reference)
        volume = open_path(path, dataset or named, kind)
        if not volume.forks and cache_bytes != CACHE_BYTES:
            volume = keeping(volume, cache_bytes)
    else:
        volume = from_array(reference)
    return check_labels(volume) if kind == "labels" else volume


def open_path(path: Path, dataset: str | None, kind: str | None) -> Volume:
    found = format_of(path)
    refuse_dataset(path, dataset, found)
    return found.code.open_file(path, dataset, kind)


def list_datasets(path: str | PathLike) -> Listing:
    """The arrays of a file (name, shape, dtype, chunks); one with an empty name for formats that hold one."""
    if is_address(path):
        return list_address(path)[1]
    path = Path(path)
    found = format_of(path)
    if found.several:
        return found.code.list_file(path)
    volume = open_path(path, None, None)
    return Listing([Listed("", volume.shape, volume.dtype, volume.chunks)])


def from_array(array: Any) -> Volume:
    """An object with shape, dtype and slicing as it is; attributes are taken where it has some (h5py, zarr)."""
    if not all(hasattr(array, name) for name in ("shape", "dtype", "__getitem__")):
        raise InputError(f"a volume is a path or an object with shape, dtype and slicing; got {type(array).__name__}")
    name = str(getattr(array, "name", None) or type(array).__name__)
    try:
        shape, dtype = tuple(int(length) for length in array.shape), np.dtype(array.dtype)
    except TypeError:
        raise InputError(f"a volume has a numpy dtype; got {array.dtype} of {type(array).__name__}") from None
    check_volume(name, shape, dtype)
    attributes = {key: metadata.plain(value) for key, value in dict(getattr(array, "attrs", None) or {}).items()}
    given = {key: getattr(array, key) for key in ("resolution", "offset") if getattr(array, key, None) is not None}
    resolution, offset = metadata.read_grid([metadata.plain(given), attributes], name)
    chunks = getattr(array, "chunks", None)
    chunks = tuple(chunks) if chunks and all(isinstance(size, int) for size in chunks) else None
    connect = partial(itself, array)
    return Volume(name, shape, native(dtype), resolution, offset, metadata.without_grid(attributes), chunks, connect)


def itself(array: Any) -> Any:
    return array


def is_there(reference: str | PathLike) -> bool:
    """Whether a file or folder is there; an address is asked when it is opened, which says what is wrong with it."""
    return is_address(reference) or split_reference(reference)[0].exists()


@contextmanager
def create_volume(
    reference: str | PathLike,
    shape: Sequence[int],
    dtype: Any,
    resolution: Sequence[float] | None = None,
    offset: Sequence[float] | None = None,
    attributes: dict[str, Any] | None = None,
    chunks: Sequence[int] | None = None,
    compression: str | None = "auto",
) -> Iterator[Writer]:
    """A writer for `path` or `path:dataset`, to be used in a with statement: `writer[z0:z1, ...] = block`.

    The format follows the name. All is written beside the path under a temporary name and gets the final name when the
    with block ends; after an error nothing of it stays. Voxels never written are 0. Other datasets of an existing HDF5
    or zarr file stay as they are (HDF5: the file is copied once). attributes: anything to keep, e.g. {"offsets": ...}
    of affinities. compression: "gzip", None, or "auto", which is gzip for labels (integers of 16 bits and more).
    """
    if is_address(reference):
        raise InputError(f"{without_secrets(reference)} is an address; volumes are written to paths of this machine")
    path, dataset = split_reference(reference)
    shape, dtype = tuple(int(length) for length in shape), native(dtype)
    check_volume(str(path), shape, dtype)
    found = named(path)
    if found is None or not found.writes:
        raise InputError(f"{path} ends in no format to write; there are .h5, .npy, .tif, .zarr and .precomputed")
    if compression not in ("auto", "gzip", None):
        raise InputError(f'compression is "auto", "gzip" or None; got {compression!r}')
    refuse_dataset(path, dataset, found)
    if compression == "gzip" and not found.compresses:
        raise InputError(f"{path} is written uncompressed, so that it can be mapped; for gzip choose .h5 or .zarr")
    if chunks is not None:
        if len(chunks) != len(shape) or min(chunks) < 1:
            raise InputError(f"chunks must be one positive size for each axis of {shape}; got {tuple(chunks)}")
        chunks = tuple(min(int(size), length) for size, length in zip(chunks, shape))
    stored = metadata.written(resolution, offset, attributes)
    if compression == "auto":
        compression = "gzip" if dtype.kind in "iu" and dtype.itemsize > 1 else None
    opened = found.code.create_file(path, dataset, shape, dtype, stored, chunks, compression)
    with opened as (target, used_chunks):
        yield Writer(path, shape, dtype, used_chunks, target)
