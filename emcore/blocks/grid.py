"""Blocks of a volume, and the octree above them: eight neighbouring blocks make one of the next level, up to one.

Merges are made in partitions of the volume into windows, one partition after the other: the blocks of a level, and then
windows of the same size that lie half a window off. Each partition is a grid itself, with an octree of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

import numpy as np

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """The blocks of a volume (z, y, x); those at its ends may be smaller. Level 0 are the blocks themselves."""

    shape: tuple[int, int, int]
    block: tuple[int, int, int]
    shift: tuple[int, int, int] = (0, 0, 0)  # so many voxels of the first block would lie before the volume

    @cached_property
    def levels(self) -> int:
        """How many levels there are: the last one is a single block, the volume."""
        return 1 + max((count - 1).bit_length() for count in self.counts(0))

    def counts(self, level: int) -> tuple[int, int, int]:
        """Blocks of a level along z, y and x."""
        return tuple(max(1, -(-(length + before) // (size << level)))
                     for length, size, before in zip(self.shape, self.block, self.shift))

    @cached_property
    def partitions(self) -> list["Grid"]:
        """The windows that merges are made in, from the blocks to the volume."""
        found = []
        for level in range(self.levels):
            windows = Grid(self.shape, tuple(size << level for size in self.block))
            shift = tuple(size // 2 if count > 1 else 0 for size, count in zip(windows.block, windows.counts(0)))
            found += [windows, replace(windows, shift=shift)] if any(shift) else [windows]
        return found

    def blocks(self, level: int = 0) -> int:
        """How many blocks a level has; they are numbered in raster order."""
        return prod(self.counts(level))

    def place(self, number: int, level: int = 0) -> tuple[int, int, int]:
        """Which block along z, y and x a number stands for."""
        return tuple(int(at) for at in np.unravel_index(number, self.counts(level)))

    def number(self, place: Sequence[int], level: int = 0) -> int:
        return int(np.ravel_multi_index(tuple(place), self.counts(level)))

    def box(self, number: int, level: int = 0) -> Box:
        """The voxels of a block."""
        return tuple(slice(max(0, at * (size << level) - before), min((at + 1) * (size << level) - before, length))
                     for at, size, length, before in zip(self.place(number, level), self.block, self.shape, self.shift))

    def parent(self, number: int, level: int) -> int:
        """The block of level + 1 that holds a block of `level`."""
        return self.number([at // 2 for at in self.place(number, level)], level + 1)

    def children(self, number: int, level: int) -> list[int]:
        """The blocks of level - 1 that a block of `level` consists of."""
        below = self.counts(level - 1)
        ranges = [range(2 * at, min(2 * at + 2, count)) for at, count in zip(self.place(number, level), below)]
        return [self.number(place, level - 1) for place in product(*ranges)]

    def neighbour(self, number: int, axis: int, side: int, level: int = 0) -> int | None:
        """The block that follows along an axis (side 1) or comes before (side 0); None at the end of the volume."""
        place = list(self.place(number, level))
        place[axis] += 2 * side - 1
        return self.number(place, level) if 0 <= place[axis] < self.counts(level)[axis] else None

    def grown(self, number: int, low: int, high: int) -> tuple[Box, Box]:
        """A block with `low` voxels before it and `high` behind it, cut at the volume; and where it lies in that."""
        core = self.box(number)
        window = tuple(slice(max(0, span.start - low), min(length, span.stop + high))
                       for span, length in zip(core, self.shape))
        inside = tuple(slice(span.start - wide.start, span.stop - wide.start) for span, wide in zip(core, window))
        return window, inside

    def holders(self, positions: np.ndarray) -> np.ndarray:
        """The numbers of the blocks that hold voxels, given by their linear indices in the volume."""
        return self.numbers_at(np.unravel_index(positions, self.shape))

    def numbers_at(self, voxels: Sequence[np.ndarray]) -> np.ndarray:
        """The numbers of the blocks that hold voxels, given by z, y and x."""
        places = tuple((voxel + before) // size for voxel, before, size in zip(voxels, self.shift, self.block))
        return np.ravel_multi_index(places, self.counts(0))

    def overlapping(self, box: Box) -> list[int]:
        """The numbers of the blocks that share voxels with a box."""
        ranges = [range((span.start + before) // size, (span.stop - 1 + before) // size + 1)
                  for span, before, size in zip(box, self.shift, self.block)]
        return [self.number(place) for place in product(*ranges)]

    def slabs(self) -> Iterator[tuple[int, list[int]]]:
        """For every row of blocks along z its number and the numbers of its blocks."""
        depth, *flat = self.counts(0)
        for z in range(depth):
            yield z, list(range(z * prod(flat), (z + 1) * prod(flat)))
