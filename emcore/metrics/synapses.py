"""Synapses found: EM-R50's F1 of cleft and polarity instances, and CREMI's F1 of synaptic partners."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.errors import InputError
from emcore.metrics.assignment import best_matching
from emcore.metrics.instances import at_least, detection, overlaps
from emcore.metrics.points import checked_locations, labels_at
from emcore.metrics.tables import Contingency, of_table
from emcore.segment.arrays import as_numbers, within

CONVENTIONS = {
    "em_r50": "both sides as one object; precision of predictions, recall of true synapses, each with any partner",
    "sides": "one-to-one, and the presynaptic as well as the postsynaptic sides must overlap",
}


class SynapseF1(NamedTuple):
    """Synapses of both sides that have a partner; in "em_r50" the two numbers of found ones may differ."""

    f1: float
    precision: float
    recall: float
    found_true: int
    missed: int
    found_predicted: int
    invented: int


class PartnersF1(NamedTuple):
    """CREMI's score of synaptic partners, and the matches (prediction, truth) with the mean distance of their sites."""

    f1: float
    precision: float
    recall: float
    false_positives: int
    false_negatives: int
    matches: NDArray[np.int64]
    distances: NDArray[np.float64]


@of_table
def synapse_f1(table: Contingency, convention: str = "em_r50", threshold: float = 0.2) -> SynapseF1:
    """Computes the F1 of synapses that overlap enough, from a table of polarity labels.

    Synapse n has the ids 2n - 1, presynaptic, and 2n, postsynaptic, which is how `polarity_instances` writes them. A
    side that both lack agrees. EM-R50 cuts margins (14 sections) and small objects (300 voxels) before the table is
    made.

    Args:
        table: the `Contingency` of truth and prediction.
        convention: "em_r50" (the default) takes both sides for one object; "sides" matches one to one, and both the
            presynaptic and the postsynaptic sides must overlap.
        threshold: the IoU exceeds it, 0 to 1. The default is 0.2.

    Returns:
        A tuple (f1, precision, recall, found_true, missed, found_predicted, invented).

    Raises:
        InputError: this is not a table, or the convention or the threshold does not fit.

    Cost:
        It takes 3,000 ns of one core and 20 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> table = metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 4, 4]))
        >>> metrics.synapse_f1(table).f1
        1.0
    """
    if convention not in CONVENTIONS:
        raise InputError(f"unknown synapse convention {convention!r}; there are {', '.join(CONVENTIONS)}")
    sides = overlaps(table)
    truth, true = np.unique((sides.truth_ids - np.uint64(1)) >> np.uint64(1), return_inverse=True)
    labels, predicted = np.unique((sides.label_ids - np.uint64(1)) >> np.uint64(1), return_inverse=True)
    truth_sizes, label_sizes = (_sums(index, values, size) for index, values, size in (
        (true, sides.truth_sizes, len(truth)), (predicted, sides.label_sizes, len(labels))))
    pairs, pair = np.unique(true[sides.rows] * max(1, len(labels)) + predicted[sides.columns], return_inverse=True)
    rows, columns = pairs // max(1, len(labels)), pairs % max(1, len(labels))
    shared = _sums(pair, sides.shared, len(pairs))
    union = truth_sizes[rows] + label_sizes[columns] - shared
    match = at_least(shared, union, threshold, strictly=True)
    if convention == "sides":
        for odd in (1, 0):
            of_truth, of_labels = sides.truth_ids % 2 == odd, sides.label_ids % 2 == odd
            true_size = _sums(true[of_truth], sides.truth_sizes[of_truth], len(truth))
            label_size = _sums(predicted[of_labels], sides.label_sizes[of_labels], len(labels))
            same = of_truth[sides.rows] & of_labels[sides.columns]
            side_shared = _sums(pair[same], sides.shared[same], len(pairs))
            side_union = true_size[rows] + label_size[columns] - side_shared
            match &= at_least(side_shared, side_union, threshold, strictly=True) | (side_union == 0)
    rows, columns, ratio = rows[match], columns[match], shared[match] / union[match]
    if convention == "sides":
        chosen = best_matching(rows, columns, 1 + ratio / (2 * max(1, min(len(truth), len(labels)))))
        rows, columns = rows[chosen], columns[chosen]
    found_true, found_predicted = len(np.unique(rows)), len(np.unique(columns))
    missed, invented = len(truth) - found_true, len(labels) - found_predicted
    precision = detection(found_predicted, invented, missed).precision
    recall = detection(found_true, invented, missed).recall
    f1 = 2 * precision * recall / (precision + recall) if found_true else precision
    return SynapseF1(f1, precision, recall, found_true, missed, found_predicted, invented)


