# What Surfaces does with the cells that it is asked for. Part of meshing.pyx.

cdef inline int shared(Surfaces surfaces, int64_t z, int64_t y, int64_t x, int64_t axis, const int64_t[:, ::1]& cells) noexcept nogil:
    """Which of the cells around a vertex are asked for: 0 none, 1 all, 2 some."""
    cdef int64_t k, at
    cdef int64_t[3] voxel
    cdef bint elsewhere = False
    voxel[0], voxel[1], voxel[2] = z, y, x
    for k in range(3):  # along its line it lies in one cell, the later one; across, in two
        at = voxel[k]
        if k == axis:
            if at + 1 < cells[0, k] or at + 1 >= cells[1, k]:
                return 0
        else:
            if at + 1 < cells[0, k] or at >= cells[1, k]:
                return 0
            elsewhere |= at < cells[0, k] or at + 1 >= cells[1, k]
    return 2 if elsewhere else 1

cdef int place_vertices(Surfaces surfaces, int64_t[:, ::1] sizes, const int64_t[:, ::1] cells) noexcept nogil:
    """Notes the place of every vertex among those of its object; NOWHERE where none of the cells has it."""
    cdef const uint32_t* label = &surfaces.labels[0, 0, 0]
    cdef int64_t row, z, y, i, axis
    cdef uint32_t own
    cdef int which
    for row in range(surfaces.rows.shape[0] - 1):
        z, y = row // surfaces.labels.shape[1], row % surfaces.labels.shape[1]
        for i in range(surfaces.rows[row], surfaces.rows[row + 1]):
            axis = surfaces.sides[i] >> 1
            own = label[surfaces.voxels[i] + (surfaces.step[axis] if surfaces.sides[i] & 1 else 0)]
            surfaces.places[i] = NOWHERE
            which = shared(surfaces, z, y, surfaces.voxels[i] - row * surfaces.step[1], axis, cells)
            if which:
                surfaces.places[i] = <uint32_t>sizes[own, 0]
                sizes[own, 0] += 1
                sizes[own, 2] += which == 2
    return 0

cdef int find_cells(Surfaces surfaces, vector[Cell]& mixed, int64_t[:, ::1] sizes, const uint8_t[:, ::1] table,
                    const int64_t[:, ::1] cells) except -1 nogil:
    """Finds the objects in the cells that are not all one label, and counts their triangles."""
    cdef const uint32_t* label = &surfaces.labels[0, 0, 0]
    cdef const uint32_t* a
    cdef const uint32_t* b
    cdef const uint32_t* c
    cdef const uint32_t* d
    cdef int64_t z, y, x, i, start, length = cells[1, 2] - cells[0, 2]
    cdef uint32_t[8] own
    cdef uint32_t left, mask, bit, who
    cdef vector[uint8_t] differ
    differ.resize(length)
    mixed.reserve(surfaces.count)
    for z in range(cells[0, 0], cells[1, 0]):
        for y in range(cells[0, 1], cells[1, 1]):
            start = (z - 1) * surfaces.step[0] + (y - 1) * surfaces.step[1] + cells[0, 2] - 1
            a, b = label + start, label + start + surfaces.step[1]
            c, d = a + surfaces.step[0], b + surfaces.step[0]
            for x in range(length):
                differ[x] = ((a[x] != a[x + 1]) | (a[x] != b[x]) | (a[x] != b[x + 1]) | (a[x] != c[x])
                             | (a[x] != c[x + 1]) | (a[x] != d[x]) | (a[x] != d[x + 1]))
            for x in range(length):
                if not differ[x]:
                    continue
                own[0], own[1], own[2], own[3] = a[x], a[x + 1], b[x], b[x + 1]
                own[4], own[5], own[6], own[7] = c[x], c[x + 1], d[x], d[x + 1]
                left, i = 255, 0
                while left:
                    while not left >> i & 1:
                        i += 1
                    who = own[i]
                    mask = (<uint32_t>(own[0] == who) | <uint32_t>(own[1] == who) << 1
                            | <uint32_t>(own[2] == who) << 2 | <uint32_t>(own[3] == who) << 3
                            | <uint32_t>(own[4] == who) << 4 | <uint32_t>(own[5] == who) << 5
                            | <uint32_t>(own[6] == who) << 6 | <uint32_t>(own[7] == who) << 7)
                    left &= ~mask
                    if who:
                        mixed.push_back(Cell(<uint32_t>(start + x), who << 8 | mask))
                        sizes[who, 1] += table[mask, 1]
    return 0

