"""Connected components of marked edges (see watershed.pyx) over slabs: union-find on runs along x, joined at seams.

An edge belongs to the graph if either of its ends marks it. Runs are numbered within a slab in raster order, and a
slab's parents lie at the front of its own part of the label volume: run r starts at voxel r or later, so labels can
be written over the parents from the back. Roots are always the smallest run, so fragments come out in raster order.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

include "forest.pxi"

ctypedef fused label:
    uint32_t
    uint64_t


cdef inline void link_row(const uint8_t *row, const uint8_t *before_y, const uint8_t *before_z, uint8_t *links,
                          Py_ssize_t count) noexcept nogil:
    """links: bits 1, 2, 4 say whether the edge towards -z, -y, -x is in the graph, the others are kept.

    Neighbouring background voxels along x are linked too, so that they make one run.
    """
    cdef Py_ssize_t x
    for x in range(count):
        links[x] = row[x] | (before_z[x] >> 5 & 1) | (before_y[x] >> 3 & 2)
    for x in range(1, count):
        links[x] |= (row[x - 1] >> 1 & 4) | ((row[x] | row[x - 1]) == 0) << 2


cdef inline void wanted_row(const uint8_t *links, const uint8_t *before_y, const uint8_t *before_z, uint8_t *along_y,
                            uint8_t *along_z, Py_ssize_t count) noexcept nogil:
    """1 where the runs of a voxel and its neighbour must be joined; links that follow from others are left out.

    A link follows from the one a voxel before if both pairs of runs continue, and a link along z also from the three
    other sides of its square: always from edges of smaller voxels or of another axis, so nothing goes round in circles.
    """
    cdef Py_ssize_t x
    along_y[0] = links[0] >> 1 & 1
    along_z[0] = links[0] & 1 & ~(links[0] >> 1 & before_y[0] & before_z[0] >> 1)
    for x in range(1, count):
        along_y[x] = links[x] >> 1 & 1 & ~(links[x - 1] >> 1 & links[x] >> 2 & before_y[x] >> 2)
        along_z[x] = links[x] & 1 & ~((links[x - 1] & links[x] >> 2 & before_z[x] >> 2)
                                      | (links[x] >> 1 & before_y[x] & before_z[x] >> 1))


def link(uint8_t[:, :, ::1] marks, uint32_t[::1] parents, uint32_t[:, ::1] plane, Py_ssize_t begin, Py_ssize_t end):
    """(runs, roots) of the slab marks[begin:end], whose marks become links; edges into earlier slabs are left alone.

    parents[r] becomes the number of r's root among the slab's roots, from 1, or 0; plane the runs of the last plane.
    """
    cdef Py_ssize_t ny = marks.shape[1], nx = marks.shape[2], z, y, x, i, joins_y, joins_z
    cdef vector[uint8_t] bytes_of_row
    bytes_of_row.resize(4 * nx)
    cdef uint8_t *none = bytes_of_row.data()
    cdef uint8_t *links = none + nx
    cdef uint8_t *along_y = none + 2 * nx
    cdef uint8_t *along_z = none + 3 * nx
    cdef vector[uint32_t] row_buffer
    row_buffer.resize(3 * nx)
    cdef uint32_t *runs = row_buffer.data()
    cdef uint32_t *at_y = runs + nx
    cdef uint32_t *at_z = runs + 2 * nx
    cdef uint32_t *parent
    cdef uint32_t *before
    cdef uint32_t run = <uint32_t>-1  # one before 0
    cdef int64_t roots
    cdef const uint8_t *before_y
    cdef const uint8_t *before_z
    cdef uint8_t *row
    if begin == end or ny == 0 or nx == 0:
        return 0, 0
    parent = &parents[0]
    with nogil:
        for z in range(begin, end):
            for y in range(ny):
                row = &marks[z, y, 0]
                before_y = &marks[z, y - 1, 0] if y > 0 else none
                before_z = &marks[z - 1, y, 0] if z > begin else none
                link_row(row, before_y, before_z, links, nx)
                wanted_row(links, before_y, before_z, along_y, along_z, nx)
                joins_y = joins_z = 0
                for x in range(nx):
                    run += not (links[x] & 4)
                    runs[x] = run
                    parent[run] = run | (0 - <uint32_t> (row[x] == 0))  # background becomes -1
                    at_y[joins_y] = <uint32_t> x
                    joins_y += along_y[x]
                    at_z[joins_z] = <uint32_t> x
                    joins_z += along_z[x]
                memcpy(row, links, nx)
                before = &plane[y - 1, 0] if y > 0 else NULL
                for i in range(joins_y):
                    join_trees(parent, runs[at_y[i]], before[at_y[i]])
                before = &plane[y, 0]
                if z == begin:
                    joins_z = 0  # these edges are the seam's
                for i in range(joins_z):
                    join_trees(parent, runs[at_z[i]], before[at_z[i]])
                memcpy(before, runs, nx * sizeof(uint32_t))
        roots = number_trees(parent, <int64_t>run + 1, <uint32_t>1)
    return <int64_t>run + 1, roots


def join_seam(const uint8_t[:, :, ::1] marks, Py_ssize_t z, const uint32_t[:, ::1] plane, const uint32_t[::1] earlier,
              Py_ssize_t earlier_base, const uint32_t[::1] later, Py_ssize_t later_base, label[::1] table):
    """How many joins it took, in table (a union-find over the roots of all slabs), to link planes z - 1 and z."""
    cdef Py_ssize_t y, x, run = -1, joins = 0
    cdef label a, b, last_a = 0, last_b = 0
    with nogil:
        for y in range(marks.shape[1]):
            for x in range(marks.shape[2]):
                run += not (marks[z, y, x] & 4)
                if not (marks[z, y, x] | marks[z - 1, y, x] >> 5) & 1:
                    continue
                a = <label> (earlier_base + earlier[plane[y, x]] - 1)
                b = <label> (later_base + later[run] - 1)
                if a == last_a and b == last_b:
                    continue
                last_a, last_b = a, b
                joins += join_trees(&table[0], a, b)
    return joins


def number(label[::1] table, label first):
    """Every entry of table becomes the label of its root: first, first + 1, ... in order."""
    with nogil:
        number_trees(&table[0], table.shape[0], first)


def spread(const uint8_t[:, :, ::1] links, const uint32_t[::1] parents, Py_ssize_t runs, const label[::1] table,
           label[:, :, ::1] labels, Py_ssize_t begin, Py_ssize_t end):
    """Writes labels[begin:end] from its back to its front, so parents may be the front of that same memory."""
    cdef Py_ssize_t ny = links.shape[1], nx = links.shape[2], z, y, x, i, count
    cdef vector[label] buffer
    buffer.resize(nx + 1)
    cdef label *of_run = buffer.data()
    cdef label *out
    cdef const uint8_t *row
    if nx == 0:
        return
    with nogil:
        for z in range(end - 1, begin - 1, -1):
            for y in range(ny - 1, -1, -1):
                row = &links[z, y, 0]
                count = 0
                for x in range(nx):
                    count += not (row[x] & 4)
                runs -= count
                for i in range(count):
                    of_run[i] = 0 if parents[runs + i] == 0 else table[parents[runs + i] - 1]
                out = &labels[z, y, 0]
                i = -1
                for x in range(nx):
                    i += not (row[x] & 4)
                    out[x] = of_run[i]


def first_voxels(const label[::1] labels, int64_t[::1] firsts):
    """The index of the first voxel of each label 1, 2, ..., which are numbered in the order of these voxels.

    A label that is missing gets that of the next one, or the number of voxels.
    """
    cdef Py_ssize_t i, seen = 0, last
    with nogil:
        for i in range(labels.shape[0]):
            if <Py_ssize_t>labels[i] > seen:
                last = min(<Py_ssize_t>labels[i], firsts.shape[0])
                while seen < last:
                    firsts[seen] = i
                    seen += 1
        while seen < firsts.shape[0]:
            firsts[seen] = labels.shape[0]
            seen += 1
