# From merges to labels: the forest of a merge tree, the table of a threshold, labels through a table; size linkage.

from libc.stdint cimport int64_t, uint32_t, uint64_t

ctypedef fused label_t:
    uint32_t
    uint64_t


cdef inline uint32_t root_of(uint32_t[::1] parent, uint32_t node) noexcept nogil:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


def link(const uint32_t[:] a, const uint32_t[:] b, const double[:] score, uint32_t[::1] parent, double[::1] height):
    """Replays merges of rising score: parent[i] < i is the cluster that i's cluster joins at height[i]."""
    cdef uint32_t[::1] shortcut = parent.copy()
    cdef Py_ssize_t i
    cdef uint32_t x, y
    with nogil:
        for i in range(a.shape[0]):
            x, y = root_of(shortcut, a[i]), root_of(shortcut, b[i])
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


def look_up(const label_t[:, :, :] labels, const uint32_t[:] table, uint32_t[:, :, :] out, Py_ssize_t start,
            Py_ssize_t stop):
    """Whether every label of sections [start, stop) is in the table; out gets what the table says."""
    cdef Py_ssize_t z, y, x
    cdef label_t label, size = <label_t>table.shape[0]
    cdef bint known = True
    with nogil:
        for z in range(start, stop):
            for y in range(labels.shape[1]):
                for x in range(labels.shape[2]):
                    label = labels[z, y, x]
                    if label < size:
                        out[z, y, x] = table[label]
                    else:
                        known = False
    return known


def link_by_size(const uint32_t[:] u, const uint32_t[:] v, const int64_t[:] order, int64_t[::1] sizes, int64_t limit,
                 uint32_t[::1] parent, int64_t[::1] merged):
    """How many edges, in the given order, join two clusters of which one is below the limit; merged lists them."""
    cdef Py_ssize_t i, count = 0
    cdef uint32_t x, y
    with nogil:
        for i in range(order.shape[0]):
            x, y = root_of(parent, u[order[i]]), root_of(parent, v[order[i]])
            if x == y or min(sizes[x], sizes[y]) >= limit:
                continue
            if x > y:
                x, y = y, x
            parent[y] = x
            sizes[x] += sizes[y]
            merged[count] = order[i]
            count += 1
    return count
