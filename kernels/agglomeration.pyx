# Greedy agglomeration of a region graph in rank order: smallest score first, smallest key among equals.
#
# An edge waits in the bucket of a score it had once. Scores are reducible (a pooled edge is never better than the better of its
# parts), so that place is never too late: an edge is rescored when its bucket comes up, and moves on if it got worse.
# The adjacency of a cluster is a short list, or above LIST entries a hash table; the smaller one moves into the larger.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset
from libcpp.algorithm cimport sort
from libcpp.queue cimport priority_queue
from libcpp.vector cimport vector

cdef enum:
    LIST = 24
    BUCKETS = 1 << 16

cdef enum Kind:
    MEAN, MAX, MIN, QUANTILE

cdef uint32_t NONE = 0xFFFFFFFFU
cdef double SCALE = 16777216.0  # units of a sum, as in region_graph.pyx

cdef struct Bin:
    uint32_t level
    uint32_t count

cdef struct Spread:  # the bins that are not empty, in rising order
    uint32_t used
    uint32_t room
    Bin* bins

cdef union Statistic:
    int64_t total  # MEAN
    double score  # MAX, MIN
    uint64_t level  # QUANTILE, all counts in one bin: level * 2 + 1
    Spread* spread  # QUANTILE otherwise

cdef struct Edge:
    uint32_t a  # clusters, by the number of the node that stores them; equal once the edge is gone
    uint32_t b
    uint64_t key
    int64_t count
    Statistic statistic
    uint32_t top  # the edge of the input that has the key
    uint32_t next  # the next one in the bucket

cdef struct Neighbour:
    uint32_t node
    uint32_t edge

cdef struct Node:
    Neighbour* neighbours
    uint32_t size
    uint32_t room  # of a list: places it has; of a table: slots, a power of two above LIST
    bint table
    bint frozen
    bint owned  # neighbours is ours to free, not a part of the common first block

cdef extern from *:
    """
    #include <cstdint>
    struct Rank {
        double score; uint64_t key; uint32_t edge;
        Rank() {}
        Rank(double score, uint64_t key, uint32_t edge) : score(score), key(key), edge(edge) {}
        bool operator<(const Rank& o) const { return score != o.score ? score > o.score : key > o.key; }
    };
    #if defined(__GNUC__)
    #define EMCORE_PREFETCH(p) __builtin_prefetch(p)
    #else
    #define EMCORE_PREFETCH(p) ((void)0)
    #endif
    """
    cdef cppclass Rank:  # the largest comes first
        double score
        uint64_t key
        uint32_t edge
        Rank() nogil
        Rank(double, uint64_t, uint32_t) nogil
        bint operator<(const Rank&)
    void EMCORE_PREFETCH(const void*) noexcept nogil


cdef inline uint64_t home(uint32_t node, uint32_t room) noexcept nogil:
    return ((node * 0x9E3779B97F4A7C15ULL) >> 32) & (room - 1)


cdef inline Neighbour* find(Node* node, uint32_t who) noexcept nogil:
    cdef uint64_t i
    if not node.table:
        for i in range(node.size):
            if node.neighbours[i].node == who:
                return &node.neighbours[i]
        return NULL
    i = home(who, node.room)
    while node.neighbours[i].node != who:
        if node.neighbours[i].node == NONE:
            return NULL
        i = (i + 1) & (node.room - 1)
    return &node.neighbours[i]


cdef inline void place(Node* node, Neighbour what) noexcept nogil:
    """Puts an entry into a table that has room."""
    cdef uint64_t i = home(what.node, node.room)
    while node.neighbours[i].node != NONE:
        i = (i + 1) & (node.room - 1)
    node.neighbours[i] = what


cdef int widen(Node* node) except -1 nogil:
    """Makes room for one more: a longer list up to LIST entries, above that a table at most half full."""
    cdef Node wider = node[0]
    cdef uint32_t i
    cdef uint32_t slots = node.room if node.table else node.size
    wider.owned = True
    wider.table = node.size >= LIST
    wider.room = LIST
    if wider.table:
        wider.room = 64
        while wider.room < 2 * (node.size + 1):
            wider.room *= 2
    wider.neighbours = <Neighbour*>malloc(wider.room * sizeof(Neighbour))
    if wider.neighbours == NULL:
        raise MemoryError
    if wider.table:
        memset(wider.neighbours, 0xFF, wider.room * sizeof(Neighbour))
    for i in range(slots):
        if not wider.table:
            wider.neighbours[i] = node.neighbours[i]
        elif node.neighbours[i].node != NONE:
            place(&wider, node.neighbours[i])
    if node.owned:
        free(node.neighbours)
    node[0] = wider
    return 0


cdef inline int insert(Node* node, uint32_t who, uint32_t edge) except -1 nogil:
    if (node.table and 2 * (node.size + 1) > node.room) or (not node.table and node.size == node.room):
        widen(node)
    if node.table:
        place(node, Neighbour(who, edge))
    else:
        node.neighbours[node.size] = Neighbour(who, edge)
    node.size += 1
    return 0


