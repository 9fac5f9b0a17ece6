"""The surface of one object, vertex by vertex in dictionaries: a vertex is a voxel inside and one outside."""

import itertools

import numpy as np


def squares(shape):
    """Every square of four neighbouring voxels in and around a volume, as a ring."""
    for axis in range(3):
        a, b = (np.eye(3, dtype=int)[other] for other in range(3) if other != axis)
        for corner in itertools.product(*(range(-1, length + 1) for length in shape)):
            first = np.array(corner)
            ring = first, first + a, first + a + b, first + b
            yield axis, corner, [tuple(int(at) for at in voxel) for voxel in ring]


def segments_of(mask):
    """(axis, first corner of the square, vertex, vertex) of every line that the surface draws on a square.

    A line goes around each run of neighbouring corners that are inside, so corners that meet across are apart.
    """
    inside = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    for axis, corner, ring in squares(mask.shape):
        there = [voxel in inside for voxel in ring]
        for start in range(4):
            if there[start] and not there[start - 1]:
                end = start
                while there[(end + 1) % 4]:
                    end += 1
                yield axis, corner, (ring[start], ring[start - 1]), (ring[end % 4], ring[(end + 1) % 4])


def neighbours_of(segments):
    found = {}
    for _, _, one, other in segments:
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return found


def loops_of(segments):
    """The closed lines in every cell, as sets of vertices."""
    cells = {}
    for axis, corner, one, other in segments:
        for step in (0, -1):  # a square bounds the cell that begins there, and the one before
            cell = tuple(at + step * (k == axis) for k, at in enumerate(corner))
            cells.setdefault(cell, []).append((one, other))
    loops = []
    for lines in cells.values():
        while lines:
            loop = set(lines.pop())
            while joined := [line for line in lines if loop & set(line)]:
                for line in joined:
                    loop |= set(line)
                    lines.remove(line)
            loops.append(loop)
    return loops


def outwards(vertex):
    return np.subtract(vertex[1], vertex[0]).astype(float)


def place(vertex, ways):
    """Where a vertex lies, in voxels; the middle of voxel i lies at i + 0.5."""
    return np.array(vertex[0]) + 0.5 + (0.5 + ways[vertex]) * outwards(vertex)


def smooth(near, ways, share):
    """Each vertex goes a share of the way to the mean of its neighbours, measured along its line."""
    rest = dict.fromkeys(near, 0.0)
    return {vertex: way + share * (np.mean([
        (place(other, ways) - place(vertex, rest)) @ outwards(vertex) for other in near[vertex]]) - way)
        for vertex, way in ways.items()}


def part_of_cell(way, kinds, reach):
    """What a vertex lacks of its part of a cell, and what a step outwards adds; kinds of two neighbours, -1: convex."""
    half = {-1: 0.5 + way, 1: 0.5 - way}
    if kinds == (0, 0):
        return -way / 4, 1 / 4
    if sum(kinds) == 0:  # one convex, one concave
        return -way * reach / 2, reach / 2
    sign = 1 if sum(kinds) > 0 else -1
    if 0 in kinds:
        return -sign * (1 / 16 - half[sign] * reach / 8), reach / 4
    return -sign * (1 / 24 - half[sign] * reach / 18), reach / 6


def restore(near, ways, spread, least=0.5, farthest=0.45):
    rest = dict.fromkeys(near, 0.0)
    lacks, gains = {}, {}
    for vertex in near:
        lacks[vertex] = gains[vertex] = 0.0
        axes = {}
        for other in near[vertex]:
            before = place(other, rest) - place(vertex, rest)
            kind = round(2 * float(before @ outwards(vertex)))
            across = before - (before @ outwards(vertex)) * outwards(vertex)
            axis = int(np.argmax(np.abs(across)))
            axes.setdefault(axis, []).append((kind, abs((place(other, ways) - place(vertex, rest))[axis])))
        for (one, a), (other, b) in itertools.product(*axes.values()):
            lack, gain = part_of_cell(ways[vertex], (one, other), a * b)
            lacks[vertex] += lack
            gains[vertex] += gain
    for _ in range(spread):
        lacks = {vertex: (lacks[vertex] + sum(lacks[other] for other in near[vertex])) / 5 for vertex in near}
    return {vertex: min(farthest, max(-farthest, way + lacks[vertex] / max(least, gains[vertex])))
            for vertex, way in ways.items()}


def surface(mask):
    """(near: the four neighbours of each vertex, loops, ways: how far each vertex slides outwards)."""
    segments = list(segments_of(mask))
    near = neighbours_of(segments)
    ways = dict.fromkeys(near, 0.0)
    for _ in range(2):
        ways = smooth(near, ways, 0.5)
    for _ in range(2):
        ways = restore(near, ways, 2)
    return near, loops_of(segments), ways


def distances(points, vertices, faces):
    """The distance of every point from the nearest triangle, each held against all of them."""
    a, b, c = (vertices[faces[:, k]].astype(float) for k in range(3))
    nearest = np.full(len(points), np.inf)
    for number, point in enumerate(points.astype(float)):
        best = np.inf
        for p, q in ((a, b), (b, c), (c, a)):
            along = q - p
            t = np.clip(((point - p) * along).sum(1) / np.maximum((along**2).sum(1), 1e-30), 0, 1)
            best = min(best, np.linalg.norm(p + t[:, None] * along - point, axis=1).min())
        normal = np.cross(b - a, c - a)
        size = np.maximum(np.linalg.norm(normal, axis=1), 1e-30)
        over = np.ones(len(faces), bool)
        for p, q in ((a, b), (b, c), (c, a)):
            over &= (np.cross(q - p, point - p) * normal).sum(1) >= 0
        heights = np.abs(((point - a) * normal).sum(1) / size)
        nearest[number] = min(best, heights[over].min(initial=np.inf))
    return nearest
