"""Seeds for the watershed of one section: extremal plateaus, shallow minima filled."""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint32_t
from libcpp.utility cimport pair
from libcpp.vector cimport vector

include "queue.pxi"


def label_maxima(const float[:, :] values, uint32_t[:, ::1] labels):
    """Fills labels with 1.. for the 4-connected plateaus that no neighbour overtops, in raster order; their number."""
    cdef int64_t ny = values.shape[0], nx = values.shape[1], y, x, b, c, first
    cdef int way
    cdef size_t i
    cdef uint32_t count = 0
    cdef bint highest
    cdef vector[int64_t] plateau
    cdef vector[char] seen
    with nogil:
        seen.resize(ny * nx, 0)
        for first in range(ny * nx):
            if seen[first]:
                continue
            plateau.clear()
            plateau.push_back(first)
            seen[first] = 1
            highest = True
            i = 0
            while i < plateau.size():
                y = plateau[i] // nx
                x = plateau[i] % nx
                i += 1
                for way in range(4):
                    b = y - (way == 0) + (way == 3)
                    c = x - (way == 1) + (way == 2)
                    if b < 0 or b >= ny or c < 0 or c >= nx:
                        continue
                    if values[b, c] > values[y, x]:
                        highest = False
                    elif values[b, c] == values[y, x] and not seen[b * nx + c]:
                        seen[b * nx + c] = 1
                        plateau.push_back(b * nx + c)
            count += highest
            for i in range(plateau.size()):
                labels[plateau[i] // nx, plateau[i] % nx] = count if highest else 0
    return count


def fill_shallow(const float[:, :] height, float depth, float[:, ::1] out):
    """Fills out with height where every minimum is filled up by depth, or to where it spills over if that is less.

    out is the lowest of max(height on the way, height at its start + depth) over all ways to a pixel.
    """
    cdef int64_t ny = height.shape[0], nx = height.shape[1], y, x, b, c
    cdef int way
    cdef float level, candidate
    cdef pair[float, int64_t] entry
    cdef priority_queue[pair[float, int64_t]] queue  # largest first: holds -level
    cdef bint lowest
    with nogil:
        for y in range(ny):
            for x in range(nx):
                # a way that begins higher than a neighbour would do better to begin there
                lowest = ((y == 0 or height[y - 1, x] >= height[y, x]) and (x == 0 or height[y, x - 1] >= height[y, x])
                          and (x == nx - 1 or height[y, x + 1] >= height[y, x])
                          and (y == ny - 1 or height[y + 1, x] >= height[y, x]))
                out[y, x] = INFINITY
                if lowest:
                    out[y, x] = height[y, x] + depth
                    queue.push(pair[float, int64_t](-out[y, x], y * nx + x))
        while not queue.empty():
            entry = queue.top()
            queue.pop()
            y = entry.second // nx
            x = entry.second % nx
            level = -entry.first
            if level > out[y, x]:
                continue
            for way in range(4):
                b = y - (way == 0) + (way == 3)
                c = x - (way == 1) + (way == 2)
                if b >= 0 and b < ny and c >= 0 and c < nx:
                    candidate = max(level, height[b, c])
                    if candidate < out[b, c]:
                        out[b, c] = candidate
                        queue.push(pair[float, int64_t](-candidate, b * nx + c))
