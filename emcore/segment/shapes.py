"""Shapes that tell of errors: two somata in one object, skeletons that cross, ends of skeletons that face each other.

All of it is told by places in nm; which fragments lie there is looked up by whoever asks. Nothing here depends on how
the labels are stored, so labels in blocks have the shapes of those of the whole.
"""

from collections.abc import Mapping
from itertools import combinations
from math import prod
from typing import NamedTuple

import numpy as np

from emcore.memory import check_memory
from emcore.segment.components import connected_components
from emcore.segment.distance import distance_transform
from emcore.segment.skeletons import Skeleton
from emcore.volumes import Volume

SOMA_NM = 1500.0  # A core is a soma if a ball of this radius fits into it.
STEPS = 6  # So many voxels that are looked at make this radius; no finer ones are needed.
LOOKED_BYTES = 24  # A voxel that is looked at takes so much beside its label, twice.
MOST_SOMATA = 8  # So many cores of one object are looked at, the deepest ones.
NEAR_NM = 250.0  # Branches that leave a path within this length belong to one crossing.
ARM_NM = 600.0  # Arms of a crossing are as long, and their direction is that of this length.
STRAIGHT = 35.0  # degrees by which two arms that are one path may differ from a straight line
CROSSED = 30.0  # degrees between the two paths of a crossing, at least
GAP_NM = 300.0  # Ends that face each other are no farther apart.
TIP_NM = 300.0  # The direction of an end is that of so much of its path.
FACING = 40.0  # degrees between the direction of an end and the way to the other one, at most


class Somata(NamedTuple):
    """Two cores of one object that a thin way joins."""

    object: int
    one: np.ndarray  # z, y, x of the voxel in the middle of a core
    other: np.ndarray


