"""HDF5: read with file locking off (network file systems refuse locks), written through a stream that fails safely."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported
from emcore.volumes import metadata
from emcore.volumes.volume import Listed, Volume, check_volume, choose_dataset, contents, first_line, native
from emcore.volumes.writing import choose_chunks

CACHE = 8 << 20  # bytes of decoded chunks that HDF5 keeps for an open dataset


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading while its contents are listed; whatever is broken in it becomes one sentence."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if path.stat().st_size and not h5py.is_hdf5(path):
            with open(path, "rb") as raw:
                begins = raw.read(16)
            raise InputError(f"{path} is not an HDF5 file; it begins with {begins!r}") from error
        if "truncated" in str(error) or not path.stat().st_size:
            raise InputError(f"{path} is cut off ({first_line(error)}); copy it again or write it again") from error
        raise InputError(f"{path} cannot be read as HDF5: {first_line(error)}") from error


def list_file(path: Path) -> list[Listed]:
    """Every dataset of the file."""
    with opened(path) as file:
        return listing_of(file)


def listing_of(file: h5py.File) -> list[Listed]:
    found = []

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found.append(Listed(name, item.shape, item.dtype, item.chunks))

    file.visititems(add)
    return found


def open_file(path: Path, dataset: str | None, kind: str | None) -> Volume:
    """A dataset of the file as a volume; FlyEM `stack` labels not asked for by name are mapped to bodies."""
    with opened(path) as file:
        listing = listing_of(file)
        name = (dataset or choose_dataset(listing, path, kind)).strip("/")
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            what = "has no dataset" if found is None else "has a group, not a dataset, at"
            raise InputError(f"{path} {what} {name!r}; {contents(listing)}")
        title = f"{path}:{name}"
        check_volume(title, found.shape or (), found.dtype)
        check_filters(title, found)
        check_sources(title, found)
        attributes = attributes_of(found)
        parents = [attributes_of(file[parent]) for parent in parents_of(name)]
        resolution, offset = metadata.read_grid([attributes, *parents], title)
        chunk = int(np.prod(found.chunks or (0,), dtype=object)) * found.dtype.itemsize
        cache = max(CACHE, min(2 * chunk, 16 * CACHE))  # a cache below one chunk decodes it again for every section
        connect, dtype = partial(connect_hdf5, path, name, cache), native(found.dtype)
        if kind == "labels" and dataset is None and name == "stack" and is_body_table(file.get("transforms")):
            connect, dtype = partial(connect_bodies, path, cache), native(file["transforms"].dtype)
        attributes = metadata.without_grid(attributes)
        return Volume(title, found.shape, dtype, resolution, offset, attributes, found.chunks, connect)


def attributes_of(item: Any) -> dict[str, Any]:
    return {key: metadata.plain(value) for key, value in item.attrs.items()}


def parents_of(name: str) -> list[str]:
    """The groups around a dataset, innermost first, the root last."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:depth]) or "/" for depth in range(len(parts), -1, -1)]


def check_filters(title: str, dataset: h5py.Dataset) -> None:
    """Refuses a dataset whose compression this HDF5 lacks, when it is opened and not at the first voxel."""
    properties = dataset.id.get_create_plist()
    for place in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(place)
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                f"{title} is compressed by the HDF5 filter {code} ({label.decode('utf-8', 'replace')}), which is "
                "missing here: pip install hdf5plugin and import it first, or rewrite the file by h5repack -f GZIP=1"
            )


def check_sources(title: str, dataset: h5py.Dataset) -> None:
    """Refuses a virtual dataset whose parts are missing, which HDF5 would read as zeros without a word."""
    if not dataset.is_virtual:
        return
    folder = Path(dataset.file.filename).parent
    names = {source.file_name for source in dataset.virtual_sources()} - {"."}
    missing = sorted(name for name in names if not (folder / name).exists() and not Path(name).exists())
    if missing:
        raise InputError(f"{title} is joined from {len(names)} files; missing: {', '.join(missing[:3])}")


def connect_hdf5(path: Path, name: str, cache: int) -> h5py.Dataset:
    return h5py.File(path, "r", locking=False, rdcc_nbytes=cache)[name]


@dataclass(frozen=True, eq=False)
class Bodies:
    """FlyEM labels: the supervoxels of a stack, each read as the body that the table assigns; others stay."""

    stack: h5py.Dataset
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
    table = stack.file["transforms"][...]
    table = table[np.argsort(table[:, 0], kind="stable")].astype(native(table.dtype))
    return Bodies(stack, np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1]))


class Stream(io.RawIOBase):
    """The file below h5py while writing. HDF5 cannot close a file after a failed write (it crashes at exit instead),
    so the first failure is kept here, later writes are dropped, and the one who writes the block raises it.
    """

    def __init__(self, path: Path, mode: str):
        self.file = open(path, mode, buffering=0)  # noqa: SIM115
        self.failure: OSError | None = None

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        while done < len(view) and (count := self.file.readinto(view[done:])):
            done += count
        return done

    def write(self, buffer: Any) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        try:
            while not self.failure and done < len(view):
                done += self.file.write(view[done:])
        except OSError as error:
            self.failure = error
        return len(view)

    def truncate(self, size: int) -> int:
        try:
            if not self.failure:
                self.file.truncate(size)
        except OSError as error:
            self.failure = error
        return size

    def check(self) -> None:
        if self.failure:
            raise self.failure


@contextmanager
def streamed(path: Path, temporary: Path, mode: str, **options: Any) -> Iterator[tuple[h5py.File, Stream]]:
    """The temporary file of path, open for writing (mode w, or r+) by h5py, and the stream below it."""
    with reported(path):
        stream = Stream(temporary, {"w": "w+b", "r+": "r+b"}[mode])
    try:
        with reported(path):
            file = h5py.File(stream, mode, **options)
        try:
            yield file, stream
        except BaseException:
            stream.failure = stream.failure or OSError("given up")  # what is still in the cache is not wanted
            raise
        finally:
            with reported(path):
                file.close()
        with reported(path):
            stream.check()
    finally:
        stream.file.close()


@dataclass(frozen=True, eq=False)
class StreamedDataset:
    """A dataset that reports a failure of its file with the block that met it."""

    dataset: h5py.Dataset
    stream: Stream

    def __setitem__(self, box: tuple[slice, ...], block: np.ndarray) -> None:
        self.dataset[box] = block
        self.stream.check()


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
    options = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compression else {}
    made = file.create_dataset(name, shape, dtype, chunks=chunks, **options)
    for key, value in attributes.items():
        made.attrs[key] = storable(value)
    return made


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
    others = [item.name for item in list_file(path) if item.name != name]
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
