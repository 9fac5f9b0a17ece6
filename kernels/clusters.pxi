# Clusters and the live edges between them, and what merging two clusters does to these. Part of agglomeration.pyx.


cdef class Clusters:
    """Nodes stand for clusters: a merge moves the edges of the one that has fewer to the other."""

    cdef object memory  # numpy arrays, as numpy asks for large pages
    cdef Node* nodes
    cdef Edge* edges
    cdef Py_ssize_t node_count, edge_count
    cdef vector[double] levels  # QUANTILE: score of a level
    cdef int64_t quantile
    cdef int64_t* sizes  # of the clusters, where two of more than `limit` never merge
    cdef int64_t limit
    cdef Kind kind

    def __cinit__(self, str kind, Py_ssize_t nodes, const uint32_t[:] u, const uint32_t[:] v, const uint64_t[:] key):
        cdef Py_ssize_t i
        cdef Entry* place
        self.sizes = NULL
        self.kind = {"mean": MEAN, "max": MAX, "min": MIN, "quantile": QUANTILE}[kind]
        self.memory = []
        self.nodes = <Node*>self.reserve(nodes * sizeof(Node))
        self.edges = <Edge*>self.reserve(u.shape[0] * sizeof(Edge))
        place = <Entry*>self.reserve(2 * u.shape[0] * sizeof(Entry))
        self.node_count, self.edge_count = nodes, u.shape[0]  # not before there is something to free
        with nogil:
            memset(self.nodes, 0, nodes * sizeof(Node))
            for i in range(self.edge_count):
                self.edges[i] = Edge(u[i], v[i], key[i], 1, Statistic(0), <uint32_t>i, NONE)
                self.nodes[u[i]].room += 1
                self.nodes[v[i]].room += 1
            for i in range(nodes):
                self.nodes[i].neighbours = place
                place += self.nodes[i].room
                self.nodes[i].room = min(self.nodes[i].room, <uint32_t>LIST)  # a hub turns into a table on the way
            for i in range(self.edge_count):
                insert(&self.nodes[u[i]], v[i], <uint32_t>i)
                insert(&self.nodes[v[i]], u[i], <uint32_t>i)

    cdef void* reserve(self, Py_ssize_t size) except NULL:
        cdef unsigned char[::1] memory = numpy.empty(max(size, 1), numpy.uint8)
        self.memory.append(memory)
        return &memory[0]

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.node_count):
            if self.nodes[i].owned:
                free(self.nodes[i].neighbours)
        if self.kind == QUANTILE:
            for i in range(self.edge_count):
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

    def freeze_between(self, const int64_t[:] borders):
        """Freezes both ends of every edge between nodes of two parts; part p is nodes borders[p] to borders[p + 1]."""
        cdef Py_ssize_t i, part = 0
        with nogil:
            for i in range(self.edge_count):  # sorted by their lower ends
                while self.edges[i].a >= borders[part + 1]:
                    part += 1
                if self.edges[i].b >= borders[part + 1]:
                    self.nodes[self.edges[i].a].frozen = self.nodes[self.edges[i].b].frozen = True

    def freeze(self, const uint32_t[:] nodes):
        """Freezes nodes, so that a confined queue leaves them alone."""
        cdef Py_ssize_t i
        for i in range(nodes.shape[0]):
            self.nodes[nodes[i]].frozen = True

    def keep_apart(self, const int64_t[:] sizes, int64_t limit):
        """Two clusters never merge where both are larger than the limit; sizes: of the nodes."""
        cdef Py_ssize_t i
        self.sizes = <int64_t*>self.reserve(self.node_count * sizeof(int64_t))
        self.limit = limit
        for i in range(self.node_count):
            self.sizes[i] = sizes[i]

    cdef inline bint dead(self, const Edge* edge) noexcept nogil:
        """Whether an edge joins two that never merge, whatever else does: clusters only grow."""
        return self.sizes != NULL and min(self.sizes[edge.a], self.sizes[edge.b]) > self.limit

    cdef inline double score(self, const Edge* edge) noexcept nogil:
        cdef const Bin* bin
        cdef int64_t rank
        if self.kind == MEAN:
            return <double>(edge.count * SCALE - edge.statistic.total) / <double>(edge.count * SCALE)
        if self.kind != QUANTILE:
            return edge.statistic.score
        if edge.statistic.level & 1:
            return self.levels[edge.statistic.level >> 1]
        bin = bins_of(edge.statistic.spread)
        rank = min(self.quantile * edge.count // 100, edge.count - 1)
        while rank >= bin.count:
            rank -= bin.count
            bin += 1
        return self.levels[bin.level]

    cdef inline Rank rank(self, uint32_t number) noexcept nogil:
        return Rank(self.score(&self.edges[number]), self.edges[number].key, number)

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

    cdef inline Node* smaller_end(self, const Edge* edge) noexcept nogil:
        return &self.nodes[edge.b if self.nodes[edge.a].size > self.nodes[edge.b].size else edge.a]

    cdef int merge(self, Edge* merging) except -1 nogil:
        cdef Node* from_ = self.smaller_end(merging)
        cdef uint32_t small = <uint32_t>(from_ - self.nodes)
        cdef uint32_t large = merging.b if small == merging.a else merging.a
        cdef Node* into = &self.nodes[large]
        cdef Node* third
        cdef Entry* own
        cdef Entry* shared
        cdef Entry moving
        cdef uint32_t i, slots = from_.room if from_.table else from_.size
        cdef Edge* edge
        merging.a = merging.b
        if self.sizes != NULL:
            self.sizes[large] += self.sizes[small]
        remove(into, find(into, small))
        for i in range(slots):
            if from_.neighbours[i].node != NONE:
                prefetch(&self.nodes[from_.neighbours[i].node])
                prefetch(&self.edges[from_.neighbours[i].edge])
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

    @property
    def remaining_count(self):
        cdef Py_ssize_t i, left = 0
        for i in range(self.edge_count):
            left += self.edges[i].a != self.edges[i].b
        return left

    def remaining(self, uint32_t[::1] numbers, double[::1] scores, uint64_t[::1] keys):
        """Writes the edges between clusters: the input edge that names each, its present score and its key."""
        cdef Py_ssize_t i, left = 0
        cdef const Edge* edge
        with nogil:
            for i in range(self.edge_count):
                edge = &self.edges[i]
                if edge.a != edge.b:
                    numbers[left], scores[left], keys[left] = edge.top, self.score(edge), edge.key
                    left += 1

    def remaining_ends(self, uint32_t[::1] a, uint32_t[::1] b, int64_t[::1] counts, int64_t[::1] totals):
        """Writes, in the order of `remaining`, the nodes at the ends of edges, what they count, and sums of means."""
        cdef Py_ssize_t i, left = 0
        cdef const Edge* edge
        with nogil:
            for i in range(self.edge_count):
                edge = &self.edges[i]
                if edge.a != edge.b:
                    a[left], b[left], counts[left] = edge.a, edge.b, edge.count
                    totals[left] = edge.statistic.total if self.kind == MEAN else 0
                    left += 1

    @property
    def remaining_bins(self):
        cdef Py_ssize_t i, bins = 0
        for i in range(self.edge_count):
            if self.edges[i].a != self.edges[i].b:
                bins += 1 if self.edges[i].statistic.level & 1 else self.edges[i].statistic.spread.used
        return bins

    def histograms(self, int64_t[::1] starts, uint32_t[::1] levels, int64_t[::1] counts):
        """Writes, in the order of `remaining`, the histograms of edges: that of edge e begins at starts[e]."""
        cdef Py_ssize_t i, k, left = 0, bins = 0
        cdef const Edge* edge
        cdef const Bin* bin
        with nogil:
            for i in range(self.edge_count):
                edge = &self.edges[i]
                if edge.a == edge.b:
                    continue
                if edge.statistic.level & 1:
                    levels[bins], counts[bins] = <uint32_t>(edge.statistic.level >> 1), edge.count
                    bins += 1
                else:
                    bin = bins_of(edge.statistic.spread)
                    for k in range(edge.statistic.spread.used):
                        levels[bins], counts[bins] = bin[k].level, bin[k].count
                        bins += 1
                left += 1
                starts[left] = bins
