"""Whole or in blocks: what a decoding takes of memory and disk, held against what is there, before any work."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from emcore.blocks.grid import Grid
from emcore.errors import InputError
from emcore.memory import memory_there
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

# bytes a voxel that decoding the whole takes beside its affinities; measured, and docs/blocks.md says on what
WHOLE = 24
BLOCK = 36  # bytes a voxel of a block that a worker takes for it, with VALUES bytes of a prediction among them
VALUES = 12
WORKER = 250e6  # bytes that a worker takes before it has read anything
DISK = 10  # bytes a voxel that the files of all stages take
SHARE = 0.85  # of the memory that is there, as other things want some too
SIDES = (512, 384, 256, 192, 128, 96, 64, 48, 32)  # of blocks, the largest that fits


class Task(NamedTuple):
    """A decoding, by what its memory depends on."""

    shape: Sequence[int]  # z, y, x
    channels: int
    itemsize: int  # bytes of a value of the prediction
    decode: Decode

    @property
    def voxels(self) -> int:
        return prod(self.shape)

    @property
    def value_bytes(self) -> int:
        """Bytes a voxel of what is read of the prediction; a calibration makes float32 of it."""
        if not isinstance(self.decode, AffinityDecode | ConnectedDecode):
            return (len(getattr(self.decode, "channels", ())) or self.channels) * self.itemsize
        moved = any(self.decode.bias) or self.decode.temperature != 1
        return 3 * (self.itemsize + 4 * moved)

    @property
    def whole(self) -> int:
        """Bytes that decoding it at once takes."""
        return self.voxels * (self.value_bytes + WHOLE)


    @property
    def in_block(self) -> int:
        """Bytes a voxel of a block that a worker takes; kinds that read every channel may take more than affinities."""
        many = 0 if isinstance(self.decode, AffinityDecode | ConnectedDecode) else self.value_bytes - VALUES
        return BLOCK + max(0, many)


class Choice(NamedTuple):
    """How a decoding is done: in the blocks of a grid, or (None) at once; told: the sentence for the user."""

    grid: Grid | None
    workers: int
    told: str


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
    workers = settings.workers or allotted_cores()
    most = bytes_of(settings.memory) or SHARE * there / workers
    while (block := fitting(task, settings, most)) is None and workers > 1 and not settings.workers:
        workers -= 1
        most = SHARE * there / workers
    if block is None:
        least = WORKER + task.in_block * prod(smallest(task))
        raise InputError(f"{volume}: {why}a worker needs at least {size_of(least)} for a block of "
                         f"{times(smallest(task))}, and {size_of(most)} are there for each of {workers}: take a "
                         "machine with more memory, or fewer workers by blocks.workers")
    grid = Grid(tuple(task.shape), block)
    needed = WORKER + task.in_block * prod(block)
    told = f"{volume}: {why}{grid.blocks()} blocks of {times(block)}, {size_of(needed)} a worker, {workers} worker"
    return Choice(grid, workers, f"{told}{'s' * (workers > 1)}; {size_of(DISK * task.voxels)} of disk")


def needs_sections(decode: Decode) -> bool:
    """Whether blocks must be whole sections, as each section is flooded or labelled by itself."""
    if isinstance(decode, AffinityDecode):
        return decode.fragments != "watershed"
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
    return next((block for block in sides if WORKER + task.in_block * prod(block) <= most), None)


def check_kind(decode: Decode, why: str = "") -> None:
    """Refuses, before any work, a decoding of which a block cannot know its part without having seen all the others."""
    flood = "its flood takes the whole volume in one order"
    if isinstance(decode, MutexDecode):
        wrong = "decode.kind = mutex", "its edges are taken in one order through the whole volume", ""
    elif isinstance(decode, ContourDecode):
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
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def size_of(count: float) -> str:
    return amount(count, "B")


def times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