cdef int write_triangles(Surfaces surfaces, vector[Cell]& mixed, vector[Part]& parts,
                         const uint8_t[:, ::1] table) noexcept nogil:
    cdef const uint8_t* row
    cdef int64_t axis, i, j
    cdef int64_t[12] starts, corners
    cdef uint32_t[12] found
    cdef uint32_t* faces
    cdef uint32_t mask
    cdef const uint32_t* places = &surfaces.places[0]
    cdef const uint32_t* numbers = &surfaces.numbers[0]
    j = 0
    for axis in range(3):
        for i in range(8):
            if not i >> (2 - axis) & 1:
                starts[j] = 3 * ((i >> 2) * surfaces.step[0] + (i >> 1 & 1) * surfaces.step[1] + (i & 1)) + axis
                corners[j] = i
                j += 1
    for cell in mixed:
        mask = cell.who & 255
        row = &table[mask, 0]
        for j in range(row[0]):
            i = row[2 + j]
            found[j] = places[numbers[3 * <int64_t>cell.at + starts[i]] - (mask >> corners[i] & 1)]
        faces = parts[cell.who >> 8].faces
        for j in range(3 * row[1]):
            faces[j] = found[row[14 + j]]
        parts[cell.who >> 8].faces = faces + 3 * row[1]
    return 0

cdef int write_vertices(Surfaces surfaces, vector[Part]& parts, const int64_t[:, ::1] cells,
                        const int64_t[::1] first, const int64_t[::1] shape, const double[:, ::1] grid) noexcept nogil:
    """Writes where vertices lie, z y x in nm; the middle of voxel i lies i + 0.5 voxels behind where voxel 0 begins."""
    cdef const uint32_t* label = &surfaces.labels[0, 0, 0]
    cdef int64_t row, z, y, x, i, axis
    cdef double[3] place
    cdef Part* part
    for row in range(surfaces.rows.shape[0] - 1):
        z, y = row // surfaces.labels.shape[1], row % surfaces.labels.shape[1]
        for i in range(surfaces.rows[row], surfaces.rows[row + 1]):
            if surfaces.places[i] == NOWHERE:
                continue
            axis, x = surfaces.sides[i] >> 1, surfaces.voxels[i] - row * surfaces.step[1]
            part = &parts[label[surfaces.voxels[i] + (surfaces.step[axis] if surfaces.sides[i] & 1 else 0)]]
            place[0], place[1], place[2] = first[0] + z + 0.5, first[1] + y + 0.5, first[2] + x + 0.5
            place[axis] += 0.5 + (-surfaces.ways[i] if surfaces.sides[i] & 1 else surfaces.ways[i])
            part.points[0] = <float>(place[0] * grid[0, 0] + grid[1, 0])
            part.points[1] = <float>(place[1] * grid[0, 1] + grid[1, 1])
            part.points[2] = <float>(place[2] * grid[0, 2] + grid[1, 2])
            part.points += 3
            if shared(surfaces, z, y, x, axis, cells) == 2:
                part.seam[0] = surfaces.places[i]
                part.keys[0] = 3 * ((<uint64_t>(z + first[0] + 1) * (shape[1] + 1) + y + first[1] + 1)
                                    * (shape[2] + 1) + x + first[2] + 1) + axis  # voxels of margin have keys, too
                part.seam += 1
                part.keys += 1
    return 0
