# Distances and costs from some voxels of a piece of an object to all others.

cdef enum:
    AHEAD = 6  # entries of a bucket for whose memory the processor is asked beforehand
    MOST_BUCKETS = 4096  # More of them do not stay in the nearest memory.


cdef class Piece(Voxels):
    """A piece, with the queue of those of its voxels whose neighbours are to be looked at."""
    cdef float length[ROWS * LANES]  # nm of the step to each neighbour
    cdef double unit[3]
    cdef uint8_t* towards  # the row and lane by which the cheapest path from the root comes to a voxel
    cdef vector[vector[int32_t]] buckets  # used in turns
    cdef double origin, inverse  # where the first bucket begins, and how many there are in a unit of cost
    cdef int64_t last  # bucket; their number is a power of two
    cdef int64_t waiting  # entries in all buckets

    cdef int measure(self, const double* unit) except -1 nogil:
        """Takes the size of a voxel."""
        cdef int r, lane
        for r in range(3):
            self.unit[r] = unit[r]
        for r in range(ROWS):
            for lane in range(LANES):
                self.length[r * LANES + lane] = <float>sqrt(
                    ((r // 3 - 1) * unit[0]) ** 2 + ((r % 3 - 1) * unit[1]) ** 2 + ((lane - 1) * unit[2]) ** 2)
            self.length[r * LANES + LANES - 1] = <float>INFINITY
        return 0

    cdef int open(self, double origin, double width, double farthest) except -1 nogil:
        """Makes buckets of a width, or wider, for costs from origin on that lie within farthest of the one in turn."""
        self.origin = origin
        self.inverse = fmin(1 / width, (MOST_BUCKETS - 2) / farthest)
        while self.last < <int64_t>(farthest * self.inverse) + 1:
            self.last = 2 * self.last + 1
        self.buckets.resize(self.last + 1)
        self.waiting = 0
        return 0

    cdef inline int put(self, int32_t voxel) except -1 nogil:
        cdef int64_t bucket = <int64_t>((self.cost[voxel] - self.origin) * self.inverse)
        self.buckets[bucket & self.last].push_back(voxel)
        self.waiting += 1
        return 0

    cdef int spread(self, bint leading) except -1 nogil:
        """Least costs from the voxels in the buckets on; leading: with the way back and its length.

        A voxel whose cost falls while its bucket is read is read again, so that costs do not depend on the order.
        """
        cdef int64_t at = 0
        cdef int32_t voxel, base, other
        cdef int r, lane, found
        cdef size_t i
        cdef float here
        cdef float[LANES] sums
        cdef const Stretch* stretch
        cdef vector[int32_t]* bucket
        while self.waiting:
            bucket = &self.buckets[at & self.last]
            i = 0
            while i < bucket.size():
                if i + AHEAD < bucket.size():
                    self.ask(bucket[0][i + AHEAD], at, leading)
                    if i + 2 * AHEAD < bucket.size():
                        prefetch(&self.stretches[self.stretch[bucket[0][i + 2 * AHEAD]]])
                        if i + 3 * AHEAD < bucket.size():
                            prefetch(self.stretch + bucket[0][i + 3 * AHEAD])
                            prefetch(self.cost + bucket[0][i + 3 * AHEAD])
                            if leading:
                                prefetch(self.towards + bucket[0][i + 3 * AHEAD])
                voxel = bucket[0][i]
                i += 1
                here = self.cost[voxel]
                if <int64_t>((here - self.origin) * self.inverse) != at:
                    continue  # it was reached on a cheaper way and read before
                if leading and self.towards[voxel] != BEGINNING:
                    self.away[voxel] = self.away[self.onward(voxel)] + self.length[self.towards[voxel]]
                stretch = &self.stretches[self.stretch[voxel]]
                for r in range(ROWS):
                    if stretch.offset[r] == NOWHERE:
                        continue
                    base = voxel + stretch.offset[r]
                    if leading:
                        found = cheaper(self.cost + base, self.dear + base, self.length + LANES * r, here, sums)
                    else:
                        found = lower(self.cost + base, self.length + LANES * r, here, sums)
                    if found:
                        for lane in range(LANES - 1):
                            if found >> lane & 1:
                                other = base + lane
                                self.cost[other] = sums[lane]
                                if leading:
                                    self.towards[other] = LANES * r + lane
                                self.put(other)
            self.waiting -= bucket.size()
            bucket.clear()
            at += 1
        return 0

    cdef inline int ask(self, int32_t voxel, int64_t at, bint leading) noexcept nogil:
        """Has the costs around a voxel fetched, if it is still to be read in this bucket."""
        cdef int r
        cdef const Stretch* stretch
        if <int64_t>((self.cost[voxel] - self.origin) * self.inverse) != at:
            return 0
        stretch = &self.stretches[self.stretch[voxel]]
        for r in range(ROWS):
            if stretch.offset[r] != NOWHERE:
                prefetch(self.cost + voxel + stretch.offset[r])
        if leading and self.towards[voxel] != BEGINNING:
            prefetch(self.away + self.onward(voxel))
        return 0

    cdef inline int32_t onward(self, int32_t voxel) noexcept nogil:
        """The next voxel towards the root."""
        cdef int way = self.towards[voxel] & ~ON_SKELETON
        return self.beside(voxel, ROWS - 1 - way // LANES) + 2 - way % LANES

    cdef int32_t far_end(self) except -1 nogil:
        """The first voxel in raster order of those that lie the most steps from the first one."""
        cdef vector[int32_t] reached
        cdef float[LANES] one, sums
        cdef int32_t base, end
        cdef size_t i = 0
        cdef int r, lane, found
        cdef float most
        cdef const Stretch* stretch
        for lane in range(LANES):
            one[lane] = <float>INFINITY if lane == LANES - 1 else <float>1
        reached.push_back(HEAD)
        self.cost[HEAD] = 0
        while i < reached.size():
            stretch = &self.stretches[self.stretch[reached[i]]]
            for r in range(ROWS):
                if stretch.offset[r] == NOWHERE:
                    continue
                base = reached[i] + stretch.offset[r]
                found = lower(self.cost + base, one, self.cost[reached[i]], sums)
                if found:
                    for lane in range(LANES - 1):
                        if found >> lane & 1:
                            self.cost[base + lane] = sums[lane]
                            reached.push_back(base + lane)
            i += 1
        end = reached.back()
        most = self.cost[end]
        for i in range(reached.size() - 1, -1, -1):
            if self.cost[reached[i]] != most:
                break
            end = min(end, reached[i])
        return end
