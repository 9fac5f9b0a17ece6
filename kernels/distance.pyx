"""Exact squared distance of every voxel to the nearest one of another label, axis by axis, many columns at once.

Along x the distance within a run is known at once. Along y and z each voxel takes the least of
(distance to where its label ends)^2 and f(j) + (i - j)^2 over its column, f being the result so far. Voxels j beyond
the end of the label cannot win, so no label is compared there, and the work is the same for many columns side by side.
Where that search would go far, the lower envelope of parabolas (Felzenszwalb & Huttenlocher 2012) finds the least.
"""

from libc.math cimport INFINITY, sqrt
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

ctypedef fused label_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

cdef enum:
    WIDTH = 32  # columns of a tile: two cache lines of distances; compilers unroll loops over 16 and lose the vectors

cdef extern from "<cmath>" namespace "std" nogil:
    float root "std::sqrt"(float)


cdef struct Column:  # scratch memory for n voxels of a tile
    float* values
    float* best
    int64_t* apex
    double* bound


cdef inline float least(float a, float b) noexcept nogil:
    return b if b < a else a


cdef inline float greatest(float a, float b) noexcept nogil:
    return b if a < b else a


cdef void rows(const label_t[:, :, :]& labels, float[:, :, ::1]& out, int64_t z, float spacing,
               bint border) noexcept nogil:
    """Squared distances along x in one plane, 0 on background."""
    cdef int64_t y, x, start, stop, nx = out.shape[2]
    cdef float step, other
    cdef bint left, right
    cdef float* row
    for y in range(out.shape[1]):
        row = &out[z, y, 0]
        start = 0
        while start < nx:
            stop = start + 1
            while stop < nx and labels[z, y, stop] == labels[z, y, start]:
                stop += 1
            left = start > 0 or border
            right = stop < nx or border
            if labels[z, y, start] == 0:
                for x in range(start, stop):
                    row[x] = 0
            else:
                for x in range(start, stop):
                    step = <float>(x - start + 1) if left else <float>INFINITY
                    other = <float>(stop - x) if right else <float>INFINITY
                    step = least(step, other) * spacing
                    row[x] = step * step
            start = stop


cdef void ends(const label_t* tags, Column column, int64_t n, float spacing, bint border) noexcept nogil:
    """best = the least of values and the squared distance to the end of the label, in both directions."""
    cdef float steps[WIDTH]
    cdef float step
    cdef int64_t i, lane
    for lane in range(WIDTH):
        steps[lane] = 0 if border else <float>INFINITY
    for i in range(n):
        for lane in range(WIDTH):
            step = steps[lane] + 1
            if i > 0:
                step = step if tags[i * WIDTH + lane] == tags[(i - 1) * WIDTH + lane] else <float>1
            steps[lane] = step
            step = step * spacing
            column.best[i * WIDTH + lane] = least(column.values[i * WIDTH + lane], step * step)
    for lane in range(WIDTH):
        steps[lane] = 0 if border else <float>INFINITY
    for i in range(n - 1, -1, -1):
        for lane in range(WIDTH):
            step = steps[lane] + 1
            if i < n - 1:
                step = step if tags[i * WIDTH + lane] == tags[(i + 1) * WIDTH + lane] else <float>1
            steps[lane] = step
            step = step * spacing
            column.best[i * WIDTH + lane] = least(column.best[i * WIDTH + lane], step * step)


