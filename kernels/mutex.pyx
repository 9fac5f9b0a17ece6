"""Mutex watershed of edges in order: which clusters join, and which must stay apart for good."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

cdef enum:
    MAGNITUDE = 0x7FFFFFFF  # a float32 without its sign: bits that order like the number
    DIGIT = 11
    NONE = 0xFFFFFFFF
    PATH = 0x80000000  # marks the second node of a row of WindowForest that is a path outside of the window

cdef struct Edge:
    uint32_t bits  # the float32 weight; the sign bit marks a repulsive edge
    uint32_t first
    uint32_t second

cdef struct Link:  # in a cluster's list of clusters to stay apart from; merges make entries stale, never wrong
    uint32_t other
    uint32_t next


# the two clusters of a pair that must stay apart, the larger number below the smaller one
ctypedef uint64_t Entry


cdef inline bint taken(Entry pair) noexcept nogil:
    return pair != 0


cdef inline bint same(Entry pair, Entry other) noexcept nogil:
    return pair == other


cdef inline uint64_t home(Entry pair) noexcept nogil:
    return mix(pair)


include "forest.pxi"
include "table.pxi"


cdef inline Entry pair(uint32_t u, uint32_t v) noexcept nogil:
    return (<uint64_t>u << 32 | v) if u < v else (<uint64_t>v << 32 | u)


cdef int sort(vector[Edge]& edges, uint32_t low, uint32_t high) except -1 nogil:
    """Stable radix sort, the largest |weight| first; all keys in low..high - 1."""
    cdef vector[Edge] other
    cdef vector[int64_t] place
    cdef int64_t i
    cdef int bit = 0
    cdef Edge edge
    other.resize(edges.size())
    while bit < 32 and (high - 1 - low) >> bit:
        place.clear()
        place.resize((1 << DIGIT) + 1, 0)
        for edge in edges:
            place[(((high - 1 - (edge.bits & MAGNITUDE)) >> bit) & ((1 << DIGIT) - 1)) + 1] += 1
        for i in range(1 << DIGIT):
            place[i + 1] += place[i]
        for edge in edges:
            i = ((high - 1 - (edge.bits & MAGNITUDE)) >> bit) & ((1 << DIGIT) - 1)
            other[place[i]] = edge
            place[i] += 1
        edges.swap(other)
        bit += DIGIT
    return 0


cdef int gather(vector[Edge]& edges, parts) except -1:
    """Takes the rows out of the parts, one part after the other."""
    cdef const uint32_t[:, ::1] part
    cdef const Edge* start
    edges.reserve(sum(map(len, parts)))
    while parts:
        part = parts.pop(0)
        if part.shape[0]:
            start = <const Edge*>&part[0, 0]
            edges.insert(edges.end(), start, start + part.shape[0])
    return 0


cdef class MutexForest:
    """Clusters of nodes, as a union-find forest in the caller's parent, and the pairs that must stay apart."""

    cdef uint32_t[::1] parent
    cdef vector[uint32_t] head, length
    cdef vector[Link] links
    cdef vector[Entry] pairs
    cdef uint64_t used

    def __init__(self, uint32_t[::1] parent):
        """parent points where edges grow along every path: only two nodes can point at each other."""
        cdef int64_t v
        self.parent = parent
        self.pairs.resize(1024)
        with nogil:
            for v in range(parent.shape[0]):
                if v < parent[v] and parent[parent[v]] == v:
                    parent[v] = <uint32_t>v
            self.head.resize(parent.shape[0], NONE)
            self.length.resize(parent.shape[0], 0)
            self.flatten()

    cdef void flatten(self) noexcept nogil:
        cdef int64_t v
        for v in range(self.parent.shape[0]):
            self.parent[v] = self.find(<uint32_t>v)

    cdef inline uint32_t find(self, uint32_t v) noexcept nogil:
        return root_of(&self.parent[0], v)

    cdef bint acts(self, uint32_t u, uint32_t v) noexcept nogil:
        """Whether an edge between two roots may still do something."""
        return not taken(self.place(u, v)[0])

    def live(self, uint32_t[:, ::1] edges):
        """Moves the edges between roots that may still do something to the front; their number."""
        cdef int64_t i, kept = 0
        with nogil:
            for i in range(edges.shape[0]):
                if self.acts(edges[i, 1], edges[i, 2]):
                    edges[kept, 0], edges[kept, 1], edges[kept, 2] = edges[i, 0], edges[i, 1], edges[i, 2]
                    kept += 1
        return kept

    def process(self, parts, uint32_t low, uint32_t high):
        """Runs through the edges (bits, node, node) of the parts, strongest first; ties in the order given."""
        cdef vector[Edge] edges
        cdef uint32_t u, v
        cdef Edge edge
        gather(edges, parts)
        with nogil:
            sort(edges, low, high)
            for edge in edges:
                u = self.find(edge.first)
                v = self.find(edge.second)
                if u == v:
                    continue
                if edge.bits > MAGNITUDE:
                    self.forbid(u, v)
                elif not self.place(u, v)[0]:
                    self.join(u, v)
            self.flatten()

    cdef inline int forbid(self, uint32_t u, uint32_t v) except -1 nogil:
        if self.hold_apart(u, v):
            self.note(u, v)
            self.note(v, u)
        return 0

    cdef inline int join(self, uint32_t u, uint32_t v) except -1 nogil:
        if self.length[u] < self.length[v]:
            u, v = v, u
        return self.merge(u, v)

    cdef inline Entry* place(self, uint32_t u, uint32_t v) noexcept nogil:
        return place_of(self.pairs.data(), self.pairs.size(), pair(u, v))

    cdef int hold_apart(self, uint32_t u, uint32_t v) except -1 nogil:
        """Whether the pair is new."""
        cdef Entry* place = self.place(u, v)
        if place[0]:
            return False
        place[0] = pair(u, v)
        self.used += 1
        if self.used * 8 > self.pairs.size() * 5:
            self.rehash()
        return True

    cdef int rehash(self) except -1 nogil:
        """Drops the pairs of clusters that were merged away, and doubles the table if that is not enough."""
        cdef uint64_t i, key, size = self.pairs.size()
        for i in range(size):
            key = self.pairs[i]
            if key and (self.parent[key >> 32] != key >> 32 or self.parent[<uint32_t>key] != <uint32_t>key):
                self.pairs[i] = 0
                self.used -= 1
        resize_table(self.pairs, 2 * size if 4 * self.used > size else size)
        return 0

    cdef int note(self, uint32_t u, uint32_t v) except -1 nogil:
        if self.links.size() == NONE:
            raise MemoryError("more than 2**32 pairs of clusters must stay apart; cut the volume into blocks")
        self.links.push_back(Link(v, self.head[u]))
        self.head[u] = <uint32_t>(self.links.size() - 1)
        self.length[u] += 1
        return 0

    cdef int merge(self, uint32_t keep, uint32_t gone) except -1 nogil:
        """Joins gone, the cluster with the shorter list, to keep."""
        cdef uint32_t at = self.head[gone], following, other
        self.parent[gone] = keep
        while at != NONE:
            other = self.find(self.links[at].other)
            following = self.links[at].next
            if self.hold_apart(keep, other):
                self.links[at] = Link(other, self.head[keep])
                self.head[keep] = at
                self.length[keep] += 1
            at = following
        return 0

    def labels(self, mask, uint32_t[::1] out):
        """Fills out with 1.. in the order of first nodes, 0 where mask (or None) is 0."""
        cdef int64_t v
        cdef uint32_t count = 0
        cdef const uint8_t[::1] inside = mask
        cdef bint masked = mask is not None
        with nogil:
            self.head.clear()
            self.head.resize(self.parent.shape[0], 0)
            for v in range(self.parent.shape[0]):
                if masked and not inside[v]:
                    out[v] = 0
                    continue
                if self.head[self.parent[v]] == 0:
                    count += 1
                    self.head[self.parent[v]] = count
                out[v] = self.head[self.parent[v]]


