"""The skeleton of one piece by Dijkstra's algorithm over a dictionary of its voxels, in float32 as the kernel."""

import heapq
import itertools
import math
from collections import Counter

import numpy as np

STEPS = [step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)]
BLUNT = 1.6


def neighbours(voxel, inside, unit):
    for step in STEPS:
        other = tuple(a + b for a, b in zip(voxel, step))
        if other in inside:
            yield other, np.float32(math.sqrt(sum((a * u) ** 2 for a, u in zip(step, unit))))


def spread(sources, inside, unit, dear):
    """The least cost of every voxel from {voxel: cost} on, and the voxel before it on the way."""
    found, before, queue = {}, {}, [(cost, voxel, None) for voxel, cost in sources.items()]
    heapq.heapify(queue)
    while queue:
        cost, voxel, came_from = heapq.heappop(queue)
        if voxel in found:
            continue
        found[voxel], before[voxel] = cost, came_from
        for other, length in neighbours(voxel, inside, unit):
            if other not in found:
                heapq.heappush(queue, (cost + length * dear[other], other, voxel))
    return found, before


def far_end(inside):
    """The first of the voxels that lie the most steps from the first one."""
    front = seen = {min(inside)}
    while ahead := {other for voxel in front for other, _ in neighbours(voxel, inside, (1, 1, 1))} - seen:
        front, seen = ahead, seen | ahead
    return min(front)


def line(start, behind):
    """The voxels straight on from start, away from behind."""
    way = np.subtract(start, behind)
    for steps in itertools.count(1):
        yield tuple((start + np.floor(way / np.abs(way).max() * steps + 0.5)).astype(int).tolist())


class Tree:
    """The skeleton of a piece, whose voxels have the given radii (float32) by their places."""

    def __init__(self, radius, unit, scale, constant):
        self.radius, self.unit, self.scale, self.constant = radius, unit, scale, constant
        self.even = dict.fromkeys(radius, np.float32(1))
        dear = {voxel: 1 / np.float32(value / min(unit)) ** 2 for voxel, value in radius.items()}
        root = far_end(radius)
        costs, self.onward = spread({root: np.float32(0)}, radius, unit, dear)
        self.away = {}
        for voxel in sorted(costs, key=costs.get):
            ahead = self.onward[voxel]
            self.away[voxel] = np.float32(0) if ahead is None else self.away[ahead] + dict(
                neighbours(ahead, radius, unit))[voxel]
        self.nexts = {root: None}
        trunk = self.path(min(radius, key=lambda voxel: (-self.away[voxel], voxel)))
        while left := set(radius) - self.covered():
            self.path(min(left, key=lambda voxel: (-self.away[voxel], voxel)))
        self.move_root(root, trunk[::-1])

    def way(self, voxel, ends):
        """The voxels from a voxel towards the root, before those where the way ends."""
        found = []
        while voxel not in ends:
            found.append(voxel)
            voxel = self.onward[voxel]
        return found, voxel

    def is_centred(self, voxel, tip):
        apart = math.dist(np.multiply(voxel, self.unit), np.multiply(tip, self.unit))
        return apart <= min(BLUNT * self.radius[voxel], self.scale * self.radius[voxel] + self.constant)

    def path(self, tip):
        """Adds the path of a tip, and gives what it adds but for what lengthens it."""
        way, _ = self.way(tip, self.nexts)
        if not way:
            return []
        way = way[max((i for i, voxel in enumerate(way) if self.is_centred(voxel, tip)), default=0):]
        behind = way[0]
        for voxel in way:
            self.nexts[voxel] = self.onward[voxel]
            if self.away[way[0]] - self.away[behind] < self.radius[way[0]]:
                behind = self.onward[voxel]
        if way[0] != tip:
            self.lengthen(way[0], behind)
        return way

    def lengthen(self, last, behind):
        for here in line(last, behind):
            if here not in self.radius or here in self.nexts:
                return
            self.nexts[here] = last
            last = here

    def move_root(self, root, trunk):
        """Lets the tree begin where the trunk, from the root on, is centred."""
        leading = Counter(self.nexts.values())
        alone = list(itertools.takewhile(lambda voxel: leading[voxel] == 1, trunk if leading[root] == 1 else []))
        fork = next((voxel for voxel in trunk[len(alone):] if leading[root] == 1), None)
        if fork is not None and leading[fork] == 2 and self.is_centred(fork, root):
            for voxel in (root, *alone):
                del self.nexts[voxel]
            self.nexts[fork] = None
            return
        centred = [i for i, voxel in enumerate(alone) if self.is_centred(voxel, root)]
        if not centred:
            return
        start = behind = trunk[centred[-1]]
        for voxel in trunk[centred[-1] + 1:]:
            if self.away[behind] - self.away[start] < self.radius[start]:
                behind = voxel
        if behind == start:
            return
        for voxel in (root, *trunk[:centred[-1]]):
            del self.nexts[voxel]
        self.nexts[start] = None
        self.lengthen(start, behind)

    def covered(self):
        reach = {voxel: -np.float32(self.scale * self.radius[voxel] + self.constant) for voxel in self.nexts}
        left, _ = spread(reach, self.radius, self.unit, self.even)
        return {voxel for voxel, value in left.items() if value <= 0}


def skeleton(radius, unit, scale, constant):
    """{voxel of the skeleton: next voxel towards the root, None there} of the piece {voxel: radius}."""
    return Tree(radius, unit, scale, constant).nexts
