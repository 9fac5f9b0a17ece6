"""Distances by comparing every voxel with every other."""

import numpy as np


def distance_transform(labels, resolution, black_border=False):
    """float64 distance to the nearest voxel of another label; black_border puts a shell of one around the volume."""
    if black_border:
        labels = np.pad(labels.astype(np.float64), 1, constant_values=-1)
    voxels = np.stack(np.meshgrid(*map(np.arange, labels.shape), indexing="ij"), -1).reshape(-1, labels.ndim)
    places, flat = voxels * np.asarray(resolution, float), labels.reshape(-1)
    squares = ((places[:, None] - places[None]) ** 2).sum(-1)
    squares[flat[:, None] == flat[None]] = np.inf
    nearest = np.where(flat == 0, 0, squares.min(1, initial=np.inf)).reshape(labels.shape)
    inner = (slice(1, -1),) * labels.ndim if black_border else ...
    return np.sqrt(nearest[inner])
