# Statistics of contacts between fragments, in whole numbers, so that they pool exactly in whatever order.
#
# A number of 0..1 is a whole number of units of 2**-24. The faces between two fragments are looked at for several
# quantities: the affinity across the face, one of each longer step that is centred on it, the larger height of its two
# voxels, and the least affinity within one face along the axis. Every thread owns the edges of a range of lower
# fragments, so that none writes where another does.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef fused label_t:
    uint32_t
    uint64_t

ctypedef fused value_t:
    float
    uint8_t
    uint16_t

cdef float SCALE = <float>16777216.0
cdef int32_t ONE = 1 << 24

cdef enum:
    BINS = 16
    BIN_SHIFT = 20  # units of 2**-24 to bins
    SQUARE_SHIFT = 8  # squares are of units of 2**-16, so that 2**31 of them fit into 64 bits


cdef inline int32_t units(value_t value, const float* decode) noexcept nogil:
    if value_t is float:
        return <int32_t>(value * SCALE)
    else:
        return <int32_t>(decode[value] * SCALE)


cdef inline int32_t pair(const value_t[:, :, :, :] affs, const float* decode, const int64_t[:, :, ::1] channels,
                         Py_ssize_t axis, Py_ssize_t group, Py_ssize_t z, Py_ssize_t y, Py_ssize_t x) noexcept nogil:
    """The affinity of the pair along an axis whose later voxel is given."""
    cdef Py_ssize_t back = channels[axis, group, 2]
    return units(affs[channels[axis, group, 0], z - back * (axis == 0), y - back * (axis == 1),
                      x - back * (axis == 2)], decode)


cdef inline int32_t along(const value_t[:, :, :, :] affs, const float* decode, const int64_t[:, :, ::1] channels,
                          const int64_t[:, ::1] volume, Py_ssize_t axis, Py_ssize_t group, Py_ssize_t z, Py_ssize_t y,
                          Py_ssize_t x, Py_ssize_t moved) noexcept nogil:
    """The affinity of the pair whose later voxel is the given one, moved along the axis as far as there are pairs."""
    cdef Py_ssize_t at = (z if axis == 0 else (y if axis == 1 else x)) + moved
    at = max(<Py_ssize_t>(volume[axis, 0] + channels[axis, group, 1]), min(<Py_ssize_t>volume[axis, 1] - 1, at))
    return pair(affs, decode, channels, axis, group, at if axis == 0 else z, at if axis == 1 else y,
                at if axis == 2 else x)


