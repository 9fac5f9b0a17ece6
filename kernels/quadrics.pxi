# Points, distances from triangles, and how far planes are from a point. Part of simplify.pyx.

cdef struct Point:
    double x, y, z

cdef struct Quadric:  # of a point: xx x² + 2 xy x y ... + 2 x . b + c, over the area
    double xx, xy, xz, yy, yz, zz, bx, by, bz, c, area

cdef extern from *:
    """
    struct Collapse {
        double cost; uint32_t one, other; uint32_t age;
        bool operator<(const Collapse& than) const {
            if (cost != than.cost) return cost > than.cost;
            return one != than.one ? one > than.one : other > than.other;
        }
    };
    """
    cdef cppclass Collapse:
        double cost
        uint32_t one, other, age


cdef inline Point minus(Point a, Point b) noexcept nogil:
    return Point(a.x - b.x, a.y - b.y, a.z - b.z)


cdef inline double dot(Point a, Point b) noexcept nogil:
    return a.x * b.x + a.y * b.y + a.z * b.z


cdef inline Point cross(Point a, Point b) noexcept nogil:
    return Point(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x)


cdef inline double to_segment(Point p, Point a, Point b) noexcept nogil:
    """The squared distance of a point from a line between two others."""
    cdef Point along = minus(b, a), way = minus(p, a)
    cdef double length = dot(along, along), t = 0
    if length > 0:
        t = max(0.0, min(1.0, dot(way, along) / length))
    way = Point(way.x - t * along.x, way.y - t * along.y, way.z - t * along.z)
    return dot(way, way)


cdef bint is_near(Point p, Point a, Point b, Point c, double most) noexcept nogil:
    """Whether a point lies within a distance, given by its square, of a triangle."""
    cdef Point normal = cross(minus(b, a), minus(c, a))
    cdef double area = dot(normal, normal), height = dot(minus(p, a), normal)
    if area > 0 and height * height > most * area:
        return False
    if (area > 0 and dot(cross(minus(b, a), minus(p, a)), normal) >= 0
            and dot(cross(minus(c, b), minus(p, b)), normal) >= 0
            and dot(cross(minus(a, c), minus(p, c)), normal) >= 0):
        return True
    return to_segment(p, a, b) <= most or to_segment(p, b, c) <= most or to_segment(p, c, a) <= most


cdef double mean_square(const Quadric& q, Point p) noexcept nogil:
    """The mean of the squared distances of a point from the planes."""
    cdef double found = (p.x * (q.xx * p.x + 2 * (q.xy * p.y + q.xz * p.z + q.bx)) + p.y * (
        q.yy * p.y + 2 * (q.yz * p.z + q.by)) + p.z * (q.zz * p.z + 2 * q.bz) + q.c)
    return max(0.0, found / q.area) if q.area > 0 else 0.0


cdef Quadric sum_of(const Quadric& a, const Quadric& b) noexcept nogil:
    return Quadric(a.xx + b.xx, a.xy + b.xy, a.xz + b.xz, a.yy + b.yy, a.yz + b.yz, a.zz + b.zz, a.bx + b.bx,
                   a.by + b.by, a.bz + b.bz, a.c + b.c, a.area + b.area)
