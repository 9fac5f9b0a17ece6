"""Centre lines of one object: paths of least penalty through its middle, from far tips to a root (after TEASAR).

Sato, Bitter, Bender, Kaufman & Nakajima, TEASAR: tree-structure extraction algorithm, Pacific Graphics 2000.
"""

from libc.math cimport INFINITY, fmax, fmin, sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.algorithm cimport sort
from libcpp.pair cimport pair
from libcpp.vector cimport vector

cdef enum:
    STEPS = 26
cdef uint8_t ON_SKELETON = 128  # beside the direction of the next voxel towards the root
cdef double PENALTY = 1e5  # how much dearer the surface is than the thickest middle


cdef union Key:
    double cost
    uint64_t bits  # in the same order, for costs from 0 on

cdef struct Entry:
    Key key
    int64_t voxel


cdef bint earlier(const Entry& a, const Entry& b) noexcept nogil:
    return a.voxel < b.voxel


cdef inline int high_bit(uint64_t bits) noexcept nogil:
    """The number of the highest set bit, counted from 1; 0 for 0."""
    cdef int number = 0
    if bits >> 32:
        bits >>= 32
        number += 32
    if bits >> 16:
        bits >>= 16
        number += 16
    if bits >> 8:
        bits >>= 8
        number += 8
    if bits >> 4:
        bits >>= 4
        number += 4
    return number + (bits > 0) + (bits > 1) + (bits > 3) + (bits > 7)


