"""Connected components of label volumes by runs: a union-find over runs of one label, slab by slab, seams after.

A row is a list of runs that tile it, background included, so two rows are matched by walking both lists at once:
every step is one overlap. Roots are the smallest run, so components are numbered in raster order of the first voxel.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.vector cimport vector

include "forest.pxi"

ctypedef fused label_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

ctypedef fused out_t:
    uint32_t
    uint64_t

cdef enum:
    STRIDE = 16  # voxels written at once

cdef struct Row:
    const uint32_t* ends  # behind the last voxel of each run
    const uint64_t* values  # one more may be read
    uint32_t first  # the node of its first run
    int64_t runs

cdef struct Pair:
    uint32_t a
    uint32_t b

cdef struct Piece:  # voxels of one run
    uint32_t node
    uint32_t below  # the node of another label in the other row
    uint32_t start
    uint32_t stop
    int32_t left  # the voxels from here to right - 1 of nearby rows may belong to it, and nothing else ties them to it
    int32_t right
    uint64_t value


cdef int64_t corners(Row two, const Piece* pieces, int64_t apart, Pair* pairs) noexcept nogil:
    """Writes the pairs of nodes of equal label where a piece on another label meets the next run; their number."""
    cdef int64_t i, j, number = 0
    for i in range(apart):
        j = pieces[i].below - two.first
        if j + 1 < two.runs and two.ends[j] == pieces[i].stop and two.values[j + 1] == pieces[i].value:
            pairs[number] = Pair(pieces[i].node, pieces[i].below + 1)
            number += 1
        if j > 0 and two.ends[j - 1] == pieces[i].start and two.values[j - 1] == pieces[i].value:
            pairs[number] = Pair(pieces[i].node, pieces[i].below - 1)
            number += 1
    return number


cdef class Slab:
    """The runs of some whole planes: where each ends, and its node, later the number of its component."""

    cdef vector[uint32_t] ends, nodes
    cdef vector[int64_t] firsts  # the first run of each row, and their number
    cdef vector[uint64_t] top, bottom  # the labels of the runs of its first and its last plane, and one 0 more
    cdef vector[Pair] pairs  # what `match` found
    cdef vector[Piece] pieces
    cdef int64_t found, apart, height  # their numbers; the rows of a plane
    cdef readonly int64_t count

    cdef Row row(self, int64_t index, int64_t plane, const uint64_t* values) noexcept nogil:
        """Row `index` of the slab, whose plane starts at row `plane` and has these values."""
        cdef int64_t first = self.firsts[index]
        return Row(&self.ends[first], values + (first - self.firsts[plane]), <uint32_t>first,
                   self.firsts[index + 1] - first)

    cdef int match(self, Row one, Row two, bint diagonal) except -1 nogil:
        """Finds the pairs of nodes of equal label that overlap in x, and the pieces of one that lie on other labels.

        diagonal: also the pairs that meet at corners; else only pieces with left < right: the neighbours of a voxel
        beside the piece that lies on its own label are tied to that. No branch hangs on the data: pairs and pieces
        are always written, and counted if they hold.
        """
        if <int64_t>self.pieces.size() < one.runs + two.runs + 1:
            self.pieces.resize(2 * (one.runs + two.runs) + 1)
            self.pairs.resize(3 * self.pieces.size())
        cdef int64_t i = 0, j = 0, found = 0, apart = 0
        cdef uint32_t a, b, start = 0, tied = 0
        cdef uint64_t value, other
        cdef Pair* pairs = self.pairs.data()
        cdef Piece* pieces = self.pieces.data()
        while i < one.runs and j < two.runs:  # rows end at the same x, so both lists end together
            a = one.ends[i]
            b = two.ends[j]
            value = one.values[i]
            other = two.values[j]
            pairs[found].a = pieces[apart].node = one.first + <uint32_t>i
            pairs[found].b = pieces[apart].below = two.first + <uint32_t>j
            pieces[apart].start = start
            pieces[apart].left = <int32_t>(start + 2 * tied) - 1
            pieces[apart].stop = start = min(a, b)
            pieces[apart].right = <int32_t>(start + 1 - 2 * ((b < a) & (value == two.values[j + 1])))
            pieces[apart].value = value
            tied = (value == other) & (b < a)
            found += (value == other) & (value != 0)
            apart += (value != other) & (value != 0) & (diagonal or pieces[apart].left < pieces[apart].right)
            i += a <= b
            j += b <= a
        self.found = found + (corners(two, pieces, apart, pairs + found) if diagonal else 0)
        self.apart = apart

    cdef int join(self, Row row, Row two, bint diagonal) except -1 nogil:
        """Unites what two rows of this slab join."""
        cdef int64_t i
        self.match(row, two, diagonal)
        for i in range(self.found):
            if self.nodes[self.pairs[i].a] != self.nodes[self.pairs[i].b]:  # seldom
                join_trees(self.nodes.data(), self.pairs[i].a, self.pairs[i].b)


cdef int read_row(Slab slab, const label_t[:, :, :]& labels, int64_t z, int64_t y, vector[uint32_t]& ends,
                  vector[label_t]& copy, vector[uint64_t]& values, uint32_t* where) except -1 nogil:
    """Appends the runs of one row to the slab, and their labels to values; where: each voxel's run of the row, or NULL."""
    cdef int64_t x, number = 0, nx = labels.shape[2], first = <int64_t>slab.nodes.size()
    cdef const label_t* row
    cdef uint32_t *stop = ends.data(), *node
    cdef uint64_t *value
    if labels.strides[2] == <Py_ssize_t>sizeof(label_t):
        row = &labels[z, y, 0]
    else:
        for x in range(nx):
            copy[x] = labels[z, y, x]
        row = copy.data()
    if where != NULL:
        where[0] = 0
    for x in range(1, nx):
        stop[number] = <uint32_t>x
        number += row[x] != row[x - 1]
        if where != NULL:
            where[x] = <uint32_t>number
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


