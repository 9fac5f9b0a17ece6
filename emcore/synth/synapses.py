"""Synapses on the contacts between neurons: cleft, pre- and post-synaptic side, stain and the partners' sites."""

from typing import NamedTuple

import numpy as np

from emcore.cache import compiled
from emcore.segment.components import connected_components

REACH_NM = 80.0  # how far from the cleft a synapse is looked at
CLEFT_NM = 11.0  # half the thickness of a labelled cleft
SIDE_NM = 55.0  # thickness of the labelled pre- and post-synaptic sides
SPACING_NM = 450.0  # between the centres of two synapses
FAR = np.float32(1e9)


class Synapse(NamedTuple):
    """A synapse and one of its partners; places are voxel * resolution (z, y, x) in nm, pre and post are neuron ids.

    A synapse of several partners, as insects have them, is as many entries of one number.
    """

    number: int  # in clefts; in polarity 2 * number - 1 and 2 * number
    pre: int
    post: int
    place: tuple
    pre_site: tuple
    post_site: tuple


@compiled(None)
def _meet(ids, start, way, resolution, reach_nm):
    """The voxels on the near and the far side of the first border along a ray, as 6 numbers, or an empty array."""
    at = np.floor(start).astype(np.int64)
    own = ids[at[0], at[1], at[2]]
    last = at.copy()
    stride = 0.5 * resolution.min()
    for step in range(int(reach_nm / stride)):
        at = np.floor(start + way * (step * stride) / resolution).astype(np.int64)
        for axis in range(3):
            if at[axis] < 0 or at[axis] >= ids.shape[axis]:
                return np.empty(0, np.int64)
        if ids[at[0], at[1], at[2]] != own:
            return np.concatenate((last, at))
        last = at
    return np.empty(0, np.int64)


def _patch(before: np.ndarray, after: np.ndarray, centre: np.ndarray, radius_nm: float,
           resolution: np.ndarray) -> np.ndarray:
    """The voxels on both sides of the contact of two masks that hang together around `centre`."""
    away = sum((((np.arange(n) - at) * nm) ** 2).reshape([-1 if a == axis else 1 for a in range(3)])
               for axis, (n, at, nm) in enumerate(zip(before.shape, centre, resolution)))
    touching = np.zeros(before.shape, bool)
    for axis in range(3):
        lower = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        meet = (before[lower] & after[upper]) | (after[lower] & before[upper])
        touching[lower] |= meet
        touching[upper] |= meet
    touching &= away <= radius_nm**2
    if not touching.any():
        return touching
    patches = connected_components(touching, 26, threads=1)
    return patches == patches.flat[np.where(touching, away, np.inf).argmin()]


@compiled(None)
def _distance(patch, before, resolution):
    """The distance in nm of each voxel of a box to the faces between the two sides of a patch."""
    depth, height, width = patch.shape
    distance = np.full(patch.shape, FAR, np.float32)
    reach_z = int(REACH_NM / resolution[0]) + 1
    reach_y, reach_x = int(REACH_NM / resolution[1]) + 1, int(REACH_NM / resolution[2]) + 1
    for i, j, k in np.argwhere(patch):
        for axis in range(3):
            a, b, c = i + (axis == 0), j + (axis == 1), k + (axis == 2)
            if (a >= depth or b >= height or c >= width or not patch[a, b, c]
                    or before[a, b, c] == before[i, j, k]):
                continue
            for u in range(max(0, i - reach_z), min(depth, i + reach_z + 1)):
                # half a section is taken off in depth: the label of a section stands for all of its thickness
                off_z = max(0.0, abs(u - i - 0.5 * (axis == 0)) - 0.5) * resolution[0]
                for v in range(max(0, j - reach_y), min(height, j + reach_y + 1)):
                    off_y = (v - j - 0.5 * (axis == 1)) * resolution[1]
                    for w in range(max(0, k - reach_x), min(width, k + reach_x + 1)):
                        off_x = (w - k - 0.5 * (axis == 2)) * resolution[2]
                        away = np.float32(off_z * off_z + off_y * off_y + off_x * off_x)
                        distance[u, v, w] = min(distance[u, v, w], away)
    return np.sqrt(distance)


def _site(inside: np.ndarray, corner: np.ndarray, resolution: np.ndarray) -> tuple:
    """The place in nm of the voxel of a mask that is nearest to the middle of the mask."""
    places = np.argwhere(inside)
    chosen = places[(((places - places.mean(0)) * resolution) ** 2).sum(1).argmin()]
    return tuple(((chosen + corner) * resolution).tolist())


