"""Which voxels a block must know of others for its part of a mutex watershed: those where paths leave its window.

The window of a block holds every edge of its voxels. What may hang together outside of a window shows at its outer
planes, in a spanning forest by weight. So forests are made among the voxels of such planes, block by block and up the
octree, and what lies outside of each goes down again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from emcore.blocks.grid import Box, Grid
from emcore.blocks.leaves import Columns
from emcore.blocks.sweeps import forest_of, spanning
from emcore.blocks.windows import corner, extent, sorted_names
from emcore.decode.labels import mutex_channels
from emcore.segment.mutex_window import Paths, WindowEdges
from emcore.settings.decode import MutexDecode
from emcore.volumes import Volume

SLAB = 16  # sections of which a forest is made at a time
NO_EDGES = {"forest_u": np.empty(0, np.uint64), "forest_v": np.empty(0, np.uint64),
            "forest_height": np.empty(0, np.float32), "forest_key": np.empty(0, np.uint8)}


def reach_of(prediction: Volume, settings: MutexDecode) -> tuple[int, int, int]:
    """How far the longest offsets that are used lead along z, y and x."""
    _, steps = mutex_channels(prediction, settings)
    return tuple(max(abs(step[axis]) for step in steps) for axis in range(3))


@dataclass(frozen=True)
class Faces:
    """The voxels at which blocks and windows end; a name is a place in the volume, plus 1."""

    grid: Grid
    reach: tuple[int, int, int]  # The longest offset along z, y and x has so many voxels.

    def window(self, number: int) -> tuple[Box, Box]:
        """All voxels to which edges of a block lead, and where the block lies among them."""
        core = self.grid.box(number)
        wide = tuple(slice(max(0, span.start - far), min(length, span.stop + far))
                     for span, far, length in zip(core, self.reach, self.grid.shape))
        return wide, tuple(slice(span.start - more.start, span.stop - more.start) for span, more in zip(core, wide))

    def on_plane(self, voxels: Sequence[np.ndarray]) -> np.ndarray:
        """Which voxels lie at a face between blocks, or in an outer plane of the window of a block."""
        found = np.zeros(np.shape(voxels[0]), bool)
        for along, far, length, size in zip(voxels, self.reach, self.grid.shape, self.grid.block):
            planes, borders = np.zeros(length, bool), np.arange(size, length, size)
            for places in (borders - 1, borders, borders - far, borders + far - 1) if far else ():
                planes[places[(places >= 0) & (places < length)]] = True
            found = found | planes[along]
        return found

    def beyond(self, voxels: Sequence[np.ndarray], box: Box, depth: Sequence[int]) -> np.ndarray:
        """Which voxels lie outside of a box, or within so many planes of where it meets others."""
        deep = np.ones(np.shape(voxels[0]), bool)
        for along, span, far, length in zip(voxels, box, depth, self.grid.shape):
            if span.start > 0:
                deep = deep & (along >= span.start + far)
            if span.stop < length:
                deep = deep & (along < span.stop - far)
        return ~deep

    def seen_of(self, voxels: Sequence[np.ndarray], box: Box) -> np.ndarray:
        """Which of the voxels in and at a box others may ask for."""
        return self.on_plane(voxels) & self.beyond(voxels, box, self.reach)

    def seen_from(self, voxels: Sequence[np.ndarray], box: Box) -> np.ndarray:
        """The voxels at and around a box whose connections outside of it its blocks may have to know."""
        near = np.ones(np.shape(voxels[0]), bool)
        for along, span, far in zip(voxels, box, self.reach):
            near = near & (along >= span.start - far) & (along < span.stop + far)
        return near & self.on_plane(voxels) & self.beyond(voxels, box, [min(1, far) for far in self.reach])

    def voxels(self, names: np.ndarray) -> tuple[np.ndarray, ...]:
        return np.unravel_index(names.astype(np.int64) - 1, self.grid.shape)

    def up(self, parts: Sequence[Columns], box: Box) -> Columns:
        """The forest of a node by those of its children."""
        return joined(parts, lambda names: self.seen_of(self.voxels(names), box))

    def down(self, parts: Sequence[Columns], box: Box) -> Columns:
        """The forest outside of a node, by those of its siblings and what lies outside of its parent."""
        return joined([NO_EDGES, *parts], lambda names: self.seen_from(self.voxels(names), box))

    def leaf(self, edges: WindowEdges, number: int, dropped: np.ndarray | None) -> Columns:
        """The forest of the attractive edges that are stored in a block, without those that are dropped.

        edges: of a window that holds the block and a voxel around it.
        """
        box, origin = self.grid.box(number), edges.origin
        shape, parts = edges.shape, []
        for start in range(box[0].start, box[0].stop, SLAB):
            rows = slice(start - origin[0], min(start + SLAB, box[0].stop) - origin[0])
            inside = (rows, *(slice(span.start - first, span.stop - first)
                              for span, first in zip(box[1:], origin[1:])))
            low, high = max(0, rows.start - 1), min(shape[0], rows.stop + 1)  # the sections that edges of these touch
            rows_of_edges = []
            for channel, (stored, here, there, values) in enumerate(edges.attractive(inside)):
                kept = values > 0
                if dropped is not None:
                    kept &= ~dropped[channel][tuple(slice(span.start + first - own.start, span.stop + first - own.start)
                                        for span, first, own in zip(stored, origin, box))]
                rows_of_edges.append((here[kept], there[kept], values[kept]))
            u, v, weight = map(np.concatenate, zip(*rows_of_edges))
            base = low * shape[1] * shape[2]
            z, y, x = np.indices((high - low, *shape[1:]), sparse=True)
            places = [np.broadcast_to(at + first, (high - low, *shape[1:]))
                      for at, first in zip((z + low, y, x), origin)]
            shared = np.broadcast_to((z + low <= rows.start) | (z + low >= rows.stop - 1), places[0].shape)
            terminal = (self.seen_of(places, box) | shared).reshape(-1)
            names = np.ravel_multi_index(tuple(places), self.grid.shape).reshape(-1).astype(np.uint64) + np.uint64(1)
            ends = {"u": u - np.uint32(base), "v": v - np.uint32(base), "key": np.zeros(len(u), np.uint8)}
            parts.append(forest_of(names, ends, -weight, terminal, np.inf))
        return self.up(parts, box)

    def paths(self, outside: Columns, number: int) -> Paths:
        """What may hang together outside of the window of a block, by places in it."""
        window, _ = self.window(number)
        shape = extent(window)

        def is_outer(names: np.ndarray) -> np.ndarray:
            inside, outer = np.ones(len(names), bool), np.zeros(len(names), bool)
            for along, span, far, length in zip(self.voxels(names), window, self.reach, self.grid.shape):
                inside &= (along >= span.start) & (along < span.stop)
                if far and span.start > 0:
                    outer |= along == span.start
                if far and span.stop < length:
                    outer |= along == span.stop - 1
            return inside & outer

        found = joined([outside], is_outer)
        ends = (np.ravel_multi_index(tuple(along - first for along, first in zip(self.voxels(found[end]),
                                                                                 corner(window))), shape)
                for end in ("forest_u", "forest_v"))
        return Paths(*(end.astype(np.uint32) for end in ends), (-found["forest_height"]).astype(np.float32))


def joined(parts: Sequence[Columns], chosen: Callable[[np.ndarray], np.ndarray]) -> Columns:
    """A forest of the edges of all parts among the names that are chosen."""
    names = sorted_names([part[end] for part in parts for end in ("forest_u", "forest_v")])
    return spanning(parts, names[chosen(names)])
