"""HDF5: read with file locking off (network file systems refuse locks), written through a stream that fails safely."""

import itertools
import json
import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emcore.errors import InputError, this_python
from emcore.files import replaced, reported
from emcore.volumes import metadata
from emcore.volumes.hdf5_names import as_bytes, as_text, dataset_names, find
from emcore.volumes.hdf5_stream import StreamedDataset, streamed
from emcore.volumes.hdf5_virtual import MOST_OPEN, joined
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

CACHE = 8 << 20  # bytes of decoded chunks that HDF5 keeps for an open dataset
MOST_ATTRIBUTE_BYTES = 16 << 20
PACKING = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
MOST_CHUNK_BYTES = 1 << 31  # a chunk is decoded whole, so a header that claims more must not be believed
BROKEN = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, RecursionError, MemoryError)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading while its contents are listed; whatever is broken in it becomes one sentence."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except InputError:
        raise
    except BROKEN as error:
        if path.stat().st_size and not h5py.is_hdf5(path):
            with open(path, "rb") as raw:
                begins = raw.read(16)
            raise InputError(f"{path} is not an HDF5 file; it begins with {begins!r}") from error
        if "truncated" in str(error) or not path.stat().st_size:
            raise InputError(f"{path} is cut off ({first_line(error)}); copy it again or write it again") from error
        raise InputError(f"{path} cannot be read as HDF5: {first_line(error)}") from error


def list_file(path: Path) -> Listing:
    """The datasets of the file, with very many the usual ones and the first of the others."""
    with opened(path) as file:
        return listing_of(file)


def listing_of(file: h5py.File) -> Listing:
    names = dataset_names(file)
    found = ((name, file[as_bytes(name)]) for name in usual_first(names))
    listed = [Listed(name, item.shape, item.dtype, item.chunks) for name, item in found if item.shape is not None]
    return Listing(listed, names)


def open_file(path: Path, dataset: str | None, kind: str | None) -> Volume:
    """A dataset of the file as a volume; FlyEM `stack` labels not asked for by name are mapped to bodies."""
    with opened(path) as file:
        name = (dataset or choose_dataset(listing_of(file), path, kind)).strip("/")
        try:
            way = find(file, name)
        except InputError as error:
            raise InputError(f"{path} has no dataset {name!r} of its own: {error}") from None
        if way is None or not isinstance(way[-1], h5py.Dataset):
            what = "has no dataset" if way is None else "has a group, not a dataset, at"
            raise InputError(f"{path} {what} {name!r}; {contents(listing_of(file))}")
        *groups, found = way
        title = f"{path}:{name}"
        check_volume(title, found.shape or (), found.dtype)
        chunks = found.chunks
        if found.is_virtual:
            with closing(joined(title, Path(os.path.realpath(path)), found, reader_of)) as parts:
                chunks = parts.look(MOST_OPEN)
        else:
            check_storage(title, found)
        attributes = attributes_of(title, found)
        parents = [attributes_of(f"{path}:{group.name}", group) for group in reversed(groups)]
        resolution, offset = metadata.read_grid([attributes, *parents], title)
        cache = max(CACHE, min(2 * chunk_bytes(found), 16 * CACHE))  # a smaller one decodes a chunk for every section
        connect, dtype = partial(connect_hdf5, path, name, cache), native(found.dtype)
        if kind == "labels" and dataset is None and name == "stack" and is_body_table(file.get("transforms")):
            connect, dtype = partial(connect_bodies, path, cache), native(file["transforms"].dtype)
        attributes = metadata.without_grid(attributes)
        return Volume(title, found.shape, dtype, resolution, offset, attributes, chunks, connect)


def attributes_of(title: str, item: Any) -> dict[str, Any]:
    found = {}
    for key in item.attrs:
        about = item.attrs.get_id(key)
        size = math.prod(about.shape or ()) * about.dtype.itemsize
        if size > MOST_ATTRIBUTE_BYTES:
            raise InputError(f"an attribute of {title} claims {size} bytes; more than {MOST_ATTRIBUTE_BYTES >> 20} MiB "
                             "are not read")
        found[key if isinstance(key, str) else as_text(key)] = metadata.plain(item.attrs[key])
    return found


