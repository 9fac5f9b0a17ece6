"""Connected components by flood fill, voxel by voxel."""

from itertools import product

import numpy as np


def steps(rank, connectivity):
    """The steps to the neighbours of a voxel: at most so many coordinates differ by 1."""
    most = {(2, 4): 1, (2, 8): 2, (3, 6): 1, (3, 18): 2, (3, 26): 3}[rank, connectivity]
    return [step for step in product((-1, 0, 1), repeat=rank) if 0 < sum(map(abs, step)) <= most]


def flood(shape, foreground, connected, ways):
    """Labels from 1 in raster order: foreground(voxel) starts or joins a component, connected(voxel, step) spreads."""
    labels = np.zeros(shape, np.uint64)
    number = 0
    for seed in np.ndindex(shape):
        if labels[seed] or not foreground(seed):
            continue
        number += 1
        labels[seed] = number
        front = [seed]
        while front:
            voxel = front.pop()
            for step in ways:
                other = tuple(np.add(voxel, step))
                inside = all(0 <= i < n for i, n in zip(other, shape))
                if inside and not labels[other] and foreground(other) and connected(voxel, other):
                    labels[other] = number
                    front.append(other)
    return labels


def connected_components(labels, connectivity):
    return flood(labels.shape, lambda v: labels[v] != 0, lambda v, w: labels[v] == labels[w],
                 steps(labels.ndim, connectivity))


def affinity_graph(affs, threshold, edge):
    """Components of the graph of edges above threshold; a voxel without one, and none above of its own, is 0."""
    shape = affs.shape[1:]

    def active(v, w):
        first, last = min(v, w), max(v, w)
        axis = next(axis for axis in range(3) if v[axis] != w[axis])
        return affs[axis][last if edge == "later" else first] > threshold

    labels = flood(shape, lambda v: True, active, steps(3, 6))
    kept, sizes = np.unique(labels, return_counts=True)
    kept = [label for label, size in zip(kept.tolist(), sizes.tolist())
            if size > 1 or (affs[:, labels == label] > threshold).any()]
    numbers = {label: number for number, label in enumerate(kept, 1)}
    return np.array([numbers.get(label, 0) for label in labels.ravel().tolist()], np.uint64).reshape(shape)
