"""Neurites grown into empty space on an isotropic grid of 20 nm: what the tissue is before anyone looks at it.

A neurite is a tree of tubes. Tubes are cut into short pieces, so that two branches of one neuron that touch far from
their junction can have membranes between them. Positions are (z, y, x) grid coordinates; voxel i is centred on i.
"""

from typing import NamedTuple

import numpy as np

from emcore.cache import compiled
from emcore.segment.components import connected_components
from emcore.segment.distance import distance_transform

GRID_NM = 20.0
PAD = 6  # grid voxels around the volume, so that its faces cut the tissue like anything else
THINNEST = 2.2  # tube radius in grid voxels: the smoothing of the surface would cut anything thinner
CLEARANCE = 1.0  # grid voxels left free between two tubes, filled from both sides afterwards
PIECE = 20.0  # length of a piece in grid voxels, at least three of its radii


class Growth(NamedTuple):
    """Tissue as it grows: piece numbers on the grid and the tubes that they come from."""

    grid: np.ndarray  # (z, y, x) int32 piece, 1.. everywhere in the end
    parent: np.ndarray  # piece -> the piece it grew from, 0 for the first of a neuron
    neuron: np.ndarray  # piece -> neuron, 1..
    nodes: np.ndarray  # (n, 4) float32 z, y, x, radius in grid voxels, in the order of growth
    node_piece: np.ndarray  # (n,) int32
    used: np.ndarray  # nodes and pieces there are so far
    somata: np.ndarray  # (m, 4) float32 z, y, x, radius


class Tube(NamedTuple):
    """The shape of a tube; lengths in grid voxels."""

    radius: float
    wander: float
    swelling: float  # factor of a bouton, 1 = none
    longest: float
    head: float  # factor of the radius over the last third: a spine


@compiled(None)
def joined(a, b, parent):
    """Whether two pieces are the same cytoplasm: at most two steps apart in the tree of their neuron.

    Compiled into surface.py too: the cache of machine code notices a change here only when that file changes as well.
    """
    up_a, up_b = parent[a], parent[b]
    return a == b or up_a == b or up_b == a or (up_a != 0 and up_a == up_b) or parent[up_a] == b or parent[up_b] == a


@compiled(None)
def _free(grid, z, y, x, radius, piece, parent):
    for i in range(max(0, int(np.ceil(z - radius))), min(grid.shape[0] - 1, int(z + radius)) + 1):
        for j in range(max(0, int(np.ceil(y - radius))), min(grid.shape[1] - 1, int(y + radius)) + 1):
            left = radius * radius - (i - z) ** 2 - (j - y) ** 2
            if left < 0:
                continue
            reach = np.sqrt(left)
            for k in range(max(0, int(np.ceil(x - reach))), min(grid.shape[2] - 1, int(x + reach)) + 1):
                if grid[i, j, k] != 0 and not joined(grid[i, j, k], piece, parent):
                    return False
    return True


@compiled(None)
def _paint(grid, z, y, x, radius, old, new):
    """Turn voxels `old` of a ball into `new`."""
    for i in range(max(0, int(np.ceil(z - radius))), min(grid.shape[0] - 1, int(z + radius)) + 1):
        for j in range(max(0, int(np.ceil(y - radius))), min(grid.shape[1] - 1, int(y + radius)) + 1):
            left = radius * radius - (i - z) ** 2 - (j - y) ** 2
            if left < 0:
                continue
            reach = np.sqrt(left)
            for k in range(max(0, int(np.ceil(x - reach))), min(grid.shape[2] - 1, int(x + reach)) + 1):
                if grid[i, j, k] == old:
                    grid[i, j, k] = new


@compiled(None)
def _direction(rng):
    vector = np.array([rng.standard_normal(), rng.standard_normal(), rng.standard_normal()])
    return vector / (np.sqrt((vector**2).sum()) + 1e-9)


