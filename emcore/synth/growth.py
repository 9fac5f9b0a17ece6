"""Neurites grown into empty space on an isotropic grid of 20 nm: what the tissue is before anyone looks at it.

A neurite is a tree of tubes. Tubes are cut into short pieces, so that two branches of one neuron that touch far from
their junction can have membranes between them. Positions are (z, y, x) grid coordinates; voxel i is centred on i.
"""

from typing import NamedTuple

import numpy as np

from emcore.cache import compiled

GRID_NM = 20.0
PAD = 6  # grid voxels around the volume, so that its faces cut the tissue like anything else
THINNEST = 2.2  # tube radius in grid voxels: the smoothing of the surface would cut anything thinner
CLEARANCE = 1.0  # grid voxels left free between two tubes, filled from both sides afterwards
PIECE = 20.0  # length of a piece in grid voxels, at least three of its radii


class Growth(NamedTuple):
    """The grown tissue: piece numbers on the grid and the tubes that they came from."""

    grid: np.ndarray  # (z, y, x) int32 piece, 1.. everywhere
    parent: np.ndarray  # piece -> the piece it grew from, 0 for the first of a neuron
    neuron: np.ndarray  # piece -> neuron, 1..
    nodes: np.ndarray  # (n, 4) float32 z, y, x, radius in grid voxels, in the order of growth
    node_piece: np.ndarray  # (n,) int32
    somata: np.ndarray  # (m, 4) float32 z, y, x, radius


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
def _walk(grid, parent, neuron, nodes, node_piece, counts, rng, start, heading, origin, owner, shape):
    """The length of a tube grown from `start` until it leaves the grid, is stuck or long enough.

    counts = nodes and pieces in use, both advanced. shape = radius, wander, swelling (factor of a bouton, 1 = none),
    greatest length, head (factor of the radius over the last third: a spine).
    """
    base, wander, swelling, longest, head = shape[0], shape[1], shape[2], shape[3], shape[4]
    z, y, x = start[0], start[1], start[2]
    length = piece_length = 0.0
    drift = rng.standard_normal() * 0.2
    bouton_at = rng.exponential(60.0)
    bouton_length = 16.0 + 14.0 * rng.random()
    piece = 0
    while length < longest and counts[0] < len(nodes) and counts[1] + 1 < len(parent):
        if piece == 0 or piece_length > max(PIECE, 3.0 * base):
            counts[1] += 1
            parent[counts[1]] = origin if piece == 0 else piece
            neuron[counts[1]] = owner
            piece, piece_length = counts[1], 0.0
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
        nodes[counts[0]] = (z, y, x, radius)
        node_piece[counts[0]] = piece
        counts[0] += 1
        length += step
        piece_length += step
    return length


@compiled(None)
def _branches(grid, parent, neuron, nodes, node_piece, counts, rng, first, owner, every, twig, shape):
    """Grow side branches from the nodes first.. of one neuron, one in `every` grid voxels of length."""
    last = counts[0]
    total = (last - first) * 1.2
    for _ in range(rng.poisson(total / every)):
        at = first + int(rng.random() * (last - first))
        base = nodes[at, 3]
        side = shape.copy()
        if rng.random() < twig:
            side[:] = (THINNEST, 0.25, 1.0, base + 14.0 + 26.0 * rng.random(), 1.6 + 1.6 * rng.random())
        else:
            side[0] = max(THINNEST, base * (0.5 + 0.4 * rng.random()))
        _walk(grid, parent, neuron, nodes, node_piece, counts, rng, nodes[at, :3].astype(np.float64), _direction(rng),
              node_piece[at], owner, side)


@compiled(None)
def _neurite(grid, parent, neuron, nodes, node_piece, counts, rng, owner, shape, grain, every, twig):
    """Whether a neurite of this shape found a place: both ways from a free voxel, along `grain` if not zero."""
    size = grid.shape
    before_nodes, before_pieces = counts[0], counts[1]
    start = np.empty(3)
    found = False
    for attempt in range(60):
        for axis in range(3):
            start[axis] = rng.random() * (size[axis] - 1)
        room = max(THINNEST, shape[0] * 0.97**attempt) + CLEARANCE
        if _free(grid, start[0], start[1], start[2], room, 0, parent):
            found = True
            break
    if not found:
        return False
    heading = grain + _direction(rng) * 0.45 if (grain**2).sum() > 0 else _direction(rng)
    length = _walk(grid, parent, neuron, nodes, node_piece, counts, rng, start, heading, 0, owner, shape)
    if counts[0] > before_nodes:
        root = before_pieces + 1
        length += _walk(grid, parent, neuron, nodes, node_piece, counts, rng, start, -heading, root, owner, shape)
        _branches(grid, parent, neuron, nodes, node_piece, counts, rng, before_nodes, owner, every, twig, shape)
    if length < 16.0:  # 320 nm: crumbs are not neurites
        for node in range(before_nodes, counts[0]):
            for piece in range(before_pieces + 1, counts[1] + 1):
                _paint(grid, nodes[node, 0], nodes[node, 1], nodes[node, 2], nodes[node, 3], piece, 0)
        counts[0], counts[1] = before_nodes, before_pieces
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