def heights(const value_t[:, :, :, :] affs, const float[::1] decode, const int64_t[:, :, ::1] channels,
            Py_ssize_t start, Py_ssize_t stop, int32_t[:, :, ::1] out):
    """Fills sections [start, stop) with 1 minus the mean of the six affinities of a voxel, cut to whole units.

    A row of channels[axis] is a group: (channel, step, step if it is stored at the earlier voxel, else 0); group 0 are
    the nearest neighbours. Pairs that leave the array count as 1.
    """
    cdef Py_ssize_t z, y, x, axis, nz = affs.shape[1], ny = affs.shape[2], nx = affs.shape[3]
    cdef int64_t total
    with nogil:
        for z in range(start, stop):
            for y in range(ny):
                for x in range(nx):
                    total = 0
                    for axis in range(3):
                        if (z if axis == 0 else (y if axis == 1 else x)) > 0:
                            total += ONE - pair(affs, &decode[0], channels, axis, 0, z, y, x)
                        if (z + 1 < nz if axis == 0 else (y + 1 < ny if axis == 1 else x + 1 < nx)):
                            total += ONE - pair(affs, &decode[0], channels, axis, 0, z + (axis == 0), y + (axis == 1),
                                                x + (axis == 2))
                    out[z, y, x] = <int32_t>(total // 6)


cdef inline int64_t edge_of(const int64_t* starts, const uint32_t* upper, int64_t low, uint32_t high) noexcept nogil:
    """The number of an edge that is there, by its lower and its upper fragment."""
    cdef int64_t first = starts[low], last = starts[low + 1], middle
    while last - first > 1:
        middle = (first + last) // 2
        if upper[middle] <= high:
            first = middle
        else:
            last = middle
    return first


def add_contacts(const label_t[:, :, :] labels, const value_t[:, :, :, :] affs, const float[::1] decode,
                 const int32_t[:, :, ::1] height, const int64_t[:, :, ::1] channels, const int64_t[:, ::1] volume,
                 const int64_t[::1] inside, const int64_t[::1] starts, const uint32_t[::1] upper, int64_t first_id,
                 int64_t end_id, Py_ssize_t start, Py_ssize_t stop, int64_t[:, ::1] sums, int64_t[:, ::1] squares,
                 int32_t[:, ::1] least, int32_t[:, ::1] most, uint32_t[:, :, ::1] histograms, int64_t[::1] z_faces):
    """Adds the faces whose later voxel lies in sections [start, stop) to edges with lower ids of [first_id, end_id).

    The edges of lower fragment u are starts[u] to starts[u + 1], by rising upper ones; every pair that touches is one.
    Quantities are: the groups of channels, then the larger height, then the least near affinity. All arrays begin at
    one voxel; labels end first. volume[axis] are the first voxel and the end of the volume, counted from there, and
    later voxels lie at `inside` or behind it along every axis.
    """
    cdef Py_ssize_t z, y, x, axis, group, groups = channels.shape[1], q
    cdef int64_t edge = 0, one, other, low, high, last_low = 0, last_high = 0
    cdef int32_t value[16]
    with nogil:
        for z in range(start, stop):
            for y in range(inside[1], labels.shape[1]):
                for axis in range(3):
                    if (axis == 0 and z == volume[0, 0]) or (axis == 1 and y == volume[1, 0]):
                        continue
                    for x in range(inside[2] + (axis == 2 and inside[2] == volume[2, 0]), labels.shape[2]):
                        one = labels[z, y, x]
                        other = labels[z - (axis == 0), y - (axis == 1), x - (axis == 2)]
                        if one == other or one == 0 or other == 0:
                            continue
                        low, high = min(one, other), max(one, other)
                        if low < first_id or low >= end_id:
                            continue
                        if low != last_low or high != last_high:
                            edge = edge_of(&starts[0], &upper[0], low, <uint32_t>high)
                            last_low, last_high = low, high
                        for group in range(groups):
                            if channels[axis, group, 1] < volume[axis, 1] - volume[axis, 0]:
                                value[group] = along(affs, &decode[0], channels, volume, axis, group, z, y, x,
                                                     (channels[axis, group, 1] - 1) // 2)
                            else:  # no such pair fits into the volume
                                value[group] = value[0]
                        value[groups] = max(height[z, y, x],
                                            height[z - (axis == 0), y - (axis == 1), x - (axis == 2)])
                        value[groups + 1] = min(value[0], min(
                            along(affs, &decode[0], channels, volume, axis, 0, z, y, x, -1),
                            along(affs, &decode[0], channels, volume, axis, 0, z, y, x, 1)))
                        for q in range(groups + 2):
                            sums[edge, q] += value[q]
                            squares[edge, q] += <int64_t>(value[q] >> SQUARE_SHIFT) * (value[q] >> SQUARE_SHIFT)
                            least[edge, q] = min(least[edge, q], value[q])
                            most[edge, q] = max(most[edge, q], value[q])
                            histograms[edge, q, min(value[q] >> BIN_SHIFT, BINS - 1)] += 1
                        z_faces[edge] += axis == 0


def add_fragments(const label_t[:, :, :] labels, const value_t[:, :, :, :] affs, const float[::1] decode,
                  const int32_t[:, :, ::1] height, const int64_t[:, :, ::1] channels, const int64_t[:, ::1] volume,
                  const int64_t[::1] inside, Py_ssize_t start, Py_ssize_t stop, int64_t[:, ::1] sums,
                  int32_t[::1] least):
    """Adds the voxels of sections [start, stop), those at `inside` or behind it, to their fragments: heights, then each
    group of channels.

    A pair that leaves the volume counts as 1.
    """
    cdef Py_ssize_t z, y, x, axis, group
    cdef int64_t label, total
    with nogil:
        for z in range(start, stop):
            for y in range(inside[1], labels.shape[1]):
                for x in range(inside[2], labels.shape[2]):
                    label = labels[z, y, x]
                    sums[label, 0] += height[z, y, x]
                    least[label] = min(least[label], height[z, y, x])
                    for group in range(channels.shape[1]):
                        total = 0
                        for axis in range(3):
                            if (z if axis == 0 else (y if axis == 1 else x)) < (
                                    volume[axis, 0] + channels[axis, group, 1]):
                                total += ONE
                            else:
                                total += pair(affs, &decode[0], channels, axis, group, z, y, x)
                        sums[label, group + 1] += total
