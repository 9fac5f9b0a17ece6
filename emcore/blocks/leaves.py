"""Fragments of a block, and the names that they have in the volume once the blocks around it are known.

A fragment's name is the place of its first voxel in the volume, plus 1; so names need no numbering of all blocks, and
their order is the order in which the whole volume numbers its fragments.
"""

from collections.abc import Callable, Sequence

import numpy as np

from emcore.blocks.grid import Grid
from emcore.blocks.pooled import Columns
from emcore.blocks.runs import runs_of
from emcore.blocks.windows import Source, corner, moved, sorted_names
from emcore.segment import Affinities, seeded_slices
from emcore.segment.faces import MARGIN, face_orders
from emcore.segment.fragments import block_fragments
from emcore.segment.graph import measure
from emcore.segment.linking import join_pairs
from emcore.segment.merge_tree import look_up
from emcore.segment.seeds import face_smoothing

CONTEXT = 2  # voxels around a block that decide, with its own, about every edge that crosses its faces
NOWHERE = (2**31 - 1,) * 3 + (-1,) * 3  # the box of what has no edges; any other one united with it stays as it is
FACES = [(axis, side) for axis in range(3) for side in (0, 1)]


def basins_of(source: Source, grid: Grid, number: int) -> Columns:
    """The fragments of a block by a watershed of affinities or of the orders of faces, and what the blocks around it
    have to know about those at its faces."""
    window, core = grid.grown(number, CONTEXT, CONTEXT)
    asked, smooth = source.settings, face_smoothing(source.settings.fragments)
    if smooth is None:
        affs, low, high = source.affinities(window), asked.low, asked.high
    else:
        affs, low, high = orders_of(source, grid, number, smooth), 0.0, 1.0
    found = block_fragments(affs, low, high, core=core, origin=corner(window), volume_shape=grid.shape)
    names = np.concatenate([[0], found.firsts + 1]).astype(np.uint64)
    own = grid.holders(found.exit_targets) == number if len(found.exit_targets) else np.zeros(0, bool)
    targets, start = found.exit_targets.copy(), corner(grid.box(number))
    voxels = np.unravel_index(targets[own], grid.shape)
    targets[own] = -found.labels[tuple(place - first for place, first in zip(voxels, start))].astype(np.int64)
    return {**runs_of(found.labels), "names": names, "exit_label": found.exit_labels, "exit_key": found.exit_keys,
            "exit_target": targets, "mutual_label": found.mutual_labels, "mutual_target": found.mutual_targets,
            **planes_of(found.labels)}


def orders_of(source: Source, grid: Grid, number: int, smooth: int) -> Affinities:
    """The orders of the faces in a block and CONTEXT voxels around it; those before its first planes are not theirs."""
    around = MARGIN + smooth + CONTEXT
    wide, _ = grid.grown(number, around, around)
    window, _ = grid.grown(number, CONTEXT, CONTEXT)
    orders = face_orders(source.affinities(wide), smooth)
    inside = tuple(slice(span.start - more.start, span.stop - more.start) for span, more in zip(window, wide))
    return Affinities(orders.values[(slice(None), *inside)], orders.offsets)


def floods_of(source: Source, grid: Grid, number: int) -> Columns:
    """The fragments of whole sections, each flooded by itself; named by section and number, which keeps their order."""
    box = grid.box(number)
    floods = seeded_slices(source.affinities(box), source.settings.fragments)
    pixels = floods.shape[1] * floods.shape[2]
    lasts = np.maximum.accumulate([int(section.max()) for section in floods]) if floods.size else np.zeros(0, int)
    counts = np.diff(lasts, prepend=0)
    names = [np.arange(1, count + 1, dtype=np.uint64) + np.uint64((box[0].start + z) * pixels)
             for z, count in enumerate(counts)]
    none = np.empty(0, np.int64)
    return {**runs_of(floods), "names": np.concatenate([np.zeros(1, np.uint64), *names]),
            "exit_label": none.astype(np.uint32), "exit_key": none.astype(np.uint64), "exit_target": none,
            "mutual_label": none.astype(np.uint32), "mutual_target": none, **planes_of(floods)}


def planes_of(labels: np.ndarray) -> Columns:
    """The first and the last plane of a block along every axis."""
    return {plane_name(axis, side): labels.take(-side, axis) for axis, side in FACES}


def plane_name(axis: int, side: int) -> str:
    return f"plane_{'zyx'[axis]}{side}"


