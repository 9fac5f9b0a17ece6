"""Fewer triangles for a closed surface by collapsing edges, and no vertex that was there farther from it than an error.

The edge whose collapse moves the planes around it least goes first (quadrics, weighed by area). Every vertex that goes
stays with a triangle that lies within the error of it; a collapse that leaves one without is not done, nor one that turns a
triangle over, or joins what was apart: closed surfaces stay closed, with the same holes.
"""

from libc.math cimport fabs, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libcpp.queue cimport priority_queue
from libcpp.vector cimport vector

import numpy as np

include "quadrics.pxi"


cdef class Surface:
    """A closed surface while edges collapse: a corner is 3 * triangle + place, those of a vertex are a list."""

    cdef vector[Point] points, before  # of the vertices, and where all of them were
    cdef vector[Quadric] quadrics
    cdef vector[uint32_t] corners  # the vertex of each corner
    cdef vector[int32_t] first, after  # corner of each vertex, and the one that follows each corner; -1: none
    cdef vector[int32_t] held, next_held  # the first vertex of `before` that a triangle keeps, and the next one
    cdef vector[uint32_t] ages  # how often the surroundings of each vertex changed
    cdef vector[uint32_t] marks
    cdef uint32_t mark
    cdef priority_queue[Collapse] waiting
    cdef double most  # the square of the error
    cdef vector[int32_t] around, kept, homes  # triangles that a collapse changes, vertices they hold, their new triangle

    def __init__(self, const double[:, ::1] points, const uint32_t[:, ::1] faces, double error):
        cdef int64_t i, j, corner
        self.most = error * error
        self.points.resize(points.shape[0])
        for i in range(points.shape[0]):
            self.points[i] = Point(points[i, 0], points[i, 1], points[i, 2])
        self.before = self.points
        self.first.resize(points.shape[0], -1)
        self.ages.resize(points.shape[0])
        self.marks.resize(points.shape[0])
        self.quadrics.resize(points.shape[0])
        self.next_held.resize(points.shape[0], -1)
        self.held.resize(faces.shape[0], -1)
        self.corners.resize(3 * faces.shape[0])
        self.after.resize(3 * faces.shape[0])
        for i in range(faces.shape[0]):
            for j in range(3):
                corner = 3 * i + j
                self.corners[corner] = faces[i, j]
                self.after[corner] = self.first[faces[i, j]]
                self.first[faces[i, j]] = <int32_t>corner
            self.add_plane(i)
        for i in range(points.shape[0]):  # every vertex begins with one of its triangles
            if self.first[i] >= 0:
                self.hold(<int32_t>i, self.first[i] // 3)
        for corner in range(<int64_t>self.corners.size()):
            i, j = self.corners[corner], self.corners[self.turned(corner, 1)]
            if i < j:
                self.offer(<uint32_t>i, <uint32_t>j)

    cdef inline int64_t turned(self, int64_t corner, int64_t steps) noexcept nogil:
        """The corner of the same triangle that follows."""
        return corner - corner % 3 + (corner + steps) % 3

    cdef inline void hold(self, int32_t vertex, int64_t face) noexcept nogil:
        self.next_held[vertex] = self.held[face]
        self.held[face] = vertex

    cdef void add_plane(self, int64_t face) noexcept nogil:
        """Adds the plane of a triangle to the quadrics of its vertices."""
        cdef Point a = self.points[self.corners[3 * face]], n
        cdef double length, d
        cdef Quadric* into
        cdef int64_t j
        n = cross(minus(self.points[self.corners[3 * face + 1]], a), minus(self.points[self.corners[3 * face + 2]], a))
        length = sqrt(dot(n, n))
        if length == 0:
            return
        n = Point(n.x / length, n.y / length, n.z / length)
        d = -dot(n, a)
        for j in range(3):
            into = &self.quadrics[self.corners[3 * face + j]]
            into.xx += length * n.x * n.x
            into.xy += length * n.x * n.y
            into.xz += length * n.x * n.z
            into.yy += length * n.y * n.y
            into.yz += length * n.y * n.z
            into.zz += length * n.z * n.z
            into.bx += length * d * n.x
            into.by += length * d * n.y
            into.bz += length * d * n.z
            into.c += length * d * d
            into.area += length

    cdef Point best(self, uint32_t one, uint32_t other, double* cost) noexcept nogil:
        """Where the vertex goes that two become: nearest to all planes, unless that is far away or not told by them."""
        cdef Quadric q = sum_of(self.quadrics[one], self.quadrics[other])
        cdef Point a = self.points[one], b = self.points[other], middle, p
        cdef double x = q.yy * q.zz - q.yz * q.yz, y = q.xz * q.yz - q.xy * q.zz, z = q.xy * q.yz - q.xz * q.yy
        cdef double whole = q.xx * x + q.xy * y + q.xz * z, found
        middle = Point((a.x + b.x) / 2, (a.y + b.y) / 2, (a.z + b.z) / 2)
        if fabs(whole) > 1e-4 * q.area * q.area * q.area:
            p = Point(-(x * q.bx + y * q.by + z * q.bz) / whole,
                      -(y * q.bx + (q.xx * q.zz - q.xz * q.xz) * q.by + (q.xy * q.xz - q.xx * q.yz) * q.bz) / whole,
                      -(z * q.bx + (q.xy * q.xz - q.xx * q.yz) * q.by + (q.xx * q.yy - q.xy * q.xy) * q.bz) / whole)
            if dot(minus(p, middle), minus(p, middle)) <= dot(minus(a, b), minus(a, b)):
                cost[0] = mean_square(q, p)
                return p
        p, cost[0] = middle, mean_square(q, middle)
        found = mean_square(q, a)
        if found < cost[0]:
            p, cost[0] = a, found
        found = mean_square(q, b)
        if found < cost[0]:
            p, cost[0] = b, found
        return p

    cdef int offer(self, uint32_t one, uint32_t other) except -1 nogil:
        cdef Collapse collapse
        self.best(one, other, &collapse.cost)
        if collapse.cost <= self.most:
            collapse.one, collapse.other = min(one, other), max(one, other)
            collapse.age = self.ages[one] + self.ages[other]
            self.waiting.push(collapse)
        return 0

    cdef bint is_sound(self, uint32_t one, uint32_t other) noexcept nogil:
        """Whether two vertices with an edge have just the two neighbours of its triangles in common, each with others."""
        cdef int64_t corner, count = 0, valence, at
        cdef uint32_t neighbour
        self.mark += 1
        corner = self.first[one]
        while corner >= 0:
            self.marks[self.corners[self.turned(corner, 1)]] = self.mark
            corner = self.after[corner]
        corner = self.first[other]
        while corner >= 0:
            neighbour = self.corners[self.turned(corner, 1)]
            if neighbour != one and self.marks[neighbour] == self.mark:
                count += 1
                valence, at = 0, self.first[neighbour]
                while at >= 0:
                    valence += 1
                    at = self.after[at]
                if valence < 4:
                    return False
            corner = self.after[corner]
        return count == 2

    cdef bint fits(self, uint32_t one, uint32_t other, Point place) except -1 nogil:
        """Whether no triangle turns over, and every vertex that the old ones hold lies near a new one (homes)."""
        cdef int64_t corner, face, i
        cdef int32_t vertex
        cdef uint32_t end, left, right
        cdef Point a, b, old, new
        cdef bint found
        self.around.clear()
        self.kept.clear()
        self.homes.clear()
        for i in range(2):
            end = other if i else one
            corner = self.first[end]
            while corner >= 0:
                face = corner // 3
                left, right = self.corners[self.turned(corner, 1)], self.corners[self.turned(corner, 2)]
                if left != one and left != other and right != one and right != other:
                    a, b = self.points[left], self.points[right]
                    old = cross(minus(a, self.points[end]), minus(b, self.points[end]))
                    new = cross(minus(a, place), minus(b, place))
                    if dot(old, new) <= 0.2 * sqrt(dot(old, old) * dot(new, new)):
                        return False
                    self.around.push_back(<int32_t>corner)
                vertex = self.held[face] if end == one or (left != one and right != one) else -1
                while vertex >= 0:
                    self.kept.push_back(vertex)
                    vertex = self.next_held[vertex]
                corner = self.after[corner]
        for i in range(<int64_t>self.kept.size()):
            a, found = self.before[self.kept[i]], False
            for corner in self.around:
                found = is_near(a, place, self.points[self.corners[self.turned(corner, 1)]],
                                self.points[self.corners[self.turned(corner, 2)]], self.most)
                if found:
                    self.homes.push_back(<int32_t>(corner // 3))
                    break
            if not found:
                return False
        return True

    cdef int collapse(self, uint32_t one, uint32_t other, Point place) except -1 nogil:
        """Joins two vertices; their two triangles go."""
        cdef int64_t i
        cdef int32_t corner
        self.quadrics[one] = sum_of(self.quadrics[one], self.quadrics[other])
        self.points[one] = place
        self.first[one] = self.first[other] = -1
        for corner in self.around:
            self.held[corner // 3] = -1
            self.corners[corner] = one
            self.after[corner] = self.first[one]
            self.first[one] = corner
        for i in range(<int64_t>self.kept.size()):
            self.hold(self.kept[i], self.homes[i])
        self.ages[one] += 1
        self.ages[other] += 1
        for corner in self.around:
            self.offer(one, self.corners[self.turned(corner, 1)])
        return 0

    cdef void forget(self, uint32_t one, uint32_t other) noexcept nogil:
        """Takes the two triangles of an edge out of the lists of the vertices beside it."""
        cdef int64_t corner = self.first[one], face, i, at, before
        cdef uint32_t apex
        while corner >= 0:
            face = corner // 3
            for i in range(1, 3):
                if self.corners[self.turned(corner, i)] == other:
                    apex = self.corners[self.turned(corner, 3 - i)]
                    at, before = self.first[apex], -1
                    while at // 3 != face:
                        before, at = at, self.after[at]
                    if before < 0:
                        self.first[apex] = self.after[at]
                    else:
                        self.after[before] = self.after[at]
            corner = self.after[corner]

    def run(self):
        """Collapses edges until none is left to do; (where the vertices lie, the triangles)."""
        cdef Collapse next
        cdef double cost
        cdef Point place
        cdef int64_t i, j, count = 0
        with nogil:
            while not self.waiting.empty():
                next = self.waiting.top()
                self.waiting.pop()
                if (self.first[next.one] < 0 or self.first[next.other] < 0
                        or next.age != self.ages[next.one] + self.ages[next.other]
                        or not self.is_sound(next.one, next.other)):
                    continue
                place = self.best(next.one, next.other, &cost)
                if self.fits(next.one, next.other, place):
                    self.forget(next.one, next.other)
                    self.collapse(next.one, next.other, place)
        numbers, points = np.zeros(self.points.size(), np.uint32), np.empty((self.points.size(), 3))
        faces, alive = np.empty((self.corners.size() // 3, 3), np.uint32), np.zeros(self.corners.size() // 3, bool)
        cdef uint32_t[::1] number = numbers
        cdef double[:, ::1] out = points
        cdef uint32_t[:, ::1] triangles = faces
        cdef uint8_t[::1] is_alive = alive.view(np.uint8)
        for i in range(<int64_t>self.points.size()):
            if self.first[i] >= 0:
                number[i] = <uint32_t>count
                out[count, 0], out[count, 1], out[count, 2] = self.points[i].x, self.points[i].y, self.points[i].z
                count += 1
        for i in range(<int64_t>self.points.size()):
            j = self.first[i]
            while j >= 0:
                is_alive[j // 3] = True
                triangles[j // 3, j % 3] = number[i]
                j = self.after[j]
        return points[:count], faces[alive]
