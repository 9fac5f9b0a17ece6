"""How many voxels each pair of a true id and a label shares, by runs of voxels that repeat a pair."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

import numpy as np

ctypedef fused truth_t:
    uint32_t
    uint64_t

ctypedef fused label_t:
    uint32_t
    uint64_t

cdef enum:
    PIECE = 1 << 14  # voxels whose runs are found before they are counted

cdef struct Pair:
    uint64_t truth, label, count  # count 0 marks a free place


cdef inline uint64_t place_of(const Pair* table, uint64_t last, uint64_t truth, uint64_t label) noexcept nogil:
    """Where the pair is or belongs: at its home or behind it, with no free place between; last: a low mask of ones.

    Four labels that follow each other start in one group of places: neighbours in space mostly are neighbours in
    number, so a large table misses the processor's cache less often.
    """
    cdef uint64_t mixed = (truth * <uint64_t>0x9E3779B97F4A7C15) ^ ((label >> 2) + <uint64_t>0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> 32)) * <uint64_t>0xBF58476D1CE4E5B9
    mixed ^= mixed >> 29
    cdef uint64_t place = ((mixed << 2) | (label & 3)) & last
    while table[place].count and (table[place].truth != truth or table[place].label != label):
        place = (place + 1) & last
    return place


cdef int double_places(vector[Pair]& table) except -1 nogil:
    cdef vector[Pair] before
    cdef Pair pair
    cdef uint64_t last = 2 * table.size() - 1
    before.swap(table)
    table.resize(last + 1)
    for pair in before:
        if pair.count:
            table[place_of(table.data(), last, pair.truth, pair.label)] = pair
    return 0


cdef class Pairs:
    """A table of pairs that grows: at most half of its places are taken."""

    cdef vector[Pair] table
    cdef uint64_t used

    def __cinit__(self):
        self.table.resize(1024)

    def add(self, const truth_t[::1] truth, const label_t[::1] labels):
        """Counts these voxels. Neighbours along x mostly repeat a pair, so runs are counted, not voxels.

        First the starts of all runs are found without a branch, then they are looked up: a processor that guesses the
        length of each run is wrong once a run, and throws away the look-ups that it has begun.
        """
        cdef int64_t piece, begin, voxel, runs, run, size, first, count = truth.shape[0]
        cdef int64_t starts[PIECE + 1]
        cdef const truth_t* a
        cdef const label_t* b
        cdef Pair* pair
        cdef uint64_t last
        if labels.shape[0] != count:
            raise ValueError("one label for each voxel of the truth")
        with nogil:
            last = self.table.size() - 1
            for piece in range((count + PIECE - 1) // PIECE):
                begin = piece * PIECE
                a, b, size = &truth[begin], &labels[begin], min(<int64_t>PIECE, count - begin)
                starts[0], runs = 0, 1
                for voxel in range(1, size):
                    starts[runs] = voxel
                    runs += (a[voxel] != a[voxel - 1]) | (b[voxel] != b[voxel - 1])
                starts[runs] = size
                for run in range(runs):
                    first = starts[run]
                    pair = &self.table[place_of(self.table.data(), last, a[first], b[first])]
                    if pair.count == 0:
                        if 2 * (self.used + 1) > self.table.size():
                            double_places(self.table)
                            last = self.table.size() - 1
                            pair = &self.table[place_of(self.table.data(), last, a[first], b[first])]
                        self.used += 1
                        pair.truth, pair.label = a[first], b[first]
                    pair.count += starts[run + 1] - first

    def rows(self):
        """(truth, label, count) of each pair, in any order."""
        found = np.empty((self.used, 3), np.uint64)
        cdef uint64_t[:, ::1] out = found
        cdef int64_t at = 0
        cdef Pair pair
        for pair in self.table:
            if pair.count:
                out[at, 0], out[at, 1], out[at, 2] = pair.truth, pair.label, pair.count
                at += 1
        return found