cdef void reach(Slab slab, Row row, const uint32_t* where, int64_t nx) noexcept nogil:
    """Unites the pieces that `match` found with the runs of their label in another row that touch them."""
    cdef int64_t i, x, stop
    for i in range(slab.apart):
        x = max(<int64_t>slab.pieces[i].left, 0)
        stop = min(<int64_t>slab.pieces[i].right, nx)
        while x < stop:
            if row.values[where[x]] == slab.pieces[i].value:
                join_trees(slab.nodes.data(), slab.pieces[i].node, row.first + where[x])
            x = row.ends[where[x]]


cdef int join_row(Slab slab, int64_t plane, int64_t y, const uint64_t* values, const uint64_t* last,
                  const uint32_t* where, const uint32_t* before, int64_t nx, int axes) except -1 nogil:
    """Unites what row y of a plane joins to the rows before it; last is NULL in the first plane of the slab.

    Where all 26 neighbours touch, a voxel whose label goes on in the plane before is tied by that to its other
    neighbours there and in the row before, since those touch both. Only the few others look at all four rows.
    """
    cdef Row row = slab.row(plane + y, plane, values)
    cdef int64_t dy, above = plane - slab.height, low = max(-1, -y), high = min(2, slab.height - y)
    if axes == 3 and last != NULL:
        slab.join(row, slab.row(above + y, above, last), False)
        for dy in range(low, high):
            reach(slab, slab.row(above + y + dy, above, last), before + (y + dy) * nx, nx)
        if y > 0:
            reach(slab, slab.row(plane + y - 1, plane, values), where + (y - 1) * nx, nx)
        return 0
    if y > 0:
        slab.join(row, slab.row(plane + y - 1, plane, values), axes > 1)
    for dy in range(low, high if last != NULL else low):
        if dy == 0 or axes > 1:
            slab.join(row, slab.row(above + y + dy, above, last), axes > 1 + (dy != 0))


def scan(const label_t[:, :, :] labels, int axes):
    """The Slab of labels, its components numbered from 1; voxels touch if at most `axes` coordinates differ, by 1."""
    cdef Slab slab = Slab()
    cdef int64_t z, y, plane, nz = labels.shape[0], ny = labels.shape[1], nx = labels.shape[2]
    cdef vector[uint32_t] ends, where, before
    cdef vector[uint64_t] values, last
    cdef vector[label_t] copy
    slab.height = ny
    with nogil:
        if axes == 3 and nz > 1:
            where.resize(ny * nx)
            before.resize(ny * nx)
        ends.resize(nx)
        copy.resize(nx)
        slab.firsts.push_back(0)
        for z in range(nz):
            plane = z * ny
            values.swap(last)
            where.swap(before)
            values.clear()
            for y in range(ny):
                read_row(slab, labels, z, y, ends, copy, values, where.data() + y * nx if where.size() > 0 else NULL)
            values.push_back(0)
            if z == 0:
                slab.top.assign(values.begin(), values.end())  # a plain copy would not report a lack of memory
                # the other planes will be much like the first: room for all at once saves copies
                slab.ends.reserve(min(nz * ny * nx, <int64_t>slab.ends.size() * nz * 9 // 8))
                slab.nodes.reserve(slab.ends.capacity())
            for y in range(ny):
                join_row(slab, plane, y, values.data(), last.data() if z > 0 else NULL, where.data(), before.data(), nx,
                         axes)
        slab.bottom.swap(values)
        slab.count = number_trees(slab.nodes.data(), <int64_t>slab.nodes.size(), <uint32_t>1)
    return slab


def join(Slab above, Slab below, int axes, int64_t[::1] forest, int64_t offset, int64_t offset_below):
    """Unites in forest (offset + component - 1) what touches across the seam of two slabs."""
    cdef int64_t y, dy, i, ny = below.height, last = <int64_t>above.firsts.size() - 1 - ny
    with nogil:
        for y in range(ny):
            for dy in range(max(-1, -y), min(2, ny - y)):
                if dy == 0 or axes > 1:
                    below.match(below.row(y, 0, below.top.data()),
                                above.row(last + y + dy, last, above.bottom.data()), axes > 1 + (dy != 0))
                    for i in range(below.found):
                        join_trees(&forest[0], offset_below + below.nodes[below.pairs[i].a] - 1,
                                   offset + above.nodes[below.pairs[i].b] - 1)


def number_components(int64_t[::1] forest):
    """Replaces every component of all slabs by its final number, from 1 in order of the first; their number."""
    cdef int64_t number
    with nogil:
        number = number_trees(&forest[0], forest.shape[0], <int64_t>1)
    return number


def write(Slab slab, const int64_t[::1] numbers, int64_t offset, out_t[:, :, ::1] out):
    """Fills out with numbers[offset + component - 1] of every voxel, 0 on background."""
    cdef int64_t index, run, x, start, stop, component, nx = out.shape[2]
    cdef out_t number
    cdef out_t* row
    with nogil:
        for index in range(<int64_t>slab.firsts.size() - 1):
            row = &out[index // slab.height, index % slab.height, 0]
            start = 0
            for run in range(slab.firsts[index], slab.firsts[index + 1]):
                component = slab.nodes[run]
                number = <out_t>(numbers[offset + component - 1] if component > 0 else 0)
                stop = slab.ends[run]
                if start + STRIDE <= nx:  # short runs: what is written beyond the end, the next runs write again
                    for x in range(STRIDE):
                        row[start + x] = number
                    start += STRIDE
                for x in range(start, stop):
                    row[x] = number
                start = stop
