# Edges between touching fragments, with statistics that pool: integers, extrema and a key, so no order of visits shows.
#
# A thread walks a slab and keeps one record per pair of fragments it meets (edge_table.pxi). collect_* bring the
# records of all threads into (u, v) order and pool what several threads saw.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.algorithm cimport sort
from libcpp.vector cimport vector

include "prefetch.pxi"
include "edge_table.pxi"

cdef float SCALE = <float>16777216.0  # a sum counts units of 2**-24: exact for affinities from 1/2 on, else cut below

ctypedef fused label_t:
    uint32_t
    uint64_t

ctypedef fused value_t:
    float
    uint8_t
    uint16_t


cdef inline int find_contacts(const label_t* later, const label_t* earlier, Py_ssize_t stride, int length,
                              const value_t* values, Py_ssize_t value_stride,
                              uint8_t* marks, int32_t* contacts) noexcept nogil:
    # first a loop that the compiler turns into vector instructions, then one without branches where there is something
    cdef int x, i, found = 0
    cdef label_t a, b
    cdef uint64_t eight
    for x in range(length):
        a = later[x * stride]
        b = earlier[x * stride]
        marks[x] = (a != b) & (a != 0) & (b != 0)
    memset(marks + length, 0, 8)
    x = 0
    while x < length:
        memcpy(&eight, marks + x, 8)
        if eight:
            for i in range(8):
                contacts[found] = x + i
                found += marks[x + i]
            prefetch(values + x * value_stride)
        x += 8
    return found


cdef int scan_row(EdgeTable table, const label_t* later, const label_t* earlier, Py_ssize_t stride,
                  const value_t* values, Py_ssize_t value_stride, const float* decode, int length,
                  uint64_t key, uint64_t key_step, uint8_t* marks, int32_t* contacts) except -1 nogil:
    cdef int i, x, found
    cdef uint32_t a, b, lower, upper
    cdef float value
    cdef uint64_t here
    cdef int64_t total
    cdef Edge part
    cdef Edge* edge
    if stride == 1:
        found = find_contacts(later, earlier, 1, length, values, value_stride, marks, contacts)
    else:
        found = find_contacts(later, earlier, stride, length, values, value_stride, marks, contacts)
    table.expect(found)
    for i in range(found):
        x = contacts[i]
        a = <uint32_t>later[x * stride]
        b = <uint32_t>earlier[x * stride]
        if value_t is float:
            value = values[x * value_stride]
        else:
            value = decode[values[x * value_stride]]
        if not 0 <= value <= 1:
            table.outside = True
            return 0
        lower = min(a, b)
        upper = max(a, b)
        total = <int64_t>(value * SCALE)
        here = key + <uint64_t>x * key_step
        if table.histograms:  # the pair must have its number now
            part = Edge(lower, upper, here, 1, total, value, value)
            table.add_bin(table.add(&part), value)
            continue
        edge = table.meet(lower, upper)
        edge.count += 1
        edge.total += total
        edge.most = max(edge.most, value)
        edge.least = min(edge.least, value)
        edge.key = max(edge.key, here)
    return 0


def add_faces(EdgeTable table, const label_t[:, :, :] labels, const value_t[:, :, :, :] affs, const float[::1] decode,
              const int64_t[:, ::1] channels, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t tile_rows,
              const int64_t[::1] halo, const int64_t[::1] origin, const int64_t[::1] volume):
    """Adds every contact whose later voxel lies in sections [start, stop), outside the first rows and columns of halo.

    A row of `channels` is (channel, dz, dy, dx, stored at the earlier voxel, digit): the channel joins a voxel and the
    earlier one at minus (dz, dy, dx). The key of a contact is (linear index of the later voxel in the whole volume) * 3
    (or the number of channels, if larger) + digit.
    """
    cdef Py_ssize_t z, y, tile, channel, x0, x1, row
    cdef Py_ssize_t rows = labels.shape[1], width = labels.shape[2]
    cdef Py_ssize_t dz, dy, dx, at
    cdef Py_ssize_t stride = labels.strides[2] // <Py_ssize_t>sizeof(label_t)
    cdef Py_ssize_t value_stride = affs.strides[3] // <Py_ssize_t>sizeof(value_t)
    cdef uint64_t digits = max(3, channels.shape[0]), key
    cdef vector[int32_t] contacts
    cdef vector[uint8_t] marks
    contacts.resize(width + 8)
    marks.resize(width + 8)
    with nogil:
        # tiles of rows, so that the section before is still in the cache when its voxels are compared
        tile = halo[1]
        while tile < rows:
            for z in range(start, stop):
                for y in range(tile, min(tile + tile_rows, rows)):
                    for row in range(channels.shape[0]):
                        channel, dz, dy, dx = channels[row, 0], channels[row, 1], channels[row, 2], channels[row, 3]
                        x0, x1 = max(<Py_ssize_t>halo[2], dx), min(width, width + dx)
                        if z < dz or y < dy or y - dy >= rows or x0 >= x1:
                            continue
                        at = channels[row, 4]
                        key = (((z + origin[0]) * volume[1] + y + origin[1]) * volume[2] + x0 + origin[2]) * digits
                        scan_row(table, &labels[z, y, x0], &labels[z - dz, y - dy, x0 - dx], stride,
                                 &affs[channel, z - at * dz, y - at * dy, x0 - at * dx], value_stride,
                                 &decode[0], <int>(x1 - x0), key + channels[row, 5], digits, marks.data(),
                                 contacts.data())
                    table.add_pending()
            tile += tile_rows
        table.add_recent()


