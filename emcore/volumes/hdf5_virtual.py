"""Virtual HDF5 datasets, joined from datasets of other files. Where a part is missing, or too many files are open,
HDF5 would read fill values without a word; where a part names itself the process would die, and a name may lead
anywhere. So the parts are read here, one by one: each is looked at when it is opened, and it must lie in the folder of
the file that names it, or below.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5s

from emcore.errors import InputError
from emcore.reading import is_inside, open_regular
from emcore.volumes.hdf5_names import find
from emcore.volumes.volume import BROKEN, first_line, native

DEEPEST = 8  # virtual datasets whose parts are virtual
MOST_PARTS = 100_000
MOST_OPEN = 16  # files of parts that stay open, and parts that are looked at when the dataset is opened
CACHE = 8 << 20  # bytes of decoded chunks that HDF5 keeps for each of them

# takes a title, a dataset and a type; returns what is sliced for voxels
Reader = Callable[[str, h5py.Dataset, np.dtype], Any]


class Pattern(NamedTuple):
    """Which voxels of an axis are taken: `count` runs of `block` voxels, whose first ones are `stride` apart."""

    start: int
    stride: int
    count: int
    block: int

    @property
    def voxels(self) -> int:
        return self.count * self.block

    @property
    def stop(self) -> int:
        return self.start + (self.count - 1) * self.stride + self.block

    def order_of(self, places: np.ndarray) -> np.ndarray:
        """How many of the voxels taken stand before each of these places; -1 for a place that is not taken."""
        run, within = np.divmod(places - self.start, self.stride)
        taken = (run >= 0) & (run < self.count) & (within < self.block)
        return np.where(taken, run * self.block + within, -1)

    def place_of(self, order: np.ndarray) -> np.ndarray:
        run, within = np.divmod(order, self.block)
        return self.start + run * self.stride + within


Patterns = tuple[Pattern, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Where a part lies in the virtual dataset, and what of which dataset it is."""

    place: Patterns
    file: str
    dataset: str
    source: Patterns | None  # None: all of it

    @property
    def file_name(self) -> str:
        return os.path.basename(self.file)

    @property
    def name(self) -> str:
        return f"{self.file_name}:{self.dataset}"


def parts_of(title: str, path: Path, dataset: h5py.Dataset) -> list[Part]:
    """The parts of a virtual dataset of the file `path`, whose name holds no link."""
    properties, shape = dataset.id.get_create_plist(), dataset.shape
    count = properties.get_virtual_count()
    if count > MOST_PARTS:
        raise InputError(f"{title} is joined from {count} parts; more than {MOST_PARTS} are not read")
    parts, files, everything, folder = [], {}, whole(shape), str(path.parent)
    for number in range(count):
        name, source = properties.get_virtual_filename(number), properties.get_virtual_dsetname(number)
        if "%" in name or "%" in source:
            raise InputError(f"{title} names its parts by a pattern, {name}:{source}, which is not read; "
                             "rewrite it by h5repack, or by h5py, as one dataset")
        file = files.get(name)
        if file is None:
            file = files[name] = str(path) if name == "." else os.path.join(folder, name)
        place = patterns_of(title, properties.get_virtual_vspace(number)) or everything
        if len(place) != len(shape) or any(axis.stop > length for axis, length in zip(place, shape)):
            raise InputError(f"{title} has the shape {shape}, but {name}:{source} is joined to it beyond that")
        parts.append(Part(place, file, source, patterns_of(title, properties.get_virtual_srcspace(number))))
    check_files(title, path.parent, files)
    return parts


def patterns_of(title: str, space: h5s.SpaceID) -> Patterns | None:
    """What a selection takes of each axis; None where it is all."""
    if space.get_select_type() == h5s.SEL_ALL:
        return None
    try:
        axes = list(zip(*space.get_regular_hyperslab()))
    except ValueError:
        axes = []
    if not axes or any(min(count, block) < 1 or (count > 1 and stride < block) for _, stride, count, block in axes):
        raise InputError(f"{title} is joined from voxels that form no regular pattern, which is not read; rewrite "
                         "it by h5repack, or by h5py, as one dataset")
    if any(h5s.UNLIMITED in axis for axis in axes):
        raise InputError(f"{title} is joined from parts of open size, which is not read; rewrite it by h5repack, or by "
                         "h5py, as one dataset")
    return tuple([Pattern(start, count * block, 1, count * block) if count == 1 or stride == block
                  else Pattern(start, stride, count, block) for start, stride, count, block in axes])


