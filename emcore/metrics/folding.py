"""The loop that folds a fragment x truth table along a merge tree, and the sums of its changes.

Joining two rows changes the sums only where both rows have an entry.
"""

import math

import numba
import numpy as np
from numba import types

from emcore.cache import compiled

SHORT = 8  # rows up to this length are searched entry by entry; longer ones have their entries in a hash table

_int_in = types.Array(types.int64, 1, "C", readonly=True)
_table = types.Array(types.int64, 2, "C")
_float_in = types.Array(types.float64, 1, "C", readonly=True)
_float_out = types.Array(types.float64, 1, "C")
_wide_out = types.Array(types.uint64, 2, "C")


# columns of the cluster table, one row a fragment, and of the entry table, one row a (fragment, truth id): all that a
# merge touches of either lies in one cache line
PARENT, HEAD, LENGTH, SIZE = range(4)
TRUTH, COUNT, NEXT = range(3)
# and of the hash table
ROW, COLUMN, ENTRY = range(3)


@numba.njit(nogil=True)
def _root(clusters, node):
    """The cluster of a fragment; the path is halved on the way."""
    while clusters[node, PARENT] != node:
        clusters[node, PARENT] = clusters[clusters[node, PARENT], PARENT]
        node = clusters[node, PARENT]
    return node