cdef class Body:
    """One object inside its box, with a margin of one voxel, so that every voxel has 26 neighbours in memory.

    cost is -infinity outside; inside it holds in turn distances to a voxel, path costs to the root, and at last minus
    what is left of the reach of the paths, where whatever is not above 0 is covered.
    """
    cdef int64_t step[STEPS]  # from a voxel to its neighbours, in raster order
    cdef double length[STEPS]  # nm
    cdef double width  # of a bucket, just below the shortest step
    cdef vector[double] cost
    cdef vector[float] radius  # nm from the surface
    cdef vector[float] dear  # what a nm costs
    cdef vector[uint8_t] towards  # the step to the next voxel of the cheapest path to the root
    cdef vector[vector[int64_t]] buckets
    cdef int64_t last  # bucket in use
    cdef vector[vector[Entry]] levels  # of the queue
    cdef vector[Entry] moving  # between levels
    cdef Key least
    cdef vector[int64_t] voxels  # of the skeleton
    cdef vector[int64_t] nexts  # voxels, -1 at a root

    cdef int fill(self, const uint32_t[:, :, :] labels, uint32_t label, const float[:, :, :] squared,
                  const double* unit) except -1 nogil:
        cdef int64_t z, y, x, voxel, ny = labels.shape[1] + 2, nx = labels.shape[2] + 2
        cdef int k, way = 0
        for k in range(27):
            if k == 13:
                continue
            z, y, x = k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1
            self.step[way] = (z * ny + y) * nx + x
            self.length[way] = sqrt((z * unit[0]) ** 2 + (y * unit[1]) ** 2 + (x * unit[2]) ** 2)
            way += 1
        self.width = 0.999 * min(unit[0], unit[1], unit[2])
        self.last = -1
        self.cost.resize((labels.shape[0] + 2) * ny * nx, -INFINITY)
        self.radius.resize(self.cost.size())
        self.dear.resize(self.cost.size())
        self.towards.resize(self.cost.size())
        for z in range(labels.shape[0]):
            for y in range(labels.shape[1]):
                voxel = ((z + 1) * ny + y + 1) * nx + 1
                for x in range(labels.shape[2]):
                    if labels[z, y, x] == label:
                        self.cost[voxel + x] = INFINITY
                        self.radius[voxel + x] = <float>sqrt(<double>squared[z, y, x])
        return 0

    cdef inline int put(self, int64_t voxel, double above) except -1 nogil:
        cdef int64_t bucket = <int64_t>(above / self.width)
        if bucket > self.last:
            self.last = bucket
            if <size_t>bucket >= self.buckets.size():
                self.buckets.resize(bucket + 1)
        self.buckets[bucket].push_back(voxel)
        return 0

    cdef int spread(self, double origin, double limit, vector[int64_t]* reached) except -1 nogil:
        """Shortest distances from the voxels in the buckets, up to limit; appends what was infinitely far before.

        Every step is longer than a bucket is wide: reading a bucket never changes a voxel of that bucket, and the
        distances do not depend on the order within.
        """
        cdef int64_t bucket = 0, voxel, other
        cdef size_t i
        cdef int way
        cdef double here, there
        while bucket <= self.last:
            for i in range(self.buckets[bucket].size()):
                voxel = self.buckets[bucket][i]
                here = self.cost[voxel]
                if <int64_t>((here - origin) / self.width) != bucket:
                    continue  # it was reached on a shorter way and read before
                for way in range(STEPS):
                    other = voxel + self.step[way]
                    there = here + self.length[way]
                    if there < self.cost[other] and there <= limit:
                        if reached != NULL and self.cost[other] == INFINITY:
                            reached.push_back(other)
                        self.cost[other] = there
                        self.put(other, there - origin)
            self.buckets[bucket].clear()
            bucket += 1
        self.last = -1
        return 0

    cdef void forget(self, vector[int64_t]& piece) noexcept nogil:
        cdef size_t i
        for i in range(piece.size()):
            self.cost[piece[i]] = INFINITY

    cdef inline int wait(self, double cost, int64_t voxel) except -1 nogil:
        cdef Entry entry
        entry.key.cost = cost
        entry.voxel = voxel
        # in the level of the highest bit that differs from the least cost: 0 for none
        self.levels[high_bit(entry.key.bits ^ self.least.bits)].push_back(entry)
        return 0

    cdef int advance(self) except -1 nogil:
        """Sets least to the least cost that waits; level 0 then holds its voxels in raster order. 0 at the end.

        A radix queue: costs never fall below the least one, so an entry only ever moves to lower levels.
        """
        cdef size_t level = 1, i
        cdef Entry entry
        self.levels[0].clear()
        while self.levels[level].empty():
            level += 1
            if level == self.levels.size():
                return 0
        self.moving.swap(self.levels[level])
        self.least = self.moving[0].key
        for i in range(self.moving.size()):
            if self.moving[i].key.bits < self.least.bits:
                self.least = self.moving[i].key
        for i in range(self.moving.size()):
            entry = self.moving[i]
            if entry.key.cost <= self.cost[entry.voxel]:  # else it was reached on a cheaper way
                self.wait(entry.key.cost, entry.voxel)
        self.moving.clear()
        if self.levels[0].size() > 1:
            sort(self.levels[0].begin(), self.levels[0].end(), earlier)
        return 1

    cdef int lead(self, vector[int64_t]& piece, int64_t root) except -1 nogil:
        """Sets the next voxel of every voxel's cheapest path to the root.

        Entering a voxel costs the length of the step, dearer the nearer the voxel is to the surface. Of equally cheap
        paths the one whose last voxel was settled first wins; voxels settle by (cost, raster order).
        """
        cdef double thickest = 0, here, there, thin
        cdef double* cost = self.cost.data()
        cdef float* dear = self.dear.data()
        cdef uint8_t* towards = self.towards.data()
        cdef int64_t voxel, other
        cdef size_t i
        cdef int way
        for i in range(piece.size()):
            thickest = fmax(thickest, self.radius[piece[i]])
        for i in range(piece.size()):
            thin = 1 - self.radius[piece[i]] / thickest
            thin *= thin
            thin *= thin
            thin *= thin
            thin *= thin
            dear[piece[i]] = <float>(1 + PENALTY * thin)
        self.least.cost = cost[root] = 0
        self.levels.resize(65)
        self.wait(0, root)
        here = 0
        while True:
            for i in range(self.levels[0].size()):
                voxel = self.levels[0][i].voxel
                for way in range(STEPS):
                    other = voxel + self.step[way]
                    if cost[other] <= here:
                        continue
                    there = here + self.length[way] * dear[other]
                    if there < cost[other]:
                        cost[other] = there
                        towards[other] = STEPS - 1 - way  # the opposite step
                        self.wait(there, other)
            if self.advance() == 0:
                return 0
            here = self.least.cost

    cdef int cover(self, size_t first, double scale, double constant, double farthest) except -1 nogil:
        """Lets the skeleton's voxels from first on reach scale * radius + constant through the object.

        From everywhere, all of the piece lies within farthest: longer reaches would only widen the range of buckets.
        """
        cdef double most = 0, reach
        cdef int64_t voxel
        cdef size_t i
        for i in range(first, self.voxels.size()):
            most = fmax(most, fmin(scale * self.radius[self.voxels[i]] + constant, farthest))
        for i in range(first, self.voxels.size()):
            voxel = self.voxels[i]
            reach = fmin(scale * self.radius[voxel] + constant, farthest)
            if -reach < self.cost[voxel]:
                self.cost[voxel] = -reach
                self.put(voxel, most - reach)
        self.spread(-most, 0, NULL)
        return 0

    cdef int skeleton(self, int64_t start, double scale, double constant, int64_t dust) except -1 nogil:
        """Appends the tree of the piece that holds the voxel start, unless the piece is smaller than dust."""
        cdef vector[int64_t] piece
        cdef vector[pair[double, int64_t]] tips
        cdef int64_t voxel, root
        cdef size_t i, first
        cdef double farthest
        piece.push_back(start)
        self.cost[start] = 0
        self.put(start, 0)
        self.spread(0, INFINITY, &piece)
        if <int64_t>piece.size() < dust:
            return 0
        root = start
        for i in range(piece.size()):
            voxel = piece[i]
            if self.cost[voxel] > self.cost[root] or (self.cost[voxel] == self.cost[root] and voxel < root):
                root = voxel
        self.forget(piece)
        self.cost[root] = 0
        self.put(root, 0)
        self.spread(0, INFINITY, NULL)
        for i in range(piece.size()):
            tips.push_back(pair[double, int64_t](-self.cost[piece[i]], piece[i]))
        sort(tips.begin(), tips.end())
        # over the root, with room for rounding
        farthest = -2.001 * tips[0].first + 2 * self.length[0]
        self.forget(piece)
        self.lead(piece, root)
        self.forget(piece)
        self.towards[root] = ON_SKELETON
        self.voxels.push_back(root)
        self.nexts.push_back(-1)
        first = self.voxels.size() - 1
        for i in range(tips.size()):
            voxel = tips[i].second
            if self.cost[voxel] <= 0:
                continue
            while not self.towards[voxel] & ON_SKELETON:
                self.voxels.push_back(voxel)
                self.nexts.push_back(voxel + self.step[self.towards[voxel]])
                self.towards[voxel] |= ON_SKELETON
                voxel = self.nexts.back()
            self.cover(first, scale, constant, farthest)
            first = self.voxels.size()
        return 0


def trace(const uint32_t[:, :, :] labels, uint32_t label, const float[:, :, :] squared, resolution,
          double scale, double constant, int64_t dust):
    """(voxels, the next voxel of each towards the root or -1): bytes of int64 raster positions in the box plus margin.

    squared holds the squared distance to the surface, finite and above 0 wherever labels hold the label.
    """
    cdef Body body = Body()
    cdef int64_t voxel
    cdef double[3] unit = resolution
    with nogil:
        body.fill(labels, label, squared, unit)
        for voxel in range(<int64_t>body.cost.size()):
            if body.cost[voxel] == INFINITY:
                body.skeleton(voxel, scale, constant, dust)
    return ((<char*>body.voxels.data())[:8 * body.voxels.size()], (<char*>body.nexts.data())[:8 * body.nexts.size()])
