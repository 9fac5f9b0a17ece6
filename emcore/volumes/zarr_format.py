"""zarr v2 and v3 and OME-Zarr by the extra zarr; written as v2, which every reader knows."""

import bz2
import json
import lzma
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError, lacking
from emcore.files import TEMPORARY, replaced, reported
from emcore.reading import open_regular, read_text
from emcore.volumes import metadata
from emcore.volumes.volume import (
    Listed,
    Listing,
    Volume,
    check_volume,
    choose_dataset,
    contents,
    first_line,
    native,
    unpacks_beyond,
    usual_first,
)
from emcore.volumes.writing import choose_chunks

try:
    import numcodecs
    import zarr
    from zarr.storage import LocalStore
except ImportError:
    raise lacking("reading and writing zarr", "zarr") from None

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError, OverflowError,
          RecursionError, MemoryError, ArithmeticError)
CHUNK_LIMIT = 1 << 31  # bytes; a chunk is decoded whole, so a header that claims more must not be believed
SMALL_CHUNK = 1 << 20  # bytes of gzip, which cannot unpack to more than 1032 times as many
UNPACKERS = {b"\x1f\x8b": partial(zlib.decompressobj, 31), b"\x78": zlib.decompressobj, b"BZh": bz2.BZ2Decompressor,
             b"\xfd7zXZ": lzma.LZMADecompressor}
ZSTANDARD = b"\x28\xb5\x2f\xfd"
MOST_METADATA = 64 << 20  # bytes of one file
MOST_FOLDERS = 200_000
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class RegularStore(LocalStore):
    """A folder of which only regular files are read: a pipe would be waited for, a device read without end."""

    most = 0  # bytes that a chunk may unpack to; 0 where that is not known
    whole = False  # whether the writer said that it wrote every chunk, so that a missing one is lost and not 0

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        path = self.root / key
        if os.path.exists(path):
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
            if key.endswith(METADATA) and size > MOST_METADATA:
                raise InputError(f"{path} is larger than {MOST_METADATA >> 20} MiB, too large for what it should be")
        data = await super().get(key, prototype, byte_range)
        if data is None and self.whole and not key.endswith(METADATA):
            raise InputError(f"{path} is missing, so part of the volume is lost; copy it again or write it again")
        if data is not None and self.most and not key.endswith(METADATA):
            self.refuse_bomb(path, data)
        return data

    def refuse_bomb(self, path: Path, data: Any) -> None:
        """Refuses a chunk that says, or shows, that it unpacks to more than a chunk has."""
        begins = data.as_numpy_array()[:18].tobytes()
        unpacker = next((made for magic, made in UNPACKERS.items() if begins.startswith(magic)), None)
        is_small = begins[:1] in (b"\x1f", b"\x78") and len(data) <= SMALL_CHUNK
        if (unpacker and not is_small and unpacks_beyond(data.to_bytes(), self.most, unpacker().decompress)
                ) or (begins.startswith(ZSTANDARD) and size_in_zstandard(begins) > self.most):
            raise InputError(f"the chunk {path} unpacks to more than twice what it should hold; it is damaged or made "
                             "to fill the memory")


def size_in_zstandard(begins: bytes) -> int:
    """The size that the header of a Zstandard frame tells; 0 where it does not."""
    if len(begins) < 5:
        return 0
    is_single, flag = begins[4] >> 5 & 1, begins[4] >> 6
    start = 5 + (0 if is_single else 1) + (0, 1, 2, 4)[begins[4] & 3]
    length = (is_single, 2, 4, 8)[flag]
    return int.from_bytes(begins[start:start + length], "little") + (256 if length == 2 else 0)


