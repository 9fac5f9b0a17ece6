"""What surface lies between the eight voxels of a cell, for each of the 256 ways in which an object can fill them.

A cell is the cube between the centres of 2 x 2 x 2 voxels. The surface crosses each of its edges that lead from a voxel
of the object to another one. On a side of the cell whose voxels of the object touch at a corner only, the surface keeps
them apart, so two cells always agree about their common side, and voxels hang together through their faces alone. The
crossings form closed loops. A loop becomes triangles without a chord within a side of the cell, as the next cell could
draw the same one; so each edge of a triangle belongs to two of them.
"""

from functools import cache
from itertools import product
from math import hypot, inf

import numpy as np

# corner k of a cell lies at (z, y, x) = bits 4, 2, 1 of k; an edge is its first corner and its axis
CORNERS = list(product((0, 1), repeat=3))
EDGES = [(corner, axis) for axis in range(3) for corner in range(8) if not corner >> (2 - axis) & 1]
MOST_TRIANGLES = 5  # No cell has more.


@cache
def marching_table() -> np.ndarray:
    """(256, 29) uint8: numbers of edges and triangles, the edges (12), the triangles as places among them (5 x 3)."""
    table = np.zeros((256, 2 + len(EDGES) + 3 * MOST_TRIANGLES), np.uint8)
    for mask in range(256):
        loops = loops_of(mask)
        edges = [edge for loop in loops for edge in loop]
        triangles = [edges.index(edge) for loop in loops for triangle in triangulated(loop) for edge in triangle]
        table[mask, :2] = len(edges), len(triangles) // 3
        table[mask, 2 : 2 + len(edges)] = edges
        table[mask, 2 + len(EDGES) : 2 + len(EDGES) + len(triangles)] = triangles
    return table


def loops_of(mask: int) -> list[list[int]]:
    """The loops of the crossings of a cell, each turning to the left as seen from outside of the object in x, y, z."""
    follows = dict(segment for axis in range(3) for side in (0, 1) for segment in segments(mask, axis, side))
    loops = []
    while follows:
        loop = [min(follows)]
        while (edge := follows.pop(loop[-1])) != loop[0]:
            loop.append(edge)
        loops.append(loop)
    return loops


def segments(mask: int, axis: int, side: int) -> list[tuple[int, int]]:
    """The lines of the surface on one side of the cell, as pairs of edges."""
    others = [other for other in range(3) if other != axis]
    ring = [corner_at({axis: side, others[0]: a, others[1]: b}) for a, b in ((0, 0), (0, 1), (1, 1), (1, 0))]
    if (side == 1) != (axis == 1):
        ring.reverse()
    inside = [bool(mask >> corner & 1) for corner in ring]
    found = []
    for first in range(4):  # a run of corners inside: the line leads from the edge where it ends to where it begins
        if inside[first] and not inside[first - 1]:
            last = first
            while inside[(last + 1) % 4]:
                last += 1
            found.append((edge_between(ring[last % 4], ring[(last + 1) % 4]),
                          edge_between(ring[first - 1], ring[first])))
    return found


def corner_at(place: dict[int, int]) -> int:
    return 4 * place[0] + 2 * place[1] + place[2]


def edge_between(one: int, other: int) -> int:
    return EDGES.index((min(one, other), {4: 0, 2: 1, 1: 2}[one ^ other]))


def middle(edge: int) -> tuple[float, ...]:
    corner, axis = EDGES[edge]
    return tuple(at + 0.5 * (other == axis) for other, at in enumerate(CORNERS[corner]))


def share_side(one: int, other: int) -> bool:
    """Whether two edges lie on a common side of the cell."""
    ends = [middle(edge) for edge in (one, other)]
    return any(ends[0][axis] == ends[1][axis] != 0.5 for axis in range(3))


def triangulated(loop: list[int]) -> list[tuple[int, int, int]]:
    """The triangles of least area in all that fill a loop, none with a chord within a side of the cell."""
    points = [middle(edge) for edge in loop]

    def area(*places: int) -> float:
        a, b, c = (points[place] for place in places)
        (p, q, r), (u, v, w) = ([end - start for start, end in zip(a, other)] for other in (b, c))
        return hypot(q * w - r * v, r * u - p * w, p * v - q * u) / 2

    @cache
    def best(first: int, last: int) -> tuple[float, tuple]:
        """Measures the polygon from one place of the loop to another one, closed by a chord."""
        chord = last - first > 1 and (first, last) != (0, len(loop) - 1)
        if chord and share_side(loop[first], loop[last]):
            return inf, ()
        if last - first < 2:
            return 0.0, ()
        found = []
        for apex in range(first + 1, last):
            before, behind = best(first, apex), best(apex, last)
            found.append((round(before[0] + behind[0] + area(first, apex, last), 9),
                          (*before[1], *behind[1], (loop[first], loop[apex], loop[last]))))
        return min(found)

    cost, triangles = best(0, len(loop) - 1)
    if cost == inf:
        raise AssertionError(f"the loop {loop} needs a chord within a side of its cell")
    return list(triangles)
