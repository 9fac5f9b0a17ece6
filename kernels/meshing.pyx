"""The surfaces of all labels of a window: one vertex for every side of a voxel where its label ends, by marching cubes.

A vertex slides along the line between two voxel centres, by less than half a voxel, so a surface stays within the cells
that it crosses. It has exactly four neighbours, one on each of the cells' sides that meet
in its line: where the object bends away (convex), goes on (flat), or bends outwards (concave).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

import numpy as np

cdef enum:
    CONVEX = 0
    FLAT = 1
    CONCAVE = 2
    NOWHERE = 0xFFFFFFFFU

# how far out of the object a neighbour of each kind lies, and by how much its own way moves it there
cdef float* BESIDE = [-0.5, 0, 0.5]
cdef float* MOVES = [0, 1, 0]
# how far away it lies to the side, and by how much its own way moves it there
cdef float* REACH = [0.5, 1, 0.5]
cdef float* WIDER = [1, 0, -1]
# The vertex and two neighbours of the kinds a and b bound a part of a cell. With r, the product of what these reach, it
# lacks LACK + (HALF - way) * r * SHARE of its volume, and r * GAIN is added by a step outwards; at 3 * a + b. Exact for
# flat parts, straight edges and single corners.
cdef float* LACK = [1.0 / 24, 1.0 / 16, 0, 1.0 / 16, 0, -1.0 / 16, 0, -1.0 / 16, -1.0 / 24]
cdef float* HALF = [-0.5, -0.5, 0, -0.5, 0, 0.5, 0, 0.5, 0.5]
cdef float* SHARE = [1.0 / 18, 1.0 / 8, 1.0 / 2, 1.0 / 8, 1.0 / 4, 1.0 / 8, 1.0 / 2, 1.0 / 8, 1.0 / 18]
cdef float* GAIN = [1.0 / 6, 1.0 / 4, 1.0 / 2, 1.0 / 4, 1.0 / 4, 1.0 / 4, 1.0 / 2, 1.0 / 4, 1.0 / 6]
cdef float LEAST_GAIN = 0.5  # A vertex on a thin line would jump: the next round moves it farther.
cdef float FARTHEST = 0.45  # A vertex at the very end of its way would make triangles without area.

cdef struct Cell:  # one that an object fills in part
    uint32_t at  # its earliest voxel
    uint32_t who  # 256 * label + the voxels that are of the object, a bit each

cdef struct Part:  # where the surface of an object goes
    float* points
    uint32_t* faces
    uint32_t* seam
    uint64_t* keys


cdef inline void measure(const float* ways, const uint32_t* near, float way, float* lacks, float* gains) noexcept nogil:
    """What volume a vertex lacks of its part of four cells, and what volume a step outwards adds."""
    cdef int64_t i, j
    cdef uint32_t kind
    cdef float reach, lack = 0, gain = 0
    cdef float[4] reaches
    for i in range(4):
        reaches[i] = REACH[near[i] & 3] + WIDER[near[i] & 3] * ways[near[i] >> 2]
    for i in range(2):
        for j in range(2, 4):
            kind = 3 * (near[i] & 3) + (near[j] & 3)
            reach = reaches[i] * reaches[j]
            lack += LACK[kind] + (HALF[kind] - way) * reach * SHARE[kind]
            gain += reach * GAIN[kind]
    lacks[0] = lack
    gains[0] = gain


cdef inline uint32_t vertex(const uint32_t* numbers, int64_t within, int64_t without, int64_t axis) noexcept nogil:
    """The vertex between a voxel of an object and one that is not of it."""
    return numbers[3 * within + axis] - 1 if within < without else numbers[3 * without + axis]


cdef class Surfaces:
    """The vertices of a window whose outermost voxels are 0, and the triangles of those cells that it is asked for."""

    cdef const uint32_t[:, :, ::1] labels
    cdef int64_t[3] step  # to the next voxel along each axis
    cdef readonly int64_t count
    cdef uint32_t[::1] numbers  # of the vertex between a voxel and the next one along each axis that is of the later
    # voxel's object; that of the earlier one's has the number before
    cdef int64_t[::1] rows  # the first vertex of each row of voxels, and their number
    cdef uint32_t[::1] voxels  # of each vertex: the earlier one of its two voxels
    cdef uint8_t[::1] sides  # 2 * axis, and 1 more where its object is at the later voxel
    cdef uint32_t[::1] near  # its four neighbours, 4 * number + kind
    cdef float[::1] ways, others  # how far it slid out of its object, in voxels; what one pass leaves to the next
    cdef float[::1] gains, shared
    cdef uint32_t[::1] places  # among the vertices of its object in some cells; it takes the room of `gains`

    def __init__(self, const uint32_t[:, :, ::1] labels):
        self.labels = labels
        self.step[0], self.step[1], self.step[2] = labels.shape[1] * labels.shape[2], labels.shape[2], 1
        self.rows = np.empty(labels.shape[0] * labels.shape[1] + 1, np.int64)
        with nogil:
            self.count = self.count_vertices()
        self.numbers = np.empty(3 * labels.shape[0] * self.step[0], np.uint32)
        self.voxels, self.sides = np.empty(self.count, np.uint32), np.empty(self.count, np.uint8)
        self.near = np.empty(4 * self.count, np.uint32)
        self.ways, self.others = np.zeros(self.count, np.float32), np.empty(self.count, np.float32)
        room = np.empty(self.count, np.float32)
        self.gains, self.shared, self.places = room, np.empty(self.count, np.float32), room.view(np.uint32)
        if self.count:
            with nogil:
                self.find_vertices()
                self.find_neighbours()

    cdef int64_t count_vertices(self) noexcept nogil:
        """Notes where the vertices of each row begin; their number. The last plane, row and column are empty."""
        cdef const uint32_t* label
        cdef const uint32_t* below
        cdef const uint32_t* beside
        cdef int64_t z, y, x, total = 0
        cdef uint32_t found
        for z in range(self.labels.shape[0]):
            for y in range(self.labels.shape[1]):
                self.rows[z * self.labels.shape[1] + y] = total
                if z == self.labels.shape[0] - 1 or y == self.labels.shape[1] - 1:
                    continue
                label, below, beside = &self.labels[z, y, 0], &self.labels[z + 1, y, 0], &self.labels[z, y + 1, 0]
                found = 0
                for x in range(self.labels.shape[2] - 1):
                    found += (label[x] != below[x]) * (<uint32_t>(label[x] != 0) + (below[x] != 0))
                    found += (label[x] != beside[x]) * (<uint32_t>(label[x] != 0) + (beside[x] != 0))
                    found += (label[x] != label[x + 1]) * (<uint32_t>(label[x] != 0) + (label[x + 1] != 0))
                total += found
        self.rows[self.labels.shape[0] * self.labels.shape[1]] = total
        return total

    cdef int find_vertices(self) noexcept nogil:
        cdef const uint32_t* label = &self.labels[0, 0, 0]
        cdef int64_t row, at, axis, number = 0
        cdef uint32_t own, other
        for row in range(self.rows.shape[0] - 1):
            if self.rows[row] == self.rows[row + 1]:
                continue
            for at in range(row * self.step[1], (row + 1) * self.step[1] - 1):
                own = label[at]
                if own == label[at + self.step[0]] and own == label[at + self.step[1]] and own == label[at + 1]:
                    continue
                for axis in range(3):
                    other = label[at + self.step[axis]]
                    if own != other:
                        self.numbers[3 * at + axis] = <uint32_t>number + (own != 0)
                        if own:
                            self.voxels[number] = <uint32_t>at
                            self.sides[number] = <uint8_t>(2 * axis)
                            number += 1
                        if other:
                            self.voxels[number] = <uint32_t>at
                            self.sides[number] = <uint8_t>(2 * axis + 1)
                            number += 1
        return 0

    cdef int find_neighbours(self) noexcept nogil:
        cdef const uint32_t* label = &self.labels[0, 0, 0]
        cdef int64_t i, j, axis, across, within, without, beside, beyond, way
        cdef const uint32_t* numbers = &self.numbers[0]
        cdef uint32_t own
        for i in range(self.count):
            axis = self.sides[i] >> 1
            within = without = self.voxels[i]
            if self.sides[i] & 1:
                within += self.step[axis]
            else:
                without += self.step[axis]
            own = label[within]
            for j in range(4):
                across = (axis == 0) if j < 2 else 2 - (axis == 2)
                way = self.step[across] if j & 1 else -self.step[across]
                beside, beyond = within + way, without + way
                if label[beside] != own:
                    self.near[4 * i + j] = 4 * vertex(numbers, within, beside, across) + CONVEX
                elif label[beyond] != own:
                    self.near[4 * i + j] = 4 * vertex(numbers, beside, beyond, axis) + FLAT
                else:
                    self.near[4 * i + j] = 4 * vertex(numbers, beyond, without, across) + CONCAVE
        return 0

    def smooth(self, float share):
        """Moves every vertex by a share of the way to the middle of its four neighbours, as far as its line allows."""
        cdef int64_t i, j
        cdef float total
        cdef const float* ways
        cdef const uint32_t* near
        if self.count == 0:
            return
        self.ways, self.others = self.others, self.ways
        ways, near = &self.others[0], &self.near[0]
        with nogil:
            for i in range(self.count):
                total = 0
                for j in range(4 * i, 4 * i + 4):
                    total += BESIDE[near[j] & 3] + MOVES[near[j] & 3] * ways[near[j] >> 2]
                self.ways[i] = ways[i] + share * (total / 4 - ways[i])

    def restore_volume(self, int spread):
        """Moves the vertices so that objects get back the volume of their voxels, which bends of the surface changed.

        What each vertex lacks is first shared out among it and its neighbours, `spread` times, which takes nothing from
        the sum: four neighbours are the same for all.
        """
        cdef int64_t i, j
        cdef float total
        cdef float* lacks
        cdef float* shared
        cdef const uint32_t* near
        if self.count == 0:
            return
        lacks, shared, near = &self.others[0], &self.shared[0], &self.near[0]
        with nogil:
            for i in range(self.count):
                measure(&self.ways[0], near + 4 * i, self.ways[i], &lacks[i], &self.gains[i])
            for _ in range(spread):
                for i in range(self.count):
                    total = lacks[i]
                    for j in range(4 * i, 4 * i + 4):
                        total += lacks[near[j] >> 2]
                    shared[i] = total / 5
                lacks, shared = shared, lacks
            for i in range(self.count):
                self.ways[i] = max(-FARTHEST, min(FARTHEST, self.ways[i] + lacks[i] / max(LEAST_GAIN, self.gains[i])))

    def objects(self, const uint8_t[:, ::1] table, int64_t count, const int64_t[:, ::1] cells, const int64_t[::1] first,
                const int64_t[::1] shape, const double[:, ::1] grid):
        """The parts of the surfaces in some cells: (label, vertices, triangles, seam, keys) of each object there.

        cells: their first, and the first behind them; a cell is numbered by the latest of its voxels. grid: nm of a
        voxel, and where voxel 0 of the volume begins; the window begins at its voxel `first`. seam: the vertices that
        cells outside share; keys: what tells each of them from all others of its object in the volume of that shape.
        """
        cdef int64_t[:, ::1] sizes = np.zeros((count + 1, 3), np.int64)  # vertices, triangles, vertices of the seam
        cdef vector[Cell] mixed
        cdef vector[Part] parts
        cdef float[:, ::1] points
        cdef uint32_t[:, ::1] faces
        cdef uint32_t[::1] seam
        cdef uint64_t[::1] keys
        cdef int64_t label
        if self.count == 0:
            return []
        with nogil:
            place_vertices(self, sizes, cells)
            find_cells(self, mixed, sizes, table, cells)
        parts.resize(count + 1)
        found = []
        for label in range(1, count + 1):
            if sizes[label, 0] == 0:
                continue
            made = (np.empty((sizes[label, 0], 3), np.float32), np.empty((sizes[label, 1], 3), np.uint32),
                    np.empty(sizes[label, 2], np.uint32), np.empty(sizes[label, 2], np.uint64))
            points, faces, seam, keys = made
            parts[label] = Part(&points[0, 0], &faces[0, 0], NULL, NULL)
            if sizes[label, 2]:
                parts[label].seam, parts[label].keys = &seam[0], &keys[0]
            found.append((label, *made))
        with nogil:
            write_triangles(self, mixed, parts, table)
            write_vertices(self, parts, cells, first, shape, grid)
        return found


include "meshing_cells.pxi"
