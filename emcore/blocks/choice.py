"""Whole or in blocks: what a decoding takes of memory and disk, held against what is there, before any work."""

import os
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from emcore.blocks.engines import engine_of
from emcore.blocks.grid import Grid
from emcore.errors import InputError
from emcore.memory import memory_there
from emcore.segment.seeds import face_smoothing, floods_sections
from emcore.segment.statistics import parse_statistic
from emcore.settings.blocks import Blocks, bytes_of
from emcore.settings.decode import (
    AffinityDecode,
    ComponentsDecode,
    ConnectedDecode,
    ContourDecode,
    Decode,
    MutexDecode,
    NoDecode,
)
from emcore.threads import allotted_cores

# Bytes a voxel that decoding takes beside the affinities that it reads. Measured with low 1e-4 and high 0.9999, which
# leave a fragment for every 80 to 100 voxels, on affinities in 8 bits and float32 (bench/affinities.py, real labels of
# 256³ and 512³): the whole took 13.2 to 15.7, a worker 10.8 to 14 for blocks of 192³ and 256³ and, with what does not
# grow with the block, 15 to 19 for 128³. With low 0.1 and high 0.999 it is 10.4 and 10.
WHOLE, BLOCK = 18, 16
# More of them with decode.learned, for all that is known of contacts, and beside all channels that it looks at: 55 were
# measured with faces, which left a fragment for every 134 voxels
LEARNED = 70
# The first merges of decode.learned are one task, which takes so many bytes for every voxel of the volume, and its
# statistics so many more of disk. Measured were 2.3 and 3.3 kB for every fragment, where fragments of 16 voxels had
# six contacts and 25 longer pairs each; faces leave a fragment for every 134 voxels of a prediction.
LEARNED_TOP, LEARNED_DISK = 18, 25
HISTOGRAMS = 34  # more of these where a quantile is over every contact: 8 in 8 bits to 32 in float32
# More of these for fragments = "faces", whole and in a block: 17.6 in all at 320³ in 8 bits; 30 in blocks of 128³ in
# 8 bits and 46 in float32, with what lies around the block.
FACES = 4, 20
OTHERS, VALUES = 24, 12  # beside what the other kinds read, of which at least so much is assumed
# Bytes a voxel of the volume that the last task of merges takes at most, for all that no window could merge: 2.6 for
# aff85_his256 with the default low and high at 512³; 0.4 for the mean with 0.1 and 0.999 at 1024³
TOP = 3
# A mutex watershed of 12 channels in 8 bits takes so many bytes a voxel beside its affinities: the whole, the window of
# a block, the last task for every voxel of the volume, and the disk. Measured were 79 at 256³, 76 for a block of 128³,
# 10 and 22 (bench/mutex_blocks.py).
MUTEX, MUTEX_BLOCK, MUTEX_TOP, MUTEX_DISK = 90, 90, 12, 25
WORKER = 80e6  # bytes of a worker that are not for its block; 63e6 were measured
DISK = 16  # bytes a voxel that all stages leave: 5.7 to 11.8 were measured at 256³; 512³ had up to half more fragments
SHARE = 0.85  # A decoding takes this part of the memory that is there, as other things want some too.
SIDES = (512, 384, 256, 192, 128, 96, 64, 48, 32)  # The largest of these sides that fits is taken for blocks.


