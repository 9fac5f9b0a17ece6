"""VOI, Rand in every published convention, the CREMI score and ISBI's V_Rand and V_Info, from a contingency table.

Sums of squares are exact integers; VOI is in bits, in the conditional form (never negative, 0 for a perfect match).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from emcore.errors import InputError
from emcore.metrics.tables import Contingency, of_table

# Rand conventions: what precision and recall divide by what, with P, B, A the sums of squares over pairs, labels and
# truth ids, P+ and B+ the same without label 0, c the voxels of label 0, N the kept and n all voxels
CONVENTIONS = {
    "cremi": "(P+ + c/n) / (B+ + c/n, A): label 0 is background, as in cremi_python and pytorch_connectomics",
    "snemi3d": "(P+ + c/n) / (B+ + c/n, A): label 0 is background, as in SNEMI3D_metrics.m",
    "skimage": "(P - N) / (B - N, A - N): pairs of voxels, label 0 is a segment; precision and recall named rightly",
    "dbmim": "(P - N) / (B - N, A - N): as skimage, but 0 where there are no pairs",
    "funlib": "P / (B, A): squares, label 0 is a segment; rand_merge is precision, rand_split is recall",
    "gala": "(P - N) / (B - N, A - N): as skimage, but the error is undefined without precision and recall",
    "isbi": "(P+ + c) / (B+ + c, A): each voxel of label 0 is an object of its own; V_Rand is 1 - error",
}
# truth ids that a convention ignores unless it is told otherwise; CREMI's files mark voxels by the two largest ids
IGNORED_TRUTH = {"cremi": (0, 2**64 - 2, 2**64 - 1), "gala": ()}


class Voi(NamedTuple):
    """Bits: H(labels | truth), over-segmentation, and H(truth | labels), under-segmentation."""

    split: float
    merge: float


class Rand(NamedTuple):
    """Adapted Rand error; precision falls with wrong merges, recall with wrong splits."""

    error: float
    precision: float
    recall: float


class ForegroundRestricted(NamedTuple):
    """ISBI 2012 scores (Arganda-Carreras et al. 2015): higher is better; the conditional entropies are in nats."""

    v_rand: float
    rand_merge: float
    rand_split: float
    v_info: float
    info_merge: float
    info_split: float
    truth_given_labels: float
    labels_given_truth: float


class OverlapIndices(NamedTuple):
    """Normalised VOI and information distance (funlib), Rand index, adjusted Rand index, Fowlkes-Mallows (gala)."""

    nvi_split: float
    nvi_merge: float
    nid: float
    rand_index: float
    adjusted_rand: float
    fowlkes_mallows: float


class SquareSums(NamedTuple):
    """What every Rand convention is computed from: Python integers of a table, or arrays of such along a curve."""

    pairs: int | NDArray  # sum of squares over the pairs, label 0 left out
    labels: int | NDArray  # the same over the labels, 0 left out
    truth: int
    background_pairs: int  # sum of squares over the pairs with label 0
    background: int  # voxels of label 0
    voxels: int
    total: int


@dataclass(frozen=True)
class Agreement:
    """What the scores of neurons are computed from: numbers of a table, or arrays of them along a curve."""

    voi: Voi
    sums: SquareSums
    convention: str  # the one of Rand

    @cached_property
    def rand(self) -> Rand:
        return rand_of_sums(self.sums, self.convention)

    @cached_property
    def cremi_score(self) -> float | NDArray:
        error = self.rand.error if self.convention == "cremi" else rand_of_sums(self.sums, "cremi").error
        return np.sqrt((self.voi.split + self.voi.merge) * error)


# scores that exist of a table and along a curve: the columns of a tune, of which all but the last two may be its
# objective, for lower is better there
ALONG_CURVES: dict[str, Callable[[Agreement], Any]] = {
    "adapted_rand": lambda found: found.rand.error,
    "voi": lambda found: found.voi.split + found.voi.merge,
    "cremi_score": lambda found: found.cremi_score,
    "voi_split": lambda found: found.voi.split,
    "voi_merge": lambda found: found.voi.merge,
    "rand_precision": lambda found: found.rand.precision,
    "rand_recall": lambda found: found.rand.recall,
}
OBJECTIVES = tuple(ALONG_CURVES)[:-2]


def check_convention(name: str) -> None:
    if name not in CONVENTIONS:
        raise InputError(f"unknown Rand convention {name!r}; there are {', '.join(CONVENTIONS)}")


def ignored_truth(convention: str) -> tuple[int, ...]:
    """The truth ids that do not count by a convention."""
    return IGNORED_TRUTH.get(convention, (0,))


@of_table
def voi(table: Contingency) -> Voi:
    """Computes the variation of information in bits, split and merge apart; lower is better.

    Label 0 is a segment like any other unless the table ignores it.

    Args:
        table: the `Contingency` of truth and labels.

    Returns:
        A tuple (split, merge): split is H(labels | truth) and grows with wrong splits, merge is H(truth | labels) and
        grows with wrong merges. Both are nan when no voxel is left.

    Raises:
        InputError: this is not a table.

    Cost:
        It takes 160 ns of one core and 79 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.voi(metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 3, 3])))
        Voi(split=0.0, merge=1.0)
    """
    if table.voxels == 0:
        return Voi(math.nan, math.nan)
    n = table.n
    split = np.sum(n * np.log2(table.truth_sizes[table.rows] / n)) / table.voxels
    merge = np.sum(n * np.log2(table.label_sizes[table.columns] / n)) / table.voxels
    return Voi(float(split), float(merge))


@of_table
def rand(table: Contingency, convention: str = "cremi") -> Rand:
    """Computes the adapted Rand error by a named convention, with the values that its reference returns.

    A convention is a formula; which ids are ignored is the rule of the table.

    Args:
        table: the `Contingency` of truth and labels.
        convention: "cremi" (the default), "snemi3d", "isbi", "funlib", "skimage", "dbmim" or "gala". For gala
            make the table with ignore_truth=(), because it keeps truth 0.

    Returns:
        A tuple (error, precision, recall), 0 to 1; a lower error is better, precision falls with wrong merges and
        recall with wrong splits. Undefined values are nan, but dbmim says (1, 0, 0), and the error of isbi is 1.

    Raises:
        InputError: this is not a table, or there is no such convention.

    Cost:
        It takes 170 ns of one core and 72 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.rand(metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 3, 3])), "skimage")
        Rand(error=0.5, precision=0.3333333333333333, recall=1.0)
    """
    return rand_of_sums(square_sums(table), convention)


@of_table
def cremi_score(table: Contingency) -> float:
    """Computes the CREMI score, sqrt((VOI split + VOI merge) * adapted Rand error); lower is better.

    CREMI itself keeps truth 0 as a segment: make the table with ignore_truth=(2**64 - 1,) and
    mask=neuron_border_mask(truth, resolution).

    Args:
        table: the `Contingency` of truth and labels.

    Returns:
        A float: 0 if either factor is 0, nan if either is undefined.

    Raises:
        InputError: this is not a table.

    Cost:
        It takes 250 ns of one core and 80 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.cremi_score(metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 4, 4])))
        0.0
    """
    return math.sqrt(sum(voi(table)) * rand(table, "cremi").error)


@of_table
def agreement(table: Contingency, convention: str = "cremi") -> Agreement:
    return Agreement(voi(table), square_sums(table), convention)


@of_table
def foreground_restricted(table: Contingency) -> ForegroundRestricted:
    """Computes V_Rand and V_Info of ISBI 2012 for one section; each voxel of label 0 is an object of its own.

    V_Info of a trivial partition is 0, and info_merge is 1 where info_split is 0; Fiji does the same.

    Args:
        table: the `Contingency` of truth and labels.

    Returns:
        A tuple (v_rand, rand_merge, rand_split, v_info, info_merge, info_split, truth_given_labels,
        labels_given_truth); higher is better, and the last two are entropies in nats.

    Raises:
        InputError: this is not a table.

    Cost:
        It takes 330 ns of one core and 96 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> found = metrics.foreground_restricted(metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 4, 4])))
        >>> found.v_rand, found.v_info
        (1.0, 1.0)
    """
    by_rand = rand(table, "isbi")
    total = table.voxels
    if total == 0:
        return ForegroundRestricted(1 - by_rand.error, math.nan, math.nan, 0.0, *[math.nan] * 4)
    singles = (table.label_ids == 0)[table.columns]
    n = table.n.astype(np.float64)
    truth_sizes = table.truth_sizes.astype(np.float64)
    # H(T), H(S) and the two conditional entropies; a voxel of label 0 knows its truth and is one of `total` objects
    h_truth = float(np.sum(truth_sizes * np.log(total / truth_sizes))) / total
    h_labels = float(np.sum(n * np.log(total / np.where(singles, 1, table.label_sizes[table.columns])))) / total
    truth_given_labels = float(np.sum(np.where(singles, 0, n * np.log(table.label_sizes[table.columns] / n)))) / total
    labels_given_truth = float(np.sum(n * np.log(truth_sizes[table.rows] / np.where(singles, 1, n)))) / total
    exact = np.int64 if total < 2**31 else object  # products of two counts
    independent = total * np.where(singles, 1, table.n).astype(exact) == table.truth_sizes.astype(exact)[table.rows] * (
        np.where(singles, 1, table.label_sizes[table.columns]))
    shared = 0.0 if independent.all() else h_truth - truth_given_labels
    info_merge, info_split = _ratio(shared, h_truth), _ratio(shared, h_labels)
    v_info = _ratio(2 * shared, h_truth + h_labels)
    return ForegroundRestricted(1 - by_rand.error, by_rand.precision, by_rand.recall,
                                0.0 if math.isnan(v_info) else v_info, 1.0 if info_split == 0 else info_merge,
                                info_split, truth_given_labels, labels_given_truth)


@of_table
def overlap_indices(table: Contingency) -> OverlapIndices:
    """Computes other published indices: normalised VOI and information distance, Rand, adjusted Rand, Fowlkes-Mallows.

    gala ignores nothing: make its table with ignore_truth=().

    Args:
        table: the `Contingency` of truth and labels.

    Returns:
        A tuple (nvi_split, nvi_merge, nid, rand_index, adjusted_rand, fowlkes_mallows); nan where one is undefined.

    Raises:
        InputError: this is not a table.

    Cost:
        It takes 190 ns of one core and 82 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.overlap_indices(metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 4, 4]))).rand_index
        1.0
    """
    total, split, merge = table.voxels, *voi(table)
    if total == 0:
        return OverlapIndices(*[math.nan] * 6)
    h_truth, h_labels = (float(np.sum(sizes * np.log2(total / sizes))) / total
                         for sizes in (table.truth_sizes, table.label_sizes))
    joint = h_truth + split
    nid = _ratio(max(split, merge), max(h_truth, h_labels))  # 1 - I/max(H), without the difference
    sums = square_sums(table)
    together = sums.pairs + sums.background_pairs - total  # ordered pairs joined in both partitions
    wrongly_joined = sums.labels + sums.background**2 - total - together
    wrongly_split = sums.truth - total - together
    apart = total * (total - 1) - together - wrongly_joined - wrongly_split
    adjusted = _ratio(2 * (together * apart - wrongly_split * wrongly_joined),
                      (together + wrongly_split) * (wrongly_split + apart)
                      + (together + wrongly_joined) * (wrongly_joined + apart))
    means = math.sqrt(together + wrongly_joined) * math.sqrt(together + wrongly_split)
    return OverlapIndices(_ratio(split, joint), _ratio(merge, joint), nid,
                          _ratio(together + apart, total * (total - 1)), adjusted, _ratio(together, means))


def scores_by(table: Contingency, convention: str, notes: list[str]) -> list[dict[str, Any]]:
    """VOI, Rand and what belongs to it under one convention's rule; says in the notes why something is undefined."""
    rule = {"convention": convention, "ignored_truth": list(table.ignore_truth),
            "ignored_labels": list(table.ignore_labels), "voxels": table.voxels}
    found = {"voi_split": voi(table).split, "voi_merge": voi(table).merge}
    found |= {f"rand_{name}": value for name, value in rand(table, convention)._asdict().items()}
    if convention == "cremi":
        found["cremi_score"] = cremi_score(table)
    if convention == "isbi":
        found |= {name: value for name, value in foreground_restricted(table)._asdict().items()
                  if name in ("v_rand", "v_info", "info_merge", "info_split")}
    if table.voxels == 0:
        notes.append(f"{convention}: no voxel is left to score: each is near a border, or its truth is one of the "
                     f"ignored ids {list(table.ignore_truth)}, or its label one of {list(table.ignore_labels)}")
    elif any(math.isnan(value) for value in found.values()):
        undefined = ", ".join(name for name, value in found.items() if math.isnan(value))
        notes.append(f"{convention}: {undefined} undefined, 0/0: no pair of voxels, or no information, to share")
    return [{"score": name, "value": None if math.isnan(value) else value, **rule} for name, value in found.items()]


