"""The skeleton of one object by Dijkstra's algorithm over a dictionary of its voxels."""

import heapq
import itertools
import math

import numpy as np

STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]


def neighbours(voxel, inside, unit):
    for step in STEPS:
        other = tuple(a + b for a, b in zip(voxel, step))
        if other in inside:
            yield other, math.sqrt(sum((a * u) ** 2 for a, u in zip(step, unit)))


def distances(sources, inside, unit, limit=math.inf):
    """The shortest distance within the object from {voxel: start value}, where it is at most limit."""
    found, queue = {}, [(value, voxel) for voxel, value in sources.items()]
    heapq.heapify(queue)
    while queue:
        value, voxel = heapq.heappop(queue)
        if voxel in found:
            continue
        found[voxel] = value
        for other, length in neighbours(voxel, inside, unit):
            if other not in found and value + length <= limit:
                heapq.heappush(queue, (value + length, other))
    return found


def next_voxels(root, radius, unit):
    """The next voxel on the cheapest path to the root, for every voxel."""
    thickest = max(float(value) for value in radius.values())
    cost, towards, settled, queue = {root: 0.0}, {root: None}, set(), [(0.0, root)]
    while queue:
        here, voxel = heapq.heappop(queue)
        if voxel in settled:
            continue
        settled.add(voxel)
        for other, length in neighbours(voxel, radius, unit):
            thin = 1 - float(radius[other]) / thickest
            for _ in range(4):
                thin *= thin
            there = here + length * float(np.float32(1 + 1e5 * thin))
            if there < cost.get(other, math.inf):
                cost[other], towards[other] = there, voxel
                heapq.heappush(queue, (there, other))
    return towards


def skeleton(inside, radius, unit, scale, constant, dust=0):
    """{voxel of the skeleton: next voxel, None at a root} of the voxels `inside`; radius is an array."""
    left, found = sorted(inside), {}
    while left:
        first = distances({left[0]: 0.0}, inside, unit)
        left = [voxel for voxel in left if voxel not in first]
        if len(first) < dust:
            continue
        root = min(first, key=lambda voxel: (-first[voxel], voxel))
        far = distances({root: 0.0}, inside, unit)
        towards = next_voxels(root, {voxel: radius[voxel] for voxel in far}, unit)
        found[root], covered = None, set()
        for tip in sorted(far, key=lambda voxel: (-far[voxel], voxel)):
            if tip in covered:
                continue
            path, voxel = [], tip
            while voxel not in found:
                path.append(voxel)
                found[voxel] = towards[voxel]
                voxel = towards[voxel]
            if not covered:
                path.append(root)
            for voxel in path:
                reach = scale * float(radius[voxel]) + constant
                covered |= set(distances({voxel: -reach}, inside, unit, limit=0))
    return found


def skeletons(labels, radius, unit, scale, constant, dust=0):
    return {int(label): skeleton(set(map(tuple, np.argwhere(labels == label).tolist())), radius, unit, scale, constant,
                                 dust)
            for label in np.unique(labels) if label}
