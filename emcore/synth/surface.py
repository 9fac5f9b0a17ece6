"""From the grown grid to voxels of any size: neuron ids, and how much of each voxel is membrane.

Each point takes the votes of the 4 x 4 x 4 grid voxels around it, weighted by a cubic B-spline. The neuron with most
votes owns it; the lead over the runner-up is a smooth function of the distance to the border between them, which a
table turns into nm. So surfaces are smooth at any resolution, and borders are exact where labels change.
"""

import numpy as np

from emcore.cache import compiled
from emcore.synth.growth import GRID_NM, PAD, Growth, joined
from emcore.threads import run_parallel

SEALED = 96  # of 255: of two face neighbours of different ids at least one is this much membrane
SLICE_NM = 12.0  # a section is seen through: it is the mean of optical slices at most this thick
DEPTH_NM = 20.0  # electrons see at least this deep, however thin the section
LEADS = 1024  # entries of the distance table


def spline_weights(voxels: int, voxel_nm: float, shift_nm: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The first of four grid voxels around each voxel centre along one axis, and their four weights."""
    at = ((np.arange(voxels) + 0.5) * voxel_nm + shift_nm) / GRID_NM - 0.5 + PAD
    first = np.floor(at).astype(np.int64)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    return first - 1, weights.astype(np.float32)


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
def _section(grid, parent, neuron, darkness, rows, row_weights, columns, column_weights, first, weights, ids, share):
    """Vote one optical slice: ids where given (non-empty), and 255 * darkness added into share."""
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
    rows, row_weights = spline_weights(shape[1], resolution[1])
    columns, column_weights = spline_weights(shape[2], resolution[2])
    darkness = (membrane_profile(distance_table()) * 255 / slices).astype(np.float32)
    ids, membrane = np.empty(shape, np.uint32), np.empty(shape, np.uint8)
    nothing = np.empty((0, 0), np.uint32)
    depths = [spline_weights(shape[0], resolution[0], offset) for offset in offsets]

    def one(z: int) -> None:
        share = np.zeros(shape[1:], np.float32)
        for s, (first, weights) in enumerate(depths):
            _section(growth.grid, growth.parent, growth.neuron, darkness, rows, row_weights, columns, column_weights,
                     first[z], weights[z], ids[z] if s == slices // 2 else nothing, share)
        membrane[z] = share + 0.5
    run_parallel(one, [(z,) for z in range(shape[0])], threads)
    return ids, membrane


@compiled(None)
def _root(up, a):
    while up[a] != a:
        up[a] = up[up[a]]
        a = up[a]
    return a


@compiled(None)
def _components(ids, smallest):
    """Rewrite ids in place: every 6-connected object its own id, 1.. in raster order, crumbs given to a neighbour.

    Returns the id that each new id had before. Works on runs along x.
    """
    depth, height, width = ids.shape
    starts = np.empty(depth * height + 1, np.int64)
    runs = 0
    for i in range(depth):
        for j in range(height):
            starts[i * height + j] = runs
            for k in range(width):
                if k == 0 or ids[i, j, k] != ids[i, j, k - 1]:
                    runs += 1
    starts[depth * height] = runs
    begin, end, value = np.empty(runs, np.int32), np.empty(runs, np.int32), np.empty(runs, np.uint32)
    at = 0
    for i in range(depth):
        for j in range(height):
            for k in range(width):
                if k == 0 or ids[i, j, k] != ids[i, j, k - 1]:
                    begin[at], value[at] = k, ids[i, j, k]
                    at += 1
                end[at - 1] = k + 1
    up, size = np.arange(runs), np.zeros(runs, np.int64)
    for crumbs_join in range(3):
        # The first pass joins runs of one id; the others give what is still a crumb to its largest neighbour.
        wish, contact = np.full(runs, -1), np.zeros(runs, np.int64)
        for line in range(depth * height):
            for back in (1, height):
                if (back == 1 and line % height == 0) or line < back:
                    continue
                other = starts[line - back]
                for run in range(starts[line], starts[line + 1]):
                    while end[other] <= begin[run]:
                        other += 1
                    near = other
                    while near < starts[line - back + 1] and begin[near] < end[run]:
                        if crumbs_join == 0:
                            if value[near] == value[run]:
                                a, b = _root(up, near), _root(up, run)
                                up[max(a, b)] = min(a, b)
                        else:
                            _weigh(up, size, wish, contact, near, run, smallest)
                        near += 1
            if crumbs_join:
                for run in range(starts[line] + 1, starts[line + 1]):
                    _weigh(up, size, wish, contact, run - 1, run, smallest)
        if crumbs_join:
            for run in range(runs):
                if up[run] == run and size[run] < smallest and wish[run] >= 0:
                    target = _root(up, wish[run])
                    if target != run:
                        value[run] = value[target]
                        up[run] = target
        size[:] = 0
        for run in range(runs):
            size[_root(up, run)] += end[run] - begin[run]
    name = np.zeros(runs, np.uint32)
    was = np.zeros(runs + 1, np.uint32)
    names = 0
    for run in range(runs):
        root = _root(up, run)
        if name[root] == 0:
            names += 1
            name[root] = names
            was[names] = value[root]
        name[run] = name[root]
    for line in range(depth * height):
        for run in range(starts[line], starts[line + 1]):
            for k in range(begin[run], end[run]):
                ids[line // height, line % height, k] = name[run]
    return was[:names + 1].copy()


@compiled(None)
def _weigh(up, size, wish, contact, a, b, smallest):
    """Remember for each crumb the larger neighbour."""
    a, b = _root(up, a), _root(up, b)
    if a == b:
        return
    if size[a] < smallest and size[b] > contact[a]:
        wish[a], contact[a] = b, size[b]
    if size[b] < smallest and size[a] > contact[b]:
        wish[b], contact[b] = a, size[a]


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


def separate(ids: np.ndarray, membrane: np.ndarray, resolution: tuple) -> np.ndarray:
    """The neuron of each id; ids and membrane are changed in place: every id 6-connected, every border sealed."""
    smallest = max(8, int(110**3 / np.prod(resolution)))  # voxels in a cube of 110 nm
    was = _components(ids, smallest)
    _seal(ids, membrane, SEALED)
    return was
