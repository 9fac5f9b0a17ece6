"""Steepest-ascent watershed, slowly: sets of edges in plain Python, and the plateau rule of waterz literally."""

from collections import deque

import numpy as np

STEPS = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]  # the bit order of waterz


def _edges(affs, mask):
    """{voxel: {step number: affinity}} of the edges inside the volume and the mask, and all voxels in raster order."""
    voxels = [tuple(v) for v in np.ndindex(affs.shape[1:])]
    edges = {v: {} for v in voxels}
    for v in voxels:
        for axis in range(3):
            u = tuple(v[i] + STEPS[axis][i] for i in range(3))
            if u in edges and (mask is None or (mask[v] and mask[u])):
                edges[v][axis] = edges[u][axis + 3] = float(affs[(axis, *v)])
    return voxels, edges


def _marks(affs, low, high, mask):
    voxels, edges = _edges(affs, mask)
    marks = {}
    for v in voxels:
        largest = max(edges[v].values(), default=low)
        marks[v] = {d for d, a in edges[v].items() if a == largest or a >= high} if largest > low else set()
    return voxels, marks


def _target(v, step):
    return tuple(v[i] + STEPS[step][i] for i in range(3))


def _number(voxels, links, foreground, shape):
    """Components of an undirected graph, numbered in raster order of their first voxels; 0 outside foreground."""
    labels, count = np.zeros(shape, np.int64), 0
    for start in voxels:
        if start not in foreground or labels[start]:
            continue
        count += 1
        labels[start], stack = count, [start]
        while stack:
            for u in links[stack.pop()]:
                if not labels[u]:
                    labels[u] = count
                    stack.append(u)
    return labels


def _components(voxels, pairs, foreground, shape):
    links = {v: set() for v in voxels}
    for v, u in pairs:
        links[v].add(u)
        links[u].add(v)
    return _number(voxels, links, foreground, shape)


def canonical_watershed(affs, low, high, mask=None):
    """Plateaus of mutual edges; each that has exits is joined with the other end of the first of them."""
    voxels, marks = _marks(affs, low, high, mask)
    foreground = {v for v in voxels if marks[v]}
    mutual, exits = [], []
    for v in voxels:
        for d in marks[v]:
            (mutual if (d + 3) % 6 in marks[_target(v, d)] else exits).append((v, d))
    pairs = [(v, _target(v, d)) for v, d in mutual]
    plateau = _components(voxels, pairs, foreground, affs.shape[1:])
    chosen = {}
    for v, d in exits:
        key = (max(v, _target(v, d)), d % 3)  # the later voxel in raster order, then z, y, x
        chosen[plateau[v]] = min(chosen.get(plateau[v], (key, v, d)), (key, v, d))
    pairs += [(v, _target(v, d)) for _, v, d in chosen.values()]
    return _components(voxels, pairs, foreground, affs.shape[1:])


def waterz_watershed(affs, low, high, mask=None):
    """As pytc.md 8.1(a) tells it: corners queued in raster order, breadth first, the last direction wins."""
    voxels, marks = _marks(affs, low, high, mask)
    foreground = {v for v in voxels if marks[v]}
    queue = deque(v for v in voxels if any((d + 3) % 6 not in marks[_target(v, d)] for d in marks[v]))
    queued = set(queue)
    while queue:
        v = queue.popleft()
        kept = None
        for d in sorted(marks[v]):
            u = _target(v, d)
            if (d + 3) % 6 not in marks[u]:
                kept = d
            elif u not in queued:
                queued.add(u)
                queue.append(u)
        marks[v] = {kept} if kept is not None else set()
    pairs = [(v, _target(v, d)) for v in voxels for d in marks[v]]
    return _components(voxels, pairs, foreground, affs.shape[1:])