def two_somata(labels: Volume, resolution: tuple[float, float, float]) -> list[Somata]:
    """Pairs of cores of one object into which a ball of radius SOMA_NM fits, and which no way half as wide joins.

    One voxel of every few is looked at, and one section is read at a time, so the labels need not fit into memory; the
    voxels that are looked at must.
    """
    if min(size * length for size, length in zip(resolution, labels.shape)) < SOMA_NM:
        return []
    step = [max(1, int(SOMA_NM / STEPS / size)) for size in resolution]
    looked = prod(-(-length // by) for length, by in zip(labels.shape, step))
    width = np.dtype(labels.dtype).itemsize
    check_memory((2 * width + LOOKED_BYTES) * looked + width * labels.shape[1] * labels.shape[2],
                 f"looking for somata at {looked} voxels", "give a part of the labels")
    coarse = np.stack([labels[z:z + 1][0, ::step[1], ::step[2]] for z in range(0, labels.shape[0], step[0])])
    depth = distance_transform(coarse, [size * by for size, by in zip(resolution, step)])
    cores = connected_components(np.where((depth >= SOMA_NM / 2) & np.isfinite(depth), coarse, 0), 26)
    deep = np.flatnonzero((depth >= SOMA_NM) & (cores > 0))
    order = deep[np.argsort(-depth.ravel()[deep], kind="stable")]
    _, first = np.unique(cores.ravel()[order], return_index=True)  # the deepest voxel of every core
    middles: dict[int, list[np.ndarray]] = {}
    for at in order[np.sort(first)]:
        middles.setdefault(int(coarse.ravel()[at]), []).append(np.array(np.unravel_index(at, coarse.shape)) * step)
    return [Somata(label, one, other) for label, places in sorted(middles.items())
            for one, other in combinations(places[:MOST_SOMATA], 2)]


class Crossing(NamedTuple):
    """Two straight paths that meet in one skeleton: the ends of the arms of either, in nm."""

    object: int
    middle: np.ndarray
    one: np.ndarray  # (2, 3)
    other: np.ndarray


class Facing(NamedTuple):
    """Two ends of skeletons of different objects that point at each other: their places in nm."""

    objects: tuple[int, int]
    ends: np.ndarray  # (2, 3)


def crossings(skeletons: Mapping[int, Skeleton]) -> list[Crossing]:
    """Places where exactly four long arms leave within NEAR_NM, and opposite ones are straight.

    Each is told once, by the branch that comes first in its skeleton; others of it are no farther away than NEAR_NM.
    """
    found = []
    for label, skeleton in sorted(skeletons.items()):
        around, places = _neighbours(skeleton), skeleton.vertices.astype(np.float64)
        told: list[int] = []
        for node in (node for node, others in enumerate(around) if len(others) > 2):
            if any(_length(places[node] - places[other]) <= NEAR_NM for other in told):
                continue
            tips = _arms(node, around, places)
            paths = _paths(places[node], places[tips]) if len(tips) == 4 else None
            if paths is not None:
                told.append(node)
                one, other = (places[[tips[end] for end in path]] for path in paths)
                found.append(Crossing(label, places[node], one, other))
    return found


def _paths(middle: np.ndarray, tips: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The two straight paths that four arms make, by the numbers of their tips; None if they make none."""
    ways = (tips - middle) / np.linalg.norm(tips - middle, axis=1, keepdims=True)
    cosine = ways @ ways.T
    pairings = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))
    one, other = min(pairings, key=lambda pair: max(cosine[pair[0]], cosine[pair[1]]))
    if max(cosine[one], cosine[other]) > -np.cos(np.radians(STRAIGHT)):
        return None
    lines = [ways[path[0]] - ways[path[1]] for path in (one, other)]
    between = abs(lines[0] @ lines[1]) / np.linalg.norm(lines[0]) / np.linalg.norm(lines[1])
    return (one, other) if between <= np.cos(np.radians(CROSSED)) else None


def _neighbours(skeleton: Skeleton) -> list[list[int]]:
    """The nodes next to every node, rising, each of them once and none next to itself."""
    around: list[list[int]] = [[] for _ in range(len(skeleton.vertices))]
    for one, other in np.unique(np.sort(skeleton.edges, axis=1), axis=0).tolist():
        if one != other:
            around[one].append(other)
            around[other].append(one)
    return [sorted(others) for others in around]


def _arms(node: int, around: list[list[int]], places: np.ndarray) -> list[int]:
    """The ends of the arms of ARM_NM that leave a node within NEAR_NM, rising; none where one of them forks later.

    Files of others hold rings, too, so no node is walked over twice.
    """
    tips: dict[int, int] = {}
    waiting, seen = [(node, 0.0, -1)], {node}
    while waiting:
        at, length, arm = waiting.pop()
        if arm < 0 and length >= NEAR_NM:
            arm = at
        if length >= ARM_NM:
            if arm in tips:
                return []
            tips[arm] = at
            continue
        onward = [other for other in around[at] if other not in seen]
        seen.update(onward)
        waiting += [(other, length + _length(places[other] - places[at]), arm) for other in onward]
    return sorted(tips.values())


def _length(way: np.ndarray) -> float:
    return float(np.sqrt(way @ way))


def facing_ends(skeletons: Mapping[int, Skeleton]) -> list[Facing]:
    """Ends of different objects, GAP_NM apart or less, that point at each other by FACING; of each the nearest one."""
    ends, ways, owners = [], [], []
    for label, skeleton in sorted(skeletons.items()):
        around, places = _neighbours(skeleton), skeleton.vertices.astype(np.float64)
        for node, others in enumerate(around):
            if len(others) == 1 and (way := _way_out(node, around, places)) is not None:
                ends.append(places[node])
                ways.append(way)
                owners.append(label)
    if not ends:
        return []
    at, out, owner = np.array(ends), np.array(ways), np.array(owners, np.uint64)
    one, other = _near(at, GAP_NM)
    between = at[other] - at[one]
    gap = np.linalg.norm(between, axis=1)
    unit = between / np.maximum(gap, 1e-9)[:, None]
    least = np.cos(np.radians(FACING))
    fits = ((owner[one] != owner[other]) & ((out[one] * unit).sum(axis=1) >= least)
            & ((out[other] * unit).sum(axis=1) <= -least))
    one, other, gap = one[fits], other[fits], gap[fits]
    order = np.lexsort((other, gap, one))
    first = order[np.flatnonzero(np.append(True, np.diff(one[order]) > 0))] if len(order) else order
    pairs = np.unique(np.sort(np.stack([one[first], other[first]], axis=1), axis=1), axis=0)
    return [Facing((int(owner[a]), int(owner[b])), at[[a, b]]) for a, b in pairs.tolist()]


def _way_out(node: int, around: list[list[int]], places: np.ndarray) -> np.ndarray | None:
    """The direction of an end by the last TIP_NM before it, or None where a fork or the other end comes sooner."""
    at, before, length = node, -1, 0.0
    while length < TIP_NM:
        onward = [other for other in around[at] if other != before]
        if len(onward) != 1:
            return None
        length += _length(places[onward[0]] - places[at])
        at, before = onward[0], at
    return (places[node] - places[at]) / _length(places[node] - places[at])


def _near(places: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of different places that lie within reach, by cells as wide as that."""
    cells = np.floor(places / reach).astype(np.int64)
    by_cell: dict[tuple[int, ...], list[int]] = {}
    for number, cell in enumerate(map(tuple, cells.tolist())):
        by_cell.setdefault(cell, []).append(number)
    pairs: list[tuple[int, int]] = []
    for cell, members in by_cell.items():
        around = [other for shift in np.ndindex(3, 3, 3)
                  for other in by_cell.get(tuple(int(at) + by - 1 for at, by in zip(cell, shift)), ())]
        pairs += [(one, other) for one in members for other in around if one != other]
    rows = np.array(pairs, np.int64).reshape(-1, 2)
    apart = np.linalg.norm(places[rows[:, 0]] - places[rows[:, 1]], axis=1)
    return rows[apart <= reach, 0], rows[apart <= reach, 1]