def collect_starts(list tables, int64_t[::1] starts, uint64_t[::1] entries):
    """Fills starts[u]..starts[u+1] with the place of the records of lower id u, and entries with (upper id, number).

    Numbers run through the chunks of all tables, and skip what the last chunk of a table leaves empty. The tables lose
    their indices: nothing can be added to them afterwards.
    """
    cdef EdgeTable table
    cdef int64_t i, offset = 0, ahead, here = 0
    cdef Edge* edge
    for table in tables:
        with nogil:
            for i in range(table.size):
                starts[table.record(i).lower] += 1
    with nogil:
        for i in range(starts.shape[0]):
            ahead = here + starts[i]
            starts[i] = here
            here = ahead
    for table in tables:
        with nogil:
            for i in range(table.size):
                edge = table.record(i)
                entries[starts[edge.lower]] = (<uint64_t>edge.upper << 32) | <uint64_t>(offset + i)
                starts[edge.lower] += 1
            offset += <int64_t>table.chunks.size() * CHUNK
            table.release_index()
    with nogil:  # filling has moved every start to the next one
        for i in range(starts.shape[0] - 1, 0, -1):
            starts[i] = starts[i - 1]
        starts[0] = 0


def collect_sort(const int64_t[::1] starts, uint64_t[::1] entries, Py_ssize_t first, Py_ssize_t last):
    """The number of distinct edges whose lower id is in [first, last), after sorting their entries."""
    cdef Py_ssize_t node
    cdef int64_t i, j, distinct = 0
    cdef uint64_t entry
    with nogil:
        for node in range(first, last):
            if starts[node + 1] - starts[node] > 24:
                sort(&entries[starts[node]], &entries[starts[node]] + (starts[node + 1] - starts[node]))
            else:
                for i in range(starts[node] + 1, starts[node + 1]):
                    entry = entries[i]
                    j = i
                    while j > starts[node] and entries[j - 1] > entry:
                        entries[j] = entries[j - 1]
                        j -= 1
                    entries[j] = entry
            for i in range(starts[node], starts[node + 1]):
                distinct += i == starts[node] or (entries[i] >> 32) != (entries[i - 1] >> 32)
    return distinct


def collect_pool(list tables, const int64_t[::1] starts, const uint64_t[::1] entries, Py_ssize_t first, Py_ssize_t last,
                 int64_t place, uint32_t[::1] lower, uint32_t[::1] upper, int64_t[::1] count, int64_t[::1] total,
                 float[::1] most, float[::1] least, uint64_t[::1] key, int64_t[::1] edge_of):
    """Writes the pooled edges with lower id in [first, last) from `place` on; edge_of[number] is set unless empty."""
    cdef vector[Edge*] chunks
    cdef EdgeTable table
    cdef Py_ssize_t node
    cdef int64_t i, number
    cdef size_t chunk
    cdef Edge pooled = Edge(0, 0, 0, 0, 0, 0, 0)
    for table in tables:
        for chunk in range(table.chunks.size()):
            chunks.push_back(table.chunks[chunk].data())
    with nogil:
        place -= 1
        for node in range(first, last):
            for i in range(starts[node], starts[node + 1]):
                number = <uint32_t>entries[i]
                if i > starts[node] and (entries[i] >> 32) == (entries[i - 1] >> 32):
                    pool(&pooled, &chunks[number >> CHUNK_BITS][number & (CHUNK - 1)])
                else:
                    place += 1
                    pooled = chunks[number >> CHUNK_BITS][number & (CHUNK - 1)]
                lower[place], upper[place] = pooled.lower, pooled.upper
                count[place], total[place] = pooled.count, pooled.total
                most[place], least[place], key[place] = pooled.most, pooled.least, pooled.key
                if edge_of.shape[0]:
                    edge_of[number] = place


def capacity(EdgeTable table):
    """How many numbers the records of a table take in collect_starts."""
    return <int64_t>table.chunks.size() * CHUNK


def collect_bins(EdgeTable table, int64_t[::1] numbers, int64_t[::1] bins, int64_t[::1] counts):
    """Fills in (record number, bin, count) for every bin of a table that is not empty."""
    cdef Entry bin
    cdef int64_t i = 0
    with nogil:
        for bin in table.bins:
            if taken(bin):
                numbers[i], bins[i], counts[i] = bin.key // BINS, bin.key % BINS, bin.count
                i += 1


def measure(const label_t[:, :, :] labels, Py_ssize_t start, Py_ssize_t stop, int64_t[::1] sizes,
            int64_t[:, ::1] boxes):
    """Adds the voxels of sections [start, stop) to sizes and, unless empty, to boxes (first z y x, last z y x)."""
    cdef Py_ssize_t z, y, x, first, width = labels.shape[2]
    cdef label_t label
    cdef bint with_boxes = boxes.shape[0] > 0
    with nogil:
        for z in range(start, stop):
            for y in range(labels.shape[1]):
                x = 0
                while x < width:
                    label = labels[z, y, x]
                    first = x
                    x += 1
                    while x < width and labels[z, y, x] == label:
                        x += 1
                    sizes[label] += x - first
                    if with_boxes:
                        boxes[label, 0] = min(boxes[label, 0], z)
                        boxes[label, 1] = min(boxes[label, 1], y)
                        boxes[label, 2] = min(boxes[label, 2], first)
                        boxes[label, 3] = max(boxes[label, 3], z)
                        boxes[label, 4] = max(boxes[label, 4], y)
                        boxes[label, 5] = max(boxes[label, 5], x - 1)
