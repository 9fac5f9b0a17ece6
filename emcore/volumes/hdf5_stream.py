"""A file that h5py writes through, which fails safely where the disk does."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from emcore.files import reported


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
