# Greedy agglomeration of a region graph in rank order: smallest score first, smallest key among equals.
#
# An edge waits in the bucket of a score it had once. Scores are reducible (a pooled edge is never better than the
# better of its parts), so that place is never too late: an edge is rescored when its bucket comes up, and moves on if
# it got worse.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset
from libcpp.algorithm cimport sort
from libcpp.vector cimport vector

import numpy

cdef enum:
    BUCKETS = 1 << 12
    AHEAD = 4  # edges between the steps in which memory is asked for

cdef enum Kind:
    MEAN, MAX, MIN, QUANTILE

cdef int64_t SCALE = 1 << 24  # units of a sum, as in region_graph.pyx; differences of sums are taken before rounding

include "prefetch.pxi"
include "queue.pxi"
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


include "clusters.pxi"


cdef inline int64_t bucket_of(double score) noexcept nogil:
    return min(<int64_t>(score * BUCKETS), <int64_t>BUCKETS - 1)


cdef class Queue:
    """Edges that wait in one thread, and the merges it has made.

    A confined queue leaves frozen clusters alone, and freezes what they are the best partner of: all it merges, it may
    merge before the rest of the graph is looked at, and the queue that comes after it goes on where it stopped.
    """

    cdef Clusters clusters
    cdef vector[uint32_t] order  # edges by the bucket of their first score, which begins at starts
    cdef vector[int64_t] starts
    cdef vector[uint32_t] buckets  # edges that moved on to a bucket, linked by next
    cdef vector[Rank] ready  # of the current bucket, best last
    cdef priority_queue[Rank] late  # what came into the current bucket after it was sorted
    cdef vector[uint32_t] merges  # numbers of edges, which keep their last statistic and key
    cdef int64_t current
    cdef bint confined

    def __cinit__(self, Clusters clusters, bint confined):
        self.clusters = clusters
        self.confined = confined
        self.buckets.resize(BUCKETS, NONE)
        self.current = -1

    cdef int sort_edges(self, double threshold, Py_ssize_t first, Py_ssize_t last, int64_t end) except -1 nogil:
        """Fills order with the live edges below the threshold among [first, last) whose upper end lies before `end`."""
        cdef Py_ssize_t i, bucket
        cdef const Edge* edge
        cdef vector[uint16_t] bucket_plus_one  # 0 for edges that stay out
        bucket_plus_one.resize(last - first)
        self.starts.clear()
        self.starts.resize(BUCKETS + 2, 0)
        for i in range(first, last):
            edge = &self.clusters.edges[i]
            if edge.a != edge.b and edge.b < end and self.clusters.score(edge) < threshold:
                bucket = bucket_of(self.clusters.score(edge))
                bucket_plus_one[i - first] = <uint16_t>(bucket + 1)
                self.starts[bucket + 2] += 1
        for bucket in range(BUCKETS):
            self.starts[bucket + 2] += self.starts[bucket + 1]
        self.order.resize(self.starts[BUCKETS + 1])
        for i in range(first, last):
            bucket = bucket_plus_one[i - first]
            if bucket:
                self.order[self.starts[bucket]] = <uint32_t>i
                self.starts[bucket] += 1
        return 0

    cdef int enqueue(self, uint32_t number, double score) except -1 nogil:
        cdef Edge* edge = &self.clusters.edges[number]
        cdef int64_t bucket = bucket_of(score)
        if bucket > self.current:
            edge.next = self.buckets[bucket]
            self.buckets[bucket] = number
        else:
            self.late.push(Rank(score, edge.key, number))
        return 0

    cdef int make_ready(self, uint32_t number) except -1 nogil:
        """Puts an edge of the current bucket in line, if its score is still in there."""
        cdef Edge* edge = &self.clusters.edges[number]
        cdef double score
        if edge.a == edge.b:
            return 0
        score = self.clusters.score(edge)
        if bucket_of(score) > self.current:
            self.enqueue(number, score)
        else:
            self.ready.push_back(Rank(score, edge.key, number))
        return 0

    cdef int open_bucket(self) except -1 nogil:
        cdef int64_t i, end = self.starts[self.current + 1]
        cdef uint32_t number = self.buckets[self.current], following
        for i in range(self.starts[self.current], end):
            if i + 4 * AHEAD < end:
                prefetch(&self.clusters.edges[self.order[i + 4 * AHEAD]])
            self.make_ready(self.order[i])
        while number != NONE:
            following = self.clusters.edges[number].next
            self.make_ready(number)
            number = following
        sort(self.ready.begin(), self.ready.end())
        return 0

    cdef inline const Edge* ahead(self, size_t far) noexcept nogil:
        return &self.clusters.edges[self.ready[self.ready.size() - far].edge]

    cdef void look_ahead(self) noexcept nogil:
        """Asks for the memory of the edges next in line: their ends, then the lists of these, then what these name."""
        cdef Node* nodes = self.clusters.nodes
        cdef const Edge* edge
        cdef const Node* node
        cdef uint32_t i
        if self.ready.size() < 4 * AHEAD:
            return
        edge = self.ahead(4 * AHEAD)
        prefetch(&nodes[edge.a])
        prefetch(&nodes[edge.b])
        edge = self.ahead(3 * AHEAD)
        prefetch(nodes[edge.a].neighbours)
        prefetch(nodes[edge.b].neighbours)
        node = self.clusters.smaller_end(self.ahead(2 * AHEAD))
        if not node.table:
            for i in range(node.size):
                prefetch(&nodes[node.neighbours[i].node])
                prefetch(&self.clusters.edges[node.neighbours[i].edge])
        node = self.clusters.smaller_end(self.ahead(AHEAD))
        if not node.table and not node.frozen:  # a frozen one may have neighbours that another thread is changing
            for i in range(node.size):
                prefetch(nodes[node.neighbours[i].node].neighbours)

    cdef int handle(self, Rank rank) except -1 nogil:
        """Merges across the best edge there is, or puts it back where its present score belongs."""
        cdef Edge* edge = &self.clusters.edges[rank.edge]
        cdef Node* a = &self.clusters.nodes[edge.a]
        cdef Node* b = &self.clusters.nodes[edge.b]
        cdef double score
        if a == b:
            return 0
        score = self.clusters.score(edge)
        if score != rank.score or edge.key != rank.key:
            self.enqueue(rank.edge, score)
        elif self.clusters.dead(edge):  # what it is pooled with is dead as well, so neither needs a place in line
            return 0
        elif self.confined and (a.frozen or b.frozen):
            a.frozen = b.frozen = True
        else:
            self.merges.push_back(rank.edge)
            self.clusters.merge(edge)
        return 0

    def run(self, double threshold, Py_ssize_t first, Py_ssize_t last, int64_t end):
        """Merges what lies below the threshold, starting from edges [first, last) with both ends before node `end`."""
        cdef Rank rank
        with nogil:
            self.sort_edges(threshold, first, last, end)
            while self.current < BUCKETS - 1:
                self.current += 1
                self.open_bucket()
                while self.ready.size() or self.late.size():
                    if not self.ready.size() or (self.late.size() and self.ready.back() < self.late.top()):
                        rank = self.late.top()
                        self.late.pop()
                    else:
                        self.look_ahead()
                        rank = self.ready.back()
                        self.ready.pop_back()
                    if rank.score >= threshold:
                        with gil:
                            return
                    self.handle(rank)

    @property
    def merge_count(self):
        return self.merges.size()


def in_order(Clusters clusters, list queues, uint32_t[::1] edges, double[::1] scores, uint64_t[::1] keys):
    """Writes the merges of all queues by rank: numbers of input edges that join the two clusters, scores and keys."""
    cdef vector[const uint32_t*] heads, ends
    cdef vector[Rank] ranks  # of the heads
    cdef Queue queue
    cdef Py_ssize_t i
    cdef size_t k, best
    for queue in queues:
        if queue.merges.size():
            heads.push_back(queue.merges.data())
            ends.push_back(queue.merges.data() + queue.merges.size())
            ranks.push_back(clusters.rank(heads.back()[0]))
    with nogil:
        for i in range(edges.shape[0]):
            best = heads.size()
            for k in range(heads.size()):
                if heads[k] != ends[k] and (best == heads.size() or ranks[best] < ranks[k]):
                    best = k
            edges[i] = clusters.edges[ranks[best].edge].top
            scores[i], keys[i] = ranks[best].score, ranks[best].key
            heads[best] += 1
            if heads[best] != ends[best]:
                ranks[best] = clusters.rank(heads[best][0])
