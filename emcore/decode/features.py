"""What a classifier of contacts looks at: numbers of every edge, all of them functions of pooled whole numbers."""

import numpy as np

from emcore.segment.contacts import BINS, SQUARE_UNIT, UNIT, Contacts, touching

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def feature_names(groups: int) -> list[str]:
    """The names of the columns of `features` for so many groups of channels, the nearest among them."""
    steps = ["near", *(f"step {number}" for number in range(1, groups))]
    quantities = [*steps, "larger height", "least near"]
    names = [f"{what} of {name}" for what in ("mean", "deviation", "least", "most") for name in quantities]
    names += [f"quantile {q} of {name}" for name in quantities for q in QUANTILES]
    names += [f"mean of all pairs, {name}" for name in steps[1:]] + ["share of faces along z"]
    names += ["log of faces", "log of smaller size", "log of larger size", "faces for smaller surface"]
    names += [f"log of pairs, {name}" for name in steps[1:]]
    names += [f"{which} mean of fragments, {name}" for which in ("smaller", "larger") for name in ("height", *steps)]
    return [*names, "saddle above deeper", "saddle above shallower", "middle above shallower"]


def features(contacts: Contacts) -> np.ndarray:
    """(edges, features) of pooled contacts; see feature_names. Pairs of longer steps count where the two touch."""
    count = np.maximum(contacts.count, 1).astype(np.float64)
    groups = len(contacts.steps)
    mean = contacts.sums / UNIT / count[:, None]
    deviation = np.sqrt(np.maximum(contacts.squares / SQUARE_UNIT / count[:, None] - mean * mean, 0))
    quantile = quantiles(contacts.histograms)
    pairs = [touching(contacts, rows) for rows in contacts.pairs]
    u, v = contacts.u, contacts.v
    smaller, larger = (order(contacts.sizes[u], contacts.sizes[v]).astype(np.float64)
                       for order in (np.minimum, np.maximum))
    voxels = np.maximum(contacts.sizes, 1).astype(np.float64)[:, None]
    inside = contacts.voxel_sums / UNIT / voxels / np.array([1.0] + [3.0] * groups)
    deepest = contacts.least_height / UNIT
    low, high = np.minimum(deepest[u], deepest[v]), np.maximum(deepest[u], deepest[v])
    saddle, middle = contacts.least[:, groups] / UNIT, quantile[:, groups, QUANTILES.index(0.5)]
    columns = [mean, deviation, contacts.least / UNIT, contacts.most / UNIT, *np.moveaxis(quantile, 1, 0),
               *((total / UNIT + 0.5) / (pair_count + 1) for pair_count, total in pairs), contacts.z_faces / count,
               np.log(count), np.log(smaller), np.log(larger), count / np.cbrt(smaller * smaller),
               *(np.log(pair_count + 1.0) for pair_count, _ in pairs),
               np.minimum(inside[u], inside[v]), np.maximum(inside[u], inside[v]),
               saddle - low, saddle - high, middle - high]
    return np.concatenate([column if column.ndim == 2 else column[:, None] for column in columns], axis=1)


def quantiles(histograms: np.ndarray) -> np.ndarray:
    """(edges, quantities, QUANTILES) of counts in BINS equal parts of 0..1, which are spread evenly over their part."""
    filled = np.cumsum(histograms, axis=2, dtype=np.int64)
    total = filled[:, :, -1:]
    found = []
    for quantile in QUANTILES:
        wanted = quantile * total
        part = np.minimum((filled < wanted).sum(2, keepdims=True), BINS - 1)
        here = np.take_along_axis(histograms, part, 2)
        before = np.take_along_axis(filled, part, 2) - here
        found.append((part + (wanted - before) / np.maximum(here, 1)) / BINS)
    return np.concatenate(found, axis=2)
