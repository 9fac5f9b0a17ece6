"""Connected components of label volumes by runs: a union-find over runs of one label, slab by slab, seams after.

A row is a list of runs that tile it, background included, so two rows are matched by walking both lists at once:
every step is one overlap. Roots are the smallest run, so components are numbered in raster order of the first voxel.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

ctypedef fused label_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

ctypedef fused node_t:
    uint32_t
    int64_t

ctypedef fused out_t:
    uint32_t
    uint64_t

cdef struct Row:
    const uint32_t* ends  # behind the last voxel of each run
    const uint64_t* values  # one more may be read
    uint32_t first  # the node of its first run
    int64_t runs

cdef struct Pair:
    uint32_t a
    uint32_t b


cdef inline node_t root(node_t* forest, node_t node) noexcept nogil:
    while forest[node] != node:
        forest[node] = forest[forest[node]]
        node = forest[node]
    return node


cdef inline void unite(node_t* forest, node_t a, node_t b) noexcept nogil:
    """Joins two trees; the smaller root stays, so that forest[node] <= node always."""
    if forest[a] == forest[b]:
        return  # by far the most frequent case
    a = root(forest, a)
    b = root(forest, b)
    if a < b:
        forest[b] = a
    else:
        forest[a] = b


cdef int64_t overlaps(Row one, Row two, Pair* pairs, int64_t* corners) noexcept nogil:
    """Writes the pairs of nodes of equal label that overlap in x; their number. corners: is 0 if none meet at a corner.

    No branch hangs on the data: a pair is always written, and counted when it holds.
    """
    cdef int64_t i = 0, j = 0, number = 0, swapped = 0
    cdef uint32_t a, b
    cdef uint64_t value, other
    while i < one.runs and j < two.runs:  # rows end at the same x, so both lists end together
        a = one.ends[i]
        b = two.ends[j]
        value = one.values[i]
        other = two.values[j]
        pairs[number].a = one.first + <uint32_t>i
        pairs[number].b = two.first + <uint32_t>j
        number += (value == other) & (value != 0)
        swapped += (a == b) & ((value == two.values[j + 1]) | (other == one.values[i + 1]))
        i += a <= b
        j += b <= a
    corners[0] = swapped
    return number


cdef int64_t corners_of(Row one, Row two, Pair* pairs) noexcept nogil:
    """Writes the pairs of nodes of equal label that meet where two runs of both rows end; their number."""
    cdef int64_t i = 0, j = 0, number = 0
    cdef uint32_t a, b
    while i + 1 < one.runs and j + 1 < two.runs:
        a = one.ends[i]
        b = two.ends[j]
        if a == b and one.values[i] == two.values[j + 1] and one.values[i] != 0:
            pairs[number].a = one.first + <uint32_t>i
            pairs[number].b = two.first + <uint32_t>(j + 1)
            number += 1
        if a == b and two.values[j] == one.values[i + 1] and two.values[j] != 0:
            pairs[number].a = one.first + <uint32_t>(i + 1)
            pairs[number].b = two.first + <uint32_t>j
            number += 1
        i += a <= b
        j += b <= a
    return number


cdef class Slab:
    """The runs of some whole planes: where each ends, and its node, later the number of its component."""

    cdef vector[uint32_t] ends
    cdef vector[uint32_t] nodes
    cdef vector[int64_t] firsts  # the first run of each row, and their number
    cdef int64_t height  # rows of a plane
    cdef readonly int64_t count

    cdef Row row(self, int64_t index, int64_t plane, const uint64_t* values) noexcept nogil:
        """Row `index` of the slab, whose plane starts at row `plane` and has these values."""
        cdef Row row
        row.ends = &self.ends[self.firsts[index]]
        row.values = values + (self.firsts[index] - self.firsts[plane])
        row.first = <uint32_t>self.firsts[index]
        row.runs = self.firsts[index + 1] - self.firsts[index]
        return row


cdef void read_row(Slab slab, const label_t[:, :, :]& labels, int64_t z, int64_t y, vector[uint32_t]& ends,
                   vector[label_t]& copy, vector[uint64_t]& values) noexcept nogil:
    """Appends the runs of one row to the slab, and their labels to values."""
    cdef int64_t x, number = 0, nx = labels.shape[2], first = <int64_t>slab.nodes.size()
    cdef const label_t* row
    cdef uint32_t* stop = ends.data()
    cdef uint32_t* node
    cdef uint64_t* value
    if labels.strides[2] == <Py_ssize_t>sizeof(label_t):
        row = &labels[z, y, 0]
    else:
        for x in range(nx):
            copy[x] = labels[z, y, x]
        row = copy.data()
    for x in range(1, nx):
        stop[number] = <uint32_t>x
        number += row[x] != row[x - 1]
    stop[number] = <uint32_t>nx
    number += 1
    slab.ends.insert(slab.ends.end(), stop, stop + number)
    slab.nodes.resize(first + number)
    values.resize(values.size() + number)
    node = slab.nodes.data() + first
    value = values.data() + values.size() - number
    for x in range(number):
        value[x] = row[stop[x] - 1]
        node[x] = <uint32_t>(first + x) if value[x] != 0 else <uint32_t>-1
    slab.firsts.push_back(first + number)


cdef inline int64_t meet(const Row& row, Slab other, int64_t plane, const uint64_t* values, int64_t y, int used,
                         int axes, vector[Pair]& pairs) noexcept nogil:
    """The number of pairs (written to pairs) that row joins in row y of a plane, `used` axes away from it."""
    cdef int64_t number, corners
    cdef Row two
    if y < 0 or y >= other.height or used > axes:
        return 0
    two = other.row(plane + y, plane, values)
    if <int64_t>pairs.size() < 3 * (row.runs + two.runs) + 1:
        pairs.resize(6 * (row.runs + two.runs) + 1)
    number = overlaps(row, two, pairs.data(), &corners)
    if used < axes and corners > 0:
        number += corners_of(row, two, pairs.data() + number)
    return number


cdef int64_t number_trees(node_t* forest, int64_t length) noexcept nogil:
    """Replaces every node by the number of its tree, from 1 in order of the roots, background (-1) by 0; their number."""
    cdef int64_t node, number = 0
    for node in range(length):
        if forest[node] == <node_t>-1:
            forest[node] = 0
        elif forest[node] == <node_t>node:
            number += 1
            forest[node] = <node_t>number
        else:
            forest[node] = forest[forest[node]]  # a smaller node: already a number
    return number


def scan(const label_t[:, :, :] labels, int axes):
    """The Slab of labels, its components numbered from 1; voxels touch if at most `axes` coordinates differ, by 1."""
    cdef Slab slab = Slab()
    cdef int64_t z, y, i, number, plane, before, nz = labels.shape[0], ny = labels.shape[1], nx = labels.shape[2]
    cdef int way
    cdef vector[Pair] pairs
    cdef vector[uint32_t] ends
    cdef vector[label_t] copy
    cdef vector[uint64_t] values, last
    cdef Row row
    slab.height = ny
    with nogil:
        ends.resize(nx)
        copy.resize(nx)
        slab.firsts.push_back(0)
        for z in range(nz):
            plane = z * ny
            values.swap(last)
            values.clear()
            for y in range(ny):
                read_row(slab, labels, z, y, ends, copy, values)
            values.push_back(0)
            if z == 0:  # the other planes will be much like the first: room for all at once saves copies and memory
                slab.ends.reserve(min(nz * ny * nx, <int64_t>slab.ends.size() * nz * 9 // 8))
                slab.nodes.reserve(slab.ends.capacity())
            for y in range(ny):
                row = slab.row(plane + y, plane, values.data())
                for way in range(4):
                    if way == 0:
                        number = meet(row, slab, plane, values.data(), y - 1, 1, axes, pairs)
                    elif z == 0:
                        break
                    else:
                        number = meet(row, slab, plane - ny, last.data(), y + way - 2, 1 + (way != 2), axes, pairs)
                    for i in range(number):
                        unite(slab.nodes.data(), pairs[i].a, pairs[i].b)
        slab.count = number_trees(slab.nodes.data(), <int64_t>slab.nodes.size())
    return slab


cdef void read_values(Slab slab, const label_t[:, :, :]& plane, int64_t first, vector[uint64_t]& values) noexcept nogil:
    """The labels of the runs of one plane, whose first row is row `first` of the slab, and one 0 more."""
    cdef int64_t y, run
    values.clear()
    for y in range(plane.shape[1]):
        for run in range(slab.firsts[first + y], slab.firsts[first + y + 1]):
            values.push_back(plane[0, y, slab.ends[run] - 1])
    values.push_back(0)


def join(Slab above, Slab below, const label_t[:, :, :] upper, const label_t[:, :, :] lower, int axes,
         int64_t[::1] forest, int64_t offset, int64_t offset_below):
    """Unites in forest (offset + component - 1) what touches across the seam of two slabs, its two planes given."""
    cdef int64_t y, i, number, ny = upper.shape[1]
    cdef int64_t first = <int64_t>above.firsts.size() - 1 - ny
    cdef int dy
    cdef vector[Pair] pairs
    cdef vector[uint64_t] values, last
    cdef Row row
    with nogil:
        read_values(above, upper, first, last)
        read_values(below, lower, 0, values)
        for y in range(ny):
            row = below.row(y, 0, values.data())
            for dy in range(-1, 2):
                number = meet(row, above, first, last.data(), y + dy, 1 + (dy != 0), axes, pairs)
                for i in range(number):
                    unite(&forest[0], offset_below + below.nodes[pairs[i].a] - 1,
                          offset + above.nodes[pairs[i].b] - 1)


def number_components(int64_t[::1] forest):
    """Replaces every component of all slabs by its final number, from 1 in order of the first; their number."""
    cdef int64_t number = 0
    if forest.shape[0] > 0:
        with nogil:
            number = number_trees(&forest[0], forest.shape[0])
    return number


def write(Slab slab, const int64_t[::1] numbers, int64_t offset, out_t[:, :, ::1] out):
    """Fills out with numbers[offset + component - 1] of every voxel, 0 on background."""
    cdef int64_t index, run, x, start, component
    cdef out_t number
    cdef out_t* row
    with nogil:
        for index in range(<int64_t>slab.firsts.size() - 1):
            row = &out[index // slab.height, index % slab.height, 0]
            start = 0
            for run in range(slab.firsts[index], slab.firsts[index + 1]):
                component = slab.nodes[run]
                number = <out_t>(numbers[offset + component - 1] if component > 0 else 0)
                for x in range(start, <int64_t>slab.ends[run]):
                    row[x] = number
                start = slab.ends[run]
