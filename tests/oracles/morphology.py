"""Windows voxel by voxel, and background reached from the faces by a flood."""

import itertools

import numpy as np


def window(voxel, shape, sizes, footprint):
    """The voxels of the window around a voxel that lie in the volume."""
    reach = [range(-(size // 2), size // 2 + 1) for size in sizes]
    for step in itertools.product(*reach):
        other = tuple(a + b for a, b in zip(voxel, step))
        if footprint == "cross" and sum(one != 0 for one in step) > 1:
            continue
        if all(0 <= a < n for a, n in zip(other, shape)):
            yield other


def dilate(labels, sizes, footprint="box", iterations=1):
    for _ in range(iterations):
        old, labels = labels, labels.copy()
        for voxel in np.ndindex(labels.shape):
            labels[voxel] = max(old[other] for other in window(voxel, labels.shape, sizes, footprint))
    return labels


def erode(labels, sizes, footprint="box", iterations=1):
    for _ in range(iterations):
        old, labels = labels, labels.copy()
        for voxel in np.ndindex(labels.shape):
            if any(old[other] != old[voxel] for other in window(voxel, labels.shape, sizes, footprint)):
                labels[voxel] = 0
    return labels


def fill_holes(mask):
    """mask of any rank."""
    open_to = {voxel for voxel in np.ndindex(mask.shape)
               if not mask[voxel] and any(a in (0, n - 1) for a, n in zip(voxel, mask.shape))}
    queue = list(open_to)
    for voxel in queue:
        for axis, sign in itertools.product(range(mask.ndim), (-1, 1)):
            other = tuple(a + sign * (i == axis) for i, a in enumerate(voxel))
            if all(0 <= a < n for a, n in zip(other, mask.shape)) and not mask[other] and other not in open_to:
                open_to.add(other)
                queue.append(other)
    filled = np.ones(mask.shape, bool)
    for voxel in open_to:
        filled[voxel] = False
    return filled