cdef inline void remove(Node* node, Neighbour* entry) noexcept nogil:
    cdef uint64_t hole, i, mask = node.room - 1
    node.size -= 1
    if not node.table:
        entry[0] = node.neighbours[node.size]
        return
    hole = entry - node.neighbours
    i = hole
    while True:  # close the gap, so that a search may stop at the first free slot
        i = (i + 1) & mask
        if node.neighbours[i].node == NONE:
            break
        if ((i - home(node.neighbours[i].node, node.room)) & mask) >= ((i - hole) & mask):
            node.neighbours[hole] = node.neighbours[i]
            hole = i
    node.neighbours[hole].node = NONE


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

    def __cinit__(self, str kind, Py_ssize_t nodes, const uint32_t[::1] u, const uint32_t[::1] v, const uint64_t[::1] key):
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
                self.forget(&self.edges[i])

    def set_means(self, const int64_t[::1] total, const int64_t[::1] count):
        cdef Py_ssize_t i
        for i in range(total.shape[0]):
            self.edges[i].statistic.total = total[i]
            self.edges[i].count = count[i]

    def set_extremes(self, const float[::1] affinity):
        cdef Py_ssize_t i
        for i in range(affinity.shape[0]):
            self.edges[i].statistic.score = 1.0 - affinity[i]

    def set_levels(self, int64_t quantile, const double[::1] score_of_level, const uint32_t[::1] level):
        """Every edge starts with one count at its level; levels rise with the affinity."""
        cdef Py_ssize_t i
        self.quantile = quantile
        for i in range(score_of_level.shape[0]):
            self.levels.push_back(score_of_level[i])
        for i in range(level.shape[0]):
            self.edges[i].statistic.level = 2 * <uint64_t>level[i] + 1

    def add_counts(self, const int64_t[::1] starts, const uint32_t[::1] level, const int64_t[::1] counts):
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
                    self.add_spread(&self.edges[i], &part)

    def freeze(self, const uint32_t[::1] which):
        cdef Py_ssize_t i
        for i in range(which.shape[0]):
            self.nodes[which[i]].frozen = True

    cdef void forget(self, Edge* edge) noexcept nogil:
        if not edge.statistic.level & 1 and edge.statistic.spread != NULL:
            free(edge.statistic.spread.bins)
            free(edge.statistic.spread)
            edge.statistic.spread = NULL

    cdef int add_spread(self, Edge* into, const Edge* other) except -1 nogil:
        """Adds the counts of a histogram to another, which is made when two levels meet for the first time."""
        cdef Bin own, theirs
        cdef const Bin* more
        cdef Spread* spread
        cdef int64_t i, j, k, extra = 0, used
        into.count += other.count
        if into.statistic.level & 1:
            if into.statistic.level == other.statistic.level:
                return 0
            own = Bin(<uint32_t>(into.statistic.level >> 1), <uint32_t>(into.count - other.count))
            spread = <Spread*>malloc(sizeof(Spread))
            if spread == NULL:
                raise MemoryError
            spread.bins = <Bin*>malloc(4 * sizeof(Bin))
            spread.used, spread.room = 1, 4
            into.statistic.spread = spread
            if spread.bins == NULL:
                raise MemoryError
            spread.bins[0] = own
        spread = into.statistic.spread
        if other.statistic.level & 1:
            theirs = Bin(<uint32_t>(other.statistic.level >> 1), <uint32_t>other.count)
            more, used = &theirs, 1
        else:
            more, used = other.statistic.spread.bins, other.statistic.spread.used
        i = j = 0
        while j < used:  # how many of their levels are new
            while i < spread.used and spread.bins[i].level < more[j].level:
                i += 1
            extra += i == spread.used or spread.bins[i].level != more[j].level
            j += 1
        if spread.used + extra > spread.room:
            spread.room = <uint32_t>(2 * (spread.used + extra))
            spread.bins = <Bin*>realloc(spread.bins, spread.room * sizeof(Bin))
            if spread.bins == NULL:
                raise MemoryError
        i, j, k = spread.used - 1, used - 1, spread.used + extra - 1
        spread.used += <uint32_t>extra
        while j >= 0:  # from the top, so that nothing is overwritten before it has moved
            if i >= 0 and spread.bins[i].level > more[j].level:
                spread.bins[k] = spread.bins[i]
                i -= 1
            else:
                theirs = more[j]
                if i >= 0 and spread.bins[i].level == theirs.level:
                    theirs.count += spread.bins[i].count
                    i -= 1
                spread.bins[k] = theirs
                j -= 1
            k -= 1
        return 0

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
            self.add_spread(into, other)
            self.forget(other)
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
        from_.size = from_.room = 0
        from_.table = False
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
