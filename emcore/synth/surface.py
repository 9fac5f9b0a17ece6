"""From the grown grid to voxels of any size: neuron ids, and how much of each voxel is membrane.

Each point takes the votes of the 4 x 4 x 4 grid voxels around it, weighted by a cubic B-spline. The neuron with most
votes owns it; the lead over the runner-up is a smooth function of the distance to the border between them, which a
table turns into nm. So surfaces are smooth at any resolution, and borders are exact where labels change.
"""

from typing import NamedTuple

import numpy as np

from emcore.cache import compiled
from emcore.segment.components import connected_components
from emcore.synth.growth import GRID_NM, PAD, Growth, joined
from emcore.threads import run_parallel

SEALED = 96  # out of 255: at least one of two face neighbours of different ids is this much membrane
SLICE_NM = 12.0  # a section is seen through: it is the mean of optical slices at most this thick
DEPTH_NM = 20.0  # electrons see at least this deep, however thin the section
LEADS = 1024  # entries of the distance table


class Spline(NamedTuple):
    """For each voxel along one axis the first of four grid voxels around its centre, and their four weights."""

    first: np.ndarray
    weights: np.ndarray


def spline(voxels: int, voxel_nm: float, shift_nm: float = 0.0) -> Spline:
    """The Spline of an axis of the volume, which may be shifted along it."""
    at = ((np.arange(voxels) + 0.5) * voxel_nm + shift_nm) / GRID_NM - 0.5 + PAD
    first = np.floor(at).astype(np.int64)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    return Spline(first - 1, weights.astype(np.float32))


def distance_table() -> np.ndarray:
    """The distance in nm to a flat border for each lead in 0..1 (lead * LEADS rounded down)."""
    t = np.linspace(-2, 2, 4001)
    kernel = np.where(abs(t) < 1, 2 / 3 - t**2 + abs(t) ** 3 / 2, (2 - abs(t)) ** 3 / 6)
    share = np.cumsum(kernel) / kernel.sum()  # votes of the side that a point t grid voxels inside belongs to
    return np.interp((np.arange(LEADS + 1) + 0.5) / LEADS, 2 * share[2000:] - 1, t[2000:] * GRID_NM).astype(np.float32)


