"""The best one-to-one matching over a sparse list of possible pairs."""

import numpy as np
from numpy.typing import NDArray

from emcore.cache import compiled


def _signature(types):
    ints, floats = (types.Array(kind, 1, "C", readonly=True) for kind in (types.int64, types.float64))
    return types.Array(types.int64, 1, "C")(ints, ints, ints, floats, types.int64)


def best_matching(rows: NDArray[np.int64], columns: NDArray[np.int64],
                  weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """The pairs, by their number in the lists, of the matching with the largest sum of weights, which are positive.

    No row and no column is used twice. Where no two pairs compete, all are taken. Work and memory grow with
    the pairs that compete with each other, not with rows times columns. Ties go to the lower column.
    """
    if len(np.unique(rows)) == len(np.unique(columns)) == len(rows):
        return np.arange(len(rows))
    row_numbers, row = np.unique(rows, return_inverse=True)
    column_numbers, column = np.unique(columns, return_inverse=True)
    count, free = len(row_numbers), len(column_numbers)
    # each row may also stay alone: one column of its own of weight 0
    row = np.concatenate((row, np.arange(count)))
    column = np.concatenate((column, free + np.arange(count)))
    cost = np.concatenate((-np.asarray(weights, np.float64), np.zeros(count)))
    order = np.lexsort((column, row))
    first = np.searchsorted(row[order], np.arange(count + 1))
    chosen = order[_shortest_paths(first, row[order], column[order], cost[order], free + count)]
    return np.sort(chosen[chosen < len(rows)])


@compiled(_signature)
def _shortest_paths(first, row, column, cost, column_count):
    """The edge of each row in the cheapest matching of all rows; edges of row i are first[i]..first[i + 1].

    Rows are added one by one, each along the cheapest augmenting path (Dijkstra over costs less the potentials u and v,
    which stay non-negative). Only columns that a path can reach are touched.
    """
    count = first.shape[0] - 1
    u = np.zeros(count)
    v = np.zeros(column_count)
    edge_of_row = np.full(count, -1, np.int64)
    edge_of_column = np.full(column_count, -1, np.int64)
    distance = np.full(column_count, np.inf)
    done = np.zeros(column_count, np.bool_)
    via = np.empty(column_count, np.int64)
    touched = np.empty(column_count, np.int64)
    for start in range(count):
        u[start] = np.inf
        for edge in range(first[start], first[start + 1]):
            u[start] = min(u[start], cost[edge] - v[column[edge]])
        i = start
        reached = 0
        length = 0.0
        while True:
            for edge in range(first[i], first[i + 1]):
                j = column[edge]
                if done[j]:
                    continue
                further = length + (cost[edge] - u[i] - v[j])
                if further < distance[j]:
                    if distance[j] == np.inf:
                        touched[reached] = j
                        reached += 1
                    distance[j] = further
                    via[j] = edge
            sink = np.int64(-1)
            for k in range(reached):
                j = touched[k]
                if not done[j] and (sink < 0 or distance[j] < distance[sink]
                                    or (distance[j] == distance[sink] and j < sink)):
                    sink = j
            length = distance[sink]
            done[sink] = True
            if edge_of_column[sink] < 0:
                break
            i = row[edge_of_column[sink]]
        u[start] += length
        for k in range(reached):
            j = touched[k]
            if done[j] and j != sink:
                u[row[edge_of_column[j]]] += length - distance[j]
                v[j] -= length - distance[j]
            done[j] = False
            distance[j] = np.inf
        j = sink
        while True:
            edge = via[j]
            i = row[edge]
            freed = edge_of_row[i]
            edge_of_row[i] = edge
            edge_of_column[j] = edge
            if i == start:
                break
            j = column[freed]
    return edge_of_row
