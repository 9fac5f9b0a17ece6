"""Writing volumes block by block; emcore/files.py gives what was written its name."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from emcore.errors import InputError
from emcore.files import reported
from emcore.volumes.volume import as_slices


@dataclass(frozen=True, eq=False)
class Writer:
    """Takes the blocks of `create_volume`: `writer[z0:z1, ...] = block`, in any order; a number fills the slice.

    Attributes:
        path: the file.
        shape: the shape of the volume.
        dtype: the numpy type of the voxels; a block that would lose values is refused.
        chunks: blocks that are whole multiples of these are written once, and nothing is read again.
        target: what the format writes to.

    Examples:
        >>> import numpy as np, tempfile
        >>> from emcore import volumes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with volumes.create_volume(f"{folder}/a.npy", (4, 8, 8), "uint8") as writer:
        ...         writer[1] = 7
        ...     int(volumes.open_volume(f"{folder}/a.npy")[1].min())
        7
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    target: Any

    def __setitem__(self, index, block) -> None:
        box, dropped = as_slices(index, self.shape)
        block = np.asarray(block)
        if not np.can_cast(block.dtype, self.dtype, "same_kind") and block.ndim:
            raise InputError(f"{self.path} holds {self.dtype}; a block of {block.dtype} would lose values, convert it")
        extent = [len(range(span.start, span.stop, span.step)) for span in box]
        kept = tuple(length for axis, length in enumerate(extent) if axis not in dropped)
        if block.ndim and block.shape != kept:
            raise InputError(f"a block of shape {block.shape} does not fit the slice of shape {kept} of {self.path}")
        if any(span.step != 1 for span in box):
            raise InputError(f"{self.path} is written in whole blocks; got a slice with a step")
        if 0 in extent:
            return
        block = np.broadcast_to(block.reshape(extent) if block.ndim else block, extent).astype(self.dtype, copy=False)
        with reported(self.path):
            self.target[box] = block


def recast(block: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The block in another type; refused unless every value survives."""
    if block.dtype.kind == dtype.kind and block.dtype.itemsize <= dtype.itemsize:
        return block.astype(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        converted = block.astype(dtype)
        back = converted.astype(block.dtype)
    kept = (back == block) & ((converted < 0) == (block < 0))
    if dtype.kind == "f":
        if block.dtype.kind == "f":
            kept |= np.isnan(block)
        else:  # beyond this not every integer has a float of its own
            kept &= (block <= 2 ** (np.finfo(dtype).nmant + 1)) & (block >= -(2 ** (np.finfo(dtype).nmant + 1)))
    if not kept.all():
        value = block[~kept][0]
        raise InputError(f"{name} holds {value!s}, which {dtype} cannot hold; scale or relabel it first, "
                         f"or keep its type {block.dtype}")
    return converted


def choose_chunks(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Blocks of one channel and about 64 x 64 x 64 voxels and at most 1 MB; flat volumes get wider ones."""
    chunk = [min(64, length) for length in shape[-3:]]
    while np.prod(chunk) * 4 <= 64**3 and any(size < length for size, length in zip(chunk[1:], shape[-2:])):
        chunk = [chunk[0], min(chunk[1] * 2, shape[-2]), min(chunk[2] * 2, shape[-1])]
    while np.prod(chunk) * dtype.itemsize > 1 << 20:
        chunk[chunk.index(max(chunk))] //= 2
    return (1,) * (len(shape) - 3) + tuple(chunk)


@dataclass(frozen=True, eq=False)
class FlatFile:
    """Voxels in C order behind a header: npy files and uncompressed TIFF stacks."""

    file: BinaryIO
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __setitem__(self, box: tuple[slice, ...], block: np.ndarray) -> None:
        # The trailing axes that are written whole make one run of bytes with the axis before them.
        axis = len(self.shape) - 1
        while axis > 0 and box[axis].start == 0 and box[axis].stop == self.shape[axis]:
            axis -= 1
        strides = [int(np.prod(self.shape[place + 1 :], dtype=object)) for place in range(len(self.shape))]
        first = sum(span.start * stride for span, stride in zip(box[axis:], strides[axis:]))
        for row in np.ndindex(*block.shape[:axis]):
            voxel = first + sum((span.start + step) * stride for span, step, stride in zip(box, row, strides))
            self.file.seek(self.start + voxel * self.dtype.itemsize)
            self.file.write(np.ascontiguousarray(block[row], self.dtype).data.cast("B"))


@contextmanager
def flat_file(temporary: Path, path: Path, start: int, shape: tuple[int, ...], dtype: np.dtype) -> Iterator[FlatFile]:
    """A file of its full length (holes read as 0) whose header is written, opened for its voxels."""
    with reported(path):
        file = open(temporary, "r+b")  # noqa: SIM115
    try:
        with reported(path):
            file.truncate(max(start + int(np.prod(shape, dtype=object)) * dtype.itemsize, temporary.stat().st_size))
        yield FlatFile(file, start, shape, dtype)
        with reported(path):
            file.flush()
    finally:
        with suppress(OSError):  # the failure of the last flush again, which has been reported
            file.close()
