# waterz step by step, ties and float32 rounding included, to compare with it: a binary heap on the score an edge had
# when it was pushed, every region's edges in the order they were attached, the larger id moving into the smaller.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.algorithm cimport lower_bound
from libcpp.map cimport map
from libcpp.vector cimport vector

include "queue.pxi"

ctypedef fused label_t:
    uint32_t
    uint64_t

ctypedef fused value_t:
    float
    uint8_t
    uint16_t

cdef enum Kind:
    MEAN, MAX, MIN, QUANTILE

cdef extern from *:
    """
    #include <cstdint>
    #include <map>
    struct Waiting {  // compared by the score alone: equals leave the heap as its algorithm happens to order them
        float score; uint32_t edge;
        Waiting(float score, uint32_t edge) : score(score), edge(edge) {}
        bool operator<(const Waiting& o) const { return score > o.score; }
    };
    static void emcore_add_count(std::map<uint32_t, int64_t>& histogram, uint32_t level, int64_t count) {
        histogram[level] += count;
    }
    """
    # the brackets of libcpp.map do not report a lack of memory
    void add_count "emcore_add_count"(map[uint32_t, int64_t]&, uint32_t, int64_t) except + nogil

    cdef cppclass Waiting:
        float score
        uint32_t edge
        Waiting(float, uint32_t) nogil


def running_means(const label_t[:, :, :] labels, const value_t[:, :, :, :] affs, const float[:] decode,
                  const int64_t[:, ::1] channels, const int64_t[::1] halo, const uint32_t[:] u, const uint32_t[:] v,
                  float[::1] means):
    """Writes every edge's mean as float32 updates in raster order give it, the channels of a voxel in turn.

    The edges are those that add_faces of region_graph.pyx found with the same channels and halo.
    """
    cdef vector[uint64_t] pairs
    cdef vector[int64_t] counts
    cdef Py_ssize_t z, y, x, z0, y0, x0, row, at, edge
    cdef label_t a, b
    cdef float value
    pairs.resize(u.shape[0])
    counts.resize(u.shape[0])
    with nogil:
        for edge in range(u.shape[0]):
            pairs[edge] = (<uint64_t>u[edge] << 32) | v[edge]
        for z in range(halo[0], labels.shape[0]):
            for y in range(halo[1], labels.shape[1]):
                for x in range(halo[2], labels.shape[2]):
                    for row in range(channels.shape[0]):
                        z0, y0, x0 = z - channels[row, 1], y - channels[row, 2], x - channels[row, 3]
                        if z0 < 0 or not 0 <= y0 < labels.shape[1] or not 0 <= x0 < labels.shape[2]:
                            continue
                        a, b = labels[z, y, x], labels[z0, y0, x0]
                        if a == b or a == 0 or b == 0:
                            continue
                        edge = lower_bound(pairs.begin(), pairs.end(),
                                           (<uint64_t>min(a, b) << 32) | <uint64_t>max(a, b)) - pairs.begin()
                        at = channels[row, 4]
                        if value_t is float:
                            value = affs[channels[row, 0], z0 if at else z, y0 if at else y, x0 if at else x]
                        else:
                            value = decode[affs[channels[row, 0], z0 if at else z, y0 if at else y, x0 if at else x]]
                        means[edge] = (value + means[edge] * <float>counts[edge]) / <float>(counts[edge] + 1)
                        counts[edge] += 1


