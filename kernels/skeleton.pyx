"""Centre lines of one piece of an object: cheapest paths through its middle from far tips to a root.

After TEASAR: Sato, Bitter, Bender, Kaufman & Nakajima, Pacific Graphics 2000.
"""

from libc.math cimport INFINITY, floor, fmax, fmin, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libcpp.algorithm cimport sort
from libcpp.pair cimport pair
from libcpp.vector cimport vector

cdef enum:
    BEGINNING = 127  # in the place of a step, at the root
    ON_SKELETON = 128  # beside the step by which the path from the root comes

cdef double BLUNT = 1.6  # a path is centred where its tip lies within so many radii
cdef float UNCOVERED = 1e-37  # No two sums differ by so little, so this cost falls exactly where a sum is not above 0.

include "lanes.pxi"
include "prefetch.pxi"
include "skeleton_voxels.pxi"
include "skeleton_piece.pxi"


cdef class Tree(Piece):
    """The skeleton of a piece.

    Costs are first steps from a voxel, then path costs to the root, and at last minus what is left of the reach of the
    paths, where whatever is not above 0 is covered.
    """
    cdef vector[int32_t] voxels  # The skeleton has these.
    cdef vector[int32_t] nexts  # voxels, -1 at the root

    cdef double apart(self, int32_t one, int32_t other) noexcept nogil:
        """The straight distance in nm."""
        cdef int64_t[3] here, there
        self.place(one, here, here + 1, here + 2)
        self.place(other, there, there + 1, there + 2)
        return sqrt((self.unit[0] * (here[0] - there[0])) ** 2 + (self.unit[1] * (here[1] - there[1])) ** 2
                    + (self.unit[2] * (here[2] - there[2])) ** 2)

    cdef int append(self, int32_t voxel, int32_t following) except -1 nogil:
        self.voxels.push_back(voxel)
        self.nexts.push_back(following)
        self.towards[voxel] |= ON_SKELETON
        return 0

    cdef int lengthen(self, int32_t voxel, int32_t behind) except -1 nogil:
        """Goes on from an end straight away from a voxel behind it, to the surface."""
        cdef int64_t[3] end, from_, here
        cdef double[3] way
        cdef double most = 0
        cdef int32_t last = voxel, found
        cdef int64_t steps = 1
        cdef int axis
        self.place(voxel, end, end + 1, end + 2)
        self.place(behind, from_, from_ + 1, from_ + 2)
        for axis in range(3):
            way[axis] = end[axis] - from_[axis]
            most = fmax(most, abs(way[axis]))
        while True:
            for axis in range(3):
                here[axis] = end[axis] + <int64_t>floor(way[axis] / most * steps + 0.5)
            found = self.find(here[0], here[1], here[2])
            if found < 0 or self.towards[found] & ON_SKELETON:
                return 0
            self.append(found, last)
            last = found
            steps += 1

    cdef int64_t path(self, int32_t tip, double scale, double constant) except -1 nogil:
        """Appends the path from a tip to the skeleton, and gives its voxels, without those that lengthen it.

        The farthest voxel of a blunt end lies on its rim. Therefore the path leaves the tip out, where its reach covers
        it, and begins where it is centred, and goes straight on from there.
        """
        cdef int32_t voxel = tip, start = tip, behind
        cdef int64_t size = self.voxels.size()
        while not self.towards[voxel] & ON_SKELETON:
            if self.is_centred(voxel, tip, scale, constant):
                start = voxel
            voxel = self.onward(voxel)
        voxel = behind = start
        while not self.towards[voxel] & ON_SKELETON:
            self.append(voxel, self.onward(voxel))
            voxel = self.nexts.back()
            if self.away[start] - self.away[behind] < self.radius[start]:
                behind = voxel
        size = self.voxels.size() - size
        if start != tip and behind != start:
            self.lengthen(start, behind)
        return size

    cdef int cover(self, size_t first, double scale, double constant, double farthest) except -1 nogil:
        """Lets the skeleton's voxels from first on reach scale * radius + constant through the piece.

        From everywhere, all of the piece lies within farthest: longer reaches would only need more buckets.
        """
        cdef double most = 0, reach
        cdef int32_t voxel
        cdef size_t i
        for i in range(first, self.voxels.size()):
            most = fmax(most, fmin(scale * self.radius[self.voxels[i]] + constant, farthest))
        self.open(-most, 0.999 * min(self.unit[0], self.unit[1], self.unit[2]), most + self.length[0])
        for i in range(first, self.voxels.size()):
            voxel = self.voxels[i]
            reach = fmin(scale * self.radius[voxel] + constant, farthest)
            if -<float>reach < self.cost[voxel]:
                self.cost[voxel] = -<float>reach
                self.put(voxel)
        self.spread(False)
        return 0

    cdef bint is_centred(self, int32_t voxel, int32_t tip, double scale, double constant) noexcept nogil:
        """Whether a tip lies so near that the path may end here and go straight on."""
        return self.apart(voxel, tip) <= fmin(BLUNT * self.radius[voxel], scale * self.radius[voxel] + constant)

    cdef int move_root(self, size_t size, double scale, double constant) except -1 nogil:
        """Lets the tree begin where its first path, of that many voxels, is centred, as at the other ends.

        Where two paths meet so near to the root, they are one line: what leads from there to the rim is no branch.
        """
        cdef int32_t root = self.voxels[0], start, behind
        cdef size_t i, at = 0
        cdef bint meets, forks = False
        for i in range(self.voxels.size()):
            self.dear[self.voxels[i]] = 0
        for i in range(1, self.voxels.size()):
            self.dear[self.nexts[i]] += 1
        if self.dear[root] != 1:
            return 0
        for i in range(size, 0, -1):
            meets = self.dear[self.voxels[i]] == 2
            if not (meets or self.dear[self.voxels[i]] == 1):
                break
            if self.is_centred(self.voxels[i], root, scale, constant):
                at = i
                forks = meets
            if meets:
                break
        start = behind = self.voxels[at]
        for i in range(at - 1, 0, -1):
            if self.away[behind] - self.away[start] < self.radius[start]:
                behind = self.voxels[i]
        if at == 0 or behind == start and not forks:
            return 0  # nothing says where straight on is
        for i in range(at, size + 1):
            self.towards[self.nexts[i]] &= ~ON_SKELETON
        self.nexts[at] = -1
        self.voxels.erase(self.voxels.begin() + at + 1, self.voxels.begin() + size + 1)
        self.nexts.erase(self.nexts.begin() + at + 1, self.nexts.begin() + size + 1)
        self.voxels.erase(self.voxels.begin())
        self.nexts.erase(self.nexts.begin())
        if not forks:
            self.lengthen(start, behind)
        return 0

    cdef int skeleton(self, double scale, double constant) except -1 nogil:
        """The tree of the piece."""
        cdef vector[vector[pair[float, int32_t]]] tips  # by their way to the root
        cdef int32_t voxel, root = self.far_end(), tip = root
        cdef size_t i, first, straight
        cdef double farthest, thinnest = 0, thickest = INFINITY, width
        for voxel in range(self.slots):
            if self.cost[voxel] > -INFINITY:
                self.cost[voxel] = <float>INFINITY
                thinnest = fmax(thinnest, self.dear[voxel])
                thickest = fmin(thickest, self.dear[voxel])
        width = 0.999 * min(self.unit[0], self.unit[1], self.unit[2])
        self.open(0, width * thickest, self.length[0] * thinnest * 1.001)
        self.cost[root] = self.away[root] = 0
        self.towards[root] = BEGINNING
        self.put(root)
        self.spread(True)
        for voxel in range(self.slots):
            if self.cost[voxel] > -INFINITY:
                self.cost[voxel] = UNCOVERED
                if self.away[voxel] > self.away[tip]:
                    tip = voxel
        # over the root, with room for rounding
        farthest = 2.001 * self.away[tip] + 2 * self.length[0]
        self.append(root, -1)
        straight = self.path(tip, scale, constant)
        self.cover(0, scale, constant, farthest)
        width = fmax(width, self.away[tip] / MOST_BUCKETS)
        tips.resize(<size_t>(self.away[tip] / width) + 1)
        for voxel in range(self.slots):
            if self.cost[voxel] > 0:
                tips[<size_t>(self.away[voxel] / width)].push_back(pair[float, int32_t](-self.away[voxel], voxel))
        while not tips.empty():
            first = 0
            for i in range(tips.back().size()):  # those that a path covers since then need no sorting
                if self.cost[tips.back()[i].second] > 0:
                    tips.back()[first] = tips.back()[i]
                    first += 1
            tips.back().resize(first)
            sort(tips.back().begin(), tips.back().end())
            for i in range(tips.back().size()):
                if self.cost[tips.back()[i].second] > 0:
                    first = self.voxels.size()
                    self.path(tips.back()[i].second, scale, constant)
                    self.cover(first, scale, constant, farthest)
            tips.pop_back()
        return self.move_root(straight, scale, constant)

    cdef int table(self, vector[int32_t]* rows) except -1 nogil:
        """Appends slot, next slot, z, y and x of every voxel of the skeleton."""
        cdef size_t i
        cdef int axis
        cdef int64_t[3] here
        for i in range(self.voxels.size()):
            self.place(self.voxels[i], here, here + 1, here + 2)
            rows.push_back(self.voxels[i])
            rows.push_back(self.nexts[i])
            for axis in range(3):
                rows.push_back(<int32_t>here[axis])
        return 0


