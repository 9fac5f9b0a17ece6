"""Voxels, sums of indices, boxes and contacts of densely numbered labels, by the runs of every row."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

import numpy as np

cdef struct Entry:
    uint64_t pair  # the lower label, and the other one in the low 32 bits; 0: a free place
    int64_t z, y, x  # common faces along each axis


cdef inline bint taken(const Entry& entry) noexcept nogil:
    return entry.pair != 0


cdef inline bint same(const Entry& entry, const Entry& other) noexcept nogil:
    return entry.pair == other.pair


cdef inline uint64_t home(const Entry& entry) noexcept nogil:
    return mix(entry.pair)


include "table.pxi"


cdef class Plane:
    """The runs of all rows of one section: where each ends, its label, and the first run of each row."""

    cdef vector[int32_t] ends
    cdef vector[uint32_t] labels
    cdef vector[int64_t] firsts

    cdef void swap(self, Plane other) noexcept nogil:
        self.ends.swap(other.ends)
        self.labels.swap(other.labels)
        self.firsts.swap(other.firsts)

    cdef int read(self, const uint32_t[:, :, :]& labels, int64_t z, int64_t length) except -1 nogil:
        """Takes the first voxels of every row."""
        cdef int64_t y, x, number = 0
        self.firsts.clear()
        for y in range(labels.shape[1]):
            self.firsts.push_back(number)
            if <int64_t>self.ends.size() < number + length:
                self.ends.resize(2 * (number + length))
                self.labels.resize(2 * (number + length))
            for x in range(1, length):
                self.ends[number] = <int32_t>x
                self.labels[number] = labels[z, y, x - 1]
                number += labels[z, y, x] != labels[z, y, x - 1]
            self.ends[number] = <int32_t>length
            self.labels[number] = labels[z, y, length - 1]
            number += 1
        self.firsts.push_back(number)
        return 0


cdef class Tally:
    """The contacts that one thread has met."""

    cdef vector[Entry] table  # at most half full
    cdef uint64_t filled

    def __cinit__(self):
        self.table.resize(1 << 10)

    cdef int add(self, uint32_t one, uint32_t other, Entry faces) except -1 nogil:
        cdef Entry* place
        faces.pair = <uint64_t>min(one, other) << 32 | max(one, other)
        place = place_of(self.table.data(), self.table.size(), faces)
        if taken(place[0]):
            place.z += faces.z
            place.y += faces.y
            place.x += faces.x
            return 0
        place[0] = faces
        self.filled += 1
        if 2 * self.filled > self.table.size():
            resize_table(self.table, 2 * self.table.size())
        return 0

    cdef int touch(self, Plane one, int64_t row, Plane other, int64_t next, Entry face) except -1 nogil:
        """Adds the contacts of two rows that lie beside each other; face: one of them."""
        cdef int64_t i = one.firsts[row], j = other.firsts[next], stop = one.firsts[row + 1]
        cdef int32_t end, start = 0
        cdef uint32_t a, b
        while i < stop:
            a, b = one.labels[i], other.labels[j]
            end = min(one.ends[i], other.ends[j])
            if a != b and a and b:
                self.add(a, b, Entry(0, face.z * (end - start), face.y * (end - start), 0))
            i += one.ends[i] == end
            j += other.ends[j] == end
            start = end
        return 0

    def measure(self, const uint32_t[:, :, :] labels, int64_t first, int64_t last, const int64_t[::1] shape,
                int64_t[:, ::1] objects):
        """Adds sections first to last of the voxels within shape; what lies beyond that counts where it is touched.

        objects: for each label its voxels, the sums of their z, y and x, the least and the largest z, y and x.
        """
        cdef Plane plane = Plane(), following = Plane()
        cdef int64_t z, y, i, start, length, stop
        cdef int64_t* row
        if first >= last:
            return
        with nogil:
            following.read(labels, first, shape[2])
            for z in range(first, last):
                plane.swap(following)
                if z + 1 < labels.shape[0]:
                    following.read(labels, z + 1, shape[2])
                for y in range(shape[1]):
                    start, stop = 0, plane.firsts[y + 1]
                    for i in range(plane.firsts[y], stop):
                        row = &objects[plane.labels[i], 0]
                        length = plane.ends[i] - start
                        row[0] += length
                        row[1] += length * z
                        row[2] += length * y
                        row[3] += length * (start + plane.ends[i] - 1) // 2
                        row[4], row[7] = min(row[4], z), max(row[7], z)
                        row[5], row[8] = min(row[5], y), max(row[8], y)
                        row[6], row[9] = min(row[6], start), max(row[9], <int64_t>plane.ends[i] - 1)
                        start = plane.ends[i]
                        if i + 1 < stop and plane.labels[i] and plane.labels[i + 1]:
                            self.add(plane.labels[i], plane.labels[i + 1], Entry(0, 0, 0, 1))
                    if labels.shape[2] > shape[2]:
                        if labels[z, y, start - 1] != labels[z, y, start] and labels[z, y, start - 1] and labels[z, y, start]:
                            self.add(labels[z, y, start - 1], labels[z, y, start], Entry(0, 0, 0, 1))
                    if y + 1 < labels.shape[1]:
                        self.touch(plane, y, plane, y + 1, Entry(0, 0, 1, 0))
                    if z + 1 < labels.shape[0]:
                        self.touch(plane, y, following, y, Entry(0, 1, 0, 0))

    def contacts(self):
        """Every pair: (lower label, other label, faces along z, y and x), rising."""
        cdef int64_t number = 0
        rows = np.empty((self.filled, 4), np.int64)
        cdef int64_t[:, ::1] out = rows
        for entry in self.table:
            if taken(entry):
                out[number, 0], out[number, 1], out[number, 2], out[number, 3] = (<int64_t>entry.pair, entry.z, entry.y,
                                                                                entry.x)
                number += 1
        pairs = rows[:, 0].view(np.uint64)
        return np.column_stack([(pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(2**32 - 1)).astype(np.int64),
                                rows[:, 1:]])[np.argsort(pairs)]
