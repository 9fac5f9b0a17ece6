"""Steepest-ascent marks of every voxel, and the single exit that each plateau keeps.

A mark is one bit: towards -z 1, -y 2, -x 4, +x 8, +y 16, +z 32, so bit b of a voxel and bit 5 - b of its neighbour
are the two ends of one edge. A voxel marks the edges that equal its largest affinity or reach `high`, if that largest
affinity reaches `first`; a voxel without marks is background. Edges marked at both ends make plateaus; an edge marked
at one end only is an exit, and leads to a voxel with a larger affinity.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int16_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

ctypedef fused affinity:
    float
    int16_t  # the bits of a float16: ordered like the numbers themselves from 0 up
    uint8_t

cdef enum:
    VISITED = 64
    OUTSIDE = 128  # with VISITED: voxels that belong to other blocks


cdef inline const affinity *edge_row(const char *values, Py_ssize_t stride, const char *here, const char *there,
                                     Py_ssize_t mask_stride, affinity *buffer, Py_ssize_t count) noexcept nogil:
    """`count` edges as a contiguous row; 0 (no voxel ever marks it) where either end is masked out."""
    cdef Py_ssize_t x
    if here != NULL:
        for x in range(count):
            buffer[x] = (<const affinity *> (values + x * stride))[0]
            if here[x * mask_stride] == 0 or there[x * mask_stride] == 0:
                buffer[x] = 0
        return buffer
    if stride == sizeof(affinity):
        return <const affinity *> values
    for x in range(count):
        buffer[x] = (<const affinity *> (values + x * stride))[0]
    return buffer


cdef inline int mark_row(const affinity *before_z, const affinity *after_z, const affinity *before_y,
                         const affinity *after_y, const affinity *along_x, uint8_t *marks, Py_ssize_t count,
                         affinity first, affinity high) noexcept nogil:
    """Writes the marks of one row; whether a value outside 0..1 or not a number was among the later edges."""
    cdef Py_ssize_t x
    cdef affinity a, b, c, d, e, f, largest, least
    cdef int bad = 0
    for x in range(count):
        a = before_z[x]
        b = before_y[x]
        c = along_x[x]
        d = along_x[x + 1]
        e = after_y[x]
        f = after_z[x]
        largest = a if a > b else b
        largest = largest if largest > c else c
        largest = largest if largest > d else d
        largest = largest if largest > e else e
        largest = largest if largest > f else f
        least = largest if largest < high else high
        marks[x] = ((a >= least) | ((b >= least) << 1) | ((c >= least) << 2) | ((d >= least) << 3)
                    | ((e >= least) << 4) | ((f >= least) << 5)) & -(largest >= first)
        if affinity is float:
            bad |= (not (d >= 0)) | (not (e >= 0)) | (not (f >= 0)) | (largest > 1)
        elif affinity is int16_t:
            bad |= (d < 0) | (e < 0) | (f < 0) | (largest > 0x3C00)
    return bad


def mark(const affinity[:, :, :, :] affs, channels, shifts, const uint8_t[:, :, :] mask, affinity first, affinity high,
         uint8_t[:, :, ::1] marks, Py_ssize_t begin, Py_ssize_t end):
    """Fills marks[begin:end]; whether a value that was read may lie outside 0..1 (-0.0 as float16 also says so)."""
    cdef Py_ssize_t nz = marks.shape[0], ny = marks.shape[1], nx = marks.shape[2], z, y
    cdef Py_ssize_t sz = affs.strides[1], sy = affs.strides[2], sx = affs.strides[3], mz = 0, my = 0, mx = 0
    cdef int bad = 0
    if nx == 0 or ny == 0 or begin == end:
        return False
    # the edge (v - 1, v) of an axis is found at v in these, whichever end it is stored at
    cdef const char *along_z = <const char *> &affs[<Py_ssize_t> channels[0], 0, 0, 0] - <Py_ssize_t> shifts[0] * sz
    cdef const char *along_y = <const char *> &affs[<Py_ssize_t> channels[1], 0, 0, 0] - <Py_ssize_t> shifts[1] * sy
    cdef const char *along_x = <const char *> &affs[<Py_ssize_t> channels[2], 0, 0, 0] - <Py_ssize_t> shifts[2] * sx
    cdef const char *inside = NULL
    cdef const char *m = NULL
    cdef const affinity *before_z
    cdef const affinity *after_z
    cdef const affinity *before_y
    cdef const affinity *after_y
    cdef const affinity *row_x
    cdef vector[affinity] buffers
    buffers.resize(6 * nx + 1)
    cdef affinity *none = buffers.data()
    cdef affinity *x_edges = none + 5 * nx  # nx + 1 edges, the first and the last leave the volume
    if mask is not None:
        inside = <const char *> &mask[0, 0, 0]
        mz, my, mx = mask.strides[0], mask.strides[1], mask.strides[2]
    with nogil:
        for z in range(begin, end):
            after_y = none
            for y in range(ny):
                m = inside + z * mz + y * my if inside != NULL else NULL
                before_y = after_y
                before_z = after_z = after_y = none
                if z > 0:
                    before_z = edge_row[affinity](along_z + z * sz + y * sy, sx, m, m - mz, mx, none + nx, nx)
                if z + 1 < nz:
                    after_z = edge_row[affinity](along_z + (z + 1) * sz + y * sy, sx, m, m + mz, mx, none + 2 * nx, nx)
                if y + 1 < ny:
                    after_y = edge_row[affinity](along_y + z * sz + (y + 1) * sy, sx, m, m + my, mx,
                                                 none + (3 + y % 2) * nx, nx)
                row_x = edge_row[affinity](along_x + z * sz + y * sy + sx, sx, m + mx, m, mx, x_edges + 1, nx - 1)
                if row_x != x_edges + 1:
                    memcpy(x_edges + 1, row_x, (nx - 1) * sizeof(affinity))
                bad |= mark_row[affinity](before_z, after_z, before_y, after_y, x_edges, &marks[z, y, 0], nx, first, high)
    return bool(bad)


def corners(const uint8_t[:, :, ::1] marks, Py_ssize_t begin, Py_ssize_t end):
    """Positions (int64, as bytes, ascending) of the voxels of marks[begin:end] with an exit and another mark.

    A voxel with one mark has nothing to decide; one whose marks are all returned has no exit.
    """
    cdef Py_ssize_t nz = marks.shape[0], ny = marks.shape[1], nx = marks.shape[2], z, y, x, near
    cdef vector[uint8_t] buffer
    buffer.resize(2 * nx + 8)
    cdef const uint8_t *none = buffer.data()
    cdef uint8_t *found = buffer.data() + nx
    cdef const uint8_t *row
    cdef const uint8_t *before_y
    cdef const uint8_t *after_y
    cdef const uint8_t *before_z
    cdef const uint8_t *after_z
    cdef vector[int64_t] positions
    cdef uint64_t eight
    with nogil:
        for z in range(begin, end):
            for y in range(ny):
                row = &marks[z, y, 0]
                before_z = &marks[z - 1, y, 0] if z > 0 else none
                after_z = &marks[z + 1, y, 0] if z + 1 < nz else none
                before_y = &marks[z, y - 1, 0] if y > 0 else none
                after_y = &marks[z, y + 1, 0] if y + 1 < ny else none
                for x in range(nx):
                    found[x] = row[x] & ~((before_z[x] >> 5) | ((before_y[x] >> 3) & 2)
                                          | ((after_y[x] << 3) & 16) | ((after_z[x] << 5) & 32))
                for x in range(1, nx):
                    found[x] &= ~((row[x - 1] >> 1) & 4)
                for x in range(nx - 1):
                    found[x] &= ~((row[x + 1] << 1) & 8)
                for x in range(nx):
                    found[x] = (found[x] != 0) & ((row[x] & (row[x] - 1)) != 0)
                for x in range(0, nx, 8):
                    memcpy(&eight, found + x, 8)
                    if eight:
                        for near in range(x, min(x + 8, nx)):
                            if found[near]:
                                positions.push_back((z * ny + y) * nx + near)
    return PyBytes_FromStringAndSize(<const char *> positions.data(), positions.size() * sizeof(int64_t))


cdef inline void make_steps(Py_ssize_t ny, Py_ssize_t nx, int64_t *steps) noexcept nogil:
    steps[0], steps[1], steps[2], steps[3], steps[4], steps[5] = -ny * nx, -nx, -1, 1, nx, ny * nx


cdef struct Exit:
    int64_t voxel  # -1: none
    int64_t bit


cdef inline int take_exits(uint8_t *mark, const int64_t *steps, vector[int64_t]& stack, int64_t seed,
                           Exit *best) except -1 nogil:
    """Takes the marks of all exits of the seed's plateau away; best: the one whose edge comes first in the volume.

    Edges are ordered by their later voxel, then z before y before x: an order of positions alone, which any block
    of the volume shares. The plateau ends at voxels that are VISITED, and its own get that bit. Returns OUTSIDE if it
    goes on at voxels with that bit, else 0.
    """
    cdef int64_t v, n, key, best_key = 0x7FFFFFFFFFFFFFFF
    cdef int bit, beyond = 0
    best.voxel, best.bit = -1, 0
    mark[seed] |= VISITED
    stack.push_back(seed)
    while not stack.empty():
        v = stack.back()
        stack.pop_back()
        for bit in range(6):
            if not mark[v] >> bit & 1:
                continue
            n = v + steps[bit]
            if mark[n] >> (5 - bit) & 1:
                beyond |= mark[n]
                if not mark[n] & VISITED:
                    mark[n] |= VISITED
                    stack.push_back(n)
            else:
                mark[v] &= ~(1 << bit)  # an exit: its other end does not look at this bit
                key = 3 * v + bit if bit < 3 else 3 * n + 5 - bit
                if key < best_key:
                    best_key, best.voxel, best.bit = key, v, bit
    return beyond & OUTSIDE


def keep_first_exit(uint8_t[:, :, ::1] marks, const int64_t[::1] corners):
    """Of all exits of one plateau keeps the mark of the first.

    A plateau that goes on OUTSIDE keeps none; the first exits of these are returned (voxel, bit; int64, as bytes).
    """
    cdef int64_t steps[6]
    cdef uint8_t *mark
    cdef vector[int64_t] stack, opened
    cdef Exit first
    cdef Py_ssize_t i
    if corners.shape[0] == 0:
        return b""
    make_steps(marks.shape[1], marks.shape[2], steps)
    mark = &marks[0, 0, 0]
    with nogil:
        for i in range(corners.shape[0]):
            if mark[corners[i]] & VISITED:
                continue
            if take_exits(mark, steps, stack, corners[i], &first):
                opened.push_back(first.voxel)
                opened.push_back(first.bit)
            else:
                mark[first.voxel] |= 1 << first.bit
    return PyBytes_FromStringAndSize(<const char *> opened.data(), opened.size() * sizeof(int64_t))


def keep_nearest_exit(uint8_t[:, :, ::1] marks, const int64_t[::1] corners):
    """Leaves one mark at each voxel of a plateau with exits, towards the nearest exit: the rule of waterz.

    Breadth first from all corners in raster order; a voxel keeps the last of -z, -y, -x, +z, +y, +x that leads to
    an exit or to a voxel that is done.
    """
    cdef int64_t steps[6]
    cdef int[6] order = [0, 1, 2, 5, 4, 3]
    cdef uint8_t *mark
    cdef vector[int64_t] queue
    cdef int64_t v, n
    cdef size_t i
    cdef int turn, bit, kept
    if corners.shape[0] == 0:
        return
    make_steps(marks.shape[1], marks.shape[2], steps)
    mark = &marks[0, 0, 0]
    with nogil:
        for i in range(<size_t> corners.shape[0]):
            queue.push_back(corners[i])
            mark[corners[i]] |= VISITED
        i = 0
        while i < queue.size():
            v = queue[i]
            i += 1
            kept = -1
            for turn in range(6):
                bit = order[turn]
                if not mark[v] >> bit & 1:
                    continue
                n = v + steps[bit]
                if mark[n] >> (5 - bit) & 1:
                    if not mark[n] & VISITED:
                        mark[n] |= VISITED
                        queue.push_back(n)
                else:
                    kept = bit
            mark[v] = VISITED | (1 << kept)  # kept >= 0: the voxel is a corner or was reached from one that is done
