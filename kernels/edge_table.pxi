# Records of edges in the order of first touch, so that those in use lie close together, and an index that finds them:
# open addressing too, but of 4-byte slots that say where a record lies. Part of region_graph.pyx.

cdef enum:
    CHUNK_BITS = 14
    CHUNK = 1 << CHUNK_BITS
    FIRST_SLOTS = 1 << 14
    RECENT_BITS = 12
    BINS = 256

cdef struct Edge:
    uint32_t lower
    uint32_t upper
    uint64_t key
    int64_t count
    int64_t total
    float most
    float least


cdef inline void pool(Edge* into, const Edge* other) noexcept nogil:
    into.count += other.count
    into.total += other.total
    into.most = max(into.most, other.most)
    into.least = min(into.least, other.least)
    into.key = max(into.key, other.key)


cdef struct Entry:
    uint64_t key  # record number * BINS + bin
    int64_t count  # 0: a free place


cdef inline bint taken(const Entry& bin) noexcept nogil:
    return bin.count != 0


cdef inline bint same(const Entry& bin, const Entry& other) noexcept nogil:
    return bin.key == other.key


cdef inline uint64_t home(const Entry& bin) noexcept nogil:
    return mix(bin.key)


include "table.pxi"


cdef class EdgeTable:
    """The edges that one thread has met."""

    cdef vector[vector[Edge]] chunks
    cdef vector[uint32_t] slots  # record number + 1, 0 where free; at most a quarter full
    cdef vector[Edge] recent  # sums of the pairs met lately, by hash: they stay in the nearest cache
    cdef vector[Edge] pending  # the first pending_count left recent in this row and are not yet in the records
    cdef size_t pending_count
    cdef vector[Entry] bins  # at most half full
    cdef readonly int64_t size
    cdef readonly int64_t filled_bins
    cdef readonly bint histograms
    cdef readonly bint outside  # an affinity was NaN or not in 0..1
    cdef public int64_t most  # records that 32 bits can number

    def __cinit__(self, bint histograms=False):
        self.most = 0xFFFFFFFF - CHUNK
        self.slots.resize(FIRST_SLOTS)
        self.recent.resize(1 << RECENT_BITS)
        self.histograms = histograms
        if histograms:
            self.bins.resize(FIRST_SLOTS)

    cdef inline Edge* record(self, int64_t number) noexcept nogil:
        return &self.chunks[number >> CHUNK_BITS][number & (CHUNK - 1)]

    cdef inline uint64_t home(self, uint32_t lower, uint32_t upper) noexcept nogil:
        return mix((<uint64_t>lower << 32) | upper) & (self.slots.size() - 1)

    cdef inline uint64_t slot_of(self, uint32_t lower, uint32_t upper) noexcept nogil:
        """The slot of a pair, or the free one where it belongs."""
        cdef uint64_t mask = self.slots.size() - 1
        cdef uint64_t slot = self.home(lower, upper)
        cdef Edge* edge
        while self.slots[slot]:
            edge = self.record(self.slots[slot] - 1)
            if edge.lower == lower and edge.upper == upper:
                break
            slot = (slot + 1) & mask
        return slot

    cdef int64_t add(self, const Edge* part) except -1 nogil:
        """The number of the record that `part` was pooled into."""
        cdef uint64_t slot = self.slot_of(part.lower, part.upper)
        cdef int64_t number
        if self.slots[slot]:
            number = self.slots[slot] - 1
            pool(self.record(number), part)
            return number
        number = self.size
        if number == self.most:
            raise OverflowError("more edges than 32 bits number")
        if number == <int64_t>self.chunks.size() * CHUNK:
            self.chunks.resize(self.chunks.size() + 1)
            self.chunks.back().reserve(CHUNK)
        self.chunks.back().push_back(part[0])
        self.size += 1
        self.slots[slot] = <uint32_t>self.size
        if 4 * self.size > <int64_t>self.slots.size():
            self.widen()
        return number

    cdef int expect(self, size_t contacts) except -1 nogil:
        """Makes room for that many more pending parts."""
        if self.pending.size() < self.pending_count + contacts:
            self.pending.resize(2 * (self.pending_count + contacts))
        return 0

    cdef inline Edge* meet(self, uint32_t lower, uint32_t upper) noexcept nogil:
        """Where to add a contact of a pair: its recent sum, or a new one in place of another, which gets pending."""
        cdef Edge* edge = &self.recent[mix((<uint64_t>lower << 32) | upper) & ((1 << RECENT_BITS) - 1)]
        if edge.lower != lower or edge.upper != upper:
            if edge.count:
                self.pending[self.pending_count] = edge[0]
                self.pending_count += 1
            edge[0] = Edge(lower, upper, 0, 0, 0, 0, 1)
        return edge

    cdef int add_recent(self) except -1 nogil:
        cdef size_t i
        for i in range(self.recent.size()):
            if self.recent[i].count:
                self.add(&self.recent[i])
                self.recent[i].count = 0
        return 0

    cdef int add_pending(self) except -1 nogil:
        """Adds what left recent in this row, after asking for all the memory it takes."""
        cdef size_t i
        cdef uint32_t found
        for i in range(self.pending_count):
            prefetch(&self.slots[self.home(self.pending[i].lower, self.pending[i].upper)])
        for i in range(self.pending_count):
            found = self.slots[self.home(self.pending[i].lower, self.pending[i].upper)]
            if found:
                prefetch(self.record(found - 1))
        for i in range(self.pending_count):
            self.add(&self.pending[i])
        self.pending_count = 0
        return 0

    cdef int widen(self) except -1 nogil:
        cdef int64_t number
        cdef Edge* edge
        cdef size_t length = 2 * self.slots.size()
        self.slots.clear()
        self.slots.resize(length)
        for number in range(self.size):
            edge = self.record(number)
            self.slots[self.slot_of(edge.lower, edge.upper)] = <uint32_t>(number + 1)
        return 0

    cdef void release_index(self) noexcept nogil:
        cdef vector[uint32_t] nothing
        self.slots.swap(nothing)

    cdef int add_bin(self, int64_t number, float value) except -1 nogil:
        cdef uint64_t key = <uint64_t>number * BINS + <uint64_t>min(<int>(value * BINS), BINS - 1)
        cdef Entry* bin = place_of(self.bins.data(), self.bins.size(), Entry(key, 0))
        self.filled_bins += not taken(bin[0])
        bin[0] = Entry(key, bin.count + 1)
        if 2 * self.filled_bins > <int64_t>self.bins.size():
            resize_table(self.bins, 2 * self.bins.size())
        return 0
