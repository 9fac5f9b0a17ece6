# The voxels of a piece of an object, and distances and costs from some of them to all others.

cdef enum:
    ROWS = 9  # that hold a voxel and its neighbours, each with three of them
    LANES = 3
    AHEAD = 6  # entries of a bucket for whose memory the processor is asked beforehand
    MOST_BUCKETS = 65536


cdef struct Place:
    float cost
    float dear  # what a nm costs


cdef class Piece:
    """A piece inside its box, with a margin of one voxel, so that every voxel has 26 neighbours in memory.

    A cost is -infinity outside.
    """
    cdef int64_t row[ROWS]  # from a voxel to the neighbour with the least x in each row
    cdef float length[ROWS * LANES]  # nm of the step to each of them
    cdef double unit[3]
    cdef int64_t ny, nx
    cdef vector[Place] places
    cdef vector[float] radius  # nm to the surface
    cdef vector[float] away  # nm of the path to the root
    cdef vector[uint8_t] towards  # the row and lane of the next voxel of the cheapest path to the root
    cdef vector[vector[int64_t]] buckets  # used in turns
    cdef double origin, inverse  # where the first bucket begins, and how many there are in a unit of cost
    cdef int64_t last  # bucket; their number is a power of two
    cdef int64_t waiting  # entries in all buckets

    cdef int64_t fill(self, const uint32_t[:, :, :] labels, uint32_t label, const float[:, :, :] squared,
                      const double* unit) except -1 nogil:
        """Takes the voxels of the label, and gives the first one."""
        cdef int64_t z, y, x, voxel, start = -1
        cdef size_t size
        cdef int r, lane
        cdef double nearest = min(unit[0], unit[1], unit[2])
        cdef float radius, depth
        self.ny, self.nx = labels.shape[1] + 2, labels.shape[2] + 2
        for r in range(3):
            self.unit[r] = unit[r]
        for r in range(ROWS):
            z, y = r // 3 - 1, r % 3 - 1
            self.row[r] = (z * self.ny + y) * self.nx - 1
            for lane in range(LANES):
                x = lane - 1
                self.length[r * LANES + lane] = <float>sqrt(
                    (z * unit[0]) ** 2 + (y * unit[1]) ** 2 + (x * unit[2]) ** 2)
        size = (labels.shape[0] + 2) * self.ny * self.nx
        self.places.resize(size, Place(<float>-INFINITY, 1))
        self.radius.resize(size)
        self.away.resize(size)
        self.towards.resize(size)
        for z in range(labels.shape[0]):
            for y in range(labels.shape[1]):
                voxel = ((z + 1) * self.ny + y + 1) * self.nx + 1
                for x in range(labels.shape[2]):
                    if labels[z, y, x] == label:
                        radius = <float>sqrt(<double>squared[z, y, x])
                        self.places[voxel + x].cost = <float>INFINITY
                        self.radius[voxel + x] = radius
                        depth = <float>(radius / nearest)
                        self.places[voxel + x].dear = 1 / (depth * depth)
                        if start < 0:
                            start = voxel + x
        return start

    cdef int open(self, double origin, double width, double farthest) except -1 nogil:
        """Makes buckets of a width, or wider, for costs from origin on that lie within farthest of the one in turn."""
        self.origin = origin
        self.inverse = fmin(1 / width, (MOST_BUCKETS - 2) / farthest)
        while self.last < <int64_t>(farthest * self.inverse) + 1:
            self.last = 2 * self.last + 1
        self.buckets.resize(self.last + 1)
        self.waiting = 0
        return 0

    cdef inline int put(self, int64_t voxel) except -1 nogil:
        cdef int64_t bucket = <int64_t>((self.places[voxel].cost - self.origin) * self.inverse)
        self.buckets[bucket & self.last].push_back(voxel)
        self.waiting += 1
        return 0

    cdef int spread(self, bint leading, float limit) except -1 nogil:
        """Least costs, up to limit, from the voxels in the buckets on; leading: with the way back and its length.

        A voxel whose cost falls while its bucket is read is read again, so that costs do not depend on the order.
        """
        cdef int64_t at = 0, voxel, base, other
        cdef int r, lane
        cdef size_t i
        cdef float here, there
        cdef Place* places = self.places.data()
        cdef vector[int64_t]* bucket
        while self.waiting:
            bucket = &self.buckets[at & self.last]
            i = 0
            while i < bucket.size():
                if i + AHEAD < bucket.size():
                    for r in range(ROWS):
                        prefetch(&places[bucket[0][i + AHEAD] + self.row[r]])
                voxel = bucket[0][i]
                i += 1
                here = places[voxel].cost
                if <int64_t>((here - self.origin) * self.inverse) != at:
                    continue  # it was reached on a cheaper way and read before
                for r in range(ROWS):
                    base = voxel + self.row[r]
                    for lane in range(LANES):
                        other = base + lane
                        if places[other].cost <= here:
                            continue
                        there = self.length[LANES * r + lane]
                        there = here + (there * places[other].dear if leading else there)
                        if there < places[other].cost and there <= limit:
                            places[other].cost = there
                            if leading:
                                self.towards[other] = LANES * r + lane
                                self.away[other] = self.away[voxel] + self.length[LANES * r + lane]
                            self.put(other)
            self.waiting -= bucket.size()
            bucket.clear()
            at += 1
        return 0

    cdef int64_t far_end(self, int64_t start) except -1 nogil:
        """The first voxel in raster order of those that lie the most steps from start."""
        cdef vector[int64_t] reached
        cdef int64_t other, end = start
        cdef size_t i = 0
        cdef int r, lane
        cdef float steps, most
        reached.push_back(start)
        self.places[start].cost = 0
        while i < reached.size():
            steps = self.places[reached[i]].cost + 1
            for r in range(ROWS):
                other = reached[i] + self.row[r]
                for lane in range(LANES):
                    if self.places[other + lane].cost > steps:
                        self.places[other + lane].cost = steps
                        reached.push_back(other + lane)
            i += 1
        most = self.places[reached.back()].cost
        for i in range(reached.size()):
            if self.places[reached[i]].cost == most and (self.places[end].cost < most or reached[i] < end):
                end = reached[i]
        return end
