"""The loop that folds a fragment x truth table along a merge tree, and the sums of its changes.

Joining two rows changes the sums only where both rows have an entry. All that a merge touches of a cluster or of an
entry lies in one cache line.
"""

from libc.math cimport fabs, log2
from libc.stdint cimport int64_t, uint64_t
from libcpp.vector cimport vector

cdef enum:
    SHORT = 8  # rows up to this length are searched entry by entry; longer ones have their entries in a hash table

cdef struct Cluster:  # the columns of the cluster table, one row a fragment
    int64_t parent, head, length, size

cdef struct Entry:  # and of the entry table, one row a (fragment, truth id)
    int64_t truth, count, next, unused

cdef struct Slot:
    int64_t row, truth, entry  # entry -1 marks a free slot

cdef struct Wide:  # a sum of 128 bits: squares of segments above 3e9 voxels do not fit in 64
    uint64_t high, low


cdef inline int64_t root_of(Cluster* clusters, int64_t node) noexcept nogil:
    """The cluster of a fragment; the path is halved on the way."""
    while clusters[node].parent != node:
        clusters[node].parent = clusters[clusters[node].parent].parent
        node = clusters[node].parent
    return node


cdef inline Slot* slot_of(vector[Slot]& table, int64_t row, int64_t truth) noexcept nogil:
    """Where the entry of (row, truth) is in the hash table, or the free slot where it belongs."""
    cdef uint64_t last = table.size() - 1
    cdef uint64_t mixed = <uint64_t>row * <uint64_t>0x9E3779B97F4A7C15
    mixed ^= <uint64_t>truth * <uint64_t>0xD1B54A32D192ED03
    mixed = (mixed ^ (mixed >> 32)) * <uint64_t>0xBF58476D1CE4E5B9
    cdef uint64_t slot = (mixed ^ (mixed >> 29)) & last
    while table[slot].entry >= 0 and (table[slot].row != row or table[slot].truth != truth):
        slot = (slot + 1) & last
    return &table[slot]


cdef int64_t index_row(vector[Slot]& table, int64_t row, const Cluster* clusters, const Entry* entries) noexcept nogil:
    """The number of entries of a row; all of them are put into the hash table."""
    cdef int64_t added = 0, entry = clusters[row].head
    cdef Slot* slot
    while entry >= 0:
        slot = slot_of(table, row, entries[entry].truth)
        slot.row, slot.truth, slot.entry = row, entries[entry].truth, entry
        added += 1
        entry = entries[entry].next
    return added


cdef int64_t index_long_rows(vector[Slot]& table, int64_t capacity, const Cluster* clusters, int64_t count,
                             const Entry* entries) except -1 nogil:
    """Makes the table anew, of all rows that are longer than SHORT; how many of its slots are in use."""
    cdef Slot free
    cdef int64_t root, used = 0
    free.row, free.truth, free.entry = 0, 0, -1
    table.assign(capacity, free)
    for root in range(1, count):
        if clusters[root].parent == root and clusters[root].length > SHORT:
            used += index_row(table, root, clusters, entries)
    return used


cdef inline void add_product(Wide* wide, uint64_t x, uint64_t y) noexcept nogil:
    """Adds 2xy. Both factors are below 2^63, so neither middle sum overflows."""
    cdef uint64_t mask = 0xFFFFFFFF
    cdef uint64_t x_low = x & mask, x_high = x >> 32, y_low = y & mask, y_high = y >> 32
    cdef uint64_t low = x_low * y_low
    cdef uint64_t middle = x_high * y_low + (low >> 32)
    cdef uint64_t middle_low = (middle & mask) + x_low * y_high
    cdef uint64_t high = x_high * y_high + (middle >> 32) + (middle_low >> 32)
    low = (middle_low << 32) | (low & mask)
    high = (high << 1) | (low >> 63)
    low = low << 1
    low = wide.low + low
    wide.high += high + (1 if low < wide.low else 0)
    wide.low = low


cdef inline double joined_entropy(int64_t x, int64_t y) noexcept nogil:
    """f(x + y) - f(x) - f(y) for f(x) = x log2 x, without cancellation."""
    cdef double total = <double>(x + y)
    return x * log2(total / x) + y * log2(total / y)