def square_sums(table: Contingency) -> SquareSums:
    """The exact sums of squares of a table."""
    background = (table.label_ids == 0)[table.columns]
    ordinary = table.n[~background]
    return SquareSums(exact_sum_of_squares(ordinary), exact_sum_of_squares(table.label_sizes[table.label_ids != 0]),
                      exact_sum_of_squares(table.truth_sizes), exact_sum_of_squares(table.n[background]),
                      int(table.n[background].sum()), table.voxels, table.total)


def exact_sum_of_squares(values: NDArray[np.int64]) -> int:
    """The sum of squares as a Python integer, whatever its size."""
    large = values >= 1 << 31
    squares = values[~large] ** 2  # below 2^62 each; summed in halves, so that the sums stay below 2^63
    low = int(np.sum(squares & 0xFFFFFFFF))
    high = int(np.sum(squares >> 32))
    return (high << 32) + low + sum(int(value) ** 2 for value in values[large])


def rand_of_sums(sums: SquareSums, convention: str) -> Rand:
    """Error, precision and recall by a convention, as floats or as arrays along a curve."""
    check_convention(convention)
    if convention in ("cremi", "snemi3d"):
        joint, labels = sums.pairs * sums.total + sums.background, sums.labels * sums.total + sums.background
        truth = sums.truth * sums.total
    elif convention == "isbi":
        joint, labels, truth = sums.pairs + sums.background, sums.labels + sums.background, sums.truth
    else:
        self_pairs = 0 if convention == "funlib" else sums.voxels
        joint = sums.pairs + sums.background_pairs - self_pairs
        labels = sums.labels + sums.background**2 - self_pairs
        truth = sums.truth - self_pairs
    precision, recall = _ratio(joint, labels), _ratio(joint, truth)
    error = _ratio(labels + truth - 2 * joint, labels + truth)
    if convention == "dbmim":
        return Rand(*(np.where(np.isnan(value), undefined, value)[()] if isinstance(value, np.ndarray)
                      else undefined if math.isnan(value) else value
                      for value, undefined in ((error, 1.0), (precision, 0.0), (recall, 0.0))))
    if convention == "gala":
        error = error + _ratio(0 * (precision + recall), precision + recall)  # nan where 2pr / (p + r) is
    if convention == "isbi" and sums.voxels == 0:
        error = error * 0 + 1.0 if isinstance(error, np.ndarray) else 1.0
    return Rand(error, precision, recall)


def _ratio(part, whole):
    """part / whole, nan where the whole is 0 or nan; integers are divided exactly, without a step through floats."""
    if isinstance(part, np.ndarray) or isinstance(whole, np.ndarray):
        part, whole = np.broadcast_arrays(part, whole)
        out = np.full(whole.shape, np.nan, object if object in (part.dtype, whole.dtype) else np.float64)
        return np.divide(part, whole, out=out, where=whole != 0).astype(np.float64)
    return part / whole if whole else math.nan