def chunk_bytes(dataset: h5py.Dataset) -> int:
    return math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize


def check_storage(title: str, dataset: h5py.Dataset) -> None:
    """Refuses, when a dataset is opened and not at its first voxel, what cannot be read or must not be."""
    properties = dataset.id.get_create_plist()
    if properties.get_external_count():
        raise InputError(f"{title} keeps its voxels in another file, {dataset.external[0][0]}, which is not followed; "
                         "rewrite it by h5repack")
    if chunk_bytes(dataset) > MOST_CHUNK_BYTES:
        raise InputError(f"{title} claims chunks of {dataset.chunks} {dataset.dtype}; more than 2 GB each are not read")
    filters = [properties.get_filter(place) for place in range(properties.get_nfilters())]
    for code, _, _, label in filters:
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                f"{title} is compressed by the HDF5 filter {code} ({label.decode('utf-8', 'replace')}), which is "
                f"missing here: {this_python()} -m pip install hdf5plugin and import it first, or rewrite the file by "
                "h5repack -f GZIP=1"
            )
    if len(deflating(dataset)) > 1:
        raise InputError(f"{title} is compressed by gzip more than once; rewrite it by h5repack -f GZIP=1")


def deflating(dataset: h5py.Dataset) -> list[int]:
    """The places of gzip among the filters of a dataset."""
    properties = dataset.id.get_create_plist()
    return [place for place in range(properties.get_nfilters())
            if properties.get_filter(place)[0] == h5py.h5z.FILTER_DEFLATE]


def connect_hdf5(path: Path, name: str, cache: int) -> Any:
    file = h5py.File(path, "r", locking=False, rdcc_nbytes=cache)
    way = find(file, name)
    dataset, title = way[-1] if way else None, f"{path}:{name}"
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{title} is not there any more")
    if dataset.is_virtual:
        return joined(title, Path(os.path.realpath(path)), dataset, reader_of)
    return reader_of(title, dataset, dataset.dtype)


def reader_of(title: str, dataset: h5py.Dataset, dtype: np.dtype) -> Any:
    """What is sliced for the voxels of a dataset that is not virtual, in a type that HDF5 turns them into."""
    check_storage(title, dataset)
    values = dataset if dtype == dataset.dtype else dataset.astype(dtype)
    packed = deflating(dataset) and dataset.id.get_storage_size() > SMALL_CHUNK
    return Packed(title, dataset, values, dataset.chunks, chunk_bytes(dataset)) if packed else values


MOST_REMEMBERED = 100_000  # chunks
SMALL_CHUNK = 1 << 19  # bytes of gzip, which cannot unpack to more than 1032 times as many


@dataclass(frozen=True, eq=False)
class Packed:
    """A dataset compressed by gzip; a large chunk is unpacked up to its size first, because HDF5 knows no limit."""

    title: str
    dataset: h5py.Dataset
    values: Any  # the same, or as another type
    chunks: tuple[int, ...]
    size: int  # bytes of a chunk
    looked_at: set[tuple[int, ...]] = field(default_factory=set)

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        ranges = [range(span.start // length * length, span.stop, length)
                  for span, length in zip(box, self.chunks)]
        for corner in itertools.product(*ranges):
            if corner not in self.looked_at:
                self.look_at(corner)
        return self.values[box]

    def look_at(self, corner: tuple[int, ...]) -> None:
        about = self.dataset.id.get_chunk_info_by_coord(corner)
        if about.byte_offset is not None and about.size > SMALL_CHUNK:
            _, stored = self.dataset.id.read_direct_chunk(corner)
            if unpacks_beyond(stored, 2 * self.size):
                raise InputError(f"a chunk of {self.title} unpacks to more than twice the {self.size} bytes that it "
                                 "should hold; it is damaged or made to fill the memory")
        if len(self.looked_at) == MOST_REMEMBERED:
            self.looked_at.clear()
        self.looked_at.add(corner)


@dataclass(frozen=True, eq=False)
class Bodies:
    """FlyEM labels: the supervoxels of a stack, each read as the body that the table assigns; others stay."""

    stack: Any
    supervoxels: np.ndarray  # ascending
    bodies: np.ndarray

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        stored = self.stack[box].astype(self.bodies.dtype, copy=False)
        place = np.searchsorted(self.supervoxels, stored).clip(max=len(self.supervoxels) - 1)
        return np.where(self.supervoxels[place] == stored, self.bodies[place], stored)


def is_body_table(item: Any) -> bool:
    """Whether `transforms` is FlyEM's list of (supervoxel, body) pairs."""
    is_table = isinstance(item, h5py.Dataset) and item.ndim == 2 and item.shape[1] == 2 and item.dtype.kind in "iu"
    return is_table and len(item) > 0


def connect_bodies(path: Path, cache: int) -> Bodies:
    stack = connect_hdf5(path, "stack", cache)
    with h5py.File(path, "r", locking=False) as file:
        table = file["transforms"][...]
    table = table[np.argsort(table[:, 0], kind="stable")].astype(native(table.dtype))
    return Bodies(stack, np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]))


