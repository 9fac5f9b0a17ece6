"""Synapses on the contacts between neurons: cleft, pre- and post-synaptic side, stain and the partners' sites."""

from typing import NamedTuple

import numpy as np

from emcore.cache import compiled

REACH_NM = 80.0  # how far from the cleft a synapse is looked at
CLEFT_NM = 11.0  # half the thickness of a labelled cleft
SIDE_NM = 55.0  # thickness of the labelled pre- and post-synaptic sides
SPACING_NM = 450.0  # between the centres of two synapses
FAR = np.float32(1e9)


class Synapse(NamedTuple):
    """One synapse; places are voxel * resolution (z, y, x) in nm, as CREMI counts; pre and post are neuron ids."""

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


@compiled(None)
def _distance(box, pre, post, centre, radius_nm, resolution):
    """The distance in nm of each voxel of a box to the faces between pre and post in one patch around `centre`."""
    depth, height, width = box.shape
    touching = np.zeros(box.shape, np.uint8)
    nearest, seed = FAR, 0
    for i in range(depth):
        for j in range(height):
            for k in range(width):
                if box[i, j, k] != pre and box[i, j, k] != post:
                    continue
                away = (((i - centre[0]) * resolution[0]) ** 2 + ((j - centre[1]) * resolution[1]) ** 2
                        + ((k - centre[2]) * resolution[2]) ** 2)
                if away > radius_nm**2:
                    continue
                other = post if box[i, j, k] == pre else pre
                if ((i and box[i - 1, j, k] == other) or (i + 1 < depth and box[i + 1, j, k] == other)
                        or (j and box[i, j - 1, k] == other) or (j + 1 < height and box[i, j + 1, k] == other)
                        or (k and box[i, j, k - 1] == other) or (k + 1 < width and box[i, j, k + 1] == other)):
                    touching[i, j, k] = 1
                    if away < nearest:
                        nearest, seed = away, (i * height + j) * width + k
    distance = np.full(box.shape, FAR, np.float32)
    if nearest == FAR:
        return distance
    queue = np.empty(box.size, np.int64)
    queue[0], stop, begin = seed, 1, 0
    touching[seed // (height * width), seed // width % height, seed % width] = 2
    while begin < stop:
        i, j, k = queue[begin] // (height * width), queue[begin] // width % height, queue[begin] % width
        begin += 1
        for a in range(max(0, i - 1), min(depth, i + 2)):
            for b in range(max(0, j - 1), min(height, j + 2)):
                for c in range(max(0, k - 1), min(width, k + 2)):
                    if touching[a, b, c] == 1:
                        touching[a, b, c] = 2
                        queue[stop] = (a * height + b) * width + c
                        stop += 1
    reach_z = int(REACH_NM / resolution[0]) + 1
    reach_y, reach_x = int(REACH_NM / resolution[1]) + 1, int(REACH_NM / resolution[2]) + 1
    for at in range(stop):
        i, j, k = queue[at] // (height * width), queue[at] // width % height, queue[at] % width
        for axis in range(3):
            a, b, c = i + (axis == 0), j + (axis == 1), k + (axis == 2)
            if (a >= depth or b >= height or c >= width or touching[a, b, c] != 2
                    or box[a, b, c] == box[i, j, k]):
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


def make_synapses(ids: np.ndarray, nodes: np.ndarray, resolution: tuple, wanted: int, rng: np.random.Generator,
                  ) -> tuple[list[Synapse], np.ndarray, np.ndarray, np.ndarray]:
    """Synapses, clefts (uint32), polarity (uint32, pre 2n - 1, post 2n) and stain (uint8 darkness).

    nodes: (n, 4) places in nm and radius in nm of tubes; pre-synaptic sides are found on the thicker ones.
    """
    scale = np.array(resolution, float)
    clefts, polarity = np.zeros(ids.shape, np.uint32), np.zeros(ids.shape, np.uint32)
    stain = np.zeros(ids.shape, np.uint8)
    half_thickness = max(CLEFT_NM, 0.51 * max(resolution[1:]))
    least = 100 * 100 * 2 * half_thickness / scale.prod()  # voxels of a cleft 100 nm across
    at = nodes[:, :3] / scale
    candidates = np.flatnonzero((nodes[:, 3] > 65) & (at >= 0).all(1) & (at < ids.shape).all(1))
    found: list[Synapse] = []
    for node in rng.permutation(candidates)[: 200 * wanted]:
        if len(found) == wanted:
            break
        way = rng.standard_normal(3) * (0.5, 1, 1)  # annotators mark what is cut across rather than seen from above
        radius_nm = rng.uniform(110, 240)
        border = _meet(ids, at[node], way / np.linalg.norm(way), scale, nodes[node, 3] + 150)
        if not len(border):
            continue
        pre, post = int(ids[tuple(border[:3])]), int(ids[tuple(border[3:])])
        place = (border[:3] + border[3:] + 1) / 2 * scale
        if any(np.linalg.norm(place - scale / 2 - synapse.place) < SPACING_NM for synapse in found):
            continue
        corner = np.maximum(0, ((place - radius_nm - REACH_NM) / scale).astype(int))
        end = np.minimum(ids.shape, ((place + radius_nm + REACH_NM) / scale).astype(int) + 2)
        part = tuple(slice(a, b) for a, b in zip(corner, end))
        distance = _distance(ids[part], np.uint32(pre), np.uint32(post), place / scale - corner - 0.5, radius_nm, scale)
        before, after = ids[part] == pre, ids[part] == post
        cleft = (distance <= half_thickness) & (before | after)
        sides = (distance <= SIDE_NM) & (before | after)
        if min((cleft & before).sum(), (cleft & after).sum()) < least / 2 or polarity[part][distance < FAR].any():
            continue
        number = len(found) + 1
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
        pre_site, post_site = (_site(sides & side, corner, scale) for side in (before, after))
        found.append(Synapse(number, pre, post, tuple((place - scale / 2).tolist()), pre_site, post_site))
    return found, clefts, polarity, stain
