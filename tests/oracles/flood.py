"""Priority flood with heapq, and seeds of a section by definition: brute distances, plateaus, relaxation."""

import heapq
import itertools

import numpy as np


def neighbours(voxel, shape):
    """The 2 * ndim face neighbours inside shape, in raster order."""
    steps = [tuple(sign * (axis == i) for i in range(len(shape))) for axis in range(len(shape)) for sign in (-1, 1)]
    for step in sorted(steps):
        other = tuple(a + b for a, b in zip(voxel, step))
        if all(0 <= a < n for a, n in zip(other, shape)):
            yield other


def flood(height, seeds, mask=None):
    mask = np.ones(height.shape, bool) if mask is None else mask
    labels = np.where(mask, seeds, 0)
    age = itertools.count()
    queue = [(height[voxel], next(age), voxel) for voxel in np.ndindex(height.shape) if labels[voxel]]
    heapq.heapify(queue)
    while queue:
        _, _, voxel = heapq.heappop(queue)
        for other in neighbours(voxel, height.shape):
            if mask[other] and not labels[other]:
                labels[other] = labels[voxel]
                heapq.heappush(queue, (height[other], next(age), other))
    return labels


def maxima(values):
    """4-connected plateaus without a higher neighbour, 1.. in raster order."""
    labels, seen = np.zeros(values.shape, np.uint32), set()
    for first in np.ndindex(values.shape):
        if first in seen:
            continue
        plateau = [first]
        seen.add(first)
        for pixel in plateau:
            for other in neighbours(pixel, values.shape):
                if values[other] == values[pixel] and other not in seen:
                    seen.add(other)
                    plateau.append(other)
        if all(values[other] <= values[first] for pixel in plateau for other in neighbours(pixel, values.shape)):
            labels[tuple(np.array(plateau).T)] = labels.max() + 1
    return labels


def squared_distance(boundary):
    walls = np.argwhere(boundary)
    distance = np.full(boundary.shape, sum(boundary.shape) ** 2, np.int64)
    for pixel in np.ndindex(boundary.shape):
        if len(walls):
            distance[pixel] = ((walls - pixel) ** 2).sum(1).min()
    return distance


def fill_shallow(height, depth):
    filled = (height + np.float32(depth)).astype(np.float32)
    changed = True
    while changed:
        changed = False
        for pixel in np.ndindex(height.shape):
            for other in neighbours(pixel, height.shape):
                level = max(filled[other], height[pixel])
                if level < filled[pixel]:
                    filled[pixel], changed = level, True
    return filled


def seeds(name, value, boundary):
    if name == "maxima_distance":
        return maxima(squared_distance(boundary >= value))
    if name == "minima":
        lowest = maxima(-boundary)
        kept = np.unique(lowest[(boundary < value) & (lowest > 0)])
        kept = kept if len(kept) else np.unique(lowest[lowest > 0])
        return np.where(lowest > 0, np.searchsorted(kept, lowest) + 1, 0) * np.isin(lowest, kept)
    if name == "hminima":
        return maxima(-fill_shallow(boundary, value))
    points = np.zeros(boundary.shape, np.int64)
    grid = points[::int(value), ::int(value)]
    grid[:] = np.arange(1, grid.size + 1).reshape(grid.shape)
    return points


def slices(affs, name, value):
    labels, count = np.zeros(affs.shape[1:], np.int64), 0
    for z in range(affs.shape[1]):
        boundary = (1 - (affs[1, z] + affs[2, z]) * np.float32(0.5)).astype(np.float32)
        labels[z] = flood(boundary, seeds(name, value, boundary)) + count
        count = labels[z].max()
    return labels
