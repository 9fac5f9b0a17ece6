# Records of edges in the order of first touch, so that those in use lie close together, and an open-addressing index of
# 4-byte slots that finds them. Part of region_graph.pyx.

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


cdef inline uint64_t mix(uint64_t value) noexcept nogil:
    value *= 0x9E3779B97F4A7C15ULL
    return value ^ (value >> 32)


cdef class EdgeTable:
    """The edges that one thread has met."""

    cdef vector[vector[Edge]] chunks
    cdef vector[uint32_t] slots  # record number + 1, 0 where free; at most a quarter full
    cdef vector[Edge] recent  # sums of the pairs met lately, by hash: they stay in the nearest cache
    cdef vector[Edge] pending  # the first pending_count left recent in this row and are not yet in the records
    cdef size_t pending_count
    cdef vector[uint64_t] bin_keys  # record number * 256 + bin + 1, 0 where free; at most half full
    cdef vector[int64_t] bin_counts
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
            self.bin_keys.resize(FIRST_SLOTS)
            self.bin_counts.resize(FIRST_SLOTS)

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
        cdef Edge* edge = &self.recent[mix((<uint64_t>lower << 32) | upper) >> (64 - RECENT_BITS)]
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
            EMCORE_PREFETCH(&self.slots[self.home(self.pending[i].lower, self.pending[i].upper)])
        for i in range(self.pending_count):
            found = self.slots[self.home(self.pending[i].lower, self.pending[i].upper)]
            if found:
                EMCORE_PREFETCH(self.record(found - 1))
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

    cdef inline uint64_t bin_slot(self, uint64_t key) noexcept nogil:
        cdef uint64_t mask = self.bin_keys.size() - 1
        cdef uint64_t slot = mix(key) & mask
        while self.bin_keys[slot] and self.bin_keys[slot] != key:
            slot = (slot + 1) & mask
        return slot

    cdef int add_bin(self, int64_t number, float value) except -1 nogil:
        cdef uint64_t key = <uint64_t>number * BINS + <uint64_t>min(<int>(value * BINS), BINS - 1) + 1
        cdef uint64_t slot = self.bin_slot(key)
        cdef vector[uint64_t] keys
        cdef vector[int64_t] counts
        cdef size_t i
        if not self.bin_keys[slot]:
            self.bin_keys[slot] = key
            self.filled_bins += 1
        self.bin_counts[slot] += 1
        if 2 * self.filled_bins <= <int64_t>self.bin_keys.size():
            return 0
        keys.swap(self.bin_keys)
        counts.swap(self.bin_counts)
        self.bin_keys.resize(2 * keys.size())
        self.bin_counts.resize(2 * keys.size())
        for i in range(keys.size()):
            if keys[i]:
                slot = self.bin_slot(keys[i])
                self.bin_keys[slot] = keys[i]
                self.bin_counts[slot] = counts[i]
        return 0
