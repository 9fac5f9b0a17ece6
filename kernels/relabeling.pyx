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
    int64_t number  # of the key in order of first appearance, from 1; 0: a free place


cdef inline bint taken(const Entry& entry) noexcept nogil:
    return entry.number != 0


cdef inline bint same(const Entry& entry, const Entry& other) noexcept nogil:
    return entry.key == other.key


cdef inline uint64_t home(const Entry& entry) noexcept nogil:
    # the upper half folded in first: ids that are multiples of a large power of two (blocks) would all meet
    return mix(entry.key ^ (entry.key >> 32))


include "table.pxi"


cdef int64_t append(vector[Entry]& table, vector[uint64_t]& keys, uint64_t key) except -1 nogil:
    """Appends a key that is new; its number."""
    cdef int64_t number
    keys.push_back(key)
    number = <int64_t>keys.size()
    if 2 * keys.size() > table.size():
        resize_table(table, 4 * table.size())
    place_of(table.data(), table.size(), Entry(key, 0))[0] = Entry(key, number)
    return number


cdef inline int64_t number_of(vector[Entry]& table, vector[uint64_t]& keys, uint64_t key) except -1 nogil:
    """The number of key, which is appended to the keys if it is new."""
    cdef int64_t number = place_of(table.data(), table.size(), Entry(key, 0)).number
    return number if number else append(table, keys, key)


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
    cdef vector[Entry] table
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
        table.resize(64)
        number_of(table, keys, 0)
        counts.push_back(0)
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
                place = number_of(table, keys, row[start]) - 1
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

    cdef vector[Entry] table
    cdef vector[uint64_t] keys
    cdef vector[uint64_t] values
    cdef readonly object conflict

    def __init__(self, const uint64_t[:] old, const uint64_t[:] new):
        cdef int64_t i, place, bad = -1, places = 64
        with nogil:
            while places < 2 * old.shape[0]:
                places *= 2
            self.table.resize(places)
            for i in range(old.shape[0]):
                place = number_of(self.table, self.keys, old[i]) - 1
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
                place = place_of(table.table.data(), table.table.size(), Entry(value, 0)).number
                if place > 0:
                    value = table.values[place - 1]
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
