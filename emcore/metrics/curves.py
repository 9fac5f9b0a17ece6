"""The exact VOI and Rand curves over every merge of a merge tree, by folding the fragment x truth table along it.

One contingency pass serves all thresholds: joining two rows changes the sums only where both rows have an entry,
so the whole curve costs about as much as the table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.errors import InputError
from emcore.kernels.folding import fold_rows, running_sum
from emcore.metrics.partitions import (
    ALONG_CURVES,
    Agreement,
    Rand,
    SquareSums,
    Voi,
    rand_of_sums,
    square_sums,
    voi,
)
from emcore.metrics.tables import Contingency, contingency, of_table
from emcore.segment.arrays import as_array, within
from emcore.segment.merge_tree import MergeTree

# columns of the tables of kernels/folding.pyx, one row a fragment and one row a (fragment, truth id)
PARENT, HEAD, LENGTH, SIZE = range(4)
TRUTH, COUNT, NEXT = range(3)


class BestThreshold(NamedTuple):
    """The lowest value of a criterion that a threshold can reach, that threshold, and the merges below it."""

    threshold: float
    value: float
    merges: int


@dataclass(frozen=True, eq=False)
class ThresholdCurve:
    """Every score after 0, 1, ..., all merges of a tree: arrays one longer than its merges (index k: k merges done).

    A threshold t does the merges of heights < t. Merges of equal height come together, and no threshold goes beyond the
    `end`; the states that no threshold reaches are in the arrays, but `best` does not offer them.
    """

    height: NDArray  # the height of each merge, non-decreasing; thresholds are rounded to its type, like in segment.cut
    end: float  # the largest threshold: 1 for heights up to 1, or what the tree was computed up to
    voi: Voi  # two arrays, bits
    split_gain: NDArray[np.float64]  # bits that each merge takes off VOI split
    merge_cost: NDArray[np.float64]  # bits that it adds to VOI merge
    sums: SquareSums

    def merges_below(self, threshold: float) -> int:
        """The number of merges that a threshold does: the index of its state in every array."""
        return int(np.searchsorted(self.height, self.height.dtype.type(threshold), side="left"))

    def rand(self, convention: str = "cremi") -> Rand:
        """Error, precision and recall along the curve, three arrays."""
        return rand_of_sums(self.sums, convention)

    def agreement(self, convention: str = "cremi") -> Agreement:
        """What ALONG_CURVES takes: arrays, one number a state."""
        return Agreement(self.voi, self.sums, convention)

    def criterion(self, name: str) -> NDArray[np.float64]:
        """Values along the curve, lower is better: "voi", "cremi_score", or the Rand error by the named convention."""
        return ALONG_CURVES[name](self.agreement()) if name in ALONG_CURVES else self.rand(name).error

    def best(self, criterion: str = "voi") -> BestThreshold:
        """The best state that some threshold reaches; the first of equals. nan when no voxel has a truth."""
        values = self.criterion(criterion)
        if np.isnan(values).all():
            return BestThreshold(math.nan, math.nan, 0)
        reachable = np.ones(len(values), bool)
        reachable[1:] = self.height < np.append(self.height[1:], self.end)
        merges = int(np.nanargmin(np.where(reachable, values, np.nan)))
        return BestThreshold(self.threshold_of(merges), float(values[merges]), merges)

    def threshold_of(self, merges: int) -> float:
        """A threshold that does this many merges, midway between two heights where it can be."""
        if len(self.height) == 0:
            return 0.0
        if merges == 0:
            return float(self.height[0])
        below, above = self.height[merges - 1], np.append(self.height[merges:], self.end)[0]
        if np.isinf(above):
            return float(np.nextafter(below, above))
        middle = below / 2 + above / 2
        return float(middle if below < middle <= above else above)

    def costs(self) -> NDArray[np.float64]:
        """The bits of VOI that each merge added: positive for a merge that did harm, negative for one that helped."""
        return self.merge_cost - self.split_gain

    def worst_merges(self, count: int = 10) -> NDArray[np.int64]:
        """The indices of the merges that cost most VOI, the worst first; ties by their order in the tree."""
        return np.argsort(-self.costs(), kind="stable")[:count]


def threshold_curve(fragments: ArrayLike, tree: MergeTree, truth: ArrayLike, ignore_truth: Sequence[int] = (0,),
                    mask: ArrayLike | None = None, threads: int | None = None) -> ThresholdCurve:
    """Computes VOI and Rand of every threshold exactly, in one pass over the voxels.

    Fragment 0 never merges and is one segment with label 0. VOI and the Rand of funlib, skimage, dbmim and gala take it
    as it is, that of cremi takes it for background, and that of isbi for single voxels.

    Args:
        fragments: integers (z, y, x): an array or a volume.
        tree: the `MergeTree` of these fragments.
        truth: integers of the same shape; an array or a volume.
        ignore_truth: voxels with these true ids do not count; (0,) by default.
        mask: bool of the same shape, True where a voxel is left out. By default every voxel counts.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        A `ThresholdCurve`. Its arrays have an entry for each state: after 0, 1, ... and all merges. `voi` holds split
        and merge in bits, `rand(convention)` gives error, precision and recall, `best(criterion)` the best threshold,
        and `worst_merges(count)` the merges that cost most VOI.

    Raises:
        InputError: the shapes differ, or the tree does not belong to the fragments.

    Cost:
        It takes 7.0 ns of one core and less than 1 byte per voxel. A merge takes about 150 bytes more.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics, segment
        >>> tree = segment.MergeTree(3, np.array([1, 1], np.uint32), np.array([2, 3], np.uint32), np.array([0.2, 0.6]))
        >>> curve = metrics.threshold_curve(np.array([1, 2, 3, 3]), tree, np.array([5, 5, 6, 6]))
        >>> curve.voi.split.round(3), curve.voi.merge.round(3)
        (array([0.5, 0. , 0. ]), array([0., 0., 1.]))
        >>> curve.best("voi")
        BestThreshold(threshold=0.4, value=0.0, merges=1)
    """
    return fold(contingency(truth, fragments, ignore_truth, (), mask, threads), tree)


@of_table
def fold(table: Contingency, tree: MergeTree) -> ThresholdCurve:
    """Computes the scores of every threshold from a table of fragments, for instance one that is pooled from blocks.

    Args:
        table: the `Contingency` of the truth and the fragments.
        tree: the `MergeTree` of these fragments.

    Returns:
        A `ThresholdCurve`, see `threshold_curve`.

    Raises:
        InputError: the tree does not belong to the fragments.

    Cost:
        It takes 530 ns of one core and 200 bytes per merge.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics, segment
        >>> tree = segment.MergeTree(3, np.array([1, 1], np.uint32), np.array([2, 3], np.uint32), np.array([0.2, 0.6]))
        >>> table = metrics.contingency(np.array([5, 5, 6, 6]), np.array([1, 2, 3, 3]))
        >>> metrics.fold(table, tree).best("voi").threshold
        0.4
    """
    a, b, height = checked_tree(tree)
    fragments = int(tree.fragments)
    labels = table.labels[table.kept]
    if len(labels) and int(labels.max()) > fragments:
        raise InputError(f"the tree is of {fragments} fragments, but the fragment volume holds id {int(labels.max())}; "
                         "use the tree that was made from these fragments")
    labels = labels.astype(np.int64)[table.by_label]
    clusters = np.zeros((fragments + 1, 4), np.int64)
    clusters[:, PARENT] = np.arange(fragments + 1)
    clusters[:, HEAD] = -1
    clusters[:, LENGTH] = np.bincount(labels, minlength=fragments + 1)
    clusters[table.label_ids.astype(np.int64), SIZE] = table.label_sizes
    entries = np.empty((len(labels), 4), np.int64)
    entries[:, TRUTH] = table.rows[table.by_label]
    entries[:, COUNT] = table.n[table.by_label]
    first_of_row = np.ones(len(labels), bool)
    first_of_row[1:] = labels[1:] != labels[:-1]
    starts = np.flatnonzero(first_of_row)
    clusters[labels[starts], HEAD] = starts
    entries[:, NEXT] = np.arange(1, len(labels) + 1)
    entries[np.append(starts[1:], len(labels))[:len(starts)] - 1, NEXT] = -1
    split_gain, merge_cost = np.empty(len(a)), np.empty(len(a))
    first = square_sums(table)
    pair_squares, label_squares = (np.empty((len(a) + 1, 2), np.uint64) for _ in range(2))
    for squares, value in ((pair_squares, first.pairs), (label_squares, first.labels)):
        squares[0] = value >> 64, value & 0xFFFFFFFFFFFFFFFF
    fold_rows(a, b, clusters, entries, split_gain, merge_cost, pair_squares, label_squares)
    scale = 1 / table.voxels if table.voxels else math.nan
    start = voi(table)
    curves = np.empty((2, len(a) + 1))
    running_sum(split_gain, start.split, -scale, curves[0])
    running_sum(merge_cost, start.merge, scale, curves[1])
    np.maximum(curves, 0, out=curves)
    sums = first._replace(pairs=_as_integers(pair_squares), labels=_as_integers(label_squares))
    end = float(getattr(tree, "complete_below", math.inf))
    if len(height) == 0 or height[-1] <= 1:
        end = min(end, 1.0)
    return ThresholdCurve(height, end, Voi(*curves), split_gain * scale, merge_cost * scale, sums)


def _as_integers(wide: NDArray[np.uint64]) -> NDArray:
    """128-bit numbers as Python integers: scores are differences of them, which floats would round away."""
    return wide[:, 0].astype(object) * 2**64 + wide[:, 1].astype(object)


def checked_tree(tree: MergeTree) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray]:
    if not all(hasattr(tree, name) for name in ("a", "b", "height", "fragments")):
        raise InputError(f"a curve needs the merge tree that segment.agglomerate returns; got {type(tree).__name__}")
    a, b, height = (as_array(name, getattr(tree, name)) for name in ("a", "b", "height"))
    if a.dtype.kind not in "iu" or b.dtype.kind not in "iu" or height.dtype.kind not in "fiu" or not (
            a.ndim == b.ndim == height.ndim == 1):
        raise InputError("a and b of a merge tree must be lists of whole numbers and height one of numbers; they are "
                         f"{a.shape} {a.dtype}, {b.shape} {b.dtype} and {height.shape} {height.dtype}")
    if not isinstance(tree.fragments, int | np.integer) or not 0 <= tree.fragments < 2**32:
        raise InputError(f"a merge tree must have 0 to 2**32 - 1 fragments; got {tree.fragments}")
    if not within(end := getattr(tree, "complete_below", math.inf), -math.inf, math.inf):
        raise InputError(f"complete_below of a merge tree must be a number; got {end!r}")
    if height.dtype.kind != "f":
        height = height.astype(np.float64)
    if not len(a) == len(b) == len(height):
        raise InputError(f"a, b and height of a merge tree must be equally long; got {len(a)}, {len(b)}, {len(height)}")
    if np.isnan(height).any() or (height[1:] < height[:-1]).any():
        raise InputError("the heights of a merge tree must not decrease from merge to merge, and none may be nan; "
                         "make it with segment.agglomerate, or sort its merges by height")
    for ids in (a, b):
        if len(ids) and not 1 <= int(ids.min()) <= int(ids.max()) <= int(tree.fragments):
            raise InputError(f"the merges of a tree of {tree.fragments} fragments must name ids 1 to {tree.fragments}; "
                             f"got {int(ids.min())} to {int(ids.max())}")
    return np.ascontiguousarray(a, np.int64), np.ascontiguousarray(b, np.int64), height
