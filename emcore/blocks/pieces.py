"""Connected pieces over blocks: what every block says of its own, which of them are one, and how they are numbered.

A block is labelled with one more voxel around it. Two neighbouring voxels of different blocks, where they belong
together, have one label in the window of the later block, so comparing its labels of the voxels before it with those
that their own blocks give them finds every joint; and each joint is true, as a window holds voxels of the volume and
nothing else. Pieces are numbered by their first voxels in raster order, as the functions for arrays do.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from emcore.blocks.grid import Box, Grid
from emcore.blocks.pooled import Columns
from emcore.errors import InputError
from emcore.kernels import overlaps as kernel
from emcore.segment.fragments import first_voxels
from emcore.segment.graph import measure
from emcore.segment.relabeling import relabel

Read = Callable[..., list[np.ndarray]]  # columns of the file of a block: read(number, "first", "sizes")


def around(core: Box, shape: Sequence[int], margin: Sequence[int]) -> tuple[Box, Box]:
    """A box with so many voxels around it along z, y and x, cut at the volume; and where the box lies in that."""
    window = tuple(slice(max(0, span.start - more), min(length, span.stop + more))
                   for span, length, more in zip(core, shape, margin))
    return window, tuple(slice(span.start - wide.start, span.stop - wide.start) for span, wide in zip(core, window))


# ---- what a block says of its pieces


def piece_columns(labels: np.ndarray, inside: Box, core: Box, shape: Sequence[int],
                  seeds: np.ndarray | None = None) -> tuple[np.ndarray, Columns]:
    """(labels of the core, uint32, 1.. in raster order; first voxels, sizes and faces of these pieces).

    labels are those of the window in which the core lies `inside`. seeds: what they grew from, numbered in raster
    order with the same labels; then the first voxels are those of the seeds.
    """
    own, known = relabel(labels[inside])
    count = len(known) - 1
    local = np.zeros(int(labels.max(initial=0)) + 1, np.uint32)
    local[known] = np.arange(count + 1)
    firsts = first_voxels(own, count) if seeds is None else first_voxels(seeds[inside], count)[known[1:] - 1]
    places = [at + span.start for at, span in zip(np.unravel_index(firsts, own.shape), core)]
    columns = {"first": np.ravel_multi_index(tuple(places), tuple(shape)).astype(np.uint64),
               "sizes": measure(own, count)[0][1:]}
    for axis in range(3):
        columns[f"last_{axis}"] = own.take(-1, axis)
        if inside[axis].start == 0:  # nothing lies before the core
            columns[f"before_{axis}"] = np.empty((0, 0), np.uint32)
        else:
            plane = (*inside[:axis], inside[axis].start - 1, *(slice(None),) * (2 - axis))
            columns[f"before_{axis}"] = local[labels[plane]]
    return own, columns


# ---- which pieces are one


def joint_columns(grid: Grid, number: int, read: Read) -> Columns:
    """The pieces of a block that go on in earlier blocks: `here` in this one, `there` in that `block`."""
    here, block, there = [np.empty(0, np.uint32)], [np.empty(0, np.int64)], [np.empty(0, np.uint32)]
    for axis, before in enumerate(read(number, *(f"before_{axis}" for axis in range(3)))):
        if before.size == 0:
            continue
        for other, own_part, other_part in earlier(grid, number, axis, before.shape):
            mine, theirs = before[own_part].ravel(), read(other, f"last_{axis}")[0][other_part].ravel()
            mine, theirs = mine[mine > 0], theirs[mine > 0]
            if (theirs == 0).any():
                raise InputError("two neighbouring blocks saw different values in the same voxels: the prediction "
                                 "changed while it was decoded; decode it again")
            pairs = np.unique(mine.astype(np.uint64) << np.uint64(32) | theirs)
            here.append((pairs >> np.uint64(32)).astype(np.uint32))
            there.append(pairs.astype(np.uint32))
            block.append(np.full(len(pairs), other))
    return {"here": np.concatenate(here), "block": np.concatenate(block), "there": np.concatenate(there)}


def earlier(grid: Grid, number: int, axis: int, seen: tuple[int, int]) -> Iterator[tuple[int, tuple, tuple]]:
    """The blocks in which the plane before a block along an axis lies: number, its part of the plane, of their own.

    The plane reaches one voxel beyond the block along the axes behind `axis`, and is cut at the volume.
    """
    place, counts, core = grid.place(number), grid.counts(0), grid.box(number)
    for steps in product(*[(0,) if other < axis else (-1, 0, 1) for other in range(3) if other != axis]):
        step = [*steps[:axis], -1, *steps[axis:]]
        neighbour = [at + by for at, by in zip(place, step)]
        if not all(0 <= at < most for at, most in zip(neighbour, counts)):
            continue
        own_part, other_part = [], []
        for along, by, length in zip([other for other in range(3) if other != axis], steps, seen):
            begin = int(along > axis and place[along] > 0)
            size = core[along].stop - core[along].start
            own_part.append({-1: slice(0, 1), 0: slice(begin, begin + size), 1: slice(length - 1, length)}[by])
            other_part.append({-1: slice(-1, None), 0: slice(None), 1: slice(0, 1)}[by])
        yield grid.number(neighbour), tuple(own_part), tuple(other_part)


class Numbered(NamedTuple):
    """The pieces of all blocks, one block after the other, with the numbers that they have in the volume."""

    starts: np.ndarray  # the first piece of every block, and the end behind the last
    numbers: np.ndarray  # int64, 1.. in the order of first voxels
    sizes: np.ndarray  # voxels by number, 0 for 0

    def table(self, block: int) -> np.ndarray:
        """The numbers of the pieces of a block by their local labels, 0 for 0."""
        return np.append(0, self.numbers[self.starts[block]:self.starts[block + 1]])

    def large(self, size: int) -> np.ndarray:
        """By number, which pieces have at least `size` voxels; 0 is none."""
        return (self.sizes >= size) & (np.arange(len(self.sizes)) > 0)


def numbered(blocks: int, pieces: Read, joints: Read) -> Numbered:
    """Unites the pieces of all blocks by their joints; the memory follows their number."""
    found = [pieces(block, "first", "sizes") for block in range(blocks)]
    starts = np.cumsum([0] + [len(first) for first, _ in found])
    order = np.argsort(np.concatenate([first for first, _ in found]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    pairs = [np.empty((0, 2), np.int64)]
    for number in range(blocks):
        here, block, there = joints(number, "here", "block", "there")
        pairs.append(np.stack([rank[starts[number] + here - 1], rank[starts[block] + there - 1]], 1))
    parent = np.empty(len(order), np.int64)
    kernel.unite(np.concatenate(pairs), parent)  # the smallest rank of a group is that of its first voxel
    numbers = np.cumsum(parent == np.arange(len(parent)))[parent][rank]
    sizes = np.zeros(int(numbers.max(initial=0)) + 1, np.int64)
    np.add.at(sizes, numbers, np.concatenate([size for _, size in found]))
    return Numbered(starts, numbers, sizes)
