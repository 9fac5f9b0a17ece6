"""A volume as the rest of emcore sees it: what it is, and the voxels that are sliced out of it."""

import lzma
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emcore.errors import InputError, death_of_worker
from emcore.volumes.metadata import Triple

IMAGE_KEYS = ("main", "raw", "volumes/raw", "image", "stack", "data")
LABEL_KEYS = ("main", "labels", "volumes/labels/neuron_ids", "volumes/labels/clefts", "label", "gt", "stack")
# what the libraries below raise where the data are damaged
BROKEN = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
          MemoryError, SystemError, zlib.error)
USUAL = {*IMAGE_KEYS, *LABEL_KEYS}
MOST_LISTED = 1000  # arrays of a file whose shape and type are looked up
KEYS = {"image": IMAGE_KEYS, "labels": LABEL_KEYS, None: (*IMAGE_KEYS, *LABEL_KEYS)}


@dataclass(frozen=True)
class Listed:
    """Describes one array of a file, which is listed without being read.

    Attributes:
        name: the name of the dataset; empty where the format holds one array.
        shape: the shape.
        dtype: the numpy type.
        chunks: the shape of the stored blocks, or None.
        encoding: how chunks are packed; empty where that is unknown.

    Examples:
        >>> import numpy as np
        >>> from emcore import volumes
        >>> print(volumes.Listed("raw", (4, 8, 8), np.dtype("uint8"), None))
        raw (4, 8, 8) uint8
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    encoding: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {self.dtype}"


class Listing(list[Listed]):
    """The arrays of a file; where it has very many, the first of them, and the names of all."""

    def __init__(self, arrays: Iterable[Listed], names: list[str] | None = None):
        super().__init__(arrays)
        self.names = [item.name for item in self] if names is None else names


@dataclass(frozen=True, eq=False)
class Volume:
    """Holds a (z, y, x) or (c, z, y, x) volume and reads what is sliced, when it is sliced, into a new array.

    Slices are numpy's: integers, slices with positive steps, an ellipsis. A volume may be pickled and may cross a fork,
    because each process opens the data when it first reads.

    Attributes:
        name: what messages call it.
        shape: the shape.
        dtype: the numpy type of the voxels.
        resolution: the size of a voxel in nm, z, y, x; None where the file does not say it.
        offset: the place of the first voxel's corner in nm, z, y, x.
        attrs: everything else that the file says, such as the offsets of affinities.
        chunks: the blocks in which voxels are stored; None where any slice is as good.
        connect: opens the data; it is called once in each process.
        forks: whether a process may be forked after it has read; if not, threads share the reading. The default is
            True.

    Examples:
        >>> import numpy as np
        >>> from emcore import volumes
        >>> volume = volumes.open_volume(np.arange(24).reshape(2, 3, 4))
        >>> volume[0, :, 1], volume.nbytes
        (array([1, 5, 9]), 192)
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    resolution: Triple | None
    offset: Triple
    attrs: dict[str, Any]
    chunks: tuple[int, ...] | None
    connect: Callable[[], Any]
    forks: bool = True
    connection: list = field(default_factory=list, init=False, repr=False)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of voxels, channels included."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def nbytes(self) -> int:
        """The bytes that the whole volume takes in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        box, dropped = as_slices(index, self.shape)
        if any(span.start == span.stop for span in box):
            values = np.empty([len(range(span.start, span.stop, span.step)) for span in box], self.dtype)
        else:
            values = self.read(box)
        return values[tuple(0 if axis in dropped else slice(None) for axis in range(len(box)))] if dropped else values

    def read(self, box: tuple[slice, ...]) -> np.ndarray:
        """Reads the voxels in a box into a new array, in the machine's byte order.

        Args:
            box: one slice for each axis, within the shape.

        Returns:
            The array.

        Raises:
            InputError: the data cannot be read; the message says where.
        """
        try:
            if not self.connection or self.connection[0] != os.getpid():
                self.connection[:] = [os.getpid(), self.connect()]
            values = np.asarray(self.connection[1][box])
        except InputError:
            raise
        except BROKEN as error:
            if died := death_of_worker(error):
                raise died from error
            where = ", ".join(f"{span.start}:{span.stop}" for span in box)
            reason = "there is too little memory" if isinstance(error, MemoryError) else first_line(error)
            raise InputError(f"{self.name} cannot be read at [{where}]: {reason}") from error
        values = values.astype(self.dtype, copy=False)
        return values if values.flags.owndata else values.copy()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self.name} is not in memory; an array of it is a copy")
        return self[...].astype(dtype or self.dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "connection": []}


def as_slices(index: Any, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], set[int]]:
    """One slice(start, stop, step) within the shape for every axis, and the axes that were indexed by an integer."""
    index = index if isinstance(index, tuple) else (index,)
    ellipses = [place for place, item in enumerate(index) if item is Ellipsis]
    if len(ellipses) > 1 or len(index) - len(ellipses) > len(shape):
        raise IndexError(f"too many indices {index!r} for a volume of shape {shape}")
    place = ellipses[0] if ellipses else len(index)
    missing = len(shape) - (len(index) - len(ellipses))
    index = index[:place] + (slice(None),) * missing + index[place + len(ellipses) :]
    spans, dropped = [], set()
    for axis, (item, length) in enumerate(zip(index, shape)):
        if isinstance(item, slice):
            start, stop, step = item.indices(length)
            if step < 1:
                raise IndexError(f"volumes are sliced with positive steps; got {item}")
            spans.append(slice(start, max(start, stop), step))
            continue
        if not isinstance(item, int | np.integer) or isinstance(item, bool):
            raise IndexError(f"volumes are indexed by integers and slices; got {item!r}")
        number = int(item)
        if not -length <= number < length:
            raise IndexError(f"index {number} is outside axis {axis} of length {length}")
        number %= length
        spans.append(slice(number, number + 1, 1))
        dropped.add(axis)
    return tuple(spans), dropped


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for use inside a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return line if len(line) <= 300 else f"{line[:297]}..."


def unpacks_beyond(stored: bytes, most: int, unpack: Callable[[bytes, int], bytes] | None = None) -> bool:
    """Whether zlib, or what is given, makes more than that many bytes of these; no more are made to find out."""
    unpack = unpack or zlib.decompressobj().decompress
    try:
        return len(unpack(stored, most + 1)) > most
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):  # damaged: the reader of the format will say so
        return False


def native(dtype: Any) -> np.dtype:
    """The dtype in the machine's byte order."""
    return np.dtype(dtype).newbyteorder("=")


