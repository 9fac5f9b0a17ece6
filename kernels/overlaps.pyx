"""How two label images overlap pixel by pixel, and which ids hang together through pairs."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

import numpy as np

include "forest.pxi"

ctypedef fused label_t:
    uint32_t
    uint64_t

cdef struct Cell:
    uint64_t first, second
    int64_t count
    int64_t total


cdef inline uint64_t mix(uint64_t first, uint64_t second) noexcept nogil:
    cdef uint64_t h = (first ^ (second * <uint64_t>0xD6E8FEB86659FD93)) * <uint64_t>0x9E3779B97F4A7C15
    return h ^ (h >> 32)


cdef int double_slots(vector[int64_t]& slots, vector[Cell]& cells) except -1 nogil:
    """Open addressing: a slot holds the index of a cell, -1 where free."""
    cdef int64_t i
    cdef uint64_t at
    cdef size_t size = slots.size() * 2
    slots.clear()
    slots.resize(size, -1)
    for i in range(<int64_t>cells.size()):
        at = mix(cells[i].first, cells[i].second) & (slots.size() - 1)
        while slots[at] >= 0:
            at = (at + 1) & (slots.size() - 1)
        slots[at] = i
    return 0


def scale_of(pixels):
    """How many units of a sum 1 has in images of so many pixels: the finest ones of which no sum can overflow."""
    return float(1 << (62 - int(pixels).bit_length()))


def overlaps(const label_t[:, :] first, const label_t[:, :] second, const float[:, :] values, int64_t pixels):
    """Every pair of labels that lie on each other, zeros too: (first, second, pixels, sum of values), sorted.

    values lie in 0..1 and add up as whole numbers, in the units of the whole image, which has `pixels` (scale_of): neither
    the order of pixels nor the parts of an image can be told from a sum, and values from 2**-14 on are exact in images
    of up to 16 million pixels.
    """
    cdef int64_t ny = first.shape[0], nx = first.shape[1], y, x, current = -1
    cdef double scale = scale_of(pixels)
    cdef bint weighted = values is not None
    cdef vector[Cell] cells
    cdef vector[int64_t] slots
    cdef Cell cell
    cdef uint64_t a, b, at
    with nogil:
        slots.resize(256, -1)
        for y in range(ny):
            for x in range(nx):
                a = first[y, x]
                b = second[y, x]
                if current < 0 or cells[current].first != a or cells[current].second != b:
                    at = mix(a, b) & (slots.size() - 1)
                    while slots[at] >= 0 and (cells[slots[at]].first != a or cells[slots[at]].second != b):
                        at = (at + 1) & (slots.size() - 1)
                    current = slots[at]
                    if current < 0:
                        current = cells.size()
                        slots[at] = current
                        cell.first, cell.second, cell.count, cell.total = a, b, 0, 0
                        cells.push_back(cell)
                        if cells.size() * 2 > slots.size():
                            double_slots(slots, cells)
                cells[current].count += 1
                if weighted:
                    cells[current].total += <int64_t>(values[y, x] * scale)
    counted = np.empty(cells.size(), [("first", "u8"), ("second", "u8"), ("pixels", "i8"), ("total", "i8")])
    cdef Cell[::1] out = counted
    for x in range(<int64_t>cells.size()):
        out[x] = cells[x]
    return counted[np.lexsort((counted["second"], counted["first"]))]


def unite(const int64_t[:, ::1] pairs, int64_t[::1] parent):
    """Joins the two indices of every pair; afterwards parent holds the smallest index of each one's group."""
    cdef int64_t i
    with nogil:
        for i in range(parent.shape[0]):
            parent[i] = i
        for i in range(pairs.shape[0]):
            join_trees(&parent[0], pairs[i, 0], pairs[i, 1])
        for i in range(parent.shape[0]):
            parent[i] = parent[parent[i]]
