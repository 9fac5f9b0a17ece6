# Greedy agglomeration of a region graph in rank order: smallest score first, smallest key among equals.
#
# An edge waits in the bucket of a score it had once. Scores are reducible (a pooled edge is never better than the better of its
# parts), so that place is never too late: an edge is rescored when its bucket comes up, and moves on if it got worse.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset
from libcpp.algorithm cimport sort
from libcpp.queue cimport priority_queue
from libcpp.vector cimport vector

cdef enum:
    BUCKETS = 1 << 16

cdef enum Kind:
    MEAN, MAX, MIN, QUANTILE

cdef double SCALE = 16777216.0  # units of a sum, as in region_graph.pyx

include "histograms.pxi"
include "adjacency.pxi"

cdef extern from *:
    """
    #include <cstdint>
    struct Rank {
        double score; uint64_t key; uint32_t edge;
        Rank() {}
        Rank(double score, uint64_t key, uint32_t edge) : score(score), key(key), edge(edge) {}
        bool operator<(const Rank& o) const { return score != o.score ? score > o.score : key > o.key; }
    };
    """
    cdef cppclass Rank:  # the largest comes first
        double score
        uint64_t key
        uint32_t edge
        Rank() nogil
        Rank(double, uint64_t, uint32_t) nogil
        bint operator<(const Rank&)