@compiled(None)
def _walk(growth, rng, start, heading, origin, owner, tube):
    """The length of a tube grown from `start` until it leaves the grid, is stuck or long enough."""
    grid, parent, neuron, nodes, node_piece, used, _ = growth
    base, wander, swelling, longest, head = tube
    z, y, x = start[0], start[1], start[2]
    length = piece_length = 0.0
    drift = rng.standard_normal() * 0.2
    bouton_at = rng.exponential(60.0)
    bouton_length = 16.0 + 14.0 * rng.random()
    piece = 0
    while length < longest and used[0] < len(nodes) and used[1] + 1 < len(parent):
        if piece == 0 or piece_length > max(PIECE, 3.0 * base):
            used[1] += 1
            parent[used[1]] = origin if piece == 0 else piece
            neuron[used[1]] = owner
            piece, piece_length = used[1], 0.0
        wish = base * np.exp(drift)
        drift = 0.93 * drift + 0.09 * rng.standard_normal()
        if swelling > 1 and length > bouton_at:
            phase = (length - bouton_at) / bouton_length
            wish *= 1 + (swelling - 1) * np.sin(np.pi * min(1.0, phase))
            if phase > 1:
                bouton_at, bouton_length = length + rng.exponential(60.0), 16.0 + 14.0 * rng.random()
        if head > 1 and length > 0.66 * longest:
            wish *= head
        wish = max(THINNEST, wish)
        step = max(1.0, 0.3 * min(wish, base))
        placed = False
        for attempt in range(14):
            turn = heading + (wander + 0.13 * attempt) * _direction(rng)
            turn /= np.sqrt((turn**2).sum()) + 1e-9
            radius = max(THINNEST, wish * 0.82 ** max(0, attempt - 2))
            a, b, c = z + step * turn[0], y + step * turn[1], x + step * turn[2]
            if _free(grid, a, b, c, radius + CLEARANCE, piece, parent):
                placed = True
                break
        if not placed:
            break
        z, y, x, heading = a, b, c, turn
        if not (0 <= z < grid.shape[0] and 0 <= y < grid.shape[1] and 0 <= x < grid.shape[2]):
            break
        _paint(grid, z, y, x, radius, 0, piece)
        nodes[used[0]] = (z, y, x, radius)
        node_piece[used[0]] = piece
        used[0] += 1
        length += step
        piece_length += step
    return length


@compiled(None)
def _branches(growth, rng, first, owner, every, twig, tube):
    """Grow side branches from the nodes first.. of one neuron, one in `every` grid voxels of length."""
    nodes = growth.nodes
    last = growth.used[0]
    total = (last - first) * 1.2
    for _ in range(rng.poisson(total / every)):
        at = first + int(rng.random() * (last - first))
        base = nodes[at, 3]
        if rng.random() < twig:
            side = Tube(THINNEST, 0.25, 1.0, base + 14.0 + 26.0 * rng.random(), 1.6 + 1.6 * rng.random())
        else:
            side = Tube(max(THINNEST, base * (0.5 + 0.4 * rng.random())), *tube[1:])
        _walk(growth, rng, nodes[at, :3].astype(np.float64), _direction(rng), growth.node_piece[at], owner, side)


@compiled(None)
def _neurite(growth, rng, owner, tube, grain, every, twig):
    """Whether a neurite of this shape found a place: both ways from a free voxel, along `grain` if not zero."""
    grid, nodes, used = growth.grid, growth.nodes, growth.used
    before_nodes, before_pieces = used[0], used[1]
    start = np.empty(3)
    found = False
    for attempt in range(60):
        for axis in range(3):
            start[axis] = rng.random() * (grid.shape[axis] - 1)
        room = max(THINNEST, tube.radius * 0.97**attempt) + CLEARANCE
        if _free(grid, start[0], start[1], start[2], room, 0, growth.parent):
            found = True
            break
    if not found:
        return False
    heading = grain + _direction(rng) * 0.45 if (grain**2).sum() > 0 else _direction(rng)
    length = _walk(growth, rng, start, heading, 0, owner, tube)
    if used[0] > before_nodes:
        length += _walk(growth, rng, start, -heading, before_pieces + 1, owner, tube)
        _branches(growth, rng, before_nodes, owner, every, twig, tube)
    if length < 16.0:  # 320 nm: crumbs are not neurites
        for node in range(before_nodes, used[0]):
            for piece in range(before_pieces + 1, used[1] + 1):
                _paint(grid, nodes[node, 0], nodes[node, 1], nodes[node, 2], nodes[node, 3], piece, 0)
        used[0], used[1] = before_nodes, before_pieces
        return False
    return True


@compiled(None)
def _spread(grid, until):
    """Grow every piece into the free space around it, layer by layer, until at most `until` voxels are free."""
    depth, height, width = grid.shape
    front = np.empty(grid.size, np.int64)
    stop = free = 0
    for i in range(depth):
        for j in range(height):
            for k in range(width):
                if grid[i, j, k] == 0:
                    free += 1
                elif ((i and not grid[i - 1, j, k]) or (i + 1 < depth and not grid[i + 1, j, k])
                      or (j and not grid[i, j - 1, k]) or (j + 1 < height and not grid[i, j + 1, k])
                      or (k and not grid[i, j, k - 1]) or (k + 1 < width and not grid[i, j, k + 1])):
                    front[stop] = (i * height + j) * width + k
                    stop += 1
    if stop == 0:
        return free
    begin, layer = 0, 0
    # A layer of faces, then one of faces and edges: their mixture keeps the front nearly round.
    while begin < stop and free > until:
        reach = 1 if layer % 2 == 0 else 2
        end = stop
        for at in range(begin, end):
            i, j, k = front[at] // (height * width), front[at] // width % height, front[at] % width
            for a in range(max(0, i - 1), min(depth, i + 2)):
                for b in range(max(0, j - 1), min(height, j + 2)):
                    for c in range(max(0, k - 1), min(width, k + 2)):
                        if grid[a, b, c] == 0 and abs(a - i) + abs(b - j) + abs(c - k) <= reach:
                            grid[a, b, c] = grid[i, j, k]
                            front[stop] = (a * height + b) * width + c
                            stop += 1
                            free -= 1
        begin, layer = end, layer + 1
    return free