def _partners(ids: np.ndarray, before: np.ndarray, post: int, centre: np.ndarray, radius_nm: float,
              resolution: np.ndarray, most: int, least: float) -> list[int]:
    """`post`, and up to `most` - 1 more neurons that touch the presynaptic one around `centre` by `least` voxels."""
    around = np.unique(ids[_patch(before, ~before, centre, radius_nm, resolution) & ~before], return_counts=True)
    rows = sorted(zip(*around), key=lambda row: (row[0] != post, -row[1], row[0]))
    return [int(neuron) for neuron, voxels in rows[:most] if neuron == post or voxels >= least]


def make_synapses(ids: np.ndarray, nodes: np.ndarray, resolution: tuple, wanted: int, rng: np.random.Generator,
                  partners: int = 1) -> tuple[list[Synapse], np.ndarray, np.ndarray, np.ndarray]:
    """Synapses, clefts (uint32), polarity (uint32, pre 2n - 1, post 2n) and stain (uint8 darkness).

    nodes: (n, 4) places in nm and radius in nm of tubes; pre-synaptic sides are found on the thicker ones. partners:
    each synapse has up to so many postsynaptic neurons, those that touch the presynaptic one most around its place.
    """
    scale = np.array(resolution, float)
    clefts, polarity = np.zeros(ids.shape, np.uint32), np.zeros(ids.shape, np.uint32)
    stain = np.zeros(ids.shape, np.uint8)
    half_thickness = max(CLEFT_NM, 0.51 * max(resolution[1:]))
    least = 100 * 100 * 2 * half_thickness / scale.prod()  # voxels of a cleft 100 nm across
    at = nodes[:, :3] / scale
    candidates = np.flatnonzero((nodes[:, 3] > 65) & (at >= 0).all(1) & (at < ids.shape).all(1))
    found: list[Synapse] = []
    places = np.empty((wanted, 3))  # those of the synapses that are there
    number = 1
    for node in rng.permutation(candidates)[: 200 * wanted]:
        if number > wanted:
            break
        way = rng.standard_normal(3) * (0.5, 1, 1)  # annotators mark what is cut across rather than seen from above
        radius_nm = rng.uniform(110, 240)
        border = _meet(ids, at[node], way / np.linalg.norm(way), scale, nodes[node, 3] + 150)
        if not len(border):
            continue
        pre, post = int(ids[tuple(border[:3])]), int(ids[tuple(border[3:])])
        place = (border[:3] + border[3:] + 1) / 2 * scale
        near = places[:number - 1][(np.abs(place - scale / 2 - places[:number - 1]) < SPACING_NM).all(1)]
        if any(np.linalg.norm(place - scale / 2 - other) < SPACING_NM for other in near):
            continue
        corner = np.maximum(0, ((place - radius_nm - REACH_NM) / scale).astype(int))
        end = np.minimum(ids.shape, ((place + radius_nm + REACH_NM) / scale).astype(int) + 2)
        part = tuple(slice(a, b) for a, b in zip(corner, end))
        before, after, centre = ids[part] == pre, ids[part] == post, place / scale - corner - 0.5
        posts = [post]
        if partners > 1:
            posts = _partners(ids[part], before, post, centre, radius_nm, scale, int(rng.integers(1, partners + 1)),
                              least / 4)
            after = np.isin(ids[part], posts)
        distance = _distance(_patch(before, after, centre, radius_nm, scale), before, scale)
        cleft = (distance <= half_thickness) & (before | after)
        sides = (distance <= SIDE_NM) & (before | after)
        if min((cleft & before).sum(), (cleft & after).sum()) < least / 2 or polarity[part][distance < FAR].any():
            continue
        clefts[part][cleft] = number
        polarity[part][sides & before] = 2 * number - 1
        polarity[part][sides & after] = 2 * number
        near = np.minimum(distance, 200.0)
        patches = 0.75 + 0.25 * np.sin(rng.uniform(0, 6) + near / 9)
        # the density behind the cleft is thick and dark, the active zone before it thin and patchy: by these and by the
        # vesicles annotators tell which way a synapse points
        dense = after * np.exp(-((near / 32) ** 2)) * rng.uniform(0.8, 1.0)
        active = before * np.exp(-((near / 15) ** 2)) * rng.uniform(0.4, 0.8) * patches
        stain[part] = np.maximum(stain[part], (255 * np.maximum(dense, active)).astype(np.uint8))
        pre_site = _site(sides & before, corner, scale)
        for post in posts:
            inside = sides & (ids[part] == post)
            if inside.any():
                found.append(Synapse(number, pre, post, tuple((place - scale / 2).tolist()), pre_site,
                                     _site(inside, corner, scale)))
        places[number - 1] = place - scale / 2
        number += 1
    return found, clefts, polarity, stain
