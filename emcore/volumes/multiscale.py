"""Writing a volume at several levels by tensorstore, part by part, in parallel processes, resumable.

    work = NAME.unfinished
        plan.json     what is being written, so that only the same command goes on with it
        store/        the levels; it gets the name NAME when all of it is there
        done/L/N      one file for each part N of level L that is whole and on the disk

A part is one shard, or a box of whole chunks: nobody else writes into its files. Level L is begun when level L - 1 is
complete, since it is made from that.
"""

import hashlib
import io
import itertools
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.files import publish, remove, reported, write_text
from emcore.kernels import relabeling
from emcore.locks import NoLocks, take
from emcore.progress import Progress
from emcore.reading import read_text
from emcore.threads import allotted_cores
from emcore.volumes.fetched import in_turn
from emcore.volumes.formats import PLAN, UNFINISHED, need_tensorstore
from emcore.volumes.precomputed import LAYERS
from emcore.volumes.processes import Helpers
from emcore.volumes.pyramid import Level, pieces, shrunk
from emcore.volumes.stamp import stamp
from emcore.volumes.volume import Volume, first_line
from emcore.volumes.writing import recast

SHARD_BYTES = 64 << 20
PART_BYTES = 16 << 20  # A part is so large where there are no shards; larger arrays get their memory anew each time.
PRECOMPUTED = "neuroglancer_precomputed"
NAMED = "named"  # the file that names the folder which was about to get the target's name
MOST_PLAN = 64 << 20
COUNT_ONLY = np.empty((0, 0, 0), np.uint8)  # The kernel numbers no voxel then.
# what tensorstore raises where a disk, a folder or a store is at fault
FAILURES = (OSError, ValueError, RuntimeError, NotImplementedError, KeyError, IndexError, TypeError, MemoryError)


@dataclass(frozen=True)
class Layout:
    """Says how a volume for viewers is stored; None takes the default that suits viewers.

    Attributes:
        chunks: z, y, x voxels that a viewer reads at a time; about 64 x 64 x 64 by default.
        shards: z, y, x voxels of one file of OME-Zarr 0.5; by default whole chunks of at most 64 MiB together.
        levels: how many scales, the finest included; by default until one fits into a chunk.
        layer: "image", whose coarser levels are means, or "segmentation", whose coarser levels are the most frequent
            labels. By default unsigned integers of 32 and 64 bits are a segmentation.
        dtype: the type to store, by default that of the source; a value that it cannot hold is refused.
        workers: processes, by default one.

    Examples:
        >>> from emcore import volumes
        >>> volumes.Layout(levels=3).workers
        1
    """

    chunks: Sequence[int] | None = None
    shards: Sequence[int] | None = None
    levels: int | None = None
    layer: str | None = None
    dtype: Any = None
    workers: int = 1

    def checked(self, source: Volume) -> "Layout":
        """Fills in the layer and the dtype for a source.

        Args:
            source: the `Volume` to store.

        Returns:
            The `Layout`.

        Raises:
            InputError: the source cannot be stored in this way.
        """
        for name in ("chunks", "shards"):
            given = getattr(self, name)
            if given is not None and (len(given) != 3 or min(given) < 1):
                raise InputError(f"{name} must be three positive sizes z, y, x; got {tuple(given)}")
        if self.workers < 1:
            raise InputError(f"workers must be at least 1; got {self.workers}")
        dtype = np.dtype(self.dtype or source.dtype)
        dtype = np.dtype("uint8") if dtype.kind == "b" else dtype  # viewers know no booleans
        layer = self.layer or ("segmentation" if dtype in (np.uint32, np.uint64) else "image")
        if layer not in LAYERS:
            raise InputError(f"a layer is image or segmentation; got {layer!r}")
        if layer == "segmentation" and dtype.kind != "u":
            raise InputError(f"{source.name} cannot be a segmentation of {dtype}: labels are unsigned integers")
        return Layout(self.chunks, self.shards, self.levels, layer, dtype, self.workers)


