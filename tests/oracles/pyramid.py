"""Coarser levels by looking at every voxel alone: slow and obvious."""

from collections import Counter, defaultdict

import numpy as np


def coarser(array: np.ndarray, start, factors, mode: bool) -> np.ndarray:
    """Voxel i of an axis of factor f holds the voxels of the finer level whose place, counted from the origin of the
    grid, is i * f to i * f + f - 1; `start` is the place of the first voxel."""
    windows = defaultdict(list)
    for place in np.ndindex(array.shape):  # in the order of reading
        windows[tuple((at + first) // factor for at, first, factor in zip(place, start, factors))].append(array[place])
    low = np.min(list(windows), axis=0)
    result = np.zeros(np.max(list(windows), axis=0) - low + 1, array.dtype)
    for place, values in windows.items():
        result[tuple(place - low)] = most_frequent(values) if mode else nearest_mean(values, array.dtype)
    return result


def most_frequent(values: list):
    """The value that occurs most often; of several, the one met first."""
    return Counter(values).most_common(1)[0][0]


def nearest_mean(values: list, dtype: np.dtype):
    """The mean; of integers the nearest one, halves upwards."""
    if dtype.kind == "f":
        return np.array(sum(map(float, values)) / len(values)).astype(dtype)
    return (2 * sum(map(int, values)) + len(values)) // (2 * len(values))
