"""Chunks of volumes at addresses that the processes of a node keep on its disk as long as one of them lives.

    TOP/lock               held while something here is written, joined or left
    TOP/bytes              what all chunks take
    TOP/MARK/users         held, shared, by each process that reads the volume
    TOP/MARK/00/NAME       a chunk: a digest of four bytes and what it is of: the values, packed where they are labels

MARK tells the address and what it held when the run began. No server can tell cheaply whether each chunk is still the
same, so nothing is taken from an earlier run: the last process removes the folder, and what a killed one left is thrown
away before anything is read.
"""

import atexit
import hashlib
import itertools
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from emcore.files import remove, temporary_name
from emcore.locks import NoLocks, alone, take
from emcore.threads import run_parallel
from emcore.volumes.volume import Volume

Box = tuple[slice, ...]
REQUESTS = 16  # chunks that are asked for at once
SHARE_LEFT = 0.9  # When room is made, this share of the limit stays taken, so that room is made seldom.
_JOINED: dict[tuple[int, Path], IO] = {}  # process and folder -> the file that this process holds


def kept_on_disk(volume: Volume, stamped: str | None, top: Path, most_bytes: int) -> Volume:
    """The volume, whose chunks stay in the folder `top` once they were read, up to so many bytes of all volumes there.

    stamped: the stamp of the volume. Where there is none, or nothing can be locked, the volume itself comes back.
    """
    about = repr((volume.name, stamped, volume.shape, volume.dtype.name, volume.chunks))
    folder = top / hashlib.sha256(about.encode()).hexdigest()[:32]
    if stamped is None or volume.chunks is None or not joined(folder):
        print(f"note: {volume.name} is not kept on disk, because it cannot be told what it is, or nothing can be "
              "locked", file=sys.stderr)
        return volume
    return replace(volume, connect=partial(Kept, volume, folder, most_bytes))


def joined(folder: Path) -> bool:
    """Whether this process now holds the folder, which is empty if nobody else did."""
    if (os.getpid(), folder) in _JOINED:
        return True
    try:
        with open(folder.parent / "lock", "a") as lock:
            take(lock)
            for other in folder.parent.iterdir():
                if other.is_dir() and other != folder:
                    remove_unused(other)
            remove_unused(folder)
            folder.mkdir(exist_ok=True)
            users = open(folder / "users", "a")  # noqa: SIM115 (its lock is held while this process lives)
            take(users, shared=True)
    except (NoLocks, OSError):  # a folder that cannot be written costs time alone
        return False
    _JOINED[os.getpid(), folder] = users
    atexit.register(leave, folder, os.getpid())
    return True


def remove_unused(folder: Path) -> None:
    with suppress(OSError), open(folder / "users", "a") as users:
        if take(users, wait=False):
            remove(folder)


def leave(folder: Path, owner: int) -> None:
    """Removes the folder unless another process holds it."""
    users = _JOINED.pop((owner, folder), None)
    if users is None or os.getpid() != owner:
        return  # a forked process shares its parent's lock
    with suppress(OSError), open(folder.parent / "lock", "a") as lock:
        take(lock)
        users.close()
        remove_unused(folder)


@dataclass(frozen=True)
class Kept:
    """A volume whose chunks are looked for on the disk first."""

    volume: Volume
    folder: Path
    most_bytes: int

    def __post_init__(self) -> None:
        joined(self.folder)

    def __getitem__(self, box: Box) -> np.ndarray:
        """The voxels of a box, whose chunks are fetched at once where they are not there."""
        values = np.empty([span.stop - span.start for span in box], self.volume.dtype)
        found = [(chunk, self.find(chunk)) for chunk in chunks_of(box, self.volume.shape, self.volume.chunks)]
        missing = [(chunk,) for chunk, there in found if there is None]
        fetched = iter(run_parallel(self.fetch, missing, REQUESTS))
        for chunk, there in found:
            there = next(fetched) if there is None else there
            common = [slice(max(one.start, other.start), min(one.stop, other.stop)) for one, other in zip(box, chunk)]
            values[moved(common, box)] = there[moved(common, chunk)]
        steps = tuple(slice(None, None, span.step) for span in box)
        return values if all(span.step == 1 for span in box) else values[steps]

    def path(self, chunk: Box) -> Path:
        name = hashlib.sha256(repr([(span.start, span.stop) for span in chunk]).encode()).hexdigest()[:32]
        return self.folder / name[:2] / name[2:]

    def find(self, chunk: Box) -> np.ndarray | None:
        """A chunk that is there and holds what was written."""
        path, shape = self.path(chunk), [span.stop - span.start for span in chunk]
        size = int(np.prod(shape)) * self.volume.dtype.itemsize
        try:
            with open(path, "rb") as file:
                data = file.read(2 * size + 1024)
            os.utime(path)  # what was not used for long goes first
        except OSError:
            return None
        values = data[4:]
        if data[:4] != digest(values):
            return None
        if packs(self.volume.dtype):
            values = zlib.decompressobj().decompress(values, size)
        return np.frombuffer(values, self.volume.dtype).reshape(shape)

    def fetch(self, chunk: Box) -> np.ndarray:
        values = self.volume[chunk]
        with suppress(OSError):  # a disk that fails costs time alone
            self.keep(self.path(chunk), np.ascontiguousarray(values).tobytes())
        return values

    def keep(self, path: Path, values: bytes) -> None:
        values = zlib.compress(values, 1) if packs(self.volume.dtype) else values
        data = digest(values) + values
        if len(data) > self.most_bytes:
            return
        with alone(self.folder.parent / "lock"):
            room(self.folder.parent, len(data), self.most_bytes)
            path.parent.mkdir(exist_ok=True)
            temporary = temporary_name(path, "partial")
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                remove(temporary)


def room(top: Path, size: int, most_bytes: int) -> None:
    """Counts a new chunk, before which those that were not used for the longest time are removed if it needs room."""
    count = top / "bytes"
    try:
        total = int(count.read_bytes()[:20])
    except (OSError, ValueError):
        total = most_bytes  # nobody has counted yet
    if total + size > most_bytes:
        there = []
        for path in top.glob("*/*/*"):
            with suppress(OSError):
                status = path.stat()
                there.append((status.st_mtime_ns, status.st_size, path))
        total = sum(length for _, length, _ in there)
        most = most_bytes if total + size <= most_bytes else SHARE_LEFT * most_bytes
        for _, length, path in sorted(there):
            if total + size <= max(most, size):
                break
            remove(path)
            total -= length
    count.write_text(f"{total + size}")


def chunks_of(box: Box, shape: Sequence[int], chunks: Sequence[int]) -> Iterator[Box]:
    """The chunks that a box meets."""
    axes = [[slice(low, min(low + size, length)) for low in range(span.start // size * size, span.stop, size)]
            for span, length, size in zip(box, shape, chunks)]
    return itertools.product(*axes)


def moved(spans: Sequence[slice], within: Box) -> Box:
    return tuple(slice(span.start - whole.start, span.stop - whole.start) for span, whole in zip(spans, within))


def packs(dtype: np.dtype) -> bool:
    """Whether values are packed: labels shrink a lot, micrographs hardly."""
    return dtype.kind in "iu" and dtype.itemsize > 1


def digest(values: bytes) -> bytes:
    return zlib.crc32(values).to_bytes(4, "little")