def _pockets(growth: Growth, owner: int, smallest: int, threads: int) -> None:
    """Make each large pocket of free space a neuron of its own behind `owner` (irregular, like glia)."""
    pockets = connected_components(growth.grid == 0, threads=threads)
    pieces = int(growth.used[1]) + 1
    large = np.flatnonzero(np.bincount(pockets.ravel())[1:] >= smallest)[: len(growth.parent) - pieces] + 1
    names = np.zeros(int(pockets.max()) + 1, np.int32)
    names[large] = np.arange(pieces, pieces + len(large))
    np.add(growth.grid, names[pockets], out=growth.grid)
    growth.parent[names[large]] = 0
    growth.neuron[names[large]] = np.arange(owner + 1, owner + 1 + len(large))
    growth.used[1] += len(large)


def rooms(growth: Growth, most: float, threads: int) -> np.ndarray:
    """For each node the radius in grid voxels of the largest ball around it within its neuron, at most `most`."""
    squared = distance_transform(growth.neuron[growth.grid], squared=True, threads=threads)
    at = np.floor(growth.nodes[:, :3].astype(np.float64) + 0.5).astype(int)
    inside = ((at >= 0) & (at < growth.grid.shape)).all(1)
    result = np.zeros(len(at))
    result[inside] = np.sqrt(np.minimum(squared[tuple(at[inside].T)].astype(np.float64), most * most)) - 0.5
    return result


def grow(extent_nm: tuple, neurites: int, somata: int, rng: np.random.Generator, threads: int) -> Growth:
    """Tissue that fills a box of extent_nm (z, y, x) with `neurites` trees of tubes and `somata` cell bodies."""
    size = tuple(int(np.ceil(length / GRID_NM)) + 2 * PAD for length in extent_nm)
    grid = np.zeros(size, np.int32)
    capacity = grid.size // 30 + 5000
    growth = Growth(grid, np.zeros(capacity, np.int32), np.zeros(capacity, np.int32),
                    np.zeros((capacity, 4), np.float32), np.zeros(capacity, np.int32), np.zeros(2, np.int64),
                    np.zeros((0, 4), np.float32))
    used = growth.used
    owner, bodies = 0, []

    for _ in range(somata):  # centred near a face: whole cell bodies are larger than most volumes
        radius = float(min(rng.uniform(45, 70), 0.42 * min(size)))
        centre = rng.uniform(0, 1, 3) * size
        axis = rng.integers(3)
        centre[axis] = rng.choice([0.1, 0.9]) * size[axis]
        owner += 1
        used[1] += 1
        piece = int(used[1])
        growth.neuron[piece] = owner
        if not _free(grid, *centre, radius + CLEARANCE, piece, growth.parent):
            used[1] -= 1
            owner -= 1
            continue
        _paint(grid, *centre, radius, 0, piece)
        bodies.append((*centre, radius))
        for _ in range(4):
            way = rng.standard_normal(3)
            way /= np.linalg.norm(way)
            tube = Tube(radius * 0.25, 0.08, 1.0, 400.0, 1.0)
            first = int(used[0])
            _walk(growth, rng, centre + way * radius * 0.85, way, piece, owner, tube)
            if used[0] > first:
                _branches(growth, rng, first, owner, 25.0, 0.8, tube)

    grains = np.stack([way / np.linalg.norm(way) for way in rng.standard_normal((3, 3))])
    misses = 0
    while neurites > 0 and misses < 200:
        share = rng.random()
        grain = grains[rng.integers(3)] if rng.random() < 0.6 else np.zeros(3)
        if share < 0.03:  # dendrites: thick, straight, spiny
            tube, every, twig = Tube(rng.uniform(8, 15), 0.06, 1.0, 1e9, 1.0), 22.0, 0.85
        elif share < 0.5:  # axons: with boutons
            radius, bouton = rng.lognormal(np.log(3.6), 0.3), rng.uniform(1.5, 2.6)
            tube, every, twig = Tube(radius, 0.12, bouton, 1e9, 1.0), 70.0, 0.5
        else:  # thin processes between the others
            tube, every, twig = Tube(rng.uniform(THINNEST, 3.0), 0.2, 1.5, 1e9, 1.0), 50.0, 0.3
        if _neurite(growth, rng, owner + 1, tube, grain, every, twig):
            owner += 1
            neurites -= 1
            misses = 0
        else:
            misses += 1

    _spread(grid, grid.size // 16)
    _pockets(growth, owner, 300, threads)
    _spread(grid, 0)
    nodes, pieces = int(used[0]), int(used[1]) + 1
    return growth._replace(parent=growth.parent[:pieces].copy(), neuron=growth.neuron[:pieces].copy(),
                           nodes=growth.nodes[:nodes].copy(), node_piece=growth.node_piece[:nodes].copy(),
                           somata=np.array(bodies, np.float32).reshape(-1, 4))
