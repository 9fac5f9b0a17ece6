"""The wiring diagram: how many synapses join each pair of neurons, from a table of partners."""

from dataclasses import dataclass

import numpy as np

from emcore.segment.votes import runs_of
from emcore.segment.wiring import Partners


@dataclass(frozen=True, eq=False)
class Connections:
    """A row for each pair of neurons that synapses join, by pre, then post."""

    pre: np.ndarray  # (n,) uint64
    post: np.ndarray  # (n,) uint64
    directed: np.ndarray  # (n,) bool; else pre is the smaller id, and nobody knows which of them is presynaptic
    count: np.ndarray  # (n,) int64: synapses
    size: np.ndarray  # (n,) int64: their voxels
    contact_area: np.ndarray  # (n,) float64: nm2

    def __len__(self) -> int:
        return len(self.pre)

    @property
    def neurons(self) -> np.ndarray:
        """The ids of all neurons that a synapse joins to another, rising."""
        return np.unique(np.concatenate([self.pre, self.post]))


def connections(table: Partners) -> Connections:
    """The pairs of neurons of a table of partners; synapses that lack one of the two are left out."""
    kept = np.flatnonzero(table.resolved)
    order = kept[np.lexsort((table.directed[kept], table.post[kept], table.pre[kept]))]
    columns = [getattr(table, name)[order] for name in ("pre", "post", "directed")]
    starts = runs_of(*columns)
    pair = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    count = np.bincount(pair, minlength=len(starts))
    size = np.zeros(len(starts), np.int64)
    np.add.at(size, pair, table.size[order])
    area = np.bincount(pair, table.contact_area[order], len(starts))
    return Connections(*(column[starts] for column in columns), count, size, area)