def synaptic_partners(truth: ArrayLike, prediction: ArrayLike, labels: ArrayLike, resolution: Sequence[float],
                      offset: Sequence[float] = (0.0, 0.0, 0.0), threshold_nm: float = 400.0) -> PartnersF1:
    """Computes the F1 of synaptic partners, after CREMI.

    Two partners match if the same neurons are under their sites and either site is at most threshold_nm away. The
    matching has the smallest sum of mean distances, where an unmatched one costs twice the threshold.

    Args:
        truth: (n, 2, 3) pre- and postsynaptic sites in nm, z, y, x.
        prediction: (m, 2, 3), the same.
        labels: the true neurons (z, y, x), integers; an array or a volume.
        resolution: the size of a voxel in nm, z, y, x.
        offset: the place of the first voxel of the labels in nm, z, y, x (default 0, 0, 0).
        threshold_nm: 400 by default.

    Returns:
        A tuple `PartnersF1`: f1, precision, recall, false_positives, false_negatives, matches (prediction, truth) and
        the distances of their sites in nm. Scores are 0 without a match, where cremi_python divides by zero, and nan if
        both lists are empty.

    Raises:
        InputError: a site lies outside of the labels, or an argument does not fit.

    Cost:
        It takes 92 us of one core and 570 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> sites = np.array([[[0.0, 0.0, 8.0], [0.0, 0.0, 32.0]]])
        >>> metrics.synaptic_partners(sites, sites + 8, np.ones((4, 8, 8), int), (40, 8, 8)).f1
        1.0
    """
    if not (within(threshold_nm, 0, 1e300) and threshold_nm > 0):
        raise InputError(f"threshold_nm must be a number above 0; got {threshold_nm}")
    sites = {name: _checked_sites(name, places) for name, places in (("truth", truth), ("prediction", prediction))}
    neurons = [labels_at(labels, places.reshape(-1, 3), resolution, offset, "nearest").reshape(-1, 2)
               for places in sites.values()]
    true, predicted = sites.values()
    _, group = np.unique(np.concatenate(neurons), axis=0, return_inverse=True)
    group = group.reshape(-1)
    of_truth = np.argsort(group[:len(true)], kind="stable")  # in order of groups, so that each group is one range
    starts, stops = (np.searchsorted(group[:len(true)][of_truth], group[len(true):], end) for end in ("left", "right"))
    rows, columns, costs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for row, place in enumerate(predicted):
        candidates = of_truth[starts[row]:stops[row]]
        distances = np.sqrt(((true[candidates] - place) ** 2).sum(axis=2))
        near = (distances <= threshold_nm).all(axis=1)
        columns.append(candidates[near])
        rows.append(np.full(near.sum(), row))
        costs.append(distances[near].mean(axis=1))
    row, column, cost = np.concatenate(rows), np.concatenate(columns), np.concatenate(costs)
    chosen = best_matching(row, column, 2 * threshold_nm - cost)
    wrong, missed = len(predicted) - len(chosen), len(true) - len(chosen)
    precision, recall, f1 = detection(len(chosen), wrong, missed)
    matches = np.stack([row[chosen], column[chosen]], axis=1)
    return PartnersF1(f1, precision, recall, wrong, missed, matches, cost[chosen])


def _checked_sites(name: str, places: ArrayLike) -> NDArray[np.float64]:
    places = as_numbers(name, places)
    if places.size and (places.ndim != 3 or places.shape[1:] != (2, 3)):
        raise InputError(f"{name} must be pre- and postsynaptic sites of shape (n, 2, 3) in nm, z y x; "
                         f"got {places.shape}")
    return checked_locations(name, places.reshape(-1, 3)).reshape(-1, 2, 3)


def _sums(index: NDArray[np.int64], values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    sums = np.zeros(size, np.int64)
    np.add.at(sums, index, values)
    return sums