cdef double absorb(int64_t keep, int64_t gone, Cluster* clusters, Entry* entries, vector[Slot]& table, Wide* pairs,
                   int64_t* added) noexcept nogil:
    """Moves the entries of one row to another, adds to the sum of squares of pairs, and gives what VOI split loses.

    added: grows by the slots that this took in the hash table, where the row that stays is looked up if it is long.
    """
    cdef double gain = 0
    cdef bint is_long = clusters[keep].length > SHORT
    cdef int64_t entry = clusters[gone].head, after, truth, same
    cdef Slot* slot = NULL
    while entry >= 0:
        after = entries[entry].next
        truth = entries[entry].truth
        if is_long:
            slot = slot_of(table, keep, truth)
            same = slot.entry
        else:
            same = clusters[keep].head
            while same >= 0 and entries[same].truth != truth:
                same = entries[same].next
        if same >= 0:
            gain += joined_entropy(entries[same].count, entries[entry].count)
            add_product(pairs, entries[same].count, entries[entry].count)
            entries[same].count += entries[entry].count
        else:
            entries[entry].next = clusters[keep].head
            clusters[keep].head = entry
            clusters[keep].length += 1
            if is_long:
                slot.row, slot.truth, slot.entry = keep, truth, entry
                added[0] += 1
        entry = after
    return gain


def fold_rows(const int64_t[::1] a, const int64_t[::1] b, int64_t[:, ::1] clusters, int64_t[:, ::1] entries,
              double[::1] split_gain, double[::1] merge_cost, uint64_t[:, ::1] pair_squares,
              uint64_t[:, ::1] label_squares):
    """Walks the merges in order; per merge it writes what VOI split (voxels x bits) loses and VOI merge gains, and the
    128-bit sums of squares after it. Both tables are used up. Row 0 of the clusters, the background, takes no part.

    Invariant: a cluster's entries are a linked list from its head, one entry a truth id; if it holds more than
    SHORT, every one of them is in the hash table under its root (unless that waits to be rebuilt). The root of the
    longer row stays, so keys of a swallowed row go stale, but are never asked for again.
    """
    if clusters.shape[1] != 4 or entries.shape[1] != 4 or pair_squares.shape[1] != 2 or label_squares.shape[1] != 2:
        raise ValueError("clusters and entries have four columns, sums of squares two")
    cdef int64_t count = clusters.shape[0], capacity = 1024, used, step, fragment, keep, gone, length, extra, together
    cdef int64_t long_entries = 0, added
    cdef double gain, cost
    cdef Cluster* rows = <Cluster*>&clusters[0, 0]
    cdef Entry* cells = <Entry*>&entries[0, 0] if entries.shape[0] else NULL
    cdef vector[Slot] table
    cdef Wide pairs, labels
    pairs.high, pairs.low = pair_squares[0, 0], pair_squares[0, 1]
    labels.high, labels.low = label_squares[0, 0], label_squares[0, 1]
    with nogil:
        while capacity < count:  # a rebuilding looks at every fragment: as many insertions pay for it
            capacity *= 2
        used = capacity  # full: the first question about a long row builds the table
        for fragment in range(1, count):
            long_entries += rows[fragment].length if rows[fragment].length > SHORT else 0
        for step in range(a.shape[0]):
            keep, gone = root_of(rows, a[step]), root_of(rows, b[step])
            gain, cost = 0, 0
            if keep != gone:
                if (rows[keep].length < rows[gone].length
                        or (rows[keep].length == rows[gone].length and rows[keep].size < rows[gone].size)):
                    keep, gone = gone, keep
                length, extra = rows[keep].length, rows[gone].length
                if rows[gone].size:
                    add_product(&labels, rows[keep].size, rows[gone].size)
                    cost = joined_entropy(rows[keep].size, rows[gone].size)
                if length > SHORT and 2 * (used + extra) > capacity:
                    while 4 * (long_entries + extra) > capacity:
                        capacity *= 2
                    used = index_long_rows(table, capacity, rows, count, cells)
                added = 0
                gain = absorb(keep, gone, rows, cells, table, &pairs, &added)
                used += added
                together = rows[keep].length
                long_entries += ((together if together > SHORT else 0) - (length if length > SHORT else 0)
                                 - (extra if extra > SHORT else 0))
                if together > SHORT and length <= SHORT:
                    if 2 * (used + together) <= capacity:
                        used += index_row(table, keep, rows, cells)
                    else:
                        used = capacity
                rows[gone].parent = keep
                rows[keep].size += rows[gone].size
            split_gain[step] = gain
            merge_cost[step] = max(0.0, cost - gain)
            pair_squares[step + 1, 0], pair_squares[step + 1, 1] = pairs.high, pairs.low
            label_squares[step + 1, 0], label_squares[step + 1, 1] = labels.high, labels.low


def running_sum(const double[::1] changes, double start, double scale, double[::1] sums):
    """Writes start + scale x (each partial sum), compensated (Neumaier), so that a million terms lose nothing."""
    cdef double total = 0, lost = 0, change, after
    cdef int64_t index
    with nogil:
        sums[0] = start
        for index in range(changes.shape[0]):
            change = changes[index]
            after = total + change
            if fabs(total) >= fabs(change):
                lost += (total - after) + change
            else:
                lost += (change - after) + total
            total = after
            sums[index + 1] = start + scale * (total + lost)
