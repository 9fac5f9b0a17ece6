"""Voxels, boxes, centroids and contacts by one loop over voxels and one over pairs of neighbours."""

import itertools

import numpy as np


def statistics(labels, inside=None):
    """({label: (voxels, first, end, sums)}, {(label, label): faces along z, y, x}) of the voxels in a shape."""
    objects, contacts = {}, {}
    inside = inside or labels.shape
    for voxel in itertools.product(*map(range, inside)):
        label = int(labels[voxel])
        for axis in range(3):
            other = tuple(at + (k == axis) for k, at in enumerate(voxel))
            if other[axis] < labels.shape[axis]:
                pair = label, int(labels[other])
                if 0 not in pair and pair[0] != pair[1]:
                    contacts.setdefault(tuple(sorted(pair)), [0, 0, 0])[axis] += 1
        if label:
            objects.setdefault(label, []).append(voxel)
    found = {}
    for label, voxels in objects.items():
        voxels = np.array(voxels, dtype=object)
        found[label] = (len(voxels), tuple(voxels.min(0)), tuple(voxels.max(0) + 1), tuple(voxels.sum(0)))
    return found, {pair: tuple(faces) for pair, faces in contacts.items()}
