"""Slow and obvious: matchings by trying all of them, nearest voxels by measuring all of them."""

from fractions import Fraction
from itertools import combinations

import numpy as np


def heaviest_matching(rows, columns, weights):
    """The largest sum of weights over all subsets of pairs in which no row and no column occurs twice."""
    best = 0
    for size in range(1, len(rows) + 1):
        for pairs in combinations(range(len(rows)), size):
            if len({rows[p] for p in pairs}) == len({columns[p] for p in pairs}) == size:
                best = max(best, sum(weights[p] for p in pairs))
    return best


def overlaps(truth, labels):
    """{(truth id, label id): IoU as a fraction} of the objects that meet."""
    return {(int(t), int(s)): Fraction(int(((truth == t) & (labels == s)).sum()),
                                       int(((truth == t) | (labels == s)).sum()))
            for t in np.unique(truth) for s in np.unique(labels) if t and s and ((truth == t) & (labels == s)).any()}


def best_matching(truth, labels, threshold):
    """(pairs, sum of IoU) of the matching with the most pairs, then the largest sum, among all matchings."""
    passing = [(pair, iou) for pair, iou in overlaps(truth, labels).items() if iou >= threshold]
    best = (0, Fraction(0))
    for size in range(1, len(passing) + 1):
        for chosen in combinations(passing, size):
            if len({pair[0] for pair, _ in chosen}) == len({pair[1] for pair, _ in chosen}) == size:
                best = max(best, (size, sum(iou for _, iou in chosen)))
    return best


def nearest(points, targets, resolution):
    """The distance of each voxel of the mask `points` to the nearest one of `targets`, in C order."""
    places = np.argwhere(targets)
    if len(places) == 0:
        return np.full(points.sum(), np.inf)
    return np.array([np.sqrt((((places - place) * resolution) ** 2).sum(axis=1).min())
                     for place in np.argwhere(points)])