class Task(NamedTuple):
    """A decoding, by what its memory depends on."""

    shape: Sequence[int]  # z, y, x
    channels: int
    itemsize: int  # bytes of a value of the prediction
    decode: Decode
    reach: Sequence[int] = (0, 0, 0)  # voxels around a block that a mutex watershed reads

    @property
    def voxels(self) -> int:
        return prod(self.shape)

    @property
    def value_bytes(self) -> int:
        """Bytes a voxel of what is read of the prediction; a calibration makes float32 of it."""
        if not isinstance(self.decode, AffinityDecode | ConnectedDecode) or getattr(self.decode, "learned", None):
            return (len(getattr(self.decode, "channels", ())) or self.channels) * self.itemsize
        moved = any(self.decode.bias) or self.decode.temperature != 1
        return 3 * (self.itemsize + 4 * moved)

    @property
    def whole(self) -> int:
        """Bytes that decoding it at once takes."""
        if isinstance(self.decode, MutexDecode):
            return self.voxels * (self.value_bytes + MUTEX)
        more = OTHERS if self.beside is None else WHOLE + self.beside + self.orders[0]
        return self.voxels * (self.value_bytes + more)

    @property
    def in_block(self) -> int:
        """Bytes that a worker takes for every voxel that it reads for a block."""
        if isinstance(self.decode, MutexDecode):
            return self.value_bytes + MUTEX_BLOCK
        if self.beside is None:
            return max(self.value_bytes, VALUES) + OTHERS
        return self.value_bytes + BLOCK + self.beside + self.orders[1]

    def worker(self, block: Sequence[int]) -> float:
        """Bytes that a worker takes for a block."""
        return WORKER + self.in_block * prod(min(side + 2 * far, length)
                                             for side, far, length in zip(block, self.reach, self.shape))

    @property
    def beside(self) -> int | None:
        """Bytes a voxel that histograms of the statistic take; None where there is no statistic."""
        if not isinstance(self.decode, AffinityDecode):
            return None
        if self.decode.learned is not None:
            return LEARNED
        return HISTOGRAMS * parse_statistic(self.decode.statistic).every_contact

    @property
    def orders(self) -> tuple[int, int]:
        """Bytes a voxel that the orders of faces take, whole and in a block."""
        has_faces = isinstance(self.decode, AffinityDecode) and face_smoothing(self.decode.fragments) is not None
        return FACES if has_faces else (0, 0)

    @property
    def top(self) -> int:
        """Bytes that the last merges may take."""
        if isinstance(self.decode, MutexDecode):
            return MUTEX_TOP * self.voxels
        if not isinstance(self.decode, AffinityDecode):
            return 0
        return self.voxels * (TOP if self.decode.learned is None else LEARNED_TOP)

    @property
    def disk(self) -> int:
        """Bytes that all stages leave on the disk."""
        if isinstance(self.decode, MutexDecode):
            return self.voxels * MUTEX_DISK
        return self.voxels * (DISK if getattr(self.decode, "learned", None) is None else DISK + LEARNED_DISK)


class Choice(NamedTuple):
    """How a decoding is done: in the blocks of a grid, or (None) at once; told: the sentence for the user."""

    grid: Grid | None
    workers: int
    told: str
    advice: str = ""  # another sentence, where settings make it costly (density.py)


def choose(task: Task, settings: Blocks) -> Choice:
    """At once where the memory that is there holds it, unless the settings ask for blocks; else in blocks."""
    there, volume = memory_there(), amount(task.voxels, "voxel")
    asked = bool(settings.size or settings.address or settings.cluster) or settings.engine != "auto"
    if not asked and task.whole <= SHARE * there:
        return Choice(None, 1, f"{volume}: decoding it whole takes about {size_of(task.whole)}, {size_of(there)} are "
                               "there")
    why = "" if asked else f"whole it would take {size_of(task.whole)}, {size_of(there)} are there: "
    if not asked or task.whole > SHARE * there:
        check_kind(task.decode, why)
    else:
        check_kind(task.decode, "decoding in blocks is asked for: ")
    workers, most, may_be_fewer = side_by_side(settings, there)
    while (block := fitting(task, settings, most)) is None and workers > 1 and may_be_fewer:
        workers -= 1
        most = SHARE * there / workers
    if block is None:
        least = task.worker(smallest(task))
        more = f"set memory in [blocks.{settings.cluster}] higher, or cores lower" if settings.cluster else (
            "take a machine with more memory, or fewer workers by blocks.workers")
        raise InputError(f"{volume}: {why}a worker needs at least {size_of(least)} for a block of "
                         f"{times(smallest(task))}, and {size_of(most)} are there for each of {workers}: {more}")
    grid = Grid(tuple(task.shape), block)
    needed = task.worker(block)
    told = f"{volume}: {why}{grid.blocks()} blocks of {times(block)}, {size_of(needed)} a worker, {workers} worker"
    top = f", up to {size_of(WORKER + task.top)} for the last merges" if WORKER + task.top > needed else ""
    return Choice(grid, workers, f"{told}{'s' * (workers > 1)}{top}; {size_of(task.disk)} of disk")