def trace(const int32_t[:, ::1] runs, const float[:, :, :] squared, resolution, double scale, double constant,
          float[:, ::1] numbers, int32_t[::1] stretch, uint8_t[::1] towards):
    """Bytes of int32, five a voxel: its slot, rising with its place, the slot of the next one or -1, z, y and x.

    The runs are those of a piece as list_runs gives them. squared holds the squared distance to the surface, finite and
    above 0 in the piece. numbers (4, slots), stretch and towards (slots) are memory to work in, with 2 slots for each
    run and 8 more than the piece has voxels.
    """
    cdef Tree tree = Tree()
    cdef double[3] unit = resolution
    cdef vector[int32_t] rows
    tree.slots = <int32_t>numbers.shape[1]
    tree.cost, tree.dear, tree.radius, tree.away = &numbers[0, 0], &numbers[1, 0], &numbers[2, 0], &numbers[3, 0]
    tree.stretch, tree.towards = &stretch[0], &towards[0]
    with nogil:
        tree.measure(unit)
        tree.fill(runs, squared, unit)
        tree.skeleton(scale, constant)
        tree.table(&rows)
    return (<char*>rows.data())[:4 * rows.size()]


def count_runs(const uint32_t[:, :, :] pieces, int64_t[::1] runs, int64_t[::1] voxels):
    """Adds how many runs along x each piece has, and how many voxels; 0 counts as one."""
    cdef int64_t z, y, x, start, nx = pieces.shape[2]
    with nogil:
        for z in range(pieces.shape[0]):
            for y in range(pieces.shape[1]):
                start = 0
                for x in range(1, nx + 1):
                    if x == nx or pieces[z, y, x] != pieces[z, y, start]:
                        runs[pieces[z, y, start]] += 1
                        voxels[pieces[z, y, start]] += x - start
                        start = x


def list_runs(const uint32_t[:, :, :] pieces, int64_t[::1] rows, int32_t[:, ::1] table):
    """Writes the runs (z, y, first x, end) of each piece in raster order, from the row of the table that rows says.

    Row 0 of pieces is not written. Afterwards rows tells where each piece ends.
    """
    cdef int64_t z, y, x, start, row, nx = pieces.shape[2]
    cdef uint32_t piece
    with nogil:
        for z in range(pieces.shape[0]):
            for y in range(pieces.shape[1]):
                start = 0
                for x in range(1, nx + 1):
                    piece = pieces[z, y, start]
                    if x == nx or pieces[z, y, x] != piece:
                        if piece:
                            row = rows[piece]
                            table[row, 0], table[row, 1] = <int32_t>z, <int32_t>y
                            table[row, 2], table[row, 3] = <int32_t>start, <int32_t>x
                            rows[piece] = row + 1
                        start = x