cdef inline float largest(const float* lanes) noexcept nogil:
    """The largest of WIDTH lanes, halved side by side: a plain loop over floats is one long chain of waits."""
    cdef float half[WIDTH]
    cdef float most
    cdef int64_t lane
    for lane in range(WIDTH // 2):
        half[lane] = greatest(lanes[lane], lanes[lane + WIDTH // 2])
    for lane in range(WIDTH // 4):
        half[lane] = greatest(half[lane], half[lane + WIDTH // 4])
    most = half[0]
    for lane in range(1, WIDTH // 4):
        most = greatest(most, half[lane])
    return most


cdef void search(Column column, int64_t n, float spacing) noexcept nogil:
    """Looks at ever farther voxels on both sides until no lane can gain."""
    cdef int64_t i, lane, k
    cdef float most, square
    cdef float* lanes
    cdef const float* before
    cdef const float* behind
    for i in range(n):
        lanes = column.best + i * WIDTH
        most = largest(lanes)
        k = 1
        while i - k >= 0 or i + k < n:
            square = <float>k * spacing
            square = square * square
            if square >= most:
                break
            # beyond an end of the column the other side stands for both
            before = column.values + (i - k if i - k >= 0 else i + k) * WIDTH
            behind = column.values + (i + k if i + k < n else i - k) * WIDTH
            for lane in range(WIDTH):
                lanes[lane] = least(lanes[lane], least(before[lane], behind[lane]) + square)
            if k % 4 == 0:
                most = largest(lanes)
            k += 1


cdef void envelope(Column column, int64_t n, int64_t lane, double spacing) noexcept nogil:
    """The same for one lane in n steps: only parabolas on the lower envelope of all are looked at."""
    cdef int64_t i, j, top = -1, k = 0
    cdef double crossing, scale = 1 / (2 * spacing * spacing)
    cdef float value, step
    for i in range(n):
        value = column.values[i * WIDTH + lane]
        if value == INFINITY:
            continue
        crossing = -INFINITY
        while top >= 0:
            j = column.apex[top]
            crossing = (<double>value - column.values[j * WIDTH + lane]) * scale / (i - j) + 0.5 * (i + j)
            if crossing > column.bound[top]:
                break
            top -= 1
        if top < 0:
            crossing = -INFINITY
        top += 1
        column.apex[top] = i
        column.bound[top] = crossing
    if top < 0:
        return
    for i in range(n):
        while k < top and column.bound[k + 1] < i:
            k += 1
        j = column.apex[k]
        step = <float>(i - j) * <float>spacing
        column.best[i * WIDTH + lane] = least(column.best[i * WIDTH + lane],
                                              column.values[j * WIDTH + lane] + step * step)


cdef void tile(const label_t[:, :, :]& labels, float[:, :, ::1]& out, int axis, int64_t other, int64_t first,
               float spacing, bint border, bint finish, double far, Column column, label_t* tags) noexcept nogil:
    """The pass along z (axis 0, at y = other) or y (axis 1, at z = other) for the columns from x = first on."""
    cdef int64_t n = out.shape[axis], width = min(<int64_t>WIDTH, out.shape[2] - first), i, z, y, lane
    cdef double steps = 0
    cdef float most
    cdef float* row
    cdef bint empty = True
    for i in range(n):
        z = i if axis == 0 else other
        y = other if axis == 0 else i
        row = &out[z, y, first]
        for lane in range(width):
            column.values[i * WIDTH + lane] = row[lane]
            tags[i * WIDTH + lane] = labels[z, y, first + lane]
        for lane in range(width, WIDTH):  # beyond the volume: background
            column.values[i * WIDTH + lane] = 0
            tags[i * WIDTH + lane] = 0
        for lane in range(WIDTH):
            empty &= tags[i * WIDTH + lane] == 0
    if empty:
        return  # All distances are 0, and out says so.
    ends(tags, column, n, spacing, border)
    for i in range(n):
        most = largest(column.best + i * WIDTH)
        steps += min(<double>n, sqrt(most) / spacing)
    if steps < far * n:
        search(column, n, spacing)
    else:
        for lane in range(width):
            envelope(column, n, lane, spacing)
    for i in range(n):
        row = &out[i if axis == 0 else other, other if axis == 0 else i, first]
        for lane in range(width):
            row[lane] = root(column.best[i * WIDTH + lane]) if finish else column.best[i * WIDTH + lane]


def planes(const label_t[:, :, :] labels, float[:, :, ::1] out, int64_t start, int64_t stop, float alongy, float alongx,
           bint bordery, bint borderx, double far):
    """Fills planes start..stop of out with the squared distances within each plane.

    far: the steps a voxel above which the envelope is taken. Both find the least sum, but the envelope rounds otherwise
    and may take a sum that is a last bit larger. Without it the bits do not depend on what else a column holds.
    """
    cdef int64_t z, first, n = out.shape[1]
    cdef vector[float] values, best
    cdef vector[int64_t] apex
    cdef vector[double] bound
    cdef vector[label_t] tags
    cdef Column column
    with nogil:
        values.resize(n * WIDTH)
        best.resize(n * WIDTH)
        tags.resize(n * WIDTH)
        apex.resize(n)
        bound.resize(n)
        column = Column(values.data(), best.data(), apex.data(), bound.data())
        for z in range(start, stop):
            rows(labels, out, z, alongx, borderx)
            first = 0
            while first < out.shape[2]:
                tile(labels, out, 1, z, first, alongy, bordery, False, far, column, tags.data())
                first += WIDTH


def columns(const label_t[:, :, :] labels, float[:, :, ::1] out, int64_t start, int64_t stop, float alongz,
            bint border, bint finish, double far):
    """Adds the pass along z to out for tiles start..stop, counted row by row; finish: distances, not squares."""
    cdef int64_t index, n = out.shape[0], tiles = (out.shape[2] + WIDTH - 1) // WIDTH
    cdef vector[float] values, best
    cdef vector[int64_t] apex
    cdef vector[double] bound
    cdef vector[label_t] tags
    cdef Column column
    with nogil:
        values.resize(n * WIDTH)
        best.resize(n * WIDTH)
        tags.resize(n * WIDTH)
        apex.resize(n)
        bound.resize(n)
        column = Column(values.data(), best.data(), apex.data(), bound.data())
        for index in range(start, stop):
            tile(labels, out, 0, index // tiles, index % tiles * WIDTH, alongz, border, finish, far, column, tags.data())