@numba.njit(nogil=True)
def _hash_slot(table, row, column):
    """Where the entry of (row, column) is in the hash table, or the free slot where it belongs."""
    last = np.uint64(table.shape[0] - 1)
    mixed = np.uint64(row) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(column) * np.uint64(0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    slot = np.int64((mixed ^ (mixed >> np.uint64(29))) & last)
    while table[slot, ENTRY] >= 0 and (table[slot, ROW] != row or table[slot, COLUMN] != column):
        slot = np.int64(np.uint64(slot + 1) & last)
    return slot


@numba.njit(nogil=True)
def _index_row(table, row, entry, entries):
    """The number of entries of a row, from its first one on; all of them are put into the hash table."""
    added = 0
    while entry >= 0:
        slot = _hash_slot(table, row, entries[entry, TRUTH])
        table[slot, ROW] = row
        table[slot, COLUMN] = entries[entry, TRUTH]
        table[slot, ENTRY] = entry
        added += 1
        entry = entries[entry, NEXT]
    return added


@numba.njit(nogil=True)
def _empty_hash(capacity):
    table = np.empty((capacity, 3), np.int64)
    table[:, ENTRY] = -1
    return table


@numba.njit(nogil=True)
def _add_product(wide, x, y):
    """Adds 2xy to a 128-bit sum (high, low), in place: squares of segments above 3e9 voxels do not fit in 64 bits."""
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x_low, x_high = np.uint64(x) & mask, np.uint64(x) >> half
    y_low, y_high = np.uint64(y) & mask, np.uint64(y) >> half
    low = x_low * y_low
    middle = x_high * y_low + (low >> half)  # both factors are below 2^63, so neither middle sum overflows
    middle_low = (middle & mask) + x_low * y_high
    high = x_high * y_high + (middle >> half) + (middle_low >> half)
    low = (middle_low << half) | (low & mask)
    high = (high << np.uint64(1)) | (low >> np.uint64(63))
    low = low << np.uint64(1)
    total = wide[1] + low
    wide[0] += high + np.uint64(1 if total < low else 0)
    wide[1] = total


@numba.njit(nogil=True)
def _joined_entropy(x, y):
    """f(x + y) - f(x) - f(y) for f(x) = x log2 x, without cancellation."""
    total = np.float64(x + y)
    return x * math.log2(total / x) + y * math.log2(total / y)


@numba.njit(nogil=True)
def _long_rows(clusters, entries, capacity):
    """A hash table of all rows that are longer than SHORT, and how many slots are in use."""
    table, used = _empty_hash(capacity), 0
    for root in range(1, clusters.shape[0]):
        if clusters[root, PARENT] == root and clusters[root, LENGTH] > SHORT:
            used += _index_row(table, root, clusters[root, HEAD], entries)
    return table, used


@numba.njit(nogil=True)
def _absorb(keep, gone, clusters, entries, table, pairs):
    """Moves the entries of one row to another, adds to the sum of squares of pairs, and gives what VOI split loses and
    the slots that this took in the hash table, where the row that stays is looked up if it is long."""
    gain, added = 0.0, 0
    is_long = clusters[keep, LENGTH] > SHORT
    entry = clusters[gone, HEAD]
    while entry >= 0:
        after = entries[entry, NEXT]
        truth = entries[entry, TRUTH]
        slot = np.int64(0)
        if is_long:
            slot = _hash_slot(table, keep, truth)
            same = table[slot, ENTRY]
        else:
            same = clusters[keep, HEAD]
            while same >= 0 and entries[same, TRUTH] != truth:
                same = entries[same, NEXT]
        if same >= 0:
            gain += _joined_entropy(entries[same, COUNT], entries[entry, COUNT])
            _add_product(pairs, entries[same, COUNT], entries[entry, COUNT])
            entries[same, COUNT] += entries[entry, COUNT]
        else:
            entries[entry, NEXT] = clusters[keep, HEAD]
            clusters[keep, HEAD] = entry
            clusters[keep, LENGTH] += 1
            if is_long:
                table[slot, ROW] = keep
                table[slot, COLUMN] = truth
                table[slot, ENTRY] = entry
                added += 1
        entry = after
    return gain, added


@compiled(types.void(_int_in, _int_in, _table, _table, _float_out, _float_out, _wide_out, _wide_out))
def fold_rows(a, b, clusters, entries, split_gain, merge_cost, pair_squares, label_squares):
    """Walks the merges in order; per merge it writes what VOI split (voxels x bits) loses and VOI merge gains, and the
    128-bit sums of squares after it. Both tables are used up. Row 0 of the clusters, the background, takes no part.

    Invariant: a cluster's entries are a linked list from its HEAD, one entry a truth id; if it holds more than
    SHORT, every one of them is in the hash table under its root (unless that waits to be rebuilt). The root of the
    longer row stays, so keys of a swallowed row go stale, but are never asked for again.
    """
    capacity = 1024
    while capacity < clusters.shape[0]:  # a rebuilding looks at every fragment: as many insertions pay for it
        capacity *= 2
    table = _empty_hash(1)
    used = capacity  # full: the first question about a long row builds the table
    long_entries = 0
    for fragment in range(1, clusters.shape[0]):
        long_entries += clusters[fragment, LENGTH] if clusters[fragment, LENGTH] > SHORT else 0
    pairs, labels = pair_squares[0].copy(), label_squares[0].copy()
    for step in range(a.shape[0]):
        keep, gone = _root(clusters, a[step]), _root(clusters, b[step])
        gain, cost = 0.0, 0.0
        if keep != gone:
            if (clusters[keep, LENGTH] < clusters[gone, LENGTH]
                    or (clusters[keep, LENGTH] == clusters[gone, LENGTH]
                        and clusters[keep, SIZE] < clusters[gone, SIZE])):
                keep, gone = gone, keep
            length, extra = clusters[keep, LENGTH], clusters[gone, LENGTH]
            if clusters[gone, SIZE]:
                _add_product(labels, clusters[keep, SIZE], clusters[gone, SIZE])
                cost = _joined_entropy(clusters[keep, SIZE], clusters[gone, SIZE])
            if length > SHORT and 2 * (used + extra) > capacity:
                while 4 * (long_entries + extra) > capacity:
                    capacity *= 2
                table, used = _long_rows(clusters, entries, capacity)
            gain, added = _absorb(keep, gone, clusters, entries, table, pairs)
            used += added
            together = clusters[keep, LENGTH]
            long_entries += ((together if together > SHORT else 0) - (length if length > SHORT else 0)
                             - (extra if extra > SHORT else 0))
            if together > SHORT and length <= SHORT:
                if 2 * (used + together) <= capacity:
                    used += _index_row(table, keep, clusters[keep, HEAD], entries)
                else:
                    used = capacity
            clusters[gone, PARENT] = keep
            clusters[keep, SIZE] += clusters[gone, SIZE]
        split_gain[step] = gain
        merge_cost[step] = max(0.0, cost - gain)
        pair_squares[step + 1] = pairs
        label_squares[step + 1] = labels


@compiled(types.void(_float_in, types.float64, types.float64, _float_out))
def running_sum(changes, start, scale, sums):
    """Writes start + scale x (each partial sum), compensated (Neumaier), so that a million terms lose nothing."""
    total, lost = 0.0, 0.0
    sums[0] = start
    for index in range(changes.shape[0]):
        change = changes[index]
        after = total + change
        if abs(total) >= abs(change):
            lost += (total - after) + change
        else:
            lost += (change - after) + total
        total = after
        sums[index + 1] = start + scale * (total + lost)