def side_by_side(settings: Blocks, there: int) -> tuple[int, float, bool]:
    """How many tasks are carried out at a time, the bytes that each may take, and whether there may be fewer."""
    asked, table = bytes_of(settings.memory), getattr(settings, settings.cluster or "", None) or {}
    cores = table.get("cores")
    if type(cores) is int and cores > 0 and "memory" in table:  # A job runs a task on each of its cores.
        return table.get("jobs", 1) * cores, asked or SHARE * bytes_of(table["memory"]) / cores, False
    if engine_of(settings) == "share":  # a task at a time in every process, of which torchrun starts several here
        return 1, asked or SHARE * there / int(os.environ.get("LOCAL_WORLD_SIZE", "1")), False
    workers = settings.workers or allotted_cores()
    return workers, asked or SHARE * there / workers, not settings.workers


def needs_sections(decode: Decode) -> bool:
    """Whether blocks must be whole sections, as each section is flooded or labelled by itself."""
    if isinstance(decode, AffinityDecode):
        return floods_sections(decode.fragments)
    return isinstance(decode, ComponentsDecode) and decode.seed_threshold > 0 and decode.connectivity in (4, 8)


def smallest(task: Task) -> tuple[int, int, int]:
    """The smallest block that is worked with."""
    if needs_sections(task.decode):
        return (1, *task.shape[1:])
    return tuple(min(SIDES[-1], length) for length in task.shape)


def fitting(task: Task, settings: Blocks, most: float) -> tuple[int, int, int] | None:
    """The block that is asked for, or the largest one whose worker takes at most so many bytes; None if none does."""
    if settings.size:
        block = tuple(min(size, length) for size, length in zip(settings.size, task.shape))
        if needs_sections(task.decode) and block[1:] != tuple(task.shape[1:]):
            raise InputError(f"blocks.size must be of whole sections, as decode works section by section: "
                             f"{[block[0], *task.shape[1:]]} would do; got {list(settings.size)}")
        return block
    sides = [tuple(min(side, length) for length in task.shape) for side in SIDES]
    if needs_sections(task.decode):
        sides = [(depth, *task.shape[1:]) for depth in (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
                 if depth <= max(1, task.shape[0])]
    return next((block for block in sides if task.worker(block) <= most), None)


def check_kind(decode: Decode, why: str = "") -> None:
    """Refuses, before any work, a decoding of which a block cannot know its part without having seen all the others."""
    flood = "its flood takes the whole volume in one order"
    if isinstance(decode, ContourDecode):
        wrong = "decode.kind = contour", flood, "decode.kind = components without seeds"
    elif isinstance(decode, AffinityDecode) and decode.ties == "waterz":
        wrong = "decode.ties = waterz", "waterz orders ties as it meets them in the whole volume", \
                "decode.ties = canonical"
    elif isinstance(decode, ComponentsDecode) and decode.seed_threshold and not needs_sections(decode):
        wrong = f"decode.seed_threshold with decode.connectivity = {decode.connectivity}", flood, \
                "decode.connectivity = 4 or 8, which floods every section by itself, or decode.seed_threshold = 0"
    elif isinstance(decode, NoDecode):
        wrong = "decode.kind = none", "it makes no labels", ""
    else:
        return
    what, because, instead = wrong
    raise InputError(f"{why}{what} works on the whole volume only, because {because}: take a machine with more memory, "
                     f"or set {instead or 'decode.kind = affinities'}")


def amount(count: float, unit: str) -> str:
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def size_of(count: float) -> str:
    return amount(count, "B")


def times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
