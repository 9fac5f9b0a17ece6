"""Mutex watershed by the book: all edges sorted in Python, clusters as sets, one set of forbidden pairs."""

import itertools

import numpy as np


def mutex_watershed(weights, offsets, strides=None, mask=None):
    """Labels 1.. by first voxel from signed weights (c, z, y, x); strides is one triple a channel."""
    shape = weights.shape[1:]
    mask = np.ones(shape, bool) if mask is None else mask
    strides = [(1, 1, 1)] * len(offsets) if strides is None else strides
    edges = []
    for c, (offset, stride) in enumerate(zip(offsets, strides)):
        for voxel in itertools.product(*map(range, shape)):
            other = tuple(int(a + b) for a, b in zip(voxel, offset))
            if any(not 0 <= a < n for a, n in zip(other, shape)) or any(a % s for a, s in zip(voxel, stride)):
                continue
            weight = weights[c][voxel]
            if weight and mask[voxel] and mask[other]:
                edges.append((-abs(weight), c, voxel, other, weight > 0))
    cluster = {voxel: {voxel} for voxel in itertools.product(*map(range, shape))}
    apart = set()
    for _, _, first, second, attracts in sorted(edges):
        one, two = cluster[first], cluster[second]
        if one is two or any((a, b) in apart for a in one for b in two):
            continue
        if attracts:
            one |= two
            for voxel in two:
                cluster[voxel] = one
        else:
            apart |= {(first, second), (second, first)}
    labels = np.zeros(shape, np.uint32)
    for voxel in itertools.product(*map(range, shape)):
        if mask[voxel] and not labels[voxel]:
            labels[tuple(np.array(sorted(cluster[voxel])).T)] = labels.max() + 1
    return labels
