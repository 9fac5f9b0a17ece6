"""Whether a volume is still the one that it was: `stamp` looks at its files alone, `content` reads its voxels."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.threads import run_parallel, thread_count
from emcore.volumes.address import is_address
from emcore.volumes.formats import split_reference
from emcore.volumes.remote import identity
from emcore.volumes.volume import Volume

MOST_FILES = 100_000  # looking at more of them takes too long on a network file system
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata", "info", "attributes.json")
BLOCK_BYTES = 64 << 20


def stamp(reference: str | os.PathLike) -> str | None:
    """A digest of the name, size and time of change of every file of a volume; None where that cannot be told.

    A volume whose stamp is unchanged is unchanged. Another stamp says little, as copying can change the times: compare
    the contents then. No path goes into the digest, so a copy that kept the times has the stamp of its original.
    None: there is no such volume, it has more than 10^5 files (its metadata alone do not tell that a chunk was
    written again), or it refers to files that are not found.

    Of an address the stamp is a digest of the address itself, of the metadata with the versions that the server tells,
    and of the values of a few chunks: a volume that was made anew has another one, and a single chunk that was written
    again is found by the contents alone. None: nothing answers there.
    """
    if is_address(reference):
        with suppress(InputError):
            return hashlib.sha256(repr(identity(reference)).encode()).hexdigest()
        return None
    path, dataset = split_reference(reference)
    try:
        if path.is_dir():
            named = folder_files(path, dataset)
        else:
            beside = path.with_name(path.name + ".json")  # the attributes of an npy file
            files = [path, *linked_files(path), *([beside] if path.suffix == ".npy" and beside.is_file() else [])]
            named = [(file.name, file) for file in files]
        found = [(name, status.st_size, status.st_mtime_ns) for name, file in named for status in [os.stat(file)]]
    except (OSError, InputError):
        return None
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def folder_files(path: Path, dataset: str | None) -> Iterator[tuple[str, str | Path]]:
    """The files below a folder, or below its dataset, and those of the groups around it, by their names from there."""
    folder = path / dataset.strip("/") if dataset else path
    folder = folder if folder.is_dir() else path
    waiting, count = [(folder.name, folder)], 0
    while waiting:
        name, inside = waiting.pop()
        with os.scandir(inside) as entries:
            for entry in entries:
                count += 1
                if count > MOST_FILES:
                    raise InputError(f"{path} has more than {MOST_FILES} files")
                if entry.is_dir():
                    waiting.append((f"{name}/{entry.name}", entry.path))
                else:
                    yield f"{name}/{entry.name}", entry.path
    name = folder.name
    for group in folder.resolve().parents:
        described = [group / file for file in METADATA if (group / file).is_file()]
        if not described:
            return
        name = f"../{name}"
        yield from ((f"{name}/{file.name}", file) for file in described)


def linked_files(path: Path) -> list[Path]:
    """The other files in which an HDF5 file keeps data: by links, as raw storage, or joined to one dataset."""
    import h5py

    from emcore.volumes.hdf5 import opened

    found, waiting = {}, [path]
    while waiting:
        here = waiting.pop()
        if not h5py.is_hdf5(here):  # raw storage, or another format
            continue
        with opened(here) as file:
            for name in named_elsewhere(file):
                candidates = (here.parent / name, Path(name), here.parent / Path(name).name)
                other = next((place for place in candidates if place.is_file()), None)
                if other is None:
                    raise InputError(f"{here} refers to the file {name}, which is missing")
                if other.resolve() not in found and other.resolve() != path.resolve():
                    found[other.resolve()] = other
                    waiting.append(other)
    return list(found.values())


def named_elsewhere(file) -> set[str]:
    """The names of other files in an open HDF5 file."""
    import h5py

    names = set()

    def link(name: bytes, info) -> None:
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            names.add(os.fsdecode(file.id.links.get_val(name)[0]))

    def add(name: str, item) -> None:
        if isinstance(item, h5py.Dataset):
            names.update(os.fsdecode(part[0]) for part in item.external or ())
            if item.is_virtual:
                names.update(os.fsdecode(source.file_name) for source in item.virtual_sources())

    file.id.links.visit(link, info=True)
    file.visititems(add)
    return names - {"."}


def content(volume: Volume, box: Sequence[tuple[int, int]] | None = None) -> str:
    """A digest of the values, shape and type of a volume, or of a box of it: (low, high) for each of z, y, x.

    How the volume is stored makes no difference. It is read in whole chunks; the memory is 64 MB, or one row of chunks
    along x where that is more. Each section is digested in the order of its voxels, then the digests of the sections.
    """
    box = [(0, length) for length in volume.shape[-3:]] if box is None else [tuple(map(int, span)) for span in box]
    (top, bottom), rows, (left, right) = box
    shape = (*volume.shape[:-3], *(high - low for low, high in box))
    chunk = (volume.chunks or (1,) * volume.ndim)[-3:]
    channels = range(volume.shape[0]) if volume.ndim == 4 else (None,)
    whole = hashlib.sha256(f"{shape} {volume.dtype.name}".encode())
    row_bytes = max(1, (right - left) * volume.dtype.itemsize)
    wanted = max(1, BLOCK_BYTES // (row_bytes * max(1, rows[1] - rows[0])))  # sections at a time, if whole ones fit
    for channel in channels:
        for z in steps((top, bottom), chunk[0], wanted):
            sections = [hashlib.sha256() for _ in range(*z)]
            for y in steps(rows, chunk[1], BLOCK_BYTES // (row_bytes * len(sections))):
                spans = slice(*z), slice(*y), slice(left, right)
                block = volume[spans if channel is None else (channel, *spans)]
                block = np.ascontiguousarray(block, block.dtype.newbyteorder("<"))
                run_parallel(hash_section, zip(sections, block), thread_count(None))
            for section in sections:
                whole.update(section.digest())
    return whole.hexdigest()


def hash_section(section, rows: np.ndarray) -> None:
    section.update(rows.data)


def steps(span: tuple[int, int], chunk: int, wanted: int) -> Iterator[tuple[int, int]]:
    """The span in pieces of `wanted` voxels or fewer, each of whole chunks and of one at least."""
    low, high = span
    step = max(1, wanted // chunk) * chunk
    while low < high:
        stop = min(high, (low // chunk) * chunk + step)
        yield low, stop
        low = stop
