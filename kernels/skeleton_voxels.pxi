# The voxels of a piece of an object, one after the other in raster order, and where the neighbours of each are.

cdef enum:
    ROWS = 9  # that hold a voxel and its neighbours, each with three of them
    LANES = 4  # So many voxels of a row are looked at together; the fourth is no neighbour.
    NOWHERE = -2147483648  # a row in which the piece has no voxel near
    HEAD = 4  # slots before the first voxel, none of them a voxel


cdef struct Run:  # voxels side by side along x
    int32_t z, y, first, stop
    int32_t slot  # The first voxel has this one.


cdef struct Stretch:  # A part of a run whose voxels have their neighbours equally far away.
    int32_t offset[ROWS]  # from a voxel's slot to the first of the three neighbours in each row


cdef class Voxels:
    """A piece, each voxel in a slot of its own.

    Between two runs one slot is free where one voxel lies between them, otherwise two. So three voxels side by side of
    which any is in the piece have slots side by side. A cost is -infinity in free slots.
    """
    cdef vector[Run] runs
    cdef vector[int32_t] starts  # the first run of each row of the box, with a margin of a row around
    cdef vector[Stretch] stretches
    cdef int32_t z, y, ny  # where the box with its margin begins, and how many rows it has in a plane
    cdef int32_t slots
    cdef int32_t* stretch  # It tells for every slot in which stretch its voxel lies.
    cdef float* cost
    cdef float* dear  # what a nm costs
    cdef float* radius  # nm to the surface
    cdef float* away  # nm of the path to the root

    cdef int64_t line(self, int64_t z, int64_t y) noexcept nogil:
        """The number of a row of the box."""
        return (z - self.z) * self.ny + y - self.y

    cdef int fill(self, const int32_t[:, ::1] table, const float[:, :, :] squared, const double* unit) except -1 nogil:
        """Takes the runs (z, y, first x, end) of a piece, in raster order."""
        cdef int64_t i, x, row = 0, n = table.shape[0]
        cdef int32_t slot = HEAD, low = table[0, 1], high = table[0, 1], length
        cdef double nearest = min(unit[0], unit[1], unit[2])
        cdef float depth
        cdef Run run
        for i in range(n):
            low, high = min(low, table[i, 1]), max(high, table[i, 1])
        self.z, self.y, self.ny = table[0, 0] - 1, low - 1, high - low + 3
        self.runs.resize(n)
        self.starts.resize((table[n - 1, 0] - self.z + 2) * <int64_t>self.ny + 1)
        for i in range(self.slots):
            self.cost[i] = <float>-INFINITY
        for i in range(n):
            run = Run(table[i, 0], table[i, 1], table[i, 2], table[i, 3], slot)
            while row <= self.line(run.z, run.y):
                self.starts[row] = i
                row += 1
            self.runs[i] = run
            length = run.stop - run.first
            for x in range(length):
                self.radius[slot + x] = <float>sqrt(<double>squared[run.z, run.y, run.first + x])
                depth = <float>(self.radius[slot + x] / nearest)
                self.dear[slot + x] = 1 / (depth * depth)
                self.cost[slot + x] = <float>INFINITY
            slot += length + 2
            if i + 1 < n and table[i + 1, 0] == run.z and table[i + 1, 1] == run.y and table[i + 1, 2] == run.stop + 1:
                slot -= 1
        while row < <int64_t>self.starts.size():
            self.starts[row] = n
            row += 1
        for i in range(n):
            self.stretch_out(i)
        return 0

    cdef int stretch_out(self, int64_t number) except -1 nogil:
        """Finds where the neighbours of the voxels of a run are."""
        cdef Run run = self.runs[number], other
        cdef int64_t[ROWS] at, stop
        cdef int64_t line, r
        cdef int32_t x = run.first, end, i
        cdef Stretch stretch
        for r in range(ROWS):
            line = self.line(run.z + r // 3 - 1, run.y + r % 3 - 1)
            at[r], stop[r] = self.starts[line], self.starts[line + 1]
        while x < run.stop:
            end = run.stop
            for r in range(ROWS):
                while at[r] < stop[r] and self.runs[at[r]].stop < x:
                    at[r] += 1
                stretch.offset[r] = NOWHERE
                if at[r] < stop[r]:
                    other = self.runs[at[r]]
                    if other.first > x + 1:
                        end = min(end, other.first - 1)
                    else:
                        stretch.offset[r] = (other.slot - other.first) - (run.slot - run.first) - 1
                        end = min(end, other.stop + 1)
            self.stretches.push_back(stretch)
            for i in range(x, end):
                self.stretch[run.slot + i - run.first] = <int32_t>self.stretches.size() - 1
            x = end
        return 0

    cdef inline int32_t beside(self, int32_t voxel, int r) noexcept nogil:
        """The slot of the first of the three neighbours in a row; where the piece has none, free slots."""
        cdef int32_t offset = self.stretches[self.stretch[voxel]].offset[r]
        return 0 if offset == NOWHERE else voxel + offset

    cdef int place(self, int32_t voxel, int64_t* z, int64_t* y, int64_t* x) noexcept nogil:
        """Where a voxel lies."""
        cdef size_t low = 0, high = self.runs.size(), middle
        while high - low > 1:
            middle = (low + high) // 2
            if self.runs[middle].slot <= voxel:
                low = middle
            else:
                high = middle
        z[0], y[0] = self.runs[low].z, self.runs[low].y
        x[0] = self.runs[low].first + voxel - self.runs[low].slot
        return 0

    cdef int32_t find(self, int64_t z, int64_t y, int64_t x) noexcept nogil:
        """The slot of a voxel, in the box or beside it; -1 where the piece has none."""
        cdef int64_t line = self.line(z, y), i
        for i in range(self.starts[line], self.starts[line + 1]):
            if self.runs[i].first <= x < self.runs[i].stop:
                return self.runs[i].slot + <int32_t>(x - self.runs[i].first)
        return -1
