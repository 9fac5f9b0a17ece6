"""Rows of edges that become one: rows order[starts[i]] to order[starts[i + 1] - 1], or to the last one, make pair i.

Of every column one pass: the rows of a pair are few, and most pairs have one.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.algorithm cimport sort
from libcpp.vector cimport vector

ctypedef fused value_t:
    uint8_t
    int64_t
    uint64_t
    float

cdef enum:
    ADD, LARGEST, SMALLEST


cdef inline Py_ssize_t end_of(const int64_t[::1]& starts, Py_ssize_t pair, Py_ssize_t rows) noexcept nogil:
    return starts[pair + 1] if pair + 1 < starts.shape[0] else rows


def pool_column(const value_t[::1] values, const int64_t[::1] order, const int64_t[::1] starts, value_t[::1] out,
                int how):
    """The sum (0), the largest (1) or the smallest (2) value of every pair."""
    cdef Py_ssize_t pair, row
    cdef value_t pooled, other
    with nogil:
        for pair in range(starts.shape[0]):
            pooled = values[order[starts[pair]]]
            for row in range(starts[pair] + 1, end_of(starts, pair, order.shape[0])):
                other = values[order[row]]
                if how == ADD:
                    pooled = pooled + other
                elif (other > pooled) == (how == LARGEST):
                    pooled = other
            out[pair] = pooled


def best_rows(const uint64_t[::1] keys, const int64_t[::1] order, const int64_t[::1] starts, int64_t[::1] rows):
    """The row of every pair that has the largest key, the first one of several."""
    cdef Py_ssize_t pair, row
    cdef int64_t best
    with nogil:
        for pair in range(starts.shape[0]):
            best = order[starts[pair]]
            for row in range(starts[pair] + 1, end_of(starts, pair, order.shape[0])):
                if keys[order[row]] > keys[best]:
                    best = order[row]
            rows[pair] = best


def pool_histograms(const int64_t[::1] bin_starts, const uint32_t[::1] bins, const int64_t[::1] counts,
                    const uint8_t[::1] base, const int64_t[::1] order, const int64_t[::1] starts,
                    int64_t[::1] out_starts, uint32_t[::1] out_bins, int64_t[::1] out_counts):
    """How many bins all pairs have: rising ones in each, whose counts add up.

    Of a pair whose first row is `base` (None: no pair's is) only the largest bin stays.
    """
    cdef Py_ssize_t pair, row, first, last, end, place, filled = 0
    cdef size_t i
    cdef vector[uint64_t] found  # bins with their place among those of the pair, from which the counts come
    cdef vector[int64_t] added
    with nogil:
        for pair in range(starts.shape[0]):
            out_starts[pair] = filled
            end = end_of(starts, pair, order.shape[0])
            found.clear()
            added.clear()
            for row in range(starts[pair], end):
                first, last = bin_starts[order[row]], bin_starts[order[row] + 1]
                for place in range(first, last):
                    found.push_back(<uint64_t>bins[place] << 32 | added.size())
                    added.push_back(counts[place])
            if end - starts[pair] > 1:
                sort(found.begin(), found.end())
            first = filled
            if base is not None and base[order[starts[pair]]] and found.size():
                out_bins[filled] = <uint32_t>(found.back() >> 32)
                out_counts[filled] = added[<uint32_t>found.back()]
                filled += 1
                continue
            for i in range(found.size()):
                if filled > first and out_bins[filled - 1] == <uint32_t>(found[i] >> 32):
                    out_counts[filled - 1] += added[<uint32_t>found[i]]
                else:
                    out_bins[filled] = <uint32_t>(found[i] >> 32)
                    out_counts[filled] = added[<uint32_t>found[i]]
                    filled += 1
        out_starts[starts.shape[0]] = filled
    return filled
