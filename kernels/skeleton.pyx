"""Centre lines of one piece of an object: cheapest paths through its middle from far tips to a root.

After TEASAR: Sato, Bitter, Bender, Kaufman & Nakajima, Pacific Graphics 2000.
"""

from libc.math cimport INFINITY, floor, fmax, fmin, sqrt
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libcpp.algorithm cimport sort
from libcpp.pair cimport pair
from libcpp.vector cimport vector

include "prefetch.pxi"
include "skeleton_piece.pxi"

cdef uint8_t ON_SKELETON = 128  # beside the step to the next voxel towards the root
cdef double BLUNT = 1.6  # a path is centred where its tip lies within so many radii


cdef class Tree(Piece):
    """The skeleton of a piece.

    Costs are first steps from a voxel, then path costs to the root, and at last minus what is left of the reach of the
    paths, where whatever is not above 0 is covered.
    """
    cdef vector[int64_t] voxels  # of the skeleton
    cdef vector[int64_t] nexts  # voxels, -1 at the root

    cdef inline int64_t onward(self, int64_t voxel) noexcept nogil:
        """The next voxel towards the root."""
        cdef int way = self.towards[voxel] & ~ON_SKELETON
        return voxel - self.row[way // LANES] - way % LANES

    cdef double apart(self, int64_t one, int64_t other) noexcept nogil:
        """The straight distance in nm."""
        cdef int64_t plane = self.ny * self.nx
        return sqrt((self.unit[0] * (one // plane - other // plane)) ** 2
                    + (self.unit[1] * (one // self.nx % self.ny - other // self.nx % self.ny)) ** 2
                    + (self.unit[2] * (one % self.nx - other % self.nx)) ** 2)

    cdef int append(self, int64_t voxel, int64_t following) except -1 nogil:
        self.voxels.push_back(voxel)
        self.nexts.push_back(following)
        self.towards[voxel] |= ON_SKELETON
        return 0

    cdef int lengthen(self, int64_t voxel, int64_t behind) except -1 nogil:
        """Goes on from an end straight away from a voxel behind it, to the surface."""
        cdef int64_t plane = self.ny * self.nx, last = voxel, here, steps = 1
        cdef double z = voxel // plane - behind // plane, y = voxel // self.nx % self.ny - behind // self.nx % self.ny
        cdef double x = voxel % self.nx - behind % self.nx, most = fmax(fmax(abs(z), abs(y)), abs(x))
        while True:
            here = voxel + (<int64_t>floor(z / most * steps + 0.5) * plane
                            + <int64_t>floor(y / most * steps + 0.5) * self.nx
                            + <int64_t>floor(x / most * steps + 0.5))
            if self.places[here].cost == -INFINITY or self.towards[here] & ON_SKELETON:
                return 0
            self.append(here, last)
            last = here
            steps += 1

    cdef int64_t path(self, int64_t tip, double scale, double constant) except -1 nogil:
        """Appends the path from a tip to the skeleton, and gives its voxels, without those that lengthen it.

        The farthest voxel of a blunt end lies on its rim. Therefore the path leaves the tip out, where its reach covers
        it, and begins where it is centred, and goes straight on from there.
        """
        cdef int64_t voxel = tip, start = tip, behind, size = self.voxels.size()
        while not self.towards[voxel] & ON_SKELETON:
            if self.apart(voxel, tip) <= fmin(BLUNT * self.radius[voxel], scale * self.radius[voxel] + constant):
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
        cdef int64_t voxel
        cdef size_t i
        for i in range(first, self.voxels.size()):
            most = fmax(most, fmin(scale * self.radius[self.voxels[i]] + constant, farthest))
        self.open(-most, 0.999 * min(self.unit[0], self.unit[1], self.unit[2]), most + self.length[0])
        for i in range(first, self.voxels.size()):
            voxel = self.voxels[i]
            reach = fmin(scale * self.radius[voxel] + constant, farthest)
            if -<float>reach < self.places[voxel].cost:
                self.places[voxel].cost = -<float>reach
                self.put(voxel)
        self.spread(False, 0)
        return 0

    cdef int move_root(self, size_t size, double scale, double constant) except -1 nogil:
        """Lets the tree begin where its first path, of that many voxels, is centred, as at the other ends."""
        cdef int64_t root = self.voxels[0], start, behind
        cdef size_t i, at = 0
        for i in range(self.voxels.size()):
            self.places[self.voxels[i]].dear = 0
        for i in range(1, self.voxels.size()):
            self.places[self.nexts[i]].dear += 1
        if self.places[root].dear != 1:
            return 0
        for i in range(size, 0, -1):
            if self.places[self.voxels[i]].dear != 1:
                break
            if self.apart(self.voxels[i], root) <= fmin(BLUNT * self.radius[self.voxels[i]],
                                                        scale * self.radius[self.voxels[i]] + constant):
                at = i
        start = behind = self.voxels[at]
        for i in range(at - 1, 0, -1):
            if self.away[behind] - self.away[start] < self.radius[start]:
                behind = self.voxels[i]
        if behind == start:
            return 0  # nothing says where straight on is
        for i in range(at, size + 1):
            self.towards[self.nexts[i]] &= ~ON_SKELETON
        self.nexts[at] = -1
        self.voxels.erase(self.voxels.begin() + at + 1, self.voxels.begin() + size + 1)
        self.nexts.erase(self.nexts.begin() + at + 1, self.nexts.begin() + size + 1)
        self.voxels.erase(self.voxels.begin())
        self.nexts.erase(self.nexts.begin())
        self.lengthen(start, behind)
        return 0

    cdef int skeleton(self, int64_t start, double scale, double constant) except -1 nogil:
        """The tree of the piece that holds start."""
        cdef vector[vector[pair[float, int64_t]]] tips  # by their way to the root
        cdef int64_t voxel, root = self.far_end(start), tip = root, size = <int64_t>self.places.size()
        cdef size_t i, first, straight
        cdef double farthest, thinnest = 0, thickest = INFINITY, width
        for voxel in range(size):
            if self.places[voxel].cost > -INFINITY:
                self.places[voxel].cost = <float>INFINITY
                thinnest = fmax(thinnest, self.places[voxel].dear)
                thickest = fmin(thickest, self.places[voxel].dear)
        width = 0.999 * min(self.unit[0], self.unit[1], self.unit[2])
        self.open(0, width * thickest, self.length[0] * thinnest * 1.001)
        self.places[root].cost = 0
        self.put(root)
        self.spread(True, <float>INFINITY)
        for voxel in range(size):
            if self.places[voxel].cost > -INFINITY:
                self.places[voxel].cost = <float>INFINITY
                if self.away[voxel] > self.away[tip]:
                    tip = voxel
        # over the root, with room for rounding
        farthest = 2.001 * self.away[tip] + 2 * self.length[0]
        self.append(root, -1)
        straight = self.path(tip, scale, constant)
        self.cover(0, scale, constant, farthest)
        width = fmax(width, self.away[tip] / MOST_BUCKETS)
        tips.resize(<size_t>(self.away[tip] / width) + 1)
        for voxel in range(size):
            if self.places[voxel].cost > 0:
                tips[<size_t>(self.away[voxel] / width)].push_back(pair[float, int64_t](-self.away[voxel], voxel))
        while not tips.empty():
            first = 0
            for i in range(tips.back().size()):  # those that a path covers since then need no sorting
                if self.places[tips.back()[i].second].cost > 0:
                    tips.back()[first] = tips.back()[i]
                    first += 1
            tips.back().resize(first)
            sort(tips.back().begin(), tips.back().end())
            for i in range(tips.back().size()):
                if self.places[tips.back()[i].second].cost > 0:
                    first = self.voxels.size()
                    self.path(tips.back()[i].second, scale, constant)
                    self.cover(first, scale, constant, farthest)
            tips.pop_back()
        return self.move_root(straight, scale, constant)


def trace(const uint32_t[:, :, :] labels, uint32_t label, const float[:, :, :] squared, resolution,
          double scale, double constant):
    """(voxels, the next voxel of each towards the root or -1): bytes of int64 raster positions in the box plus margin.

    The label is one piece. squared holds the squared distance to the surface, finite and above 0 wherever labels hold
    the label.
    """
    cdef Tree tree = Tree()
    cdef double[3] unit = resolution
    with nogil:
        tree.skeleton(tree.fill(labels, label, squared, unit), scale, constant)
    return ((<char*>tree.voxels.data())[:8 * tree.voxels.size()], (<char*>tree.nexts.data())[:8 * tree.nexts.size()])