@contextmanager
def create_file(
    path: Path,
    dataset: str | None,
    shape: tuple[int, ...],
    dtype: np.dtype,
    attributes: dict[str, Any],
    chunks: tuple[int, ...] | None,
    compression: str | None,
) -> Iterator[tuple[StreamedDataset, tuple[int, ...]]]:
    """The dataset (named `main` by default) to write into, and its chunks.

    Other datasets of an existing file stay: it is copied, the copy is written and takes its place at the end, so
    the data that was there is never at risk.
    """
    name = (dataset or "main").strip("/")
    chunks = chunks or choose_chunks(shape, dtype)
    before = keeps(path, name)
    with replaced(path) as temporary:
        if before:
            with reported(path):
                copy_file(path, temporary)
        cache = writing_cache(shape, dtype, chunks)
        mode = "r+" if before else "w"
        with streamed(path, temporary, mode, rdcc_nbytes=cache, rdcc_nslots=10_007) as (file, stream):
            with reported(path):
                made = add_dataset(file, name, shape, dtype, attributes, chunks, compression)
                stream.check()
            yield StreamedDataset(made, stream), chunks
        if before and identity(path) != before:
            raise InputError(f"{path} was changed by another process while {name} was written; write it again")


def writing_cache(shape: tuple[int, ...], dtype: np.dtype, chunks: tuple[int, ...]) -> int:
    """Bytes of the chunks that one section meets (up to 256 MB): written section by section, each is packed once."""
    sides = [-(-length // size) * size for length, size in zip(shape, chunks)]
    layer = int(np.prod([*sides[:-3], chunks[-3], *sides[-2:]], dtype=object)) * dtype.itemsize
    return max(CACHE, min(layer, 32 * CACHE))


def add_dataset(
    file: h5py.File,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    attributes: dict[str, Any],
    chunks: tuple[int, ...],
    compression: str | None,
) -> h5py.Dataset:
    """The new dataset with its attributes, in place of one of that name."""
    if name in file:
        del file[name]
    made = file.create_dataset(name, shape, dtype, chunks=chunks, **(PACKING if compression else {}))
    store_attributes(made, attributes)
    return made


def store_attributes(made: h5py.Dataset, attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        made.attrs[key] = storable(value)


def storable(value: Any) -> Any:
    """An attribute as HDF5 can hold it: dicts, None and ragged lists as JSON."""
    if isinstance(value, dict) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        try:
            array = np.array(value)
        except ValueError:  # ragged
            return json.dumps(value)
        return array if array.dtype.kind in "biuf" and array.size else json.dumps(value)
    return value


def keeps(path: Path, name: str) -> tuple[int, ...] | None:
    """The identity of an existing file that holds something besides the named dataset; None: nothing to keep."""
    if not path.is_file():
        return None
    with opened(path) as file:
        others = [other for other in dataset_names(file) if other != name]
    nested = [other for other in others if other.startswith(name + "/") or name.startswith(other + "/")]
    if nested:
        raise InputError(f"{path} has {nested[0]!r}, which stands in the way of a dataset {name!r}")
    return identity(path) if others else None


def identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def copy_file(path: Path, copy: Path) -> None:
    """Copies a file by large pieces."""
    with open(path, "rb") as source, open(copy, "xb") as target:
        while piece := source.read(16 << 20):
            target.write(piece)
