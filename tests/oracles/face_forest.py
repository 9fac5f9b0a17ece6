"""The order of every face, voxel by voxel in plain Python, and the forest by the slow watershed of these orders."""

import numpy as np

from tests.oracles.watershed import canonical_watershed

ONE = 2**16


def face_orders(affs, smooth=0):
    """Whole numbers (3, z, y, x) at the later voxel of every face; affs are floats (3, z, y, x)."""
    shape = affs.shape[1:]
    voxels = list(np.ndindex(shape))

    def moved(v, axis, step):
        return tuple(at + step * (other == axis) for other, at in enumerate(v))

    def face(v, axis):
        """Between v and the voxel before it; 1 where it leaves the volume."""
        return round(float(affs[(axis, *v)]) * ONE) if 0 < v[axis] < shape[axis] else ONE

    sums = {v: sum(face(v, axis) + face(moved(v, axis, 1), axis) for axis in range(3)) for v in voxels}
    for _ in range(smooth):
        for axis in range(3):
            sums = {v: (sums.get(moved(v, axis, -1), sums[v]) + 2 * sums[v] + sums.get(moved(v, axis, 1), sums[v]) + 2)
                    // 4 for v in voxels}
    orders = np.zeros((3, *shape), np.int64)
    for v in voxels:
        for axis in range(3):
            if v[axis] > 0:
                value = face(v, axis)
                orders[(axis, *v)] = ONE + sums[v] + sums[moved(v, axis, -1)] if value > ONE // 2 else value
    return orders


def face_forest(affs, smooth=0, mask=None):
    return canonical_watershed(face_orders(affs, smooth), 0, float("inf"), mask)