def opened(path: Path) -> zarr.Group | zarr.Array:
    return zarr.open(RegularStore(path, read_only=True), mode="r")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever is broken in a zarr folder into one sentence."""
    try:
        yield
    except InputError:
        raise
    except BROKEN as error:
        raise InputError(f"{path} cannot be read as zarr: {first_line(error)}") from error


def list_file(path: Path) -> Listing:
    """The arrays below the folder, with very many the usual ones and the first of the others."""
    with reading(path):
        return listing_of(path, opened(path))


def listing_of(path: Path, node: zarr.Group | zarr.Array) -> Listing:
    if isinstance(node, zarr.Array):
        return Listing([Listed("", node.shape, node.dtype, node.chunks)])
    names = sorted(array_names(path))
    if node.metadata.consolidated_metadata is not None:  # then only what stands there is believed to exist
        names = [name for name in names if name in node]
    found = ((name, node[name]) for name in usual_first(names))
    return Listing((Listed(name, item.shape, item.dtype, item.chunks) for name, item in found), names)


def array_names(path: Path) -> list[str]:
    """The names of all arrays below a group, from their folders alone; what is below an array are its chunks."""
    found, groups, seen, count = [], [""], set(), 0
    while groups:
        before = groups.pop()
        if os.path.realpath(path / before) in seen:  # links in a circle
            continue
        seen.add(os.path.realpath(path / before))
        with os.scandir(path / before) as entries:
            names = [before + entry.name for entry in entries
                     if entry.is_dir() and not TEMPORARY.fullmatch(entry.name)]
        count += len(names)
        if count > MOST_FOLDERS:
            raise InputError(f"{path} holds more than {MOST_FOLDERS} folders, too many to list; name the dataset as "
                             "PATH:DATASET")
        for name in names:
            if kind_of(path / name) == "array":
                found.append(name)
            elif kind_of(path / name) == "group":
                groups.append(f"{name}/")
    return found


def kind_of(folder: Path) -> str | None:
    """array, group, or None where the folder is no node of zarr."""
    if os.path.exists(folder / "zarr.json"):
        about = json.loads(read_text(folder / "zarr.json", MOST_METADATA))
        return about.get("node_type") if isinstance(about, dict) else None
    if os.path.exists(folder / ".zarray"):
        return "array"
    return "group" if os.path.exists(folder / ".zgroup") else None


def open_file(path: Path, dataset: str | None, kind: str | None) -> Volume:
    """An array below the folder; of a multiscale image the finest level, without axes t and c of length one."""
    with reading(path):
        node = root = opened(path)
        name = (dataset or "").strip("/")
        if name and (isinstance(root, zarr.Array) or name not in root):
            raise InputError(f"{path} has no dataset {name!r}; {contents(listing_of(path, root))}")
        if name:
            node = root[name]
        if isinstance(node, zarr.Group):
            scales = multiscales_of(node)
            if not scales and name:
                raise InputError(f"{path} has a group, not a dataset, at {name!r}; {contents(listing_of(path, root))}")
            level = (str(scales["datasets"][0]["path"]) if scales
                     else choose_dataset(listing_of(path / name, node), path, kind))
            node, name = node[level], f"{name}/{level}".strip("/")
        return volume_of(path, name, node)


def volume_of(path: Path, name: str, array: zarr.Array) -> Volume:
    title = f"{path}:{name}" if name else str(path)
    attributes = plain_attributes(array)
    scales, level, parents = surroundings(path / name)
    axes, grid = metadata.ome_grid(title, scales, level, array.ndim)
    leading = 0  # axes t and c of length one
    while leading < len(axes) - 3 and array.shape[leading] == 1:
        leading += 1
    shape, chunks = array.shape[leading:], array.chunks[leading:]
    check_volume(title, shape, array.dtype)
    if np.prod(array.chunks, dtype=object) * array.dtype.itemsize > CHUNK_LIMIT:
        raise InputError(f"{title} claims chunks of {array.chunks} {array.dtype}; more than 2 GB each are not read")
    resolution, offset = metadata.read_grid([attributes, grid, *parents], title)
    connect = partial(connect_zarr, path, name, leading)
    attributes = metadata.without_grid(attributes)
    return Volume(title, shape, native(array.dtype), resolution, offset, attributes, chunks, connect)


@dataclass(frozen=True, eq=False)
class Leading:
    """An array without its first axes, which have length one."""

    array: zarr.Array
    axes: int

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return self.array[(0,) * self.axes + box]


def connect_zarr(path: Path, name: str, leading: int) -> Any:
    store = RegularStore(path, read_only=True)
    array = zarr.open_array(store, path=name, mode="r")
    store.whole = metadata.is_whole(array.attrs)
    store.most = 2 * math.prod(array.chunks) * array.dtype.itemsize + 1024
    return Leading(array, leading)


def read_row(path: Path, most: int) -> np.ndarray:
    """Reads whole numbers along one axis, but no more than one value beyond `most`, so that a longer one is noticed.

    A missing chunk is an error: it may be lost, although a writer may leave out chunks that are all 0.
    """
    with reading(path):
        store = RegularStore(path, read_only=True)
        array = zarr.open_array(store, mode="r")
        if array.dtype.kind not in "ui":
            raise InputError(f"{path} must be an array of whole numbers; it holds {array.dtype}")
        pieces = math.prod(array.shards or array.chunks)
        if array.ndim != 1 or pieces * array.dtype.itemsize > CHUNK_LIMIT:
            raise InputError(f"{path} must be an array of one axis in chunks of at most 2 GB; it has the shape "
                             f"{array.shape} and chunks of {pieces} {array.dtype}")
        store.whole, store.most = True, 2 * pieces * array.dtype.itemsize + (1 << 20)  # a shard has an index, too
        return np.asarray(array[:most + 1])


def plain_attributes(node: zarr.Group | zarr.Array) -> dict[str, Any]:
    return metadata.plain(node.attrs.asdict())


def multiscales_of(group: zarr.Group) -> dict[str, Any] | None:
    """The first multiscale image of a group: at the top of its attributes until OME-Zarr 0.4, under `ome` from 0.5."""
    attributes = group.attrs.asdict()
    found = attributes.get("ome", attributes).get("multiscales")
    return found[0] if found else None


def surroundings(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None, list[dict[str, Any]]]:
    """The multiscale image that an array belongs to, the entry of its level there, and the groups' attributes."""
    scales, level, attributes = None, None, []
    for group_folder in folder.resolve().parents:
        if not any((group_folder / name).is_file() for name in (".zgroup", "zarr.json")):
            break
        group = zarr.open_group(RegularStore(group_folder, read_only=True), mode="r")
        attributes.append(plain_attributes(group))
        found = None if scales else multiscales_of(group)
        for entry in found["datasets"] if found else []:
            if group_folder / entry["path"] == folder.resolve():
                scales, level = found, entry
    return scales, level, attributes


