"""What each merge of a tree parts its object into: the two sides that were one object without it.

Every merge is given one contact, the one that carries most affinity between the two clusters. These contacts make a
tree of the fragments of every object, so to leave one out parts the object into two sides that each hold together.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emcore.errors import InputError
from emcore.kernels import merge_tree as kernel
from emcore.segment.graph import RegionGraph
from emcore.segment.merge_tree import MergeTree


def joined_by(parent: np.ndarray, when: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """For every pair of fragments the number of the merge that joined them; that of all merges where none did.

    A fragment and itself count as joined before all merges, by -1.
    """
    merges, same = int(when[0]), u == v  # Nothing joins fragment 0.
    found = np.where(same, -1, merges)
    open_ones = np.flatnonzero(~same)
    at, other = u[open_ones].astype(np.int64), v[open_ones].astype(np.int64)
    # whoever leaves its cluster first goes up; along the way up the merges come later and later
    while len(open_ones):
        first = np.where(when[at] <= when[other], at, other)
        other = np.where(when[at] <= when[other], other, at)
        found[open_ones] = when[first]
        at = parent[first]
        going = (at != other) & (when[first] < merges)
        open_ones, at, other = open_ones[going], at[going], other[going]
    return found


def _climbing(tree: MergeTree) -> tuple[np.ndarray, np.ndarray]:
    """(parent, when): fragment i is the smallest of its cluster until merge when[i] joins that to parent[i]'s."""
    parent = np.arange(tree.fragments + 1, dtype=np.uint32)
    when = np.full(tree.fragments + 1, np.inf)
    kernel.link(tree.a, tree.b, np.arange(len(tree.a), dtype=np.float64), parent, when)
    return parent.astype(np.int64), np.where(np.isfinite(when), when, len(tree.a)).astype(np.int64)


@dataclass(frozen=True)
class Sides:
    """The objects that the first merges of a tree make, each a tree of fragments that its contacts hold together."""

    made: int  # how many merges were made
    parent: np.ndarray  # int64, fragment i is the smallest of its cluster until that joins the one of parent[i]
    when: np.ndarray  # int64, merge when[i] joins these two; a cluster that none joins has the number of all merges
    contact: np.ndarray  # int64, the edge of the graph that stands for each merge
    faces: np.ndarray  # int64, all contact faces between the two clusters of each merge
    below: np.ndarray  # int64, the end of each contact that lies farther from the root of the object
    root: np.ndarray  # int64, the root of the object of every fragment
    order: np.ndarray  # int64, all fragments, each after the one that it hangs on
    hangs_on: np.ndarray  # int64, the fragment that every fragment hangs on; a root hangs on itself
    levels: np.ndarray  # int64, the places in the order at which the fragments of the next depth begin

    def under(self, weights: np.ndarray) -> np.ndarray:
        """The sum of the weights of every fragment and all that hang on it; for a root that is its whole object."""
        total = weights.copy()
        for start, stop in zip(self.levels[-2:0:-1], self.levels[:0:-1]):
            members = self.order[start:stop]
            np.add.at(total, self.hangs_on[members], total[members])
        return total

    @cached_property
    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """(first, last): all that hang on a fragment, itself included, are numbered from first to last."""
        count = self.under(np.ones(len(self.root), np.int64))
        first = np.zeros(len(self.root), np.int64)
        for start, stop in zip(self.levels[:-1], self.levels[1:]):
            members = self.order[start:stop]
            before = np.cumsum(count[members]) - count[members]
            if start:
                parents = self.hangs_on[members]  # siblings lie side by side
                new = np.flatnonzero(np.append(True, parents[1:] != parents[:-1]))
                before -= np.repeat(before[new], np.diff(np.append(new, len(members))))
                before += first[parents] + 1
            first[members] = before
        return first, first + count - 1

    def joined(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The merge that joined every pair of fragments, as `joined_by` tells it."""
        return joined_by(self.parent, self.when, one, other)

    def before(self, merge: int, fragments: np.ndarray) -> np.ndarray:
        """The smallest fragment of the cluster that each of the fragments was in just before a merge."""
        at = fragments
        while (going := self.when[at] < merge).any():
            at = np.where(going, self.parent[at], at)
        return at

    def parted(self, merge: int, fragments: np.ndarray) -> np.ndarray:
        """1 for those of the fragments below the contact of a merge, 2 for the others of its object, else 0."""
        first, last = self.span
        below = int(self.below[merge])
        inside = (first[fragments] >= first[below]) & (first[fragments] <= last[below])
        return np.where(self.root[fragments] != self.root[below], 0, np.where(inside, 1, 2)).astype(np.uint8)


def sides_of(tree: MergeTree, graph: RegionGraph, threshold: float) -> Sides:
    """The sides of every merge below a threshold."""
    misfit = InputError("the merge tree is not of this graph: it joins clusters that do not touch; decode the "
                        "prediction again")
    if tree.fragments != graph.fragments:
        raise misfit
    made = int(np.searchsorted(tree.height, tree.height.dtype.type(threshold), side="left"))
    parent, when = _climbing(tree)
    by = joined_by(parent, when, graph.u, graph.v)
    inner = np.flatnonzero(by < made)
    inner = inner[np.lexsort((-graph.sum[inner], by[inner]))]
    starts = np.searchsorted(by[inner], np.arange(made))
    if len(np.unique(by[inner])) < made:
        raise misfit
    contact = inner[starts] if made else inner
    faces = np.add.reduceat(graph.count[inner], starts) if made else np.zeros(0, np.int64)
    ends = graph.u[contact].astype(np.int64), graph.v[contact].astype(np.int64)
    return Sides(made, parent, when, contact, faces, *_hung(*ends, graph.fragments))


def _hung(u: np.ndarray, v: np.ndarray, fragments: int) -> tuple[np.ndarray, ...]:
    """(below, root, order, hangs_on, levels) of a forest, every tree hung up at its smallest fragment."""
    ends, others = np.concatenate([u, v]), np.concatenate([v, u])
    number = np.concatenate([np.arange(len(u))] * 2)
    by_end = np.argsort(ends, kind="stable")
    others, number = others[by_end], number[by_end]
    starts = np.searchsorted(ends[by_end], np.arange(fragments + 2))
    came_by = np.full(fragments + 1, -1, np.int64)
    root = hangs_on = np.arange(fragments + 1)
    root, hangs_on, below = root.copy(), hangs_on.copy(), np.zeros(len(u), np.int64)
    at = _smallest(u, v, fragments)
    order, levels = [at], [0, len(at)]
    while len(at):
        lengths = starts[at + 1] - starts[at]
        parents = np.repeat(at, lengths)
        rows = np.arange(lengths.sum()) + np.repeat(starts[at] - (np.cumsum(lengths) - lengths), lengths)
        new = number[rows] != came_by[parents]
        parents, rows = parents[new], rows[new]
        at = others[rows]
        came_by[at], hangs_on[at], root[at], below[number[rows]] = number[rows], parents, root[parents], at
        if len(at):
            order.append(at)
            levels.append(levels[-1] + len(at))
    return below, root, np.concatenate(order), hangs_on, np.array(levels)


def _smallest(u: np.ndarray, v: np.ndarray, fragments: int) -> np.ndarray:
    """The smallest fragment of every tree of a forest, 0 among them."""
    parent, when = np.arange(fragments + 1, dtype=np.uint32), np.full(fragments + 1, np.inf)
    kernel.link(u.astype(np.uint32), v.astype(np.uint32), np.zeros(len(u)), parent, when)
    return np.flatnonzero(parent == np.arange(fragments + 1))