@dataclass(frozen=True)
class Pyramid:
    """A volume and all its levels as tensorstore stores them; what the processes get."""

    source: Volume
    dtype: np.dtype
    target: Path
    levels: tuple[Level, ...]
    specs: tuple[dict[str, Any], ...]  # what tensorstore is told, without the folder
    chunks: tuple[tuple[int, ...], ...]  # one entry a level, axes as in the volume
    units: tuple[tuple[int, ...], ...]  # voxels of a part of each level
    mode: bool
    counts: bool = False  # whether to count the voxels of each label
    workers: int = 1

    @property
    def work(self) -> Path:
        return self.target.with_name(self.target.name + UNFINISHED)

    @property
    def store(self) -> Path:
        return self.work / "store"

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        return [self.source.shape[:-3] + level.shape for level in self.levels]

    def parts(self, level: int) -> int:
        return math.prod(-(-length // size) for length, size in zip(self.shapes[level], self.units[level]))

    def box(self, level: int, number: int) -> tuple[slice, ...]:
        """Where a part lies; parts are numbered in the order of reading."""
        shape, unit = self.shapes[level], self.units[level]
        place = np.unravel_index(number, [-(-length // size) for length, size in zip(shape, unit)])
        return tuple(slice(int(at) * size, min(length, (int(at) + 1) * size))
                     for at, size, length in zip(place, unit, shape))

    def marker(self, level: int, number: int) -> Path:
        return self.work / "done" / str(level) / str(number)

    def do(self, part: tuple[int, int]) -> int:
        """Writes one part; its marker appears when it is on the disk. Returns the number of voxels."""
        return self.finish(*self.begin(part, self.take(part)))

    def take(self, part: tuple[int, int]) -> np.ndarray:
        with self.told():
            return self.block(part[0], self.box(*part))

    def begin(self, part: tuple[int, int], block: np.ndarray) -> tuple[tuple[int, int], Any, bytes]:
        """Has tensorstore write a part, which `finish` waits for."""
        with self.told():
            future = written(opened(self, part[0]), self.box(*part), block)
            return part, future, counted(block) if self.counts and part[0] == 0 else b""

    def finish(self, part: tuple[int, int], future: Any, sizes: bytes) -> int:
        with self.told():
            future.result()
            self.mark(*part, sizes)
        return volume_of(self.box(*part))

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tells whatever goes wrong with a part in one sentence."""
        try:
            yield
        except InputError:
            raise
        except FAILURES as error:
            raise InputError(f"cannot write {self.target}: {first_line(error)}; what is there stays in {self.work}, "
                             "and the same command goes on with it") from error

    def each(self, parts: Iterator[tuple[int, int]], helpers: Helpers) -> Iterator[int]:
        """Writes the parts; a single process reads the next one while two are on their way to the disk."""
        if self.workers > 1:
            yield from helpers.each(parts)
            return
        begun: list[tuple[tuple[int, int], Any, bytes]] = []
        try:
            with ThreadPoolExecutor(1) as pool:
                for part, block in in_turn(pool, self.take, parts):
                    begun.append(self.begin(part, block))
                    del block  # or it would stay in memory until the next one is there
                    if len(begun) > 1:
                        yield self.finish(*begun.pop(0))
            while begun:
                yield self.finish(*begun.pop(0))
        finally:
            for one in begun:
                self.finish(*one)

    def block(self, level: int, box: tuple[slice, ...]) -> np.ndarray:
        """The voxels of a part: of the source, or made from the next finer level piece by piece."""
        if level == 0:
            block = self.source[box]
            return block if block.dtype == self.dtype else recast(block, self.dtype, self.source.name)
        finer, coarser = self.levels[level - 1:level + 1]
        made = np.empty([span.stop - span.start for span in box], self.dtype)
        array = Reading(opened(self, level - 1))
        for piece in pieces(box, self.chunks[level], math.prod(coarser.factors) * self.dtype.itemsize):
            inner = tuple(slice(span.start - whole.start, span.stop - whole.start) for span, whole in zip(piece, box))
            made[inner] = shrunk(array, finer, coarser, piece, self.mode)
        return made

    def mark(self, level: int, number: int, data: bytes) -> None:
        marker = self.marker(level, number)
        temporary = marker.with_name(f"{number}.{os.getpid()}.partial")
        with reported(marker):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if data:
                    os.fsync(file.fileno())
            os.replace(temporary, marker)

    def plan(self, stamped: str | None) -> str:
        """All that decides what is written, as text."""
        # The stamp is of the files alone: what is opened in them tells a part of a volume from another part.
        opens = hashlib.sha256(pickle.dumps(self.source.connect)).hexdigest() if stamped else None
        about = {"source": [self.source.shape, self.source.dtype.name, stamped, opens], "dtype": self.dtype.name,
                 "grid": [self.source.resolution, self.source.offset, self.source.attrs],
                 "levels": [asdict(level) for level in self.levels], "specs": self.specs, "units": self.units,
                 "mode": self.mode, "counts": self.counts}
        return json.dumps(about, indent=1)

    def write(self, finish: Callable[[Path], None]) -> None:
        """Writes all parts that are not there yet, then what `finish` adds to the store, and gives it its name."""
        total = sum(math.prod(shape) for shape in self.shapes)
        with (working(self), Progress(total, f"{self.source.name} -> {self.target}", "voxels") as progress,
              Helpers(self, self.workers) as helpers):
            self.forget_what_was_replaced()
            for level in range(len(self.levels)):
                opened(self, level, create=True)
                with reported(self.work):
                    self.marker(level, 0).parent.mkdir(parents=True, exist_ok=True)
                    found = {name for name in os.listdir(self.marker(level, 0).parent) if name.isdigit()}
                if found:
                    there = sum(volume_of(self.box(level, int(number))) for number in found)
                    progress.add(there, found=True)
                waiting = ((level, number) for number in range(self.parts(level)) if str(number) not in found)
                for voxels in self.each(waiting, helpers):
                    progress.add(voxels)
            finish(self.store)
            for left in self.store.rglob("*.__lock"):  # a killed process of tensorstore leaves it
                remove(left)
            with reported(self.target):
                write_text(self.work / NAMED, str(os.stat(self.store).st_ino))
                publish(self.store, self.target)
            remove(self.work)

    def forget_what_was_replaced(self) -> None:
        """Begins anew where a process was killed after its store had got the name: what stands in its place since then
        is what had the name before."""
        named = self.work / NAMED
        with reported(self.work):
            if named.exists() and (not self.store.exists()
                                   or read_text(named, MOST_PLAN) != str(os.stat(self.store).st_ino)):
                for left in (self.work / "done", self.store, named):
                    remove(left)

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Every label but 0, ascending, and how many voxels it has."""
        found = [np.load(self.marker(0, number), allow_pickle=False) for number in range(self.parts(0))]
        labels, place = np.unique(np.concatenate([rows[0] for rows in found]), return_inverse=True)
        sums = np.zeros(len(labels), np.uint64)
        np.add.at(sums, place, np.concatenate([rows[1] for rows in found]))
        return labels[labels > 0], sums[labels > 0]


@contextmanager
def working(pyramid: Pyramid) -> Iterator[None]:
    """The folder of the unfinished store, locked for this process; one that a killed process left is gone on with."""
    work, stamped = pyramid.work, stamp(pyramid.source.name)
    with reported(work):
        work.mkdir(parents=True, exist_ok=True)
        if not (work / PLAN).exists() and any(name != "lock" for name in os.listdir(work)):
            raise InputError(f"{work} is there, and no unfinished volume: move it away")
        file = open(work / "lock", "a")  # noqa: SIM115
    with file:
        try:
            alone = take(file, wait=False)
        except NoLocks:
            alone = True
        if not alone or not (work / "lock").exists():
            raise InputError(f"{pyramid.target} is being written by another process: wait for its end")
        plan = pyramid.plan(stamped)
        with reported(work):
            before = read_text(work / PLAN, MOST_PLAN) if (work / PLAN).exists() else None
        if before is not None and stamped is None:
            before = None  # nobody can tell whether the source is the same
            for name in ("store", "done", NAMED, PLAN):
                remove(work / name)
        if before is None:
            write_text(work / PLAN, plan)
        elif before != plan:
            raise InputError(f"{work} is of another conversion (another source, type, grid, chunks or levels): finish "
                             "it by its own command, or remove it")
        yield


class Reading:
    """A level as arrays: what is sliced is read."""

    def __init__(self, store: Any):
        self.store = store

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return self.store[box].read().result()


_OPENED: dict[tuple[Path, int], Any] = {}  # A process has one job, and a job few levels.


def opened(pyramid: Pyramid, level: int, create: bool = False) -> Any:
    """A level of the store as tensorstore has it, axes (c,) z, y, x from 0."""
    key = (pyramid.store, level)
    if create or key not in _OPENED:
        tensorstore = need_tensorstore(f"writing {pyramid.target}")
        spec = pyramid.specs[level]
        cores = max(1, allotted_cores() // pyramid.workers)
        folder = pyramid.store / str(level) if spec["driver"] != PRECOMPUTED else pyramid.store
        whole = {**spec, "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
                 "context": {"data_copy_concurrency": {"limit": cores}, "file_io_concurrency": {"limit": 4 * cores}},
                 "store_data_equal_to_fill_value": True,  # or nobody could tell a part that is lost from one that is 0
                 "open": True, "create": create}
        try:
            store = tensorstore.open(whole).result()
        except FAILURES as error:
            raise InputError(f"cannot write {pyramid.target}: {first_line(error)}") from error
        if spec["driver"] == PRECOMPUTED:
            store = store.T.translate_to[0]
            store = store if pyramid.source.ndim == 4 else store[0]
        if create:
            _OPENED.clear()
        _OPENED[key] = store
    return _OPENED[key]


def written(store: Any, box: tuple[slice, ...], block: np.ndarray) -> Any:
    """What gives its result when the box is on the disk; a shard is written once, as all of its chunks come together.

    The block must stay as it is: tensorstore packs chunks from where they lie in it.
    """
    import tensorstore

    if "sharding" not in store.spec().to_json().get("scale_metadata", {}):
        return store[box].write(block, can_reference_source_data_indefinitely=True)
    transaction = tensorstore.Transaction()
    store.with_transaction(transaction)[box].write(block, can_reference_source_data_indefinitely=True).result()
    return transaction.commit_async()


def counted(block: np.ndarray) -> bytes:
    """The labels of a block and how many voxels each has, as an npy file."""
    labels, voxels = relabeling.number(block.reshape(1, 1, -1), COUNT_ONLY, 2**64 - 1)
    file = io.BytesIO()
    np.save(file, np.stack([labels, voxels.astype(np.uint64)]))
    return file.getvalue()


def volume_of(box: tuple[slice, ...]) -> int:
    return math.prod(span.stop - span.start for span in box)


def part_bytes(source: Volume) -> int:
    """How large a part without shards may be: larger where the source unpacks whole sections for every part."""
    in_sections = source.chunks is not None and source.chunks[-2:] == source.shape[-2:]
    return SHARD_BYTES if in_sections else PART_BYTES


def grown(chunk: Sequence[int], shape: Sequence[int], itemsize: int, most: int) -> tuple[int, ...]:
    """Whole chunks of at most `most` bytes together: y and x are doubled in turn before z, none beyond the volume."""
    size = list(chunk)
    axes = itertools.cycle([len(size) - 1, len(size) - 2, len(size) - 3])
    stuck = 0
    while stuck < 3:
        axis = next(axes)
        fits = size[axis] < shape[axis] and 2 * math.prod(size) * itemsize <= most
        stuck = 0 if fits else stuck + 1
        size[axis] *= 2 if fits else 1
    return tuple(size)
