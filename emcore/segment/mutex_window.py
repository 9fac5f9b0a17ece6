"""Mutex watershed of a window of a volume: the merges that are certain whatever lies outside, and the edges left.

    edges = WindowEdges(affs, attracts, strides, origin)
    clusters = edges.certain(inside, outside)     # all edges of the voxels inside are known
    graph = edges.graph(clusters_of_the_volume, box)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels.mutex import MutexForest, WindowForest
from emcore.kernels.voxel_edges import BINS, VoxelEdges
from emcore.segment.affinities import Affinities
from emcore.segment.mutex import BIN_WIDTH, check_values, edge_values, process, strides_of, weights_of

MOST_VOXELS = 2**31 - 1  # a bit of a node's number marks paths
PATH = 2**31
Box = tuple[slice, slice, slice]


class Paths(NamedTuple):
    """A forest of what may hang together outside of a window, each pair of voxels by edges of so much or more."""

    u: np.ndarray  # places in the window
    v: np.ndarray
    weight: np.ndarray  # float32


NO_PATHS = Paths(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.float32))


class Clusters(NamedTuple):
    """What is certain of a window: the root of every voxel, and which edges between neighbours never join."""

    roots: np.ndarray  # uint32, flat
    forest: WindowForest


class WindowEdges:
    """The edges of a window of a volume, without bias: attractive channels weigh a, the others 1 - a."""

    def __init__(self, affs: Affinities, attracts: Sequence[bool], strides: Sequence[int],
                 origin: Sequence[int] = (0, 0, 0)):
        self.values, self.table, self.offsets = edge_values(affs, None)
        if self.values[0].size > MOST_VOXELS:
            raise InputError(f"a window of a mutex watershed takes at most {MOST_VOXELS} voxels; got "
                             f"{self.values[0].size}: a smaller blocks.size would do")
        self.attracts = np.array(attracts, bool)
        self.strides, self.origin = strides_of(strides, self.attracts), tuple(map(int, origin))
        self.bias = np.where(self.attracts, 0, -1).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.values.shape[1:]

    def voxel_edges(self, mask: np.ndarray | None) -> VoxelEdges:
        return VoxelEdges(self.values, weights_of(self.table, self.bias), mask, self.offsets, self.strides, self.bias,
                          self.origin)

    def certain(self, inside: Box, outside: Paths) -> Clusters:
        """The clusters that the whole volume has, as far as they are certain; a voxel not inside is incomplete."""
        own = np.zeros(self.shape, np.uint8)
        own[inside] = 2
        edges, everywhere = self.voxel_edges(own), self.voxel_edges(None)
        incomplete = np.ascontiguousarray(own.reshape(-1) == 0)
        rows, roots = self.shape[0] * self.shape[1], np.empty(own.size, np.uint32)
        check_values(edges.point(roots, 0, rows, 0.0, 1.0))
        roots[incomplete] = np.flatnonzero(incomplete)
        forest, counts = WindowForest(roots, incomplete.view(np.uint8)), np.zeros(BINS, np.int64)
        edges.histogram(roots, 0, rows, counts)
        paths = np.stack([outside.weight.view(np.uint32), outside.u, outside.v | np.uint32(PATH)], axis=1)

        def gathered(low: int, high: int) -> list[np.ndarray]:
            parts = [np.ascontiguousarray(paths[(paths[:, 0] >= low) & (paths[:, 0] < high)])]
            for channel, attracts in enumerate(self.attracts):
                found = (everywhere if attracts else edges).gather(roots, channel, 0, rows, low, high)
                parts.append(found[:forest.live(found)].copy())
            return parts

        process(forest, counts, own.size // 4, gathered)
        return Clusters(roots, forest)

    def attractive(self, box: Box) -> list[tuple[Box, np.ndarray, np.ndarray, np.ndarray]]:
        """For every attractive channel where in the box edges are stored, the places of their two ends, and weights."""
        places, found = np.arange(np.prod(self.shape), dtype=np.uint32).reshape(self.shape), []
        for channel in np.flatnonzero(self.attracts):
            step = self.offsets[channel]
            stored = tuple(slice(max(span.start, -move), max(span.start, -move, min(span.stop, length - max(0, move))))
                           for span, move, length in zip(box, step.tolist(), self.shape))
            other = tuple(slice(span.start + move, span.stop + move) for span, move in zip(stored, step.tolist()))
            values = self.values[channel][stored]
            found.append((stored, places[stored], places[other],
                          values.astype(np.float32) if self.table is None else self.table[values]))
        return found

    def graph(self, clusters: np.ndarray, box: Box) -> dict[str, np.ndarray]:
        """The first of the edges between every two clusters (z, y, x, uint32 from 1) that are stored in the box:
        signed weight, clusters u and v, channel, and place in the window."""
        spans = np.array([(span.start, span.stop) for span in box], np.int64)
        found = self.voxel_edges(None).first(np.ascontiguousarray(clusters.reshape(-1)), spans)
        return {"weight": found[0].view(np.float32), "u": found[1], "v": found[2], "channel": found[3],
                "place": found[4]}


def watershed_of_graph(nodes: int, weight: np.ndarray, u: np.ndarray, v: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Labels 1.. of nodes, in their order, by edges with signed weights; of equal ones the lower key first."""
    roots, bits = np.arange(nodes, dtype=np.uint32), weight.view(np.uint32)
    forest = MutexForest(roots)
    strength = bits & np.uint32(2**31 - 1)

    def gathered(low: int, high: int) -> list[np.ndarray]:
        here = np.flatnonzero((strength >= low) & (strength < high))
        here = here[np.argsort(key[here], kind="stable")]
        found = np.stack([bits[here], roots[u[here]], roots[v[here]]], axis=1)
        return [found[:forest.live(found)]]

    counts = np.bincount(strength // np.uint32(BIN_WIDTH), minlength=BINS)
    process(forest, counts, len(bits) // 8, gathered)
    labels = np.empty(nodes, np.uint32)
    forest.labels(None, labels)
    return labels
