"""Slow and obvious: pair counts in a dictionary, VOI and Rand from their definitions, borders by looking everywhere."""

import math
from collections import Counter
from fractions import Fraction

import numpy as np


def pair_counts(truth, labels, ignore_truth=(0,), ignore_labels=(), mask=None):
    """{(truth id, label id): voxels} of the voxels that count."""
    counts = Counter()
    for index in np.ndindex(truth.shape):
        t, s = int(truth[index]), int(labels[index])
        if t not in ignore_truth and s not in ignore_labels and (mask is None or not mask[index]):
            counts[t, s] += 1
    return dict(counts)


def sizes(counts, side):
    total = Counter()
    for pair, n in counts.items():
        total[pair[side]] += n
    return total


def voi(counts):
    """(H(labels | truth), H(truth | labels)) in bits."""
    total = sum(counts.values())
    if not total:
        return math.nan, math.nan
    truth, labels = sizes(counts, 0), sizes(counts, 1)
    return (sum(n / total * math.log2(truth[t] / n) for (t, s), n in counts.items()),
            sum(n / total * math.log2(labels[s] / n) for (t, s), n in counts.items()))


def rand(counts, convention, total):
    """(error, precision, recall) by the written definition, in fractions; nan where they are 0/0."""
    n = sum(counts.values())
    a, b = sizes(counts, 0), sizes(counts, 1)
    background = b.pop(0, 0)
    truth = Fraction(sum(v * v for v in a.values()))
    labels = Fraction(sum(v * v for v in b.values()))
    both = Fraction(sum(v * v for (t, s), v in counts.items() if s != 0))
    if convention in ("cremi", "snemi3d") and n:
        both, labels = both + Fraction(background, total), labels + Fraction(background, total)
    if convention == "isbi":
        both, labels = both + background, labels + background
    if convention in ("funlib", "skimage"):
        both, labels = both + sum(v * v for (t, s), v in counts.items() if s == 0), labels + background**2
    if convention == "skimage":
        both, labels, truth = both - n, labels - n, truth - n
    precision = both / labels if labels else math.nan
    recall = both / truth if truth else math.nan
    return float(1 - 2 * both / (labels + truth)) if labels + truth else math.nan, float(precision), float(recall)


def border(section):
    """True where one of the four neighbours differs."""
    height, width = section.shape
    return np.array([[any(0 <= y + dy < height and 0 <= x + dx < width and section[y + dy, x + dx] != section[y, x]
                          for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))) for x in range(width)]
                     for y in range(height)], bool).reshape(section.shape)


def euclidean_mask(section, distance, aspect=1.0):
    """True within the distance (in pixels along x) of a border pixel of the section."""
    points = np.argwhere(border(section))
    return np.array([[any(math.sqrt((aspect * (y - py)) ** 2 + (x - px) ** 2) <= distance for py, px in points)
                      for x in range(section.shape[1])] for y in range(section.shape[0])], bool).reshape(section.shape)


def box_mask(truth, xy, z):
    """True within a box around each voxel that differs from a neighbour."""
    points = np.array([border(section) for section in truth]).reshape(truth.shape)
    if z:
        for index in np.ndindex(truth.shape):
            for dz in (-1, 1):
                if 0 <= index[0] + dz < len(truth) and truth[(index[0] + dz, *index[1:])] != truth[index]:
                    points[index] = True
    mask = np.zeros(truth.shape, bool)
    if xy or z:
        for k, j, i in np.argwhere(points):
            mask[max(0, k - z):k + z + 1, max(0, j - xy):j + xy + 1, max(0, i - xy):i + xy + 1] = True
    return mask


def cut(fragments, tree, threshold):
    """The labels after all merges with score < threshold: the smallest fragment id of each cluster."""
    smallest = list(range(tree.fragments + 1))
    for a, b, score in zip(tree.a, tree.b, tree.height):
        if score < threshold:
            keep, gone = sorted((smallest[a], smallest[b]))
            smallest = [keep if label == gone else label for label in smallest]
    return np.array(smallest, np.uint64)[fragments]