cdef class WindowForest(MutexForest):
    """What is certain of the clusters of a window, whatever lies outside of it.

    Some nodes are incomplete: they have edges that the window does not know. A cluster waits, and is frozen from then
    on, where its next edge is undecided. What may hang together by the edges so far is a group: of clusters in two
    groups it is certain that they are not one, so a repulsive edge holds them apart. A cluster that has not waited
    merges if nothing that it must stay apart from is in the group of the other one, as none of that can be there first.
    """

    cdef vector[uint32_t] groups  # a forest of their nodes
    cdef vector[uint8_t] frozen  # by root

    def __init__(self, uint32_t[::1] parent, const uint8_t[::1] incomplete):
        """parent: as for MutexForest, but incomplete nodes point at themselves."""
        cdef int64_t v
        MutexForest.__init__(self, parent)
        with nogil:
            self.frozen.resize(parent.shape[0], 0)
            self.groups.resize(parent.shape[0])
            for v in range(parent.shape[0]):
                self.groups[v] = parent[v]
                self.frozen[parent[v]] |= incomplete[v]

    cdef inline uint32_t group(self, uint32_t v) noexcept nogil:
        return root_of(self.groups.data(), v)

    cdef bint is_certain(self, uint32_t u, uint32_t group) noexcept nogil:
        """Whether nothing that u must stay apart from may be in a group."""
        cdef uint32_t at = self.head[u]
        while at != NONE and self.group(self.find(self.links[at].other)) != group:
            at = self.links[at].next
        return at == NONE

    cdef bint acts(self, uint32_t u, uint32_t v) noexcept nogil:
        return not (taken(self.place(u, v)[0]) or self.frozen[u] and self.frozen[v] and self.groups[u] == self.groups[v])

    def process(self, parts, uint32_t low, uint32_t high):
        """Runs through the edges (bits, node, node) of the parts, strongest first; ties in the order given.

        A row whose second node is marked by PATH says that two incomplete nodes may hang together outside.
        """
        cdef vector[Edge] edges
        cdef uint32_t u, v
        cdef int64_t i
        cdef Edge edge
        gather(edges, parts)
        with nogil:
            sort(edges, low, high)
            for edge in edges:
                u = self.find(edge.first)
                v = self.find(edge.second & ~<uint32_t>PATH)
                if edge.second & PATH:
                    join_trees(self.groups.data(), u, v)
                elif u == v:
                    continue
                elif edge.bits > MAGNITUDE:
                    if self.group(u) != self.group(v):
                        self.forbid(u, v)
                elif not self.place(u, v)[0]:
                    if self.frozen[u]:
                        u, v = v, u
                    if self.frozen[u] or self.frozen[v] and not self.is_certain(u, self.group(v)):
                        self.frozen[u] = self.frozen[v] = True
                    else:
                        self.frozen[u] = self.frozen[v]
                        self.join(u, v)
                    join_trees(self.groups.data(), u, v)
            self.flatten()
            for i in range(self.parent.shape[0]):
                self.groups[i] = self.group(<uint32_t>i)

    def held(self, const uint32_t[::1] u, const uint32_t[::1] v, uint8_t[::1] out):
        """Writes which pairs of clusters must stay apart."""
        cdef int64_t i
        with nogil:
            for i in range(u.shape[0]):
                out[i] = u[i] != v[i] and taken(self.place(u[i], v[i])[0])
