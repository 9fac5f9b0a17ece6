# From merges to labels: the forest of a merge tree, the table of a threshold, labels through a table; size linkage.

from libc.stdint cimport int64_t, uint32_t, uint64_t

include "forest.pxi"

ctypedef fused label_t:
    uint32_t
    uint64_t

ctypedef fused out_t:
    uint32_t
    uint64_t


def link(const uint32_t[:] a, const uint32_t[:] b, const double[:] score, uint32_t[::1] parent, double[::1] height):
    """Replays merges of rising score: parent[i] < i is the cluster that i's cluster joins at height[i]."""
    cdef uint32_t[::1] shortcut = parent.copy()
    cdef Py_ssize_t i
    cdef uint32_t x, y
    with nogil:
        for i in range(a.shape[0]):
            x, y = root_of(&shortcut[0], a[i]), root_of(&shortcut[0], b[i])
            if x == y:
                continue
            if x > y:
                x, y = y, x
            shortcut[y] = x
            parent[y] = x
            height[y] = score[i]


def number(const uint32_t[:] parent, const double[:] height, double threshold, uint32_t[::1] table):
    """The number of clusters after all merges below the threshold, which are numbered by their smallest fragment."""
    cdef Py_ssize_t i
    cdef uint32_t clusters = 0
    with nogil:
        table[0] = 0
        for i in range(1, parent.shape[0]):
            if height[i] < threshold:
                table[i] = table[parent[i]]
            else:
                clusters += 1
                table[i] = clusters
    return clusters


cdef inline bint look_up_row(const label_t* labels, Py_ssize_t stride, const out_t[::1] table, out_t* out,
                             Py_ssize_t out_stride, Py_ssize_t length) noexcept nogil:
    """Whether the table has all labels of a row; mostly, eight in a row are the one before them again."""
    cdef Py_ssize_t x = 0, i
    cdef label_t label = 0, size = <label_t>table.shape[0], differ
    cdef out_t value = table[0]
    cdef bint known = True
    while x < length:
        differ = length - x < 8
        if not differ:
            for i in range(8):
                differ |= labels[(x + i) * stride] ^ label
        if differ:
            for i in range(x, min(x + 8, length)):
                label = labels[i * stride]
                if label >= size:
                    known = False
                    label = 0
                value = table[label]
                out[i * out_stride] = value
        else:
            for i in range(8):
                out[(x + i) * out_stride] = value
        x += 8
    return known


def look_up(const label_t[:, :, :] labels, const out_t[::1] table, out_t[:, :, :] out, Py_ssize_t start,
            Py_ssize_t stop):
    """Whether every label of sections [start, stop) is in the table; out gets what the table says."""
    cdef Py_ssize_t z, y, width = labels.shape[2]
    cdef Py_ssize_t stride = labels.strides[2] // <Py_ssize_t>sizeof(label_t)
    cdef Py_ssize_t out_stride = out.strides[2] // <Py_ssize_t>sizeof(out_t)
    cdef bint known = True
    if width == 0:
        return True
    with nogil:
        for z in range(start, stop):
            for y in range(labels.shape[1]):
                if stride == 1 and out_stride == 1:  # the compiler makes vector instructions of the constants
                    known &= look_up_row(&labels[z, y, 0], 1, table, &out[z, y, 0], 1, width)
                else:
                    known &= look_up_row(&labels[z, y, 0], stride, table, &out[z, y, 0], out_stride, width)
    return known


def link_by_size(const uint32_t[:] u, const uint32_t[:] v, const int64_t[:] order, int64_t[::1] sizes, int64_t limit,
                 uint32_t[::1] parent, int64_t[::1] merged):
    """How many edges, in the given order, join two clusters of which one is below the limit; merged lists them."""
    cdef Py_ssize_t i, count = 0
    cdef uint32_t x, y
    with nogil:
        for i in range(order.shape[0]):
            x, y = root_of(&parent[0], u[order[i]]), root_of(&parent[0], v[order[i]])
            if x == y or min(sizes[x], sizes[y]) >= limit:
                continue
            if x > y:
                x, y = y, x
            parent[y] = x
            sizes[x] += sizes[y]
            merged[count] = order[i]
            count += 1
    return count
