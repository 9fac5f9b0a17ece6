"""Mutex watershed of a voxel grid with any offsets: strongest edges first, in batches that forget what is settled.

Order of edges: larger |weight|, then lower channel, then earlier voxel. An edge inside one cluster, or between clusters
already held apart, never acts again: each batch is gathered against the clusters so far, and few edges are ever sorted.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

cdef enum:
    MAGNITUDE = 0x7FFFFFFF  # a float32 without its sign: bits that order like the number
    KEY_SHIFT = 14  # bits of a key below the histogram's resolution
    DIGIT = 11
    NONE = 0xFFFFFFFF

BINS = 1 << (31 - KEY_SHIFT)

cdef struct Edge:
    uint32_t bits  # the float32 weight; the sign bit marks a repulsive edge
    uint32_t first
    uint32_t second

cdef struct Channel:
    int64_t dz, dy, dx, delta
    int64_t sz, sy, sx
    float bias

cdef struct Link:  # in a cluster's list of clusters to stay apart from; merges make entries stale, never wrong
    uint32_t other
    uint32_t next


cdef void improve(const int32_t* bits, int32_t* best, int32_t* way, int64_t start, int64_t stop,
                  int32_t code) noexcept nogil:
    cdef int64_t x
    cdef int32_t key, direction
    for x in range(start, stop):
        key = bits[x] & MAGNITUDE
        direction = code if bits[x] >= 0 else -1
        way[x] = direction if key > best[x] else way[x]
        best[x] = key if key > best[x] else best[x]


cdef class MutexForest:
    """Clusters of voxels, and which of them must stay apart. Rows are numbered z * ny + y.

    values (c, z, y, x) are affinities in float32, or codes of which table[c] gives the weights; a float32 affinity's
    weight is affinity + bias[c]. Positive weights join, negative ones forbid, zero says nothing.
    """

    cdef const float[:, :, :, :] floats
    cdef const uint8_t[:, :, :, :] narrow
    cdef const uint16_t[:, :, :, :] wide
    cdef const float[:, ::1] table
    cdef const uint8_t[:, :, :] mask
    cdef bint masked
    cdef int width
    cdef int64_t nz, ny, nx
    cdef vector[Channel] channels
    cdef vector[uint32_t] parent, head, length
    cdef vector[Link] links
    cdef vector[uint64_t] pairs  # open addressing; smaller root << 32 | larger root; 0 is free
    cdef uint64_t used
    cdef int shift
    cdef vector[vector[Edge]] parts

    def __init__(self, values, table, mask, const int64_t[:, ::1] offsets, const int64_t[:, ::1] strides,
                 const float[::1] bias, int64_t parts):
        cdef int64_t c
        cdef Channel channel
        nc, self.nz, self.ny, self.nx = values.shape
        self.width = values.itemsize
        if self.width == 4:
            self.floats = values
        elif self.width == 1:
            self.narrow = values
        else:
            self.wide = values
        self.table = table
        self.masked = mask is not None
        if self.masked:
            self.mask = mask
        for c in range(nc):
            channel.dz, channel.dy, channel.dx = offsets[c, 0], offsets[c, 1], offsets[c, 2]
            channel.sz, channel.sy, channel.sx = strides[c, 0], strides[c, 1], strides[c, 2]
            channel.delta = (channel.dz * self.ny + channel.dy) * self.nx + channel.dx
            channel.bias = bias[c]
            self.channels.push_back(channel)
        self.parent.resize(self.nz * self.ny * self.nx)
        self.parts.resize(parts)
        self.pairs.resize(1024)
        self.shift = 64 - 10

    cdef bint load(self, int64_t c, int64_t z, int64_t y, int64_t* first, int64_t* last, float* out) noexcept nogil:
        """Weights of the edges that row (z, y) stores, 0 where mask or stride leave one out; False if it has none."""
        cdef Channel* k = &self.channels[c]
        cdef int64_t x, step, start, stop
        cdef const float* line
        cdef const uint8_t* codes
        cdef const uint16_t* words
        cdef const float* weight
        if z < 0 or z >= self.nz or y < 0 or y >= self.ny or z % k.sz or y % k.sy:
            return False
        if z + k.dz < 0 or z + k.dz >= self.nz or y + k.dy < 0 or y + k.dy >= self.ny:
            return False
        start = max(0, -k.dx)
        stop = min(self.nx, self.nx - k.dx)
        if start >= stop:
            return False
        if self.width == 4:
            line = &self.floats[c, z, y, 0]
            step = self.floats.strides[3] // <int64_t>sizeof(float)
            if step == 1:
                for x in range(start, stop):
                    out[x] = line[x] + k.bias
            else:
                for x in range(start, stop):
                    out[x] = line[x * step] + k.bias
        elif self.width == 1:
            weight = &self.table[c, 0]
            codes = &self.narrow[c, z, y, 0]
            step = self.narrow.strides[3]
            for x in range(start, stop):
                out[x] = weight[codes[x * step]]
        else:
            weight = &self.table[c, 0]
            words = &self.wide[c, z, y, 0]
            step = self.wide.strides[3] // <int64_t>sizeof(uint16_t)
            for x in range(start, stop):
                out[x] = weight[words[x * step]]
        if k.sx > 1:
            for x in range(start, stop):
                if x % k.sx:
                    out[x] = 0
        if self.masked:
            for x in range(start, stop):
                if not (self.mask[z, y, x] and self.mask[z + k.dz, y + k.dy, x + k.dx]):
                    out[x] = 0
        first[0] = start
        last[0] = stop
        return True

    def point(self, int64_t row_start, int64_t row_stop, float low, float high):
        """Points every voxel along its strongest edge if that attracts; True if low <= weight - bias <= high.

        When the turn of such an edge comes its voxel is still alone and free of mutexes, so it always merges:
        merging ahead changes nothing.
        """
        cdef int64_t row, z, y, x, c, start, stop, voxel
        cdef int32_t code
        cdef bint stored_here, fine = True
        cdef vector[float] weights
        cdef vector[int32_t] best, way
        cdef float* w
        cdef Channel* k
        with nogil:
            weights.resize(self.nx)
            w = weights.data()
            for row in range(row_start, row_stop):
                z = row // self.ny
                y = row % self.ny
                best.assign(self.nx, 0)
                way.assign(self.nx, -1)
                for code in range(<int32_t>(2 * self.channels.size())):
                    c = code >> 1
                    k = &self.channels[c]
                    # of two equal edges of a channel, the one stored at the earlier voxel goes first
                    stored_here = (code & 1 == 0) == (k.delta < 0)
                    if stored_here:
                        if self.load(c, z, y, &start, &stop, w):
                            for x in range(start, stop):
                                fine &= (w[x] >= low + k.bias) & (w[x] <= high + k.bias)
                            improve(<int32_t*>w, best.data(), way.data(), start, stop, <int32_t>(2 * c))
                    elif self.load(c, z - k.dz, y - k.dy, &start, &stop, w):
                        improve(<int32_t*>w, best.data() + k.dx, way.data() + k.dx, start, stop, <int32_t>(2 * c + 1))
                for x in range(self.nx):
                    voxel = row * self.nx + x
                    code = way[x]
                    if code >= 0:
                        k = &self.channels[code >> 1]
                        self.parent[voxel] = <uint32_t>(voxel - k.delta if code & 1 else voxel + k.delta)
                    else:
                        self.parent[voxel] = <uint32_t>voxel
        return fine

    def settle(self):
        """Makes a forest of the pointers: edges grow along a path, so only pairs can point at each other."""
        cdef int64_t v, count = self.parent.size()
        cdef uint32_t to
        with nogil:
            for v in range(count):
                to = self.parent[v]
                if v < to and self.parent[to] == v:
                    self.parent[v] = <uint32_t>v
            self.head.assign(count, NONE)
            self.length.assign(count, 0)
            self.flatten()

    cdef void flatten(self) noexcept nogil:
        cdef int64_t v
        for v in range(<int64_t>self.parent.size()):
            self.parent[v] = self.find(<uint32_t>v)

    cdef inline uint32_t find(self, uint32_t v) noexcept nogil:
        cdef uint32_t* parent = self.parent.data()
        while parent[v] != v:
            parent[v] = parent[parent[v]]
            v = parent[v]
        return v

    def histogram(self, int64_t row_start, int64_t row_stop, int64_t[::1] counts):
        """Adds the edges between different clusters to counts, by the leading bits of their |weight|."""
        cdef int64_t row, x, c, start, stop
        cdef vector[float] weights
        cdef const uint32_t* bits
        cdef const uint32_t* here
        cdef const uint32_t* there
        with nogil:
            weights.resize(self.nx)
            bits = <uint32_t*>weights.data()
            for row in range(row_start, row_stop):
                here = self.parent.data() + row * self.nx
                for c in range(<int64_t>self.channels.size()):
                    if self.load(c, row // self.ny, row % self.ny, &start, &stop, weights.data()):
                        there = here + self.channels[c].delta
                        for x in range(start, stop):
                            if here[x] != there[x]:
                                counts[(bits[x] & MAGNITUDE) >> KEY_SHIFT] += 1

    def gather(self, int64_t part, int64_t c, int64_t row_start, int64_t row_stop, uint32_t low, uint32_t high):
        """Collects the edges of one channel with low <= bits of |weight| < high that can still act."""
        cdef int64_t row, x, start, stop
        cdef vector[float] weights
        cdef const uint32_t* bits
        cdef const uint32_t* here
        cdef const uint32_t* there
        cdef Edge edge
        with nogil:
            weights.resize(self.nx)
            bits = <uint32_t*>weights.data()
            edge.first = edge.second = NONE
            for row in range(row_start, row_stop):
                if self.load(c, row // self.ny, row % self.ny, &start, &stop, weights.data()):
                    here = self.parent.data() + row * self.nx
                    there = here + self.channels[c].delta
                    for x in range(start, stop):
                        if (bits[x] & MAGNITUDE) - low < high - low and here[x] != there[x]:
                            if not self.apart(here[x], there[x]):
                                edge.bits = bits[x]
                                edge.first = here[x]
                                edge.second = there[x]
                                self.parts[part].push_back(edge)

    def process(self, uint32_t low, uint32_t high):
        """Runs through the gathered edges, strongest first."""
        cdef vector[Edge] edges
        cdef uint32_t u, v
        cdef Edge edge
        with nogil:
            self.sort(edges, low, high)
            for edge in edges:
                u = self.find(edge.first)
                v = self.find(edge.second)
                if u == v or self.apart(u, v):
                    continue
                if edge.bits > MAGNITUDE:
                    self.forbid(u, v)
                elif self.length[u] < self.length[v]:
                    self.merge(v, u)
                else:
                    self.merge(u, v)
            self.flatten()

    cdef void sort(self, vector[Edge]& edges, uint32_t low, uint32_t high) noexcept nogil:
        """Moves the parts, which follow one another in the order of ties, to edges; a stable radix sort."""
        cdef vector[Edge] other
        cdef vector[int64_t] place
        cdef int64_t total = 0, i
        cdef int bit = 0
        cdef size_t p
        cdef Edge edge
        for p in range(self.parts.size()):
            total += self.parts[p].size()
        edges.reserve(total)
        for p in range(self.parts.size()):
            edges.insert(edges.end(), self.parts[p].begin(), self.parts[p].end())
            vector[Edge]().swap(self.parts[p])
        other.resize(total)
        while (high - 1 - low) >> bit:
            place.assign((1 << DIGIT) + 1, 0)
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

    cdef inline uint64_t slot(self, uint32_t u, uint32_t v) noexcept nogil:
        """The place in pairs of (u, v), or the free place where it belongs."""
        cdef uint64_t key = (<uint64_t>u << 32 | v) if u < v else (<uint64_t>v << 32 | u)
        cdef uint64_t at = (key * <uint64_t>0x9E3779B97F4A7C15) >> self.shift
        while self.pairs[at] and self.pairs[at] != key:
            at = (at + 1) & (self.pairs.size() - 1)
        return at

    cdef inline bint apart(self, uint32_t u, uint32_t v) noexcept nogil:
        return self.pairs[self.slot(u, v)] != 0

    cdef bint add_pair(self, uint32_t u, uint32_t v) noexcept nogil:
        """Whether the pair is new."""
        cdef uint64_t at = self.slot(u, v)
        if self.pairs[at]:
            return False
        self.pairs[at] = (<uint64_t>u << 32 | v) if u < v else (<uint64_t>v << 32 | u)
        self.used += 1
        if self.used * 8 > self.pairs.size() * 5:
            self.rehash()
        return True

    cdef void rehash(self) noexcept nogil:
        """Drops the pairs of clusters that were merged away, and doubles the table if that is not enough."""
        cdef vector[uint64_t] old
        cdef uint64_t key, live = 0
        cdef uint32_t u, v
        for key in self.pairs:
            u = <uint32_t>(key >> 32)
            v = <uint32_t>key
            if key and self.parent[u] == u and self.parent[v] == v:
                live += 1
        old.swap(self.pairs)
        self.pairs.resize(old.size() * 2 if live * 4 > old.size() else old.size())
        self.shift -= live * 4 > old.size()
        self.used = live
        for key in old:
            u = <uint32_t>(key >> 32)
            v = <uint32_t>key
            if key and self.parent[u] == u and self.parent[v] == v:
                self.pairs[self.slot(u, v)] = key

    cdef void note(self, uint32_t u, uint32_t v) noexcept nogil:
        cdef Link link
        link.other = v
        link.next = self.head[u]
        self.head[u] = <uint32_t>self.links.size()
        self.length[u] += 1
        self.links.push_back(link)

    cdef void forbid(self, uint32_t u, uint32_t v) noexcept nogil:
        self.add_pair(u, v)
        self.note(u, v)
        self.note(v, u)

    cdef void merge(self, uint32_t keep, uint32_t gone) noexcept nogil:
        """Joins gone, the cluster with the shorter list, to keep."""
        cdef uint32_t at = self.head[gone], following, other
        self.parent[gone] = keep
        while at != NONE:
            other = self.find(self.links[at].other)
            following = self.links[at].next
            if self.add_pair(keep, other):
                self.links[at].other = other
                self.links[at].next = self.head[keep]
                self.head[keep] = at
                self.length[keep] += 1
            at = following

    def labels(self, uint32_t[::1] out):
        """Fills out with 1.. in the order of first voxels, 0 outside the mask; the number of clusters."""
        cdef int64_t v
        cdef uint32_t root, count = 0
        cdef vector[uint32_t] number
        with nogil:
            vector[uint32_t]().swap(self.head)
            number.assign(self.parent.size(), 0)
            for v in range(<int64_t>self.parent.size()):
                if self.masked and not self.mask[v // (self.ny * self.nx), v // self.nx % self.ny, v % self.nx]:
                    out[v] = 0
                    continue
                root = self.parent[v]
                if number[root] == 0:
                    count += 1
                    number[root] = count
                out[v] = number[root]
        return count