def slice_offsets(thickness_nm: float) -> np.ndarray:
    """Depths in nm, from the middle of a section, of the odd number of slices that its image is the mean of."""
    seen = max(thickness_nm, DEPTH_NM)
    slices = 2 * int(np.ceil((seen / SLICE_NM - 1) / 2)) + 1
    return (np.arange(slices) - slices // 2) * seen / slices


def membrane_profile(distance_nm: np.ndarray) -> np.ndarray:
    """How dark a membrane is at a distance from the middle of the extracellular gap: two leaflets 8 nm thick."""
    gap = 0.22 * np.exp(-((distance_nm / 3.0) ** 2))
    return np.clip((13.0 - distance_nm) / 5.0, 0, 1) - gap


@compiled(None)
def _section(growth, darkness, along_y, along_x, first, weights, ids, share):
    """Vote one optical slice: ids where given (non-empty), and 255 * darkness added into share."""
    grid, parent, neuron = growth.grid, growth.parent, growth.neuron
    (rows, row_weights), (columns, column_weights) = along_y, along_x
    height, width = share.shape
    span = grid.shape[2]
    found = np.zeros(span, np.int64)  # pieces among the 4 x 4 voxels above each grid x, and their summed weights
    pieces = np.zeros((span, 16), np.int32)
    votes = np.zeros((span, 16), np.float32)
    slots = np.zeros((span, 16), np.uint8)
    merged, total = np.zeros(64, np.int32), np.zeros(64, np.float32)
    for j in range(height):
        for k in range(columns[0], columns[width - 1] + 4):
            if j == 0 or rows[j] != rows[j - 1]:  # otherwise only the weights differ from those of the last row
                n = 0
                for a in range(4):
                    for b in range(4):
                        piece = grid[first + a, rows[j] + b, k]
                        at = 0
                        while at < n and pieces[k, at] != piece:
                            at += 1
                        if at == n:
                            pieces[k, n] = piece
                            n += 1
                        slots[k, 4 * a + b] = at
                found[k] = n
            if found[k] > 1:
                votes[k, :found[k]] = 0
                for a in range(4):
                    for b in range(4):
                        votes[k, slots[k, 4 * a + b]] += weights[a] * row_weights[j, b]
            else:
                votes[k, 0] = 1
        for i in range(width):
            k = columns[i]
            if (found[k] == 1 and found[k + 1] == 1 and found[k + 2] == 1 and found[k + 3] == 1
                    and pieces[k, 0] == pieces[k + 1, 0] and pieces[k, 0] == pieces[k + 2, 0]
                    and pieces[k, 0] == pieces[k + 3, 0]):
                if len(ids):
                    ids[j, i] = neuron[pieces[k, 0]]
                continue
            n = 0
            for a in range(4):
                for at in range(found[k + a]):
                    piece = pieces[k + a, at]
                    weight = votes[k + a, at] * column_weights[i, a]
                    b = 0
                    while b < n and merged[b] != piece:
                        b += 1
                    if b == n:
                        merged[n], total[n] = piece, 0.0
                        n += 1
                    total[b] += weight
            best, best_votes, second_votes = 0, np.float32(-1), np.float32(0)
            for a in range(n):  # by neuron: the first of each stands for all of its pieces
                owner = neuron[merged[a]]
                fresh = True
                for b in range(a):
                    if neuron[merged[b]] == owner:
                        fresh = False
                        break
                if not fresh:
                    continue
                summed = np.float32(0)
                for b in range(a, n):
                    if neuron[merged[b]] == owner:
                        summed += total[b]
                if summed > best_votes or (summed == best_votes and owner < best):
                    best, best_votes, second_votes = owner, summed, best_votes
                elif summed > second_votes:
                    second_votes = summed
            lead = best_votes - max(second_votes, np.float32(0))
            top = -1
            for a in range(n):
                if neuron[merged[a]] == best and (top < 0 or total[a] > total[top]):
                    top = a
            own, fold = np.float32(0), np.float32(0)  # a neuron that touches itself has membranes there too
            for a in range(n):
                if neuron[merged[a]] == best:
                    if joined(merged[a], merged[top], parent):
                        own += total[a]
                    else:
                        fold += total[a]
            if fold > 0:
                lead = min(lead, max(np.float32(0), own - fold))
            if len(ids):
                ids[j, i] = best
            share[j, i] += darkness[min(LEADS, int(lead * LEADS))]


def vote(growth: Growth, shape: tuple, resolution: tuple, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Neuron of every voxel (uint32) and its membrane coverage (uint8, 255 = all of it is membrane)."""
    offsets = slice_offsets(resolution[0])
    slices = len(offsets)
    rows, columns = spline(shape[1], resolution[1]), spline(shape[2], resolution[2])
    darkness = (membrane_profile(distance_table()) * 255 / slices).astype(np.float32)
    ids, membrane = np.empty(shape, np.uint32), np.empty(shape, np.uint8)
    nothing = np.empty((0, 0), np.uint32)
    depths = [spline(shape[0], resolution[0], offset) for offset in offsets]

    def one(z: int) -> None:
        share = np.zeros(shape[1:], np.float32)
        for s, (first, weights) in enumerate(depths):
            _section(growth, darkness, rows, columns, first[z], weights[z], ids[z] if s == slices // 2 else nothing,
                     share)
        membrane[z] = share + 0.5
    run_parallel(one, [(z,) for z in range(shape[0])], threads)
    return ids, membrane


def _contacts(objects: np.ndarray, crumb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a crumb touches another object: (crumb, other), each pair once, in the order of the first contacts.

    Contacts are taken row by row: those along y first, then along z, then along x.
    """
    flat, width = objects.ravel(), objects.shape[2]
    voxels = np.flatnonzero(crumb[flat])
    places = np.unravel_index(voxels, objects.shape)
    found = []
    for kind, axis in enumerate((1, 0, 2)):
        step = int(np.prod(objects.shape[axis + 1:]))
        for side, inside in ((-step, places[axis] > 0), (step, places[axis] < objects.shape[axis] - 1)):
            here = voxels[inside]
            later = np.maximum(here, here + side)
            found.append(((later // width * 3 + kind) * width + later % width, flat[here], flat[here + side]))
    order, small, other = (np.concatenate(part) for part in zip(*found))
    kept = np.flatnonzero(small != other)
    kept = kept[np.argsort(order[kept], kind="stable")]
    _, first = np.unique(np.stack([small[kept], other[kept]], 1), axis=0, return_index=True)
    kept = kept[np.sort(first)]
    return small[kept], other[kept]


def _join_crumbs(objects: np.ndarray, count: int, smallest: int) -> np.ndarray:
    """The object that each of 0..count becomes part of: a crumb joins its largest neighbour, what stays small too."""
    size, up = np.bincount(objects.ravel(), minlength=count + 1), np.arange(count + 1)

    def root(a: int) -> int:
        while up[a] != a:
            a = up[a]
        return int(a)

    small, other = _contacts(objects, size < smallest)
    for _ in range(2):
        wish: dict[int, int] = {}
        top = np.array([root(a) for a in range(count + 1)])
        size = np.bincount(top, size, count + 1)
        for a, b in zip(top[small], top[other]):
            if a != b and size[a] < smallest and (a not in wish or size[b] > size[wish[a]]):
                wish[a] = b
        for a in sorted(wish):
            up[a] = root(wish[a])  # itself again where its neighbour has just joined it
    return np.array([root(a) for a in range(count + 1)])


@compiled(None)
def _seal(ids, membrane, level):
    """Between any two face neighbours of different ids, raise the darker voxel to `level`."""
    depth, height, width = ids.shape
    for i in range(depth):
        for j in range(height):
            for k in range(width):
                for a, b, c in ((i - 1, j, k), (i, j - 1, k), (i, j, k - 1)):
                    if a < 0 or b < 0 or c < 0 or ids[a, b, c] == ids[i, j, k]:
                        continue
                    if membrane[a, b, c] > membrane[i, j, k]:
                        membrane[a, b, c] = max(membrane[a, b, c], level)
                    else:
                        membrane[i, j, k] = max(membrane[i, j, k], level)


def separate(ids: np.ndarray, membrane: np.ndarray, resolution: tuple, threads: int) -> None:
    """Change both in place: every id one 6-connected object, numbered in raster order, and every border sealed."""
    smallest = max(8, int(110**3 / np.prod(resolution)))  # voxels in a cube of 110 nm
    objects, count = connected_components(ids, 6, count=True, threads=threads)
    top = _join_crumbs(objects, count, smallest)
    _, first, names = np.unique(top[1:], return_index=True, return_inverse=True)
    numbers = np.argsort(np.argsort(first)) + 1
    np.take(np.append(0, numbers[names]).astype(ids.dtype), objects, out=ids)
    _seal(ids, membrane, SEALED)