cdef class Replay:
    """A run of waterz over one region graph."""

    cdef vector[vector[uint32_t]] incident  # of every region, in the order of attachment
    cdef vector[uint32_t] u, v
    cdef vector[int64_t] counts
    cdef vector[float] values  # mean, max or min
    cdef vector[map[uint32_t, int64_t]] histograms  # QUANTILE: counts by level
    cdef vector[float] levels  # QUANTILE: value of a level
    cdef vector[float] scores
    cdef vector[uint8_t] stale, deleted
    cdef priority_queue[Waiting] queue
    cdef vector[uint32_t] a, b  # merges: the region that stays, the one that moves in
    cdef vector[float] heights
    cdef float height  # the largest score that has been popped
    cdef bint begun
    cdef int64_t quantile
    cdef Kind kind

    def __cinit__(self, str kind, Py_ssize_t nodes, const uint32_t[:] u, const uint32_t[:] v):
        cdef Py_ssize_t i
        self.kind = {"mean": MEAN, "max": MAX, "min": MIN, "quantile": QUANTILE}[kind]
        self.incident.resize(nodes)
        for i in range(u.shape[0]):
            self.u.push_back(u[i])
            self.v.push_back(v[i])
            self.incident[u[i]].push_back(<uint32_t>i)
            self.incident[v[i]].push_back(<uint32_t>i)
        self.scores.resize(u.shape[0])
        self.stale.resize(u.shape[0])
        self.deleted.resize(u.shape[0])

    def set_values(self, const float[:] values, const int64_t[:] counts):
        cdef Py_ssize_t i
        for i in range(values.shape[0]):
            self.values.push_back(values[i])
            self.counts.push_back(counts[i])

    def set_levels(self, int64_t quantile, const float[:] value_of_level, const uint32_t[:] level):
        cdef Py_ssize_t i
        self.quantile = quantile
        self.counts.clear()
        self.counts.resize(level.shape[0], 1)
        self.histograms.resize(level.shape[0])
        for i in range(value_of_level.shape[0]):
            self.levels.push_back(value_of_level[i])
        for i in range(level.shape[0]):
            add_count(self.histograms[i], level[i], 1)

    cdef float score(self, uint32_t edge) noexcept nogil:
        cdef int64_t rank
        if self.kind != QUANTILE:
            return <float>(1.0 - self.values[edge])
        rank = min(self.quantile * self.counts[edge] // 100, self.counts[edge] - 1)
        for level in self.histograms[edge]:
            rank -= level.second
            if rank < 0:
                return <float>(1.0 - self.levels[level.first])
        return 1

    cdef int push(self, uint32_t edge) except -1 nogil:
        self.scores[edge] = self.score(edge)
        self.queue.push(Waiting(self.scores[edge], edge))
        return 0

    cdef int pool(self, uint32_t source, uint32_t into) except -1 nogil:
        """Adds one edge to another, which is stale unless its extremum stays."""
        cdef int64_t m = self.counts[source], n = self.counts[into]
        cdef float before = 0
        if self.kind == QUANTILE:
            for level in self.histograms[source]:
                add_count(self.histograms[into], level.first, level.second)
            self.histograms[source].clear()
            self.stale[into] = True
        else:
            before = self.values[into]
            if self.kind == MEAN:
                self.values[into] = (self.values[source] * <float>m + before * <float>n) / <float>(m + n)
            elif self.kind == MAX:
                self.values[into] = max(before, self.values[source])
            else:
                self.values[into] = min(before, self.values[source])
            self.stale[into] |= self.kind == MEAN or self.values[into] != before
        self.counts[into] = m + n
        self.deleted[source] = True
        return 0

    cdef uint32_t opposite(self, uint32_t edge, uint32_t node) noexcept nogil:
        return self.v[edge] if self.u[edge] == node else self.u[edge]

    cdef int detach(self, uint32_t node, uint32_t edge) except -1 nogil:
        """Takes an edge out of the list of a region, whose other edges keep their order."""
        cdef size_t i = 0, kept = 0
        for i in range(self.incident[node].size()):
            self.incident[node][kept] = self.incident[node][i]
            kept += self.incident[node][i] != edge
        self.incident[node].resize(kept)
        return 0

    cdef int attach(self, uint32_t edge, uint32_t node, uint32_t other) except -1 nogil:
        self.u[edge], self.v[edge] = min(node, other), max(node, other)
        self.incident[node].push_back(edge)
        return 0

    cdef int64_t between(self, uint32_t a, uint32_t b) noexcept nogil:
        """The edge of two regions, -1 where there is none."""
        cdef uint32_t node = a if self.incident[a].size() < self.incident[b].size() else b
        for edge in self.incident[node]:
            if self.opposite(edge, node) == (b if node == a else a):
                return edge
        return -1

    cdef int merge(self, uint32_t merging) except -1 nogil:
        cdef uint32_t a = self.u[merging], b = self.v[merging], neighbour, edge
        cdef int64_t shared
        cdef vector[uint32_t] moving
        moving.swap(self.incident[b])
        self.detach(a, merging)
        self.deleted[merging] = True
        for edge in moving:
            if edge == merging:
                continue
            neighbour = self.opposite(edge, b)
            shared = self.between(a, neighbour)
            if shared < 0:
                self.attach(edge, a, neighbour)
            elif self.scores[edge] > self.scores[shared]:
                self.pool(edge, <uint32_t>shared)
                self.detach(neighbour, edge)
            else:
                self.pool(<uint32_t>shared, edge)
                self.detach(a, <uint32_t>shared)
                self.detach(neighbour, <uint32_t>shared)
                self.attach(edge, a, neighbour)
        return 0

    def run(self, double threshold):
        """Merges as waterz does up to the threshold; the height of a merge is the largest score popped so far.

        Called again, it goes on where it stopped.
        """
        cdef size_t i
        cdef uint32_t edge
        cdef float limit = <float>threshold
        with nogil:
            if not self.begun:
                for i in range(self.scores.size()):
                    self.push(<uint32_t>i)
                self.begun = True
            while self.queue.size():
                edge = self.queue.top().edge
                if self.scores[edge] >= limit:
                    break
                self.queue.pop()
                self.height = max(self.height, self.scores[edge])
                if self.deleted[edge]:
                    continue
                if self.stale[edge]:
                    self.stale[edge] = False
                    self.push(edge)
                    continue
                self.heights.push_back(self.height)
                self.a.push_back(self.u[edge])
                self.b.push_back(self.v[edge])
                self.merge(edge)

    @property
    def merge_count(self):
        return self.heights.size()

    def merges(self, uint32_t[::1] a, uint32_t[::1] b, float[::1] heights):
        cdef size_t i
        for i in range(self.heights.size()):
            a[i], b[i], heights[i] = self.a[i], self.b[i], self.heights[i]

    def remaining(self, uint32_t[::1] u, uint32_t[::1] v, float[::1] scores):
        """The number of edges that are left, which are written with the scores they were last given."""
        cdef size_t i
        cdef Py_ssize_t left = 0
        for i in range(self.scores.size()):
            if not self.deleted[i]:
                u[left], v[left], scores[left] = self.u[i], self.v[i], self.scores[i]
                left += 1
        return left
