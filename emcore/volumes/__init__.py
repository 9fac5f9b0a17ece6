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
    """Opens a volume of any format; no voxel is read before it is sliced.

    Args:
        reference: a path, `path:dataset`, an address (docs/volumes.md), a `Volume`, or an array (anything with shape,
            dtype and slicing).
        dataset: the dataset of a file that holds several. By default the only one, or the first of the usual keys.
        kind: "image" or "labels" look for the usual keys of such a volume, and "labels" refuses what cannot be labels.
            The default None looks for either.
        scale: for a volume of several scales: a name, a number (an integer from 0), a resolution in nm (a float for y
            and x, or three numbers z, y, x). The default None takes the finest. It needs the extra remote, like
            addresses do.
        cache_bytes: how much each process keeps of the unpacked chunks of volumes at addresses; 256 MiB by default. All
            that are opened with the same number share it.

    Returns:
        A `Volume`; `volume[z0:z1, ...]` reads. Its resolution is None where the file does not say it.

    Raises:
        InputError: the file is not there, damaged or of no known format, or it holds several datasets and none is
            named.

    Cost:
        Opening reads the header. It takes 11 ns of one core and 9.2 bytes per voxel. This is a compressed HDF5 file of
        labels that is read whole.

    Examples:
        >>> import numpy as np
        >>> from emcore import open_volume
        >>> volume = open_volume(np.zeros((4, 8, 8), np.uint8))
        >>> volume.shape, volume[1:3, :, 0].shape
        ((4, 8, 8), (2, 8))
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
    """Lists the arrays of a file or an address.

    Args:
        path: a file, a folder or an address.

    Returns:
        A list of `Listed`. A format that holds one array gives one with an empty name.

    Raises:
        InputError: the file is not there, damaged or of no known format.

    Cost:
        The headers are read, and no voxel.

    Examples:
        >>> import numpy as np, tempfile
        >>> from emcore import volumes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with volumes.create_volume(f"{folder}/a.h5:labels", (4, 8, 8), "uint32") as out:
        ...         out[...] = np.ones((4, 8, 8), np.uint32)
        ...     [item.name for item in volumes.list_datasets(f"{folder}/a.h5")]
        ['labels']
    """
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
    """Writes a volume block by block, in a with statement: `writer[z0:z1, ...] = block`.

    All is written beside the path under a temporary name and gets the final name when the with block ends; after an
    error nothing of it stays. Voxels that are never written are 0. Other datasets of an existing HDF5 or zarr file
    stay; an HDF5 file is copied once for that.

    Args:
        reference: a path or `path:dataset`. The ending chooses the format: .h5, .npy, .tif, .zarr or .precomputed.
        shape: (z, y, x) or (c, z, y, x).
        dtype: the type of the voxels.
        resolution: the size of a voxel in nm, z, y, x; unknown by default.
        offset: the place of the first voxel in nm, z, y, x; unknown by default.
        attributes: anything to keep, such as {"offsets": ...} of affinities; none by default.
        chunks: the shape of the blocks in which the file stores voxels; chosen by the format by default.
        compression: "gzip", None, or "auto" (the default), which is gzip for integers of 16 bits and more.

    Returns:
        A context manager that gives the `Writer`.

    Raises:
        InputError: the ending is of no format that can be written, an argument does not fit, or the disk fails.

    Cost:
        It takes 20 ns of one core and 5.3 bytes per voxel. This is gzip for labels of 32 bits in blocks of 16 sections.

    Examples:
        >>> import numpy as np, tempfile
        >>> from emcore import create_volume, open_volume
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with create_volume(f"{folder}/a.h5:labels", (4, 8, 8), "uint32", resolution=(30, 8, 8)) as out:
        ...         out[0:2] = np.ones((2, 8, 8), np.uint32)
        ...     volume = open_volume(f"{folder}/a.h5")
        ...     volume.resolution, int(volume[...].sum())
        ((30.0, 8.0, 8.0), 128)
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