def check_files(title: str, folder: Path, files: dict[str, str]) -> None:
    """Refuses files that are missing or lie outside of the folder; `files` has the paths by the names as stored."""
    homes, missing = {}, []
    for name, file in files.items():
        above, last = os.path.split(file)
        if above not in homes:
            homes[above] = is_inside(Path(above), folder)
        plain = homes[above] and last not in ("", ".", "..") and not os.path.islink(file)
        if not plain and not is_inside(Path(file), folder):
            raise InputError(f"{title} is joined from {name}, which lies outside of its folder; only parts inside "
                             f"{folder} are read")
        if not os.path.exists(file):
            missing.append(name)
    if missing:
        raise InputError(f"{title} is joined from {len(files)} files; missing: {', '.join(sorted(missing)[:3])}")


def followed(place: Patterns, source: Patterns) -> list[int | None] | None:
    """For each axis of a source the axis of the place that it becomes, None where it is one voxel thick.

    The voxels of both are paired in their order, so the axes are where those of more than one voxel have equal lengths;
    None in all where they have not.
    """
    thick = [axis for axis, pattern in enumerate(place) if pattern.voxels > 1]
    lengths = [pattern.voxels for pattern in source if pattern.voxels != 1]
    if lengths != [place[axis].voxels for axis in thick]:
        return None
    axes = iter(thick)
    return [next(axes) if pattern.voxels > 1 else None for pattern in source]


def runs(target: np.ndarray, source: np.ndarray) -> list[tuple[slice, slice]]:
    """Two rows of ascending numbers as pairs of slices: one with steps where both are even, else runs without."""
    pace = np.stack([np.diff(target), np.diff(source)])
    cuts = [] if (pace == pace[:, :1]).all() else np.flatnonzero((pace != 1).any(axis=0)) + 1
    return [(as_slice(one), as_slice(other)) for one, other in zip(np.split(target, cuts), np.split(source, cuts))]


def as_slice(numbers: np.ndarray) -> slice:
    return slice(int(numbers[0]), int(numbers[-1]) + 1, int(numbers[1] - numbers[0]) if len(numbers) > 1 else 1)


def identity(path: str | Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, eq=False)
class Source:
    """The dataset of a part, opened and looked at."""

    file: h5py.File
    identity: tuple[int, ...]  # identifies the file as it was looked at
    values: Any  # what is sliced: the dataset, or one that is joined in its turn
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None

    def close(self) -> None:
        if isinstance(self.values, Joined):
            self.values.close()
        with suppress(*BROKEN):
            self.file.close()


