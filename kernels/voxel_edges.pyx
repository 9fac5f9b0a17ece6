"""The edges of a voxel grid with any offsets, row by row: weights from affinities, strides and mask."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

import numpy as np

cdef enum:
    MAGNITUDE = 0x7FFFFFFF  # a float32 without its sign: bits that order like the number
    KEY_SHIFT = 14  # bits of a key below the histogram's resolution

BINS = 1 << (31 - KEY_SHIFT)

cdef struct Entry:  # the first edge between two clusters
    uint64_t pair
    uint32_t bits
    uint32_t channel
    uint32_t voxel


cdef inline bint taken(Entry entry) noexcept nogil:
    return entry.pair != 0


cdef inline bint same(Entry entry, Entry other) noexcept nogil:
    return entry.pair == other.pair


cdef inline uint64_t home(Entry entry) noexcept nogil:
    return mix(entry.pair)


include "table.pxi"

ctypedef fused stored:
    float
    uint8_t
    uint16_t

cdef struct Channel:
    int64_t dz, dy, dx, delta
    int64_t sz, sy, sx
    float bias
    const float* weights


cdef void weigh(const stored* line, int64_t step, int64_t start, int64_t stop, Channel* k, float* out) noexcept nogil:
    cdef int64_t x
    for x in range(start, stop):
        if stored is float:
            out[x] = line[x * step] + k.bias
        else:
            out[x] = k.weights[line[x * step]]


cdef void improve(const int32_t* bits, int32_t* best, int32_t* way, int64_t start, int64_t stop,
                  int32_t code) noexcept nogil:
    cdef int64_t x
    cdef int32_t key, direction
    for x in range(start, stop):
        key = bits[x] & MAGNITUDE
        direction = code if bits[x] >= 0 else -1
        way[x] = direction if key > best[x] else way[x]
        best[x] = key if key > best[x] else best[x]


cdef class VoxelEdges:
    """The edges of affinities values (c, z, y, x): float32, or codes of which table[c] gives the weights.

    A float32 affinity weighs affinity + bias[c]; positive weights join, negative ones forbid, zero says nothing.
    An edge counts where its two ends have 2 or more in the mask together. The voxels lie in a larger volume from
    origin on, in which strides are counted.
    Rows are numbered z * ny + y; parent holds the root of every voxel's cluster.
    """

    cdef object keep_alive
    cdef const char* base
    cdef int64_t width, step_c, step_z, step_y, step_x, nz, ny, nx, oz, oy, ox
    cdef const uint8_t[:, :, :] mask
    cdef bint masked
    cdef vector[Channel] channels

    def __init__(self, values, const float[:, ::1] table, mask, const int64_t[:, ::1] offsets,
                 const int64_t[:, ::1] strides, const float[::1] bias, origin=(0, 0, 0)):
        cdef int64_t c
        cdef Channel k
        cdef uint64_t address = values.__array_interface__["data"][0]
        self.keep_alive = values, table
        self.base = <const char*>address
        self.width = values.itemsize
        nc, self.nz, self.ny, self.nx = values.shape
        self.step_c, self.step_z, self.step_y, self.step_x = values.strides
        self.oz, self.oy, self.ox = origin
        self.masked = mask is not None
        if self.masked:
            self.mask = mask
        for c in range(nc):
            k.dz, k.dy, k.dx = offsets[c, 0], offsets[c, 1], offsets[c, 2]
            k.sz, k.sy, k.sx = strides[c, 0], strides[c, 1], strides[c, 2]
            k.delta = (k.dz * self.ny + k.dy) * self.nx + k.dx
            k.bias = bias[c]
            k.weights = &table[c, 0] if table is not None else NULL
            self.channels.push_back(k)

    cdef bint load(self, int64_t c, int64_t z, int64_t y, int64_t* first, int64_t* last, float* out) noexcept nogil:
        """Weights of the edges that row (z, y) stores, 0 where mask or stride leave one out; False if it has none."""
        cdef Channel* k = &self.channels[c]
        cdef int64_t x, start = max(0, -k.dx), stop = min(self.nx, self.nx - k.dx)
        cdef const char* line = self.base + c * self.step_c + z * self.step_z + y * self.step_y
        if z < max(0, -k.dz) or z >= min(self.nz, self.nz - k.dz) or (z + self.oz) % k.sz:
            return False
        if y < max(0, -k.dy) or y >= min(self.ny, self.ny - k.dy) or (y + self.oy) % k.sy or start >= stop:
            return False
        if self.width == 4 and self.step_x == 4:
            weigh[float](<const float*>line, 1, start, stop, k, out)
        elif self.width == 4:
            weigh[float](<const float*>line, self.step_x // 4, start, stop, k, out)
        elif self.width == 1:
            weigh[uint8_t](<const uint8_t*>line, self.step_x, start, stop, k, out)
        else:
            weigh[uint16_t](<const uint16_t*>line, self.step_x // 2, start, stop, k, out)
        if k.sx > 1:
            for x in range(start, stop):
                if (x + self.ox) % k.sx:
                    out[x] = 0
        if self.masked:
            for x in range(start, stop):
                if self.mask[z, y, x] + self.mask[z + k.dz, y + k.dy, x + k.dx] < 2:
                    out[x] = 0
        first[0] = start
        last[0] = stop
        return True

    def point(self, uint32_t[::1] parent, int64_t row_start, int64_t row_stop, float low, float high):
        """Points every voxel along its strongest edge if that attracts; True if low <= weight - bias <= high.

        When the turn of such an edge comes its voxel is still alone and free of mutexes, so it always merges:
        merging ahead changes nothing.
        """
        cdef int64_t row, z, y, x, start, stop
        cdef int32_t code
        cdef bint fine = True
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
                best.clear()
                best.resize(self.nx, 0)
                way.clear()
                way.resize(self.nx, -1)
                for code in range(<int32_t>(2 * self.channels.size())):
                    k = &self.channels[code >> 1]
                    # of two equal edges of a channel, the one stored at the earlier voxel goes first
                    if (code & 1 == 0) == (k.delta < 0):
                        if self.load(code >> 1, z, y, &start, &stop, w):
                            for x in range(start, stop):
                                fine &= (w[x] >= low + k.bias) & (w[x] <= high + k.bias)
                            improve(<int32_t*>w, best.data(), way.data(), start, stop, code & ~1)
                    elif self.load(code >> 1, z - k.dz, y - k.dy, &start, &stop, w):
                        improve(<int32_t*>w, best.data() + k.dx, way.data() + k.dx, start, stop, code | 1)
                for x in range(self.nx):
                    start = row * self.nx + x
                    if way[x] >= 0:
                        k = &self.channels[way[x] >> 1]
                        parent[start] = <uint32_t>(start - k.delta if way[x] & 1 else start + k.delta)
                    else:
                        parent[start] = <uint32_t>start
        return fine

    def histogram(self, const uint32_t[::1] parent, int64_t row_start, int64_t row_stop, int64_t[::1] counts):
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
                here = &parent[row * self.nx]
                for c in range(<int64_t>self.channels.size()):
                    if self.load(c, row // self.ny, row % self.ny, &start, &stop, weights.data()):
                        there = here + self.channels[c].delta
                        for x in range(start, stop):
                            if here[x] != there[x]:
                                counts[(bits[x] & MAGNITUDE) >> KEY_SHIFT] += 1

    def gather(self, const uint32_t[::1] parent, int64_t c, int64_t row_start, int64_t row_stop,
               uint32_t low, uint32_t high):
        """The edges (bits of weight, root, root) of one channel with low <= bits of |weight| < high, in raster order."""
        cdef int64_t row, x, start, stop, piece
        cdef int32_t hit
        cdef vector[float] weights
        cdef vector[uint32_t] found
        cdef const uint32_t* bits
        cdef const uint32_t* here
        cdef const uint32_t* there
        cdef uint32_t[:, ::1] copy
        with nogil:
            weights.resize(self.nx)
            bits = <uint32_t*>weights.data()
            for row in range(row_start, row_stop):
                if self.load(c, row // self.ny, row % self.ny, &start, &stop, weights.data()):
                    here = &parent[row * self.nx]
                    there = here + self.channels[c].delta
                    while start < stop:
                        piece = min(start + 16, stop)
                        hit = 0
                        for x in range(start, piece):  # without branches: most pieces hold no edge of the batch
                            hit |= (<int32_t>(bits[x] & MAGNITUDE) >= <int32_t>low) & (
                                <int32_t>(bits[x] & MAGNITUDE) < <int32_t>high)
                        for x in range(start, piece if hit else start):
                            if (bits[x] & MAGNITUDE) - low < high - low and here[x] != there[x]:
                                found.push_back(bits[x])
                                found.push_back(here[x])
                                found.push_back(there[x])
                        start = piece
        edges = np.empty((found.size() // 3, 3), np.uint32)
        copy = edges
        if found.size():
            memcpy(&copy[0, 0], found.data(), found.size() * sizeof(uint32_t))
        return edges

    def first(self, const uint32_t[::1] parent, const int64_t[:, ::1] box):
        """(the first edge between every two clusters: bits of weight, cluster, cluster, channel, voxel), uint32.

        Only edges stored in the box (3, 2) count; clusters are numbered from 1.
        """
        cdef int64_t z, y, x, c, start, stop, row
        cdef uint64_t used = 0
        cdef vector[float] weights
        cdef vector[Entry] table
        cdef const uint32_t* bits
        cdef const uint32_t* there
        cdef Entry* place
        cdef Entry entry
        cdef uint32_t[:, ::1] found
        with nogil:
            weights.resize(self.nx)
            table.resize(1024)
            bits = <uint32_t*>weights.data()
            for c in range(<int64_t>self.channels.size()):
                for z in range(box[0, 0], box[0, 1]):
                    for y in range(box[1, 0], box[1, 1]):
                        if not self.load(c, z, y, &start, &stop, weights.data()):
                            continue
                        row = (z * self.ny + y) * self.nx
                        there = &parent[0] + row + self.channels[c].delta
                        for x in range(max(start, box[2, 0]), min(stop, box[2, 1])):
                            if parent[row + x] == there[x] or weights[x] == 0:
                                continue
                            entry.pair = <uint64_t>min(parent[row + x], there[x]) << 32 | max(parent[row + x], there[x])
                            entry.bits, entry.channel, entry.voxel = bits[x], <uint32_t>c, <uint32_t>(row + x)
                            place = place_of(table.data(), table.size(), entry)
                            if not taken(place[0]):
                                place[0] = entry
                                used += 1
                                if 8 * used > 5 * table.size():
                                    resize_table(table, 2 * table.size())
                            elif (bits[x] & MAGNITUDE) > (place.bits & MAGNITUDE):  # of equal ones the earlier stays
                                place[0] = entry
        edges = np.empty((5, used), np.uint32)
        found = edges
        with nogil:
            x = 0
            for entry in table:
                if taken(entry):
                    found[0, x], found[1, x], found[2, x] = entry.bits, <uint32_t>(entry.pair >> 32), <uint32_t>entry.pair
                    found[3, x], found[4, x] = entry.channel, entry.voxel
                    x += 1
        return edges
