"""The exact VOI and Rand curves over every merge of a merge tree, by folding the fragment x truth table along it.

One contingency pass serves all thresholds: joining two rows changes the sums only where both rows have an entry,
so the whole curve costs about as much as the table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numba import types
from numpy.typing import ArrayLike, NDArray

from emcore.errors import InputError
from emcore.metrics.compilation import compiled
from emcore.metrics.partitions import Rand, SquareSums, Voi, rand_of_sums, square_sums, voi
from emcore.metrics.tables import Contingency, contingency

SHORT = 8  # rows up to this length are searched entry by entry; longer ones have their entries in a hash table

_int_in = types.Array(types.int64, 1, "C", readonly=True)
_int_out = types.Array(types.int64, 1, "C")
_float_in = types.Array(types.float64, 1, "C", readonly=True)
_float_out = types.Array(types.float64, 1, "C")
_wide_out = types.Array(types.uint64, 2, "C")


@numba.njit(nogil=True)
def _root(parent, node):
    """The cluster of a fragment; the path is halved on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@numba.njit(nogil=True)
def _hash_slot(table, keys_row, keys_column, row, column):
    """Where the entry of (row, column) is in the hash table, or the free slot where it belongs."""
    last = np.uint64(table.shape[0] - 1)
    mixed = np.uint64(row) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(column) * np.uint64(0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    slot = np.int64((mixed ^ (mixed >> np.uint64(29))) & last)
    while table[slot] >= 0 and (keys_row[slot] != row or keys_column[slot] != column):
        slot = np.int64(np.uint64(slot + 1) & last)
    return slot


@numba.njit(nogil=True)
def _index_row(table, keys_row, keys_column, row, head, following, column):
    """The number of entries of a row, now all of them in the hash table."""
    added = 0
    entry = head
    while entry >= 0:
        slot = _hash_slot(table, keys_row, keys_column, row, column[entry])
        table[slot] = entry
        keys_row[slot] = row
        keys_column[slot] = column[entry]
        added += 1
        entry = following[entry]
    return added


@numba.njit(nogil=True)
def _add_product(wide, x, y):
    """Adds 2xy to a 128-bit sum (high, low), in place: squares of segments above 3e9 voxels do not fit in 64 bits."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x_low, x_high = np.uint64(x) & mask, np.uint64(x) >> half
    y_low, y_high = np.uint64(y) & mask, np.uint64(y) >> half
    low = x_low * y_low
    middle = x_high * y_low + (low >> half)  # both factors are below 2^63, so neither middle sum overflows
    middle_low = (middle & mask) + x_low * y_high
    high = x_high * y_high + (middle >> half) + (middle_low >> half)
    low = (middle_low << half) | (low & mask)
    high = (high << np.uint64(1)) | (low >> np.uint64(63))
    low = low << np.uint64(1)
    total = wide[1] + low
    wide[0] += high + np.uint64(1 if total < low else 0)
    wide[1] = total


@numba.njit(nogil=True)
def _joined_entropy(x, y):
    """f(x + y) - f(x) - f(y) for f(x) = x log2 x, without cancellation."""
    total = np.float64(x + y)
    return x * math.log2(total / x) + y * math.log2(total / y)


@compiled(types.void(*[_int_in] * 5, _int_out, *[_float_out] * 2, *[_wide_out] * 2))
def _fold(a, b, row_start, truth, counts, sizes, split_gain, merge_cost, pair_squares, label_squares):
    """Walks the merges in order; per merge it writes what VOI split (voxels x bits) loses and VOI merge gains, and the
    128-bit sums of squares after it. Row 0 of `row_start`, the background, takes no part. `sizes` is used up.

    Invariant: a cluster's entries are a linked list from head[root], one entry a truth id; if it holds more than
    SHORT, every one of them is in the hash table under its root (unless the table waits to be rebuilt). The root of
    the longer row stays, so keys of a swallowed row go stale, but are never asked for again.
    """
    fragments = row_start.shape[0] - 1
    parent = np.arange(fragments)
    head = np.empty(fragments, np.int64)
    length = np.empty(fragments, np.int64)
    following = np.arange(1, counts.shape[0] + 1)
    amount = counts.copy()
    long_entries = 0
    for fragment in range(fragments):
        length[fragment] = row_start[fragment + 1] - row_start[fragment]
        head[fragment] = row_start[fragment] if length[fragment] else -1
        if length[fragment]:
            following[row_start[fragment + 1] - 1] = -1
    capacity = 1024
    while capacity < fragments:  # so that rebuilding, which looks at every fragment, is paid for by as many insertions
        capacity *= 2
    table = np.full(capacity, -1, np.int64)
    keys_row = np.empty(capacity, np.int64)
    keys_column = np.empty(capacity, np.int64)
    for fragment in range(1, fragments):
        if length[fragment] > SHORT:
            long_entries += length[fragment]
    used = capacity  # full: the first question about a long row rebuilds the table
    current_pairs = pair_squares[0].copy()
    current_labels = label_squares[0].copy()
    for step in range(a.shape[0]):
        keep, gone = _root(parent, a[step]), _root(parent, b[step])
        split_gain[step] = 0.0
        merge_cost[step] = 0.0
        if keep != gone:
            if length[keep] < length[gone]:
                keep, gone = gone, keep
            if sizes[keep] and sizes[gone]:
                _add_product(current_labels, sizes[keep], sizes[gone])
                merge_cost[step] = _joined_entropy(sizes[keep], sizes[gone])
            if length[keep] > SHORT and 2 * (used + length[gone]) > capacity:
                while 4 * (long_entries + length[gone]) > capacity:
                    capacity *= 2
                table = np.full(capacity, -1, np.int64)
                keys_row = np.empty(capacity, np.int64)
                keys_column = np.empty(capacity, np.int64)
                used = 0
                for root in range(1, fragments):
                    if parent[root] == root and length[root] > SHORT:
                        used += _index_row(table, keys_row, keys_column, root, head[root], following, truth)
            was_long = length[keep] > SHORT
            if length[gone] > SHORT:
                long_entries -= length[gone]
            if was_long:
                long_entries -= length[keep]
            entry = head[gone]
            while entry >= 0:
                after = following[entry]
                slot = np.int64(0)
                if was_long:
                    slot = _hash_slot(table, keys_row, keys_column, keep, truth[entry])
                    same = table[slot]
                else:
                    same = head[keep]
                    while same >= 0 and truth[same] != truth[entry]:
                        same = following[same]
                if same >= 0:
                    gain = _joined_entropy(amount[same], amount[entry])
                    split_gain[step] += gain
                    _add_product(current_pairs, amount[same], amount[entry])
                    amount[same] += amount[entry]
                else:
                    following[entry] = head[keep]
                    head[keep] = entry
                    length[keep] += 1
                    if was_long:
                        table[slot] = entry
                        keys_row[slot] = keep
                        keys_column[slot] = truth[entry]
                        used += 1
                entry = after
            merge_cost[step] = max(0.0, merge_cost[step] - split_gain[step])
            if length[keep] > SHORT:
                long_entries += length[keep]
                if not was_long and 2 * (used + length[keep]) <= capacity:
                    used += _index_row(table, keys_row, keys_column, keep, head[keep], following, truth)
                elif not was_long:
                    used = capacity
            parent[gone] = keep
            sizes[keep] += sizes[gone]
        pair_squares[step + 1] = current_pairs
        label_squares[step + 1] = current_labels


@compiled(types.void(_float_in, types.float64, types.float64, _float_out))
def _running_sum(changes, start, scale, sums):
    """Writes start + scale x (each partial sum), compensated (Neumaier), so that a million terms lose nothing."""
    total, lost = 0.0, 0.0
    sums[0] = start
    for index in range(changes.shape[0]):
        change = changes[index]
        after = total + change
        if abs(total) >= abs(change):
            lost += (total - after) + change
        else:
            lost += (change - after) + total
        total = after
        sums[index + 1] = start + scale * (total + lost)


class Best(NamedTuple):
    """The lowest value of a criterion that a threshold can reach, that threshold, and the merges below it."""

    threshold: float
    value: float
    merges: int


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """Every score after 0, 1, ..., all merges of a tree: arrays one longer than its merges (index k: k merges done).

    A threshold t does the merges with score < t. Merges of equal score come together; the states between them are
    in the arrays, but `best` does not offer them.
    """

    score: NDArray[np.float64]  # of each merge, non-decreasing
    voi: Voi  # two arrays, bits
    split_gain: NDArray[np.float64]  # bits that each merge takes off VOI split
    merge_cost: NDArray[np.float64]  # bits that it adds to VOI merge
    sums: SquareSums

    def merges_below(self, threshold: float) -> int:
        """The number of merges that a threshold does: the index of its state in every array."""
        return int(np.searchsorted(self.score, threshold, side="left"))

    def rand(self, convention: str = "cremi") -> Rand:
        """Error, precision and recall along the curve, three arrays."""
        return rand_of_sums(self.sums, convention)

    def criterion(self, name: str) -> NDArray[np.float64]:
        """Values along the curve, lower is better: "voi", "cremi_score", or the Rand error by the named convention."""
        if name == "voi":
            return self.voi.split + self.voi.merge
        if name == "cremi_score":
            return np.sqrt((self.voi.split + self.voi.merge) * self.rand("cremi").error)
        return self.rand(name).error

    def best(self, criterion: str = "voi") -> Best:
        """The best state that some threshold reaches; the first of equals. nan when no voxel has a truth."""
        values = self.criterion(criterion)
        if np.isnan(values).all():
            return Best(math.nan, math.nan, 0)
        reachable = np.ones(len(values), bool)
        reachable[1:-1] = self.score[:-1] < self.score[1:]
        merges = int(np.nanargmin(np.where(reachable, values, np.nan)))
        return Best(self.threshold_of(merges), float(values[merges]), merges)

    def threshold_of(self, merges: int) -> float:
        """A threshold that does this many merges, midway between two scores where it can be."""
        if len(self.score) == 0:
            return 0.0
        if merges == 0:
            return float(self.score[0])
        below = float(self.score[merges - 1])
        if merges == len(self.score):
            return math.nextafter(below, math.inf)
        above = float(self.score[merges])
        middle = below / 2 + above / 2
        return middle if below < middle <= above else above

    def costs(self) -> NDArray[np.float64]:
        """The bits of VOI that each merge added: positive for a merge that did harm, negative for one that helped."""
        return self.merge_cost - self.split_gain

    def worst_merges(self, count: int = 10) -> NDArray[np.int64]:
        """The indices of the merges that cost most VOI, the worst first; ties by their order in the tree."""
        return np.argsort(-self.costs(), kind="stable")[:count]


def threshold_curve(fragments: ArrayLike, tree, truth: ArrayLike, ignore_truth: Sequence[int] = (0,),
                    mask: ArrayLike | None = None, threads: int | None = None) -> ThresholdCurve:
    """The exact curve of a fragment volume, its merge tree and the truth: one pass over the voxels for all thresholds.

    tree: arrays a, b (fragment ids; merge i joins the clusters that hold a[i] and b[i]) and score, non-decreasing;
    `fragments`, the number of fragments. Fragment 0 never merges and is one segment, label 0, as in `contingency`:
    VOI and funlib's, skimage's, dbmim's and gala's Rand take it as it is, cremi's as background, isbi's as singles.
    """
    return fold(contingency(truth, fragments, ignore_truth, (), mask, threads), tree)


def fold(table: Contingency, tree) -> ThresholdCurve:
    """The curve of a fragment x truth table, for instance one pooled from blocks, along a merge tree."""
    a, b, score = _checked_tree(tree)
    fragments = int(tree.fragments)
    labels = table.labels[table.kept]
    if len(labels) and int(labels.max()) > fragments:
        raise InputError(f"the tree is of {fragments} fragments, but the fragment volume holds id {int(labels.max())}; "
                         "use the tree that was made from these fragments")
    labels = labels.astype(np.int64)
    order = np.argsort(labels, kind="stable")
    row_start = np.zeros(fragments + 2, np.int64)
    np.cumsum(np.bincount(labels, minlength=fragments + 1), out=row_start[1:])
    sizes = np.zeros(fragments + 1, np.int64)
    sizes[table.label_ids.astype(np.int64)] = table.label_sizes
    split_gain, merge_cost = np.empty(len(a)), np.empty(len(a))
    first = square_sums(table)
    pair_squares, label_squares = (np.empty((len(a) + 1, 2), np.uint64) for _ in range(2))
    for squares, value in ((pair_squares, first.pairs), (label_squares, first.labels)):
        squares[0] = value >> 64, value & 0xFFFFFFFFFFFFFFFF
    _fold(a, b, row_start, table.rows[order], table.n[order], sizes,
          split_gain, merge_cost, pair_squares, label_squares)
    scale = 1 / table.voxels if table.voxels else math.nan
    start = voi(table)
    curves = np.empty((2, len(a) + 1))
    _running_sum(split_gain, start.split, -scale, curves[0])
    _running_sum(merge_cost, start.merge, scale, curves[1])
    np.maximum(curves, 0, out=curves)
    sums = first._replace(pairs=_as_float(pair_squares), labels=_as_float(label_squares))
    return ThresholdCurve(score, Voi(*curves), split_gain * scale, merge_cost * scale, sums)


def _as_float(wide: NDArray[np.uint64]) -> NDArray[np.float64]:
    return wide[:, 0] * 2.0**64 + wide[:, 1]


def _checked_tree(tree) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    a, b = (np.ascontiguousarray(ids) for ids in (tree.a, tree.b))
    score = np.ascontiguousarray(tree.score, np.float64)
    if not len(a) == len(b) == len(score):
        raise InputError(f"a, b and score of a merge tree must be equally long; got {len(a)}, {len(b)}, {len(score)}")
    if np.isnan(score).any() or (score[1:] < score[:-1]).any():
        raise InputError("the scores of a merge tree must not decrease from merge to merge, and none may be nan; "
                         "make it with segment.agglomerate, or sort its merges by score")
    for ids in (a, b):
        if len(ids) and not 1 <= int(ids.min()) <= int(ids.max()) <= int(tree.fragments):
            raise InputError(f"the merges of a tree of {tree.fragments} fragments must name ids 1 to {tree.fragments}; "
                             f"got {int(ids.min())} to {int(ids.max())}")
    return a.astype(np.int64, copy=False), b.astype(np.int64, copy=False), score
