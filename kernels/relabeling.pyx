"""Label volumes by their runs: which labels occur, dense renumbering, remapping. Memory follows the number of labels.

Every row is cut into runs of one label first, without a branch, so that the table is asked once a run.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

import numpy as np

ctypedef fused label_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

ctypedef fused out_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

cdef enum:
    PIECE = 4096  # voxels of a row looked at together; their runs stay in the nearest cache
    STRIDE = 16  # voxels written at once
    KEEP_MISSING = 0
    FIND_MISSING = 1

cdef struct Entry:
    uint64_t key
    int64_t place  # -1: free


cdef inline int64_t slot_of(const vector[Entry]& entries, uint64_t key) noexcept nogil:
    """Where key is, or the free entry where it belongs (open addressing, never more than half full)."""
    cdef uint64_t mask = entries.size() - 1
    # the upper half folded in first: ids that are multiples of a large power of two (blocks) would all meet
    cdef uint64_t slot = (((key ^ (key >> 32)) * <uint64_t>0x9E3779B97F4A7C15) >> 32) & mask
    while entries[slot].place >= 0 and entries[slot].key != key:
        slot = (slot + 1) & mask
    return <int64_t>slot


cdef int reserve(vector[Entry]& entries, const vector[uint64_t]& keys, size_t number) except -1 nogil:
    """Makes room for number keys and enters those there are, each at its place."""
    cdef size_t size = 64, place
    cdef Entry entry
    while size < 2 * number:
        size *= 2
    entry.key = 0
    entry.place = -1
    entries.clear()
    entries.resize(size, entry)
    for place in range(keys.size()):
        entry.key = keys[place]
        entry.place = <int64_t>place
        entries[slot_of(entries, entry.key)] = entry
    return 0


cdef inline int64_t place_of(vector[Entry]& entries, vector[uint64_t]& keys, uint64_t key) except -1 nogil:
    """The place of key among the keys, appended if it is new."""
    cdef int64_t slot = slot_of(entries, key), place = entries[slot].place
    if place < 0:
        place = <int64_t>keys.size()
        entries[slot].key = key
        entries[slot].place = place
        keys.push_back(key)
        if 2 * keys.size() > entries.size():
            reserve(entries, keys, 2 * keys.size())
    return place


cdef inline int64_t find_ends(const label_t* row, int64_t length, int32_t* ends) noexcept nogil:
    """The number of runs of equal labels in a row, and behind the last voxel of each."""
    cdef int64_t x, number = 0
    for x in range(1, length):
        ends[number] = <int32_t>x
        number += row[x] != row[x - 1]
    ends[number] = <int32_t>length
    return number + 1


cdef inline const label_t* piece(const label_t[:, :, :]& labels, int64_t z, int64_t y, int64_t x, int64_t length,
                                 label_t* copy) noexcept nogil:
    """length voxels of a row from x on: where they lie, or a copy if the row is strided."""
    cdef int64_t i
    if labels.strides[2] == <Py_ssize_t>sizeof(label_t):
        return &labels[z, y, x]
    for i in range(length):
        copy[i] = labels[z, y, x + i]
    return copy


cdef inline void fill(out_t* row, int64_t start, int64_t stop, int64_t length, out_t value) noexcept nogil:
    """Writes value from start to stop, and perhaps beyond: the runs behind must be written after this one."""
    cdef int64_t i
    if start + STRIDE <= length:  # most runs are short, and a loop of unknown length costs more than its work
        for i in range(STRIDE):
            row[start + i] = value
        start += STRIDE
    for i in range(start, stop):
        row[i] = value


def number(const label_t[:, :, :] labels, out_t[:, :, ::1] out, uint64_t limit):
    """(labels that occur, their counts), in order of first appearance behind 0; None if more than limit + 1 of them.

    Fills out with each voxel's place among them, unless out is empty.
    """
    cdef vector[Entry] entries
    cdef vector[uint64_t] keys
    cdef vector[int64_t] counts
    cdef int64_t p, z, y, x, k, start, stop, place, runs, length, nx = labels.shape[2]
    cdef int64_t pieces = (nx + PIECE - 1) // PIECE
    cdef bint write = out.shape[0] > 0, full = False
    cdef int32_t ends[PIECE]
    cdef label_t copy[PIECE]
    cdef const label_t* row
    cdef out_t* target = NULL
    with nogil:
        keys.push_back(0)
        counts.push_back(0)
        reserve(entries, keys, 1)
        for p in range(labels.shape[0] * labels.shape[1] * pieces):
            x = p % pieces * PIECE
            y = p // pieces % labels.shape[1]
            z = p // pieces // labels.shape[1]
            length = min(<int64_t>PIECE, nx - x)
            row = piece(labels, z, y, x, length, copy)
            if write:
                target = &out[z, y, x]
            runs = find_ends(row, length, ends)
            start = 0
            for k in range(runs):
                stop = ends[k]
                place = place_of(entries, keys, row[start])
                if place == <int64_t>counts.size():
                    counts.push_back(0)
                counts[place] += stop - start
                if write:
                    fill(target, start, stop, length, <out_t>place)
                start = stop
            if keys.size() - 1 > limit:
                full = True
                break
    if full:
        return None
    ids, sizes = np.empty(keys.size(), np.uint64), np.empty(keys.size(), np.int64)
    cdef uint64_t[::1] ids_view = ids
    cdef int64_t[::1] sizes_view = sizes
    for k in range(<int64_t>keys.size()):
        ids_view[k] = keys[k]
        sizes_view[k] = counts[k]
    return ids, sizes


def renumber(out_t[:, :, ::1] out, const int64_t[::1] places):
    """Replaces every number in out by places[number]."""
    cdef int64_t i, length = out.shape[0] * out.shape[1] * out.shape[2]
    cdef out_t* flat
    if length == 0:
        return
    flat = &out[0, 0, 0]
    with nogil:
        for i in range(length):
            flat[i] = <out_t>places[flat[i]]


cdef class Lookup:
    """A table from old labels to new ones; `conflict` is an old label that was given two new ones, or None."""

    cdef vector[Entry] entries
    cdef vector[uint64_t] keys
    cdef vector[uint64_t] values
    cdef readonly object conflict

    def __init__(self, const uint64_t[:] old, const uint64_t[:] new):
        cdef int64_t i, place, bad = -1
        with nogil:
            reserve(self.entries, self.keys, old.shape[0])
            for i in range(old.shape[0]):
                place = place_of(self.entries, self.keys, old[i])
                if place == <int64_t>self.values.size():
                    self.values.push_back(new[i])
                elif self.values[place] != new[i]:
                    bad = i
                    break
        self.conflict = None if bad < 0 else int(old[bad])


def remap(const label_t[:, :, :] labels, out_t[:, :, ::1] out, Lookup table, int missing, uint64_t instead):
    """Fills out with the new label of every voxel; a label missing in table, or None.

    missing 0: such labels stay; 1: the first is returned at once; 2: they become instead.
    """
    cdef int64_t p, z, y, x, k, start, stop, place, runs, length, nx = labels.shape[2]
    cdef int64_t pieces = (nx + PIECE - 1) // PIECE
    cdef uint64_t value, lost = 0
    cdef bint found = False
    cdef int32_t ends[PIECE]
    cdef label_t copy[PIECE]
    cdef const label_t* row
    cdef out_t* target
    with nogil:
        for p in range(labels.shape[0] * labels.shape[1] * pieces):
            x = p % pieces * PIECE
            y = p // pieces % labels.shape[1]
            z = p // pieces // labels.shape[1]
            length = min(<int64_t>PIECE, nx - x)
            row = piece(labels, z, y, x, length, copy)
            target = &out[z, y, x]
            runs = find_ends(row, length, ends)
            start = 0
            for k in range(runs):
                stop = ends[k]
                value = row[start]
                place = table.entries[slot_of(table.entries, value)].place
                if place >= 0:
                    value = table.values[place]
                elif missing == FIND_MISSING:
                    lost = value
                    found = True
                    break
                elif missing != KEEP_MISSING:
                    value = instead
                fill(target, start, stop, length, <out_t>value)
                start = stop
            if found:
                break
    return int(lost) if found else None