@contextmanager
def create_file(
    path: Path,
    dataset: str | None,
    shape: tuple[int, ...],
    dtype: np.dtype,
    attributes: dict[str, Any],
    chunks: tuple[int, ...] | None,
    compression: str | None,
) -> Iterator[tuple[zarr.Array, tuple[int, ...]]]:
    """The array to write into, and its chunks; a folder of its own, or one in an existing group, whose others stay."""
    chunks, name = chunks or choose_chunks(shape, dtype), (dataset or "").strip("/")
    group = existing_group(path, name)
    target = path / name if group else path
    zarr_format = group.metadata.zarr_format if group else 2
    with reported(path):
        if group and "/" in name:
            zarr.open_group(str(path), mode="a", use_consolidated=False).require_group(name.rpartition("/")[0])
    with replaced(target) as temporary:
        with reported(path):
            array = zarr.create_array(
                str(temporary),
                name=None if group else name or None,
                shape=shape,
                dtype=dtype,
                chunks=chunks,
                compressors=compressor(compression, zarr_format),
                attributes=attributes,
                zarr_format=zarr_format,
                # One folder per axis: a flat one with a million chunks brings network file systems to their knees.
                chunk_key_encoding={"name": "v2" if zarr_format == 2 else "default", "separator": "/"},
            )
        yield array, chunks
    if group and group.metadata.consolidated_metadata:
        with reported(path):
            zarr.consolidate_metadata(str(path))


def compressor(compression: str | None, zarr_format: int) -> Any:
    if compression is None:
        return None
    return numcodecs.GZip(1) if zarr_format == 2 else zarr.codecs.GzipCodec(level=1)


def existing_group(path: Path, name: str) -> zarr.Group | None:
    """The group at path that the new array goes into; None where path itself is made anew."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    with reading(path):
        node = opened(path)
    if isinstance(node, zarr.Array):
        if name:
            raise InputError(f"{path} is an array, not a group; it cannot hold a dataset {name!r}")
        return None
    if not name:
        raise InputError(f"{path} is a group; name the dataset to write as {path}:NAME; "
                         f"{contents(listing_of(path, node))}")
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        step = "/".join(parts[:depth])
        if step in node and isinstance(node[step], zarr.Array) != (depth == len(parts)):
            raise InputError(f"{path} has {step!r}, which stands in the way of a dataset {name!r}")
    return node
