"""Slow and obvious: counting connected objects, and distances between sets of voxels."""

import numpy as np


def connected_objects(labels: np.ndarray, background: int | None = None) -> int:
    """The number of objects of equal labels connected through faces, by spreading the smallest index."""
    index = np.arange(1, labels.size + 1).reshape(labels.shape)
    while True:
        before = index.copy()
        for axis in range(labels.ndim):
            ahead = tuple(slice(1, None) if a == axis else slice(None) for a in range(labels.ndim))
            behind = tuple(slice(None, -1) if a == axis else slice(None) for a in range(labels.ndim))
            same = labels[ahead] == labels[behind]
            for here, there in ((ahead, behind), (behind, ahead)):
                index[here] = np.where(same, np.minimum(index[here], index[there]), index[here])
        index = index.ravel()[index - 1]  # jump to the smallest index known there
        if np.array_equal(index, before):
            break
    kept = np.ones(labels.shape, bool) if background is None else labels != background
    return len(np.unique(index[kept]))


def distance_nm(places: np.ndarray, others: np.ndarray, resolution: tuple) -> np.ndarray:
    """For each place the distance in nm to the nearest of the others."""
    scale = np.array(resolution)
    return np.array([np.sqrt((((others - place) * scale) ** 2).sum(1).min()) for place in places])
