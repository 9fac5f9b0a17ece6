"""Connected components of the graph of affinities above a cut: a union-find that lives in the output, slab by slab.

An edge along an axis joins voxel v and the one before it, and lies at v - shift of its channel. A voxel that no edge
joins gets a component of its own only if one of its own three values is above the cut (its partner is outside).
"""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint32_t, uint64_t

include "forest.pxi"

ctypedef fused affinity_t:
    uint8_t
    int16_t
    float


cdef inline bint active(const affinity_t[:, :, :]& alongz, const affinity_t[:, :, :]& alongy,
                        const affinity_t[:, :, :]& alongx, int64_t z, int64_t y, int64_t x, int sz, int sy, int sx,
                        affinity_t cut) noexcept nogil:
    """Whether any value of a voxel, or of an edge of its neighbours towards it, is above the cut."""
    cdef int64_t farz = z - 1 if sz else z + 1, fary = y - 1 if sy else y + 1, farx = x - 1 if sx else x + 1
    return (alongz[z, y, x] > cut or alongy[z, y, x] > cut or alongx[z, y, x] > cut
            or (0 <= farz < alongz.shape[0] and alongz[farz, y, x] > cut)
            or (0 <= fary < alongz.shape[1] and alongy[z, fary, x] > cut)
            or (0 <= farx < alongz.shape[2] and alongx[z, y, farx] > cut))


def scan(const affinity_t[:, :, :] alongz, const affinity_t[:, :, :] alongy, const affinity_t[:, :, :] alongx,
         const int64_t[::1] shifts, affinity_t cut, int64_t start, int64_t stop, uint32_t[:, :, ::1] out):
    """Fills planes start..stop of out with components from 1, each slab on its own; their number."""
    cdef int64_t z, y, x, ny = out.shape[1], nx = out.shape[2], first, node, head, number = 0
    cdef int sz = <int>shifts[0], sy = <int>shifts[1], sx = <int>shifts[2]
    cdef bint right, up, before, corner
    cdef uint32_t* forest = &out[start, 0, 0]
    with nogil:
        for z in range(start, stop):
            for y in range(ny):
                first = ((z - start) * ny + y) * nx
                up = before = False
                head = first
                for x in range(nx):
                    node = first + x
                    right = x > 0 and alongx[z, y, x - sx] > cut
                    if not right:
                        head = node
                    forest[node] = <uint32_t>head
                    # an edge whose square with the previous one is closed adds nothing
                    if y > 0:
                        corner = right and up and alongx[z, y - 1, x - sx] > cut
                        up = alongy[z, y - sy, x] > cut
                        if up and not corner:
                            join_trees(forest, <uint32_t>node, <uint32_t>(node - nx))
                    if z > start:
                        corner = right and before and alongx[z - 1, y, x - sx] > cut
                        before = alongz[z - sz, y, x] > cut
                        if before and not corner:
                            join_trees(forest, <uint32_t>node, <uint32_t>(node - nx * ny))
        for z in range(start, stop):
            for y in range(ny):
                for x in range(nx):
                    node = ((z - start) * ny + y) * nx + x
                    if forest[node] != <uint32_t>node:
                        forest[node] = forest[forest[node]]  # a smaller node: already a number
                    elif active(alongz, alongy, alongx, z, y, x, sz, sy, sx, cut):
                        number += 1
                        forest[node] = <uint32_t>number
                    else:
                        forest[node] = 0
    return number


def join(const affinity_t[:, :] seam, affinity_t cut, const uint32_t[:, ::1] upper, const uint32_t[:, ::1] lower,
         int64_t[::1] forest, int64_t offset, int64_t offset_below):
    """Unites in forest (offset + component - 1) what the edges of a seam join: its two planes of components given."""
    cdef int64_t y, x
    with nogil:
        for y in range(seam.shape[0]):
            for x in range(seam.shape[1]):
                if seam[y, x] > cut:
                    join_trees(&forest[0], offset_below + <int64_t>lower[y, x] - 1,
                               offset + <int64_t>upper[y, x] - 1)