@compiled(None)
def _pockets(grid, parent, neuron, counts, owner, smallest):
    """The last neuron after each large pocket of free space became a neuron of its own (irregular, like glia)."""
    depth, height, width = grid.shape
    queue = np.empty(grid.size, np.int64)
    for seed in range(grid.size):
        if grid[seed // (height * width), seed // width % height, seed % width] != 0 or counts[1] + 1 >= len(parent):
            continue
        piece = counts[1] + 1
        queue[0] = seed
        grid[seed // (height * width), seed // width % height, seed % width] = piece
        begin, stop = 0, 1
        while begin < stop:
            i, j, k = queue[begin] // (height * width), queue[begin] // width % height, queue[begin] % width
            begin += 1
            for a, b, c in ((i - 1, j, k), (i + 1, j, k), (i, j - 1, k), (i, j + 1, k), (i, j, k - 1), (i, j, k + 1)):
                if 0 <= a < depth and 0 <= b < height and 0 <= c < width and grid[a, b, c] == 0:
                    grid[a, b, c] = piece
                    queue[stop] = (a * height + b) * width + c
                    stop += 1
        if stop >= smallest:
            owner += 1
            counts[1] = piece
            parent[piece], neuron[piece] = 0, owner
        else:
            for at in range(stop):
                grid[queue[at] // (height * width), queue[at] // width % height, queue[at] % width] = -1
    for seed in range(grid.size):
        i, j, k = seed // (height * width), seed // width % height, seed % width
        if grid[i, j, k] == -1:
            grid[i, j, k] = 0
    return owner


@compiled(None)
def rooms(grid, neuron, nodes, most):
    """For each node the radius in grid voxels of the largest ball around it within its neuron, at most `most`."""
    result = np.zeros(len(nodes))
    depth, height, width = grid.shape
    for n in range(len(nodes)):
        i, j, k = int(nodes[n, 0] + 0.5), int(nodes[n, 1] + 0.5), int(nodes[n, 2] + 0.5)
        if not (0 <= i < depth and 0 <= j < height and 0 <= k < width):
            continue
        own = neuron[grid[i, j, k]]
        nearest = most * most
        reach = int(most)
        shell = 1
        while shell <= reach and shell * shell <= nearest:  # cubes of growing size: most nodes need only small ones
            for a in range(max(0, i - shell), min(depth, i + shell + 1)):
                for b in range(max(0, j - shell), min(height, j + shell + 1)):
                    inner = abs(a - i) < shell and abs(b - j) < shell
                    for c in range(max(0, k - shell), min(width, k + shell + 1)):
                        if inner and abs(c - k) < shell:
                            continue
                        away = (a - i) ** 2 + (b - j) ** 2 + (c - k) ** 2
                        if away < nearest and neuron[grid[a, b, c]] != own:
                            nearest = away
            shell += 1
        result[n] = np.sqrt(nearest) - 0.5
    return result


def grow(extent_nm: tuple, neurites: int, somata: int, rng: np.random.Generator) -> Growth:
    """Tissue that fills a box of extent_nm (z, y, x) with `neurites` trees of tubes and `somata` cell bodies."""
    size = tuple(int(np.ceil(length / GRID_NM)) + 2 * PAD for length in extent_nm)
    grid = np.zeros(size, np.int32)
    capacity = grid.size // 30 + 5000
    nodes, node_piece = np.zeros((capacity, 4), np.float32), np.zeros(capacity, np.int32)
    parent, neuron = np.zeros(capacity, np.int32), np.zeros(capacity, np.int32)
    counts = np.zeros(2, np.int64)
    state = (grid, parent, neuron, nodes, node_piece, counts, rng)
    owner, bodies = 0, []

    for _ in range(somata):  # centred near a face: whole cell bodies are larger than most volumes
        radius = float(min(rng.uniform(45, 70), 0.42 * min(size)))
        centre = rng.uniform(0, 1, 3) * size
        axis = rng.integers(3)
        centre[axis] = rng.choice([0.1, 0.9]) * size[axis]
        owner += 1
        counts[1] += 1
        piece = int(counts[1])
        neuron[piece] = owner
        if not _free(grid, *centre, radius + CLEARANCE, piece, parent):
            counts[1] -= 1
            owner -= 1
            continue
        _paint(grid, *centre, radius, 0, piece)
        bodies.append((*centre, radius))
        for _ in range(4):
            way = rng.standard_normal(3)
            way /= np.linalg.norm(way)
            shape = np.array([radius * 0.25, 0.08, 1.0, 400.0, 1.0])
            first = int(counts[0])
            _walk(*state, centre + way * radius * 0.85, way, piece, owner, shape)
            if counts[0] > first:
                _branches(*state, first, owner, 25.0, 0.8, shape)

    grains = np.stack([way / np.linalg.norm(way) for way in rng.standard_normal((3, 3))])
    misses = 0
    while neurites > 0 and misses < 200:
        share = rng.random()
        grain = grains[rng.integers(3)] if rng.random() < 0.6 else np.zeros(3)
        if share < 0.03:  # dendrites: thick, straight, spiny
            shape, every, twig = np.array([rng.uniform(8, 15), 0.06, 1.0, 1e9, 1.0]), 22.0, 0.85
        elif share < 0.5:  # axons: with boutons
            radius, bouton = rng.lognormal(np.log(3.6), 0.3), rng.uniform(1.5, 2.6)
            shape, every, twig = np.array([radius, 0.12, bouton, 1e9, 1.0]), 70.0, 0.5
        else:  # thin processes between the others
            shape, every, twig = np.array([rng.uniform(THINNEST, 3.0), 0.2, 1.5, 1e9, 1.0]), 50.0, 0.3
        if _neurite(*state, owner + 1, shape, grain, every, twig):
            owner += 1
            neurites -= 1
            misses = 0
        else:
            misses += 1

    _spread(grid, grid.size // 16)
    _pockets(grid, parent, neuron, counts, owner, 300)
    _spread(grid, 0)
    used, pieces = int(counts[0]), int(counts[1]) + 1
    return Growth(grid, parent[:pieces].copy(), neuron[:pieces].copy(), nodes[:used].copy(), node_piece[:used].copy(),
                  np.array(bodies, np.float32).reshape(-1, 4))