@dataclass(frozen=True, eq=False)
class Joined:
    """A virtual dataset as it is read; voxels that no part covers have the fill value."""

    title: str
    path: Path
    name: str
    dtype: np.dtype
    fill: Any
    parts: list[Part]
    bounds: np.ndarray  # (low or stop, part, axis)
    reader: Reader
    above: tuple  # the datasets that are joined from this one, and itself: file and name
    # sources that were read last, the latest at the end
    held: dict[tuple[str, str], Source] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        values = np.full([len(range(span.start, span.stop, span.step)) for span in box], self.fill, self.dtype)
        low, stop = self.bounds
        meets = (low < [span.stop for span in box]) & (stop > [span.start for span in box])
        for number in np.flatnonzero(meets.all(axis=1)):  # where parts overlap the later one counts, like in HDF5
            self.take(self.parts[number], box, values)
        return values

    def take(self, part: Part, box: tuple[slice, ...], values: np.ndarray) -> None:
        """Puts the voxels of a part that lie in the box where they belong among its values."""
        targets, orders = [], []
        for pattern, span, length in zip(part.place, box, values.shape):
            first = max(0, -((span.start - pattern.start) // span.step))
            target = np.arange(first, min(length, -((span.start - pattern.stop) // span.step)))
            order = pattern.order_of(span.start + target * span.step)
            targets.append(target[order >= 0])
            orders.append(order[order >= 0])
        if not all(map(len, targets)):
            return
        with self.source_of(part) as source:
            patterns = part.source or whole(source.shape)
            axes = followed(part.place, patterns)
            places = {axis: pattern.place_of(orders[axis]) for axis, pattern in zip(axes, patterns) if axis is not None}
            pieces = [runs(target, places.get(axis, orders[axis])) for axis, target in enumerate(targets)]
            for piece in itertools.product(*pieces):
                room = values[tuple(target for target, _ in piece)]
                taken = tuple(slice(pattern.start, pattern.start + 1, 1) if axis is None else piece[axis][1]
                              for axis, pattern in zip(axes, patterns))
                room[...] = source.values[taken].reshape(room.shape)

    def look(self, count: int) -> tuple[int, ...] | None:
        """Looks at the first parts; the chunks of the first one, where its axes are those of the whole."""
        chunks = None
        for number, part in enumerate(self.parts[:count]):
            with self.source_of(part) as source:
                if number == 0 and source.chunks and len(source.shape) == len(part.place):
                    chunks = source.chunks
        return chunks

    @contextmanager
    def source_of(self, part: Part) -> Iterator[Source]:
        """The source of a part, looked at again whenever its file has changed."""
        key = part.file, part.dataset
        with self.lock:
            source = self.held.pop(key, None)  # nobody else uses it, or closes it, meanwhile
        try:
            try:
                now = identity(part.file)
            except OSError:
                raise InputError(f"{self.title} is joined from {part.file_name}, which is missing now") from None
            if source and source.identity != now:
                source.close()
                source = None
            if source is None:
                if not is_inside(Path(part.file), self.path.parent):
                    raise InputError(f"{self.title} is joined from {part.file_name}, which leads out of its folder "
                                     "now")
                source = self.opened(part, now)
            self.check_size(part, source.shape)
            yield source
        except BaseException as error:
            if source:
                source.close()
            if isinstance(error, InputError | MemoryError) or not isinstance(error, BROKEN):
                raise
            raise InputError(f"{self.title} is joined from {part.name}, which cannot be read: "
                             f"{first_line(error)}") from error
        with self.lock:
            dropped = [self.held.pop(key, None)]
            self.held[key] = source
            while len(self.held) > MOST_OPEN:
                dropped.append(self.held.pop(next(iter(self.held))))
        for other in filter(None, dropped):
            other.close()

    def opened(self, part: Part, now: tuple[int, ...]) -> Source:
        """The dataset of a part, refused where it is made of what is joined from it, or not to be read."""
        own = now, part.dataset.strip("/")
        if own in self.above:
            raise InputError(f"{self.title} is joined from itself, through {part.name}")
        if len(self.above) > DEEPEST:
            raise InputError(f"{self.title} is joined from parts that are joined from parts, more than {DEEPEST} deep")
        open_regular(part.file).close()
        file = h5py.File(part.file, "r", locking=False, rdcc_nbytes=CACHE)
        try:
            way = find(file, part.dataset)
            found = way[-1] if way else None
            if not isinstance(found, h5py.Dataset) or found.shape is None:
                raise InputError(f"{self.title} is joined from {part.name}, which is missing")
            if not found.is_virtual:
                return Source(file, now, self.reader(part.name, found, self.dtype), found.shape, found.chunks)
            if native(found.dtype) != native(self.dtype):
                raise InputError(f"{self.title} holds {self.dtype} and is joined from {part.name}, which is joined as "
                                 f"{found.dtype}; rewrite that by h5repack, or by h5py, as one dataset")
            inner = joined(self.title, Path(os.path.realpath(part.file)), found, self.reader, (*self.above, own))
            try:
                chunks = inner.look(1)
            except BaseException:
                inner.close()
                raise
            return Source(file, now, inner, found.shape, chunks)
        except BaseException:
            file.close()
            raise

    def check_size(self, part: Part, shape: tuple[int, ...]) -> None:
        """Refuses a part that is smaller than what is taken of it, or takes another shape on the way."""
        patterns = part.source or whole(shape)
        fits = len(patterns) == len(shape) and all(axis.stop <= length for axis, length in zip(patterns, shape))
        if not fits or math.prod(axis.voxels for axis in patterns) != math.prod(axis.voxels for axis in part.place):
            raise InputError(f"{self.title} is joined from {part.name}, whose shape {shape} does not hold what is "
                             "taken of it")
        if followed(part.place, patterns) is None:
            raise InputError(f"{self.title} is joined from {part.name}, whose voxels take another shape in it, which "
                             "is not read; rewrite it by h5repack, or by h5py, as one dataset")

    def close(self) -> None:
        with self.lock:
            held = list(self.held.values())
            self.held.clear()
        for source in held:
            source.close()


def whole(shape: Sequence[int]) -> Patterns:
    return tuple(Pattern(0, length, 1, length) for length in shape)


def joined(title: str, path: Path, dataset: h5py.Dataset, reader: Reader, above: tuple = ()) -> Joined:
    """A virtual dataset of the file `path`, whose name holds no link; all its files are there, none is opened yet."""
    parts, name = parts_of(title, path, dataset), dataset.name.strip("/")
    bounds = np.array([[[axis.start for axis in part.place] for part in parts],
                       [[axis.stop for axis in part.place] for part in parts]], np.int64)
    above = above or ((identity(path), name),)
    return Joined(title, path, name, dataset.dtype, dataset.fillvalue, parts,
                  bounds.reshape(2, len(parts), len(dataset.shape)), reader, above)