class Seams:
    """Unites the fragments of all blocks across their faces, by what lies at the faces alone.

    Plateaus that go through a face are one; each of them, once it is whole, takes the first of the exits that its
    parts found, as the watershed of the whole volume does.
    """

    def __init__(self, grid: Grid, read: Callable[..., Sequence[np.ndarray]]):
        """read(number, *columns): columns of the fragments of a block."""
        self.grid, self.read = grid, read
        self.mutual: list[np.ndarray] = []  # pairs of names
        self.exits: list[np.ndarray] = []  # name, key, name of where it leads
        for number in range(grid.blocks()):
            self._add(number)

    def _add(self, number: int) -> None:
        names, labels, targets = self.read(number, "names", "mutual_label", "mutual_target")
        self.mutual.append(np.stack([names[labels], self._named(number, targets)], axis=1))
        labels, keys, targets = self.read(number, "exit_label", "exit_key", "exit_target")
        self.exits.append(np.stack([names[labels], keys, self._named(number, targets)], axis=1))

    def _named(self, number: int, targets: np.ndarray) -> np.ndarray:
        """The names of fragments in their own blocks: below 0 by label in this block, else by a voxel next to it."""
        named, beyond = np.zeros(len(targets), np.uint64), targets >= 0
        if not beyond.all():
            named[~beyond] = self.read(number, "names")[0][-targets[~beyond]]
        holders = np.full(len(targets), -1)
        holders[beyond] = self.grid.holders(targets[beyond])
        for holder in np.unique(holders[beyond]).tolist():
            here = holders == holder
            voxels = np.unravel_index(targets[here], self.grid.shape)
            at = [place - start for place, start in zip(voxels, corner(self.grid.box(holder)))]
            step = np.subtract(self.grid.place(holder), self.grid.place(number))
            axis = int(np.flatnonzero(step)[0])
            plane, names = self.read(holder, plane_name(axis, int(step[axis] < 0)), "names")
            named[here] = names[plane[tuple(at[other] for other in range(3) if other != axis)]]
        return named

    def names(self) -> tuple[np.ndarray, np.ndarray]:
        """(names of fragments in their blocks, sorted; their names in the volume), of those where the two differ."""
        plateaus = join_pairs(np.concatenate(self.mutual))
        exits = np.concatenate(self.exits)
        exits = np.stack([moved(exits[:, 0], plateaus.old, plateaus.new), exits[:, 1],
                          moved(exits[:, 2], plateaus.old, plateaus.new)], axis=1)
        exits = exits[np.lexsort((exits[:, 1], exits[:, 0]))]
        best = np.ones(len(exits), bool)
        best[1:] = exits[1:, 0] != exits[:-1, 0]
        ways = join_pairs(exits[best][:, [0, 2]])
        old = sorted_names([plateaus.old, ways.old])
        new = moved(moved(old, plateaus.old, plateaus.new), ways.old, ways.new)
        return old[old != new], new[old != new]


def seam_columns(grid: Grid, read: Callable[..., Sequence[np.ndarray]]) -> Columns:
    """For every block the names of its fragments that are others in the volume, and these."""
    old, new = Seams(grid, read).names()
    columns: Columns = {}
    holders = grid.holders((old - 1).astype(np.int64)) if len(old) else np.empty(0, np.int64)
    order = np.argsort(holders, kind="stable")
    cuts = np.searchsorted(holders[order], np.arange(grid.blocks() + 1))
    for number in range(grid.blocks()):
        here = order[cuts[number]:cuts[number + 1]]
        columns[f"old_{number}"], columns[f"new_{number}"] = old[here], new[here]
    return columns


def halo_planes(grid: Grid, number: int, plane: Callable[[int, int, int], np.ndarray]) -> dict[int, np.ndarray]:
    """The names in the planes right before a block, by axis, where a block lies there; plane(number, axis, side)."""
    found = {}
    for axis in range(3):
        before = grid.neighbour(number, axis, 0)
        if before is not None:
            found[axis] = plane(before, axis, 1)
    return found


def in_slab(labels: np.ndarray, names: np.ndarray, halos: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(every name in a block and in the planes before it, sorted, 0 first; the block with these planes, by place)."""
    every = np.concatenate([np.zeros(1, np.uint64), sorted_names([names, *halos.values()])])
    table = np.searchsorted(every, names).astype(np.uint32)
    slab = np.zeros([length + (axis in halos) for axis, length in enumerate(labels.shape)], np.uint32)
    inside = tuple(slice(int(axis in halos), None) for axis in range(3))
    look_up(labels, table, out=slab[inside])
    for axis, plane in halos.items():
        at = list(inside)
        at[axis] = 0
        slab[tuple(at)] = np.searchsorted(every, plane)
    return every, slab


def boxes_of(slab: np.ndarray, own: np.ndarray, halo: Sequence[int], start: Sequence[int],
             shape: Sequence[int]) -> np.ndarray:
    """Where the edges of every label in a slab may lie, int32: first z, y, x and last z, y, x in the volume.

    That is one voxel more than the label has itself, as a contact is measured at its later voxel. own: the boxes of the
    labels behind the planes of the halo, counted from there; start: the first voxel of the slab in the volume.
    """
    boxes = np.where(own[:, 3:4] < 0, NOWHERE, own + np.tile(np.add(start, halo), 2))
    for axis in np.flatnonzero(halo):
        plane = tuple(slice(0, 1) if other == axis else slice(halo[other], None) for other in range(3))
        sizes, found = measure(slab[plane], len(own) - 1, with_boxes=True)
        here = np.flatnonzero(sizes)
        found = found[here] + np.tile([start[other] + halo[other] * (other != axis) for other in range(3)], 2)
        boxes[here, :3] = np.minimum(boxes[here, :3], found[:, :3])
        boxes[here, 3:] = np.maximum(boxes[here, 3:], found[:, 3:])
    boxes[:, 3:] = np.minimum(boxes[:, 3:] + 1, np.subtract(shape, 1))
    boxes[0] = NOWHERE
    return boxes.astype(np.int32)
