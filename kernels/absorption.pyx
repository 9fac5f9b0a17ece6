# What a block may merge although other blocks hold edges of its clusters, and what it must know of these: spanning
# forests of the edges by rank, in which a bottleneck between two clusters can be read.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector

include "forest.pxi"


def contract(const uint32_t[::1] u, const uint32_t[::1] v, const int64_t[::1] order, const uint8_t[::1] terminal,
             uint32_t[:, ::1] ends, int64_t[::1] edges):
    """How many edges a spanning forest has among the terminals; writes the two terminals and the number of each edge.

    Edges are taken in order, the best first. Wherever one joins two components that hold terminals it becomes an edge
    between these, so that at every rank the same terminals hang together as do by all edges.
    """
    cdef int64_t i, edge, count = 0
    cdef uint32_t a, b, nodes = <uint32_t>terminal.shape[0]
    cdef vector[uint32_t] parent, held  # by the root of a component: one of its terminals, or `nodes`
    with nogil:
        parent.resize(nodes)
        held.resize(nodes)
        for i in range(nodes):
            parent[i] = <uint32_t>i
            held[i] = <uint32_t>i if terminal[i] else nodes
        for i in range(order.shape[0]):
            edge = order[i]
            a, b = root_of(parent.data(), u[edge]), root_of(parent.data(), v[edge])
            if a == b:
                continue
            if held[a] != nodes and held[b] != nodes:
                ends[count, 0], ends[count, 1], edges[count] = held[a], held[b], edge
                count += 1
            if a > b:
                a, b = b, a
            parent[b] = a
            if held[a] == nodes:
                held[a] = held[b]
    return count


def absorb(const uint32_t[::1] u, const uint32_t[::1] v, int64_t own, const int64_t[::1] order,
           const uint8_t[::1] incomplete, uint32_t[:, ::1] found, int64_t[::1] edges):
    """How many complete clusters may merge at once; writes each, what it merges with, and the number of the edge.

    The first `own` edges are those of the block, the others a forest of what lies outside. All are taken in order, the
    best first. A complete cluster merges across its best edge where that is also the best of the other one, or where
    none of its other neighbours is connected to the other one by better edges, so that none can join it earlier.
    """
    cdef int64_t i, k, edge, count = 0
    cdef uint32_t a, b, cluster, other, root, nodes = <uint32_t>incomplete.shape[0]
    cdef vector[uint32_t] parent, neighbours
    cdef vector[int64_t] starts
    cdef vector[uint8_t] seen
    cdef bint is_certain
    with nogil:
        parent.resize(nodes)
        seen.resize(nodes)
        starts.resize(nodes + 2)
        neighbours.resize(2 * own)
        for i in range(nodes):
            parent[i] = <uint32_t>i
        for i in range(own):
            starts[u[i] + 2] += 1
            starts[v[i] + 2] += 1
        for i in range(nodes):
            starts[i + 2] += starts[i + 1]
        for i in range(own):
            a, b = u[i], v[i]
            neighbours[starts[a + 1]] = b
            starts[a + 1] += 1
            neighbours[starts[b + 1]] = a
            starts[b + 1] += 1
        for i in range(order.shape[0]):
            edge = order[i]
            a, b = u[edge], v[edge]
            if edge < own:
                cluster, other = a, b
                if incomplete[a] or seen[a]:
                    cluster, other = b, a
                if not incomplete[cluster] and not seen[cluster]:
                    is_certain = True
                    if incomplete[other] or seen[other]:
                        root = root_of(parent.data(), other)
                        for k in range(starts[cluster], starts[cluster + 1]):
                            if neighbours[k] != other and root_of(parent.data(), neighbours[k]) == root:
                                is_certain = False
                                break
                    if is_certain:
                        found[count, 0], found[count, 1], edges[count] = cluster, other, edge
                        count += 1
                seen[a] = seen[b] = True
            join_trees(parent.data(), a, b)
    return count