def is_volume(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether an array has the axes (z, y, x) or (c, z, y, x) and holds numbers."""
    return len(shape) in (3, 4) and dtype.kind in "biuf"


def usual_first(names: list[str]) -> list[str]:
    """The names whose arrays are looked up: all, or where they are too many, the usual ones and then the first."""
    return names if len(names) <= MOST_LISTED else sorted(names, key=lambda name: name not in USUAL)[:MOST_LISTED]


def choose_dataset(listing: Listing, path: Any, kind: str | None) -> str:
    """The name of the only volume in a file, else of the first usual key of that kind that it has."""
    names = [item.name for item in listing if is_volume(item.shape, item.dtype)]
    if len(names) == 1:
        return names[0]
    for key in KEYS[kind]:
        if key in names:
            return key
    if names:
        raise InputError(f"{path} holds several volumes, name one as {path}:{names[0]}; {contents(listing)}")
    raise InputError(f"{path} holds no volume of axes (z, y, x) or (c, z, y, x); {contents(listing)}")


def contents(listing: Listing) -> str:
    """What a file holds, as the end of a sentence."""
    shown = ", ".join(str(item) for item in listing[:20])
    more = f" and {len(listing.names) - 20} more" if len(listing.names) > 20 else ""
    return f"it has: {shown}{more}" if listing else "it has no datasets"


def check_volume(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuses what is no volume of numbers, or holds no voxel."""
    if dtype.kind not in "biuf":
        raise InputError(f"{name} holds {dtype}, not numbers; a volume is made of integers, floats or booleans")
    if len(shape) not in (3, 4):
        raise InputError(
            f"{name} has {len(shape)} axes, shape {shape}; a volume is (z, y, x), or (c, z, y, x) with channels first"
        )
    if 0 in shape:
        raise InputError(f"{name} is empty: its shape is {shape}")


def check_labels(volume: Volume) -> Volume:
    """Refuses a volume that cannot be labels: labels are integers or booleans (z, y, x).

    Args:
        volume: the `Volume`.

    Returns:
        The same volume.

    Raises:
        InputError: the dtype or the number of axes does not fit.

    Cost:
        No voxel is read.

    Examples:
        >>> import numpy as np
        >>> from emcore import volumes
        >>> volumes.check_labels(volumes.open_volume(np.zeros((4, 8, 8), np.uint32))).shape
        (4, 8, 8)
    """
    if volume.dtype.kind not in "biu":
        raise InputError(
            f"{volume.name} holds {volume.dtype}, but labels are integers; "
            "is it an image or a prediction? Otherwise convert it with .astype('uint64')"
        )
    if volume.ndim != 3:
        raise InputError(f"{volume.name} has the shape {volume.shape}, but labels are (z, y, x)")
    return volume


def placement(inner: Volume, outer: Volume) -> tuple[slice, slice, slice]:
    """Finds where the voxels of one volume lie in another, from their offsets in nm.

    Args:
        inner: the smaller `Volume`, for instance CREMI's labels.
        outer: the larger one, for instance CREMI's raw.

    Returns:
        Three slices z, y, x into the outer volume.

    Raises:
        InputError: the resolutions differ, the shift is not a whole number of voxels, or the inner one lies outside.

    Cost:
        No voxel is read.

    Examples:
        >>> import numpy as np
        >>> from emcore import volumes
        >>> raw = volumes.open_volume(np.zeros((4, 8, 8), np.uint8))
        >>> volumes.placement(raw, raw)
        (slice(0, 4, None), slice(0, 8, None), slice(0, 8, None))
    """
    resolution = inner.resolution or outer.resolution or (1.0, 1.0, 1.0)
    if not np.allclose(resolution, outer.resolution or resolution, rtol=1e-3):
        raise InputError(
            f"{inner.name} has the resolution {inner.resolution} and {outer.name} {outer.resolution} nm; "
            "they must agree to be laid on each other"
        )
    shift = (np.array(inner.offset) - outer.offset) / resolution
    start = np.rint(shift).astype(np.int64)
    if np.abs(shift - start).max() > 0.01:
        raise InputError(
            f"{inner.name} lies {tuple(shift.tolist())} voxels (z, y, x) off {outer.name}, which is not a whole number"
        )
    stop = start + inner.shape[-3:]
    if (start < 0).any() or (stop > outer.shape[-3:]).any():
        raise InputError(
            f"{inner.name} covers the voxels {tuple(start.tolist())} to {tuple(stop.tolist())} (z, y, x) of "
            f"{outer.name}, which ends at {outer.shape[-3:]}; check the attributes offset and resolution of both"
        )
    z, y, x = (slice(int(begin), int(end)) for begin, end in zip(start, stop))
    return z, y, x