cdef class Agglomeration:
    """The state of a run: clusters, live edges, the queue, and the merges so far (as numbers of input edges, with scores)."""

    cdef vector[Node] nodes
    cdef vector[Neighbour] block
    cdef vector[Edge] edges
    cdef vector[uint32_t] buckets
    cdef vector[Rank] ready  # the current bucket, best last
    cdef priority_queue[Rank] late  # what came into the current bucket after it was sorted
    cdef vector[uint32_t] merged
    cdef vector[double] scores
    cdef vector[double] levels  # QUANTILE: score of a level
    cdef int64_t quantile
    cdef Kind kind
    cdef int64_t current

    def __cinit__(self, str kind, Py_ssize_t nodes, const uint32_t[:] u, const uint32_t[:] v, const uint64_t[:] key):
        cdef Py_ssize_t i
        cdef size_t place = 0
        cdef Edge* edge
        self.kind = {"mean": MEAN, "max": MAX, "min": MIN, "quantile": QUANTILE}[kind]
        self.nodes.resize(nodes)
        self.edges.resize(u.shape[0])
        self.block.resize(2 * u.shape[0])
        self.buckets.assign(BUCKETS, NONE)
        with nogil:
            for i in range(u.shape[0]):
                edge = &self.edges[i]
                edge.a, edge.b, edge.key, edge.top, edge.count = u[i], v[i], key[i], <uint32_t>i, 1
                self.nodes[edge.a].room += 1
                self.nodes[edge.b].room += 1
            for i in range(nodes):
                self.nodes[i].neighbours = self.block.data() + place
                place += self.nodes[i].room
                self.nodes[i].room = min(self.nodes[i].room, <uint32_t>LIST)  # a hub turns into a table on the way
            for i in range(u.shape[0]):
                edge = &self.edges[i]
                insert(&self.nodes[edge.a], edge.b, <uint32_t>i)
                insert(&self.nodes[edge.b], edge.a, <uint32_t>i)

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.nodes.size()):
            if self.nodes[i].owned:
                free(self.nodes[i].neighbours)
        if self.kind == QUANTILE:
            for i in range(self.edges.size()):
                forget(&self.edges[i])

    def set_means(self, const int64_t[:] total, const int64_t[:] count):
        cdef Py_ssize_t i
        for i in range(total.shape[0]):
            self.edges[i].statistic.total = total[i]
            self.edges[i].count = count[i]

    def set_extremes(self, const float[:] affinity):
        cdef Py_ssize_t i
        for i in range(affinity.shape[0]):
            self.edges[i].statistic.score = 1.0 - affinity[i]

    def set_levels(self, int64_t quantile, const double[:] score_of_level, const uint32_t[:] level):
        """Every edge starts with one count at its level; levels rise with the affinity."""
        cdef Py_ssize_t i
        self.quantile = quantile
        for i in range(score_of_level.shape[0]):
            self.levels.push_back(score_of_level[i])
        for i in range(level.shape[0]):
            self.edges[i].statistic.level = 2 * <uint64_t>level[i] + 1

    def add_counts(self, const int64_t[:] starts, const uint32_t[:] level, const int64_t[:] counts):
        """Replaces what set_levels gave by whole histograms."""
        cdef Py_ssize_t i
        cdef int64_t j
        cdef Edge part
        for i in range(starts.shape[0] - 1):
            for j in range(starts[i], starts[i + 1]):
                part.count = counts[j]
                part.statistic.level = 2 * <uint64_t>level[j] + 1
                if j == starts[i]:
                    self.edges[i].count = part.count
                    self.edges[i].statistic = part.statistic
                else:
                    add_spread(&self.edges[i], &part)

    def freeze(self, const uint32_t[:] which):
        cdef Py_ssize_t i
        for i in range(which.shape[0]):
            self.nodes[which[i]].frozen = True

    cdef inline double score(self, const Edge* edge) noexcept nogil:
        cdef const Spread* spread
        cdef int64_t rank
        cdef uint32_t i = 0
        if self.kind == MEAN:
            return (edge.count * SCALE - edge.statistic.total) / (edge.count * SCALE)
        if self.kind != QUANTILE:
            return edge.statistic.score
        if edge.statistic.level & 1:
            return self.levels[edge.statistic.level >> 1]
        spread = edge.statistic.spread
        rank = min(self.quantile * edge.count // 100, edge.count - 1)
        while rank >= spread.bins[i].count:
            rank -= spread.bins[i].count
            i += 1
        return self.levels[spread.bins[i].level]

    cdef inline int pool(self, Edge* into, Edge* other) except -1 nogil:
        if self.kind == MEAN:
            into.statistic.total += other.statistic.total
            into.count += other.count
        elif self.kind == MAX:
            into.statistic.score = min(into.statistic.score, other.statistic.score)
        elif self.kind == MIN:
            into.statistic.score = max(into.statistic.score, other.statistic.score)
        else:
            add_spread(into, other)
            forget(other)
        if other.key > into.key:
            into.key, into.top = other.key, other.top
        other.b = other.a
        return 0

    cdef inline void enqueue(self, uint32_t number, double score) noexcept nogil:
        cdef int64_t bucket = min(<int64_t>(score * BUCKETS), <int64_t>BUCKETS - 1)
        if bucket > self.current:
            self.edges[number].next = self.buckets[bucket]
            self.buckets[bucket] = number
        else:
            self.late.push(Rank(score, self.edges[number].key, number))

    cdef int merge(self, uint32_t small, uint32_t large) except -1 nogil:
        cdef Node* from_ = &self.nodes[small]
        cdef Node* into = &self.nodes[large]
        cdef Node* third
        cdef Neighbour* own
        cdef Neighbour* shared
        cdef Neighbour moving
        cdef uint32_t i, slots = from_.room if from_.table else from_.size
        cdef Edge* edge
        remove(into, find(into, small))
        for i in range(slots):
            if from_.neighbours[i].node != NONE:
                EMCORE_PREFETCH(&self.nodes[from_.neighbours[i].node])
                EMCORE_PREFETCH(&self.edges[from_.neighbours[i].edge])
        for i in range(slots):
            moving = from_.neighbours[i]
            if moving.node == NONE or moving.node == large:
                continue
            third = &self.nodes[moving.node]
            own = find(third, small)
            shared = find(third, large)
            edge = &self.edges[moving.edge]
            if shared == NULL:
                if edge.a == small:
                    edge.a = large
                else:
                    edge.b = large
                if third.table:
                    remove(third, own)
                    insert(third, large, moving.edge)
                else:
                    own.node = large
                insert(into, moving.node, moving.edge)
            else:
                # the better of the two keeps its place in the queue, which is then early enough for both
                if self.score(edge) < self.score(&self.edges[shared.edge]):
                    self.pool(edge, &self.edges[shared.edge])
                    edge.a, edge.b = large, moving.node
                    shared.edge = moving.edge
                    find(into, moving.node).edge = moving.edge
                else:
                    self.pool(&self.edges[shared.edge], edge)
                remove(third, own)
        if from_.owned:
            free(from_.neighbours)
            from_.owned = False
        from_.size = from_.room = from_.table = 0
        return 0

    cdef int handle(self, Rank rank) except -1 nogil:
        """Merges across the best entry of the queue, or puts it back where its present score belongs."""
        cdef Edge* edge = &self.edges[rank.edge]
        cdef uint32_t a = edge.a, b = edge.b
        cdef double score
        if a == b:
            return 0
        score = self.score(edge)
        if score != rank.score or edge.key != rank.key:
            self.enqueue(rank.edge, score)
            return 0
        if self.nodes[a].frozen or self.nodes[b].frozen:
            self.nodes[a].frozen = self.nodes[b].frozen = True
            return 0
        self.merged.push_back(edge.top)
        self.scores.push_back(score)
        edge.b = a
        if self.nodes[a].size > self.nodes[b].size:
            self.merge(b, a)
        else:
            self.merge(a, b)
        return 0

    def run(self, double threshold):
        """Merges everything whose score is below the threshold."""
        cdef int64_t bucket
        cdef uint32_t number, following
        cdef size_t i
        cdef Rank rank
        cdef double score
        with nogil:
            self.current = -1
            for i in range(self.edges.size()):
                self.enqueue(<uint32_t>i, self.score(&self.edges[i]))
            for bucket in range(BUCKETS):
                self.current = bucket
                number = self.buckets[bucket]
                while number != NONE:
                    following = self.edges[number].next
                    if self.edges[number].a != self.edges[number].b:
                        score = self.score(&self.edges[number])
                        if <int64_t>(score * BUCKETS) > bucket and bucket < BUCKETS - 1:
                            self.enqueue(number, score)
                        else:
                            self.ready.push_back(Rank(score, self.edges[number].key, number))
                    number = following
                sort(self.ready.begin(), self.ready.end())
                while self.ready.size() or self.late.size():
                    if not self.ready.size() or (self.late.size() and self.ready.back() < self.late.top()):
                        rank = self.late.top()
                        self.late.pop()
                    else:
                        rank = self.ready.back()
                        self.ready.pop_back()
                    if rank.score >= threshold:
                        with gil:
                            return
                    self.handle(rank)

    def merges(self, uint32_t[::1] numbers, double[::1] scores):
        cdef size_t i
        for i in range(self.merged.size()):
            numbers[i] = self.merged[i]
            scores[i] = self.scores[i]

    @property
    def merge_count(self):
        return self.merged.size()

    def remaining(self, uint32_t[::1] numbers, double[::1] scores):
        """The number of edges between clusters, which are written as numbers of input edges with their present scores."""
        cdef size_t i
        cdef Py_ssize_t left = 0
        with nogil:
            for i in range(self.edges.size()):
                if self.edges[i].a != self.edges[i].b:
                    numbers[left], scores[left] = self.edges[i].top, self.score(&self.edges[i])
                    left += 1
        return left
