"""Priority flood: labels grow from seeds over a height map, lowest voxel first."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.utility cimport pair

include "prefetch.pxi"
include "queue.pxi"

ctypedef fused label_t:
    uint32_t
    uint64_t

cdef union Number:
    float number
    uint32_t bits


cdef inline uint64_t rank(float height) noexcept nogil:
    """Integers in the order of the heights."""
    cdef Number n
    n.number = height + <float>0.0  # one zero, not two
    return ~n.bits if n.bits >> 31 else n.bits | <uint32_t>0x80000000


cdef inline int push(priority_queue[pair[uint64_t, uint32_t]]* queue, float height, uint32_t* age,
                     int64_t voxel) except -1 nogil:
    # the queue hands out the largest entry first: the complement of (height, age)
    queue.push(pair[uint64_t, uint32_t](~(rank(height) << 32 | age[0]), <uint32_t>voxel))
    age[0] += 1
    return 0


cdef inline void ask(const float* heights, label_t* labels, int64_t voxel, int64_t row, int64_t plane,
                     int64_t size) noexcept nogil:
    """Fetches what the turn of voxel will look at: turns jump about the volume, and waiting was half the time."""
    cdef int way
    cdef int64_t at
    for way in range(5):
        at = voxel + (way == 1) * row - (way == 2) * row + (way == 3) * plane - (way == 4) * plane
        if at >= 0 and at < size:
            prefetch(heights + at)
            prefetch(labels + at)


def flood(const float[:, :, ::1] height, label_t[:, :, ::1] labels, const uint8_t[:, :, :] mask):
    """Extends the labels over 6-neighbours to every voxel of mask (None: all) that they can reach.

    The voxel of lowest height spreads first; of equal ones the first reached, seeds in raster order before all.
    A voxel takes its label when it is first reached; neighbours are reached in the order -z -y -x +x +y +z.
    """
    cdef int64_t nz = height.shape[0], ny = height.shape[1], nx = height.shape[2], size = nz * ny * nx
    cdef int64_t z, y, x, a, b, c, voxel
    cdef int way
    cdef uint32_t age = 0
    cdef bint masked = mask is not None
    cdef priority_queue[pair[uint64_t, uint32_t]] queue
    cdef label_t label
    if size == 0:
        return
    with nogil:
        for z in range(nz):
            for y in range(ny):
                for x in range(nx):
                    if labels[z, y, x]:
                        push(&queue, height[z, y, x], &age, (z * ny + y) * nx + x)
        while not queue.empty():
            voxel = queue.top().second
            queue.pop()
            if not queue.empty():
                ask(&height[0, 0, 0], &labels[0, 0, 0], queue.top().second, nx, ny * nx, size)
            x = voxel % nx
            y = voxel // nx % ny
            z = voxel // nx // ny
            label = labels[z, y, x]
            for way in range(6):
                a = z - (way == 0) + (way == 5)
                b = y - (way == 1) + (way == 4)
                c = x - (way == 2) + (way == 3)
                if a < 0 or a >= nz or b < 0 or b >= ny or c < 0 or c >= nx or labels[a, b, c]:
                    continue
                if masked and not mask[a, b, c]:
                    continue
                labels[a, b, c] = label
                push(&queue, height[a, b, c], &age, (a * ny + b) * nx + c)
