"""Tables of edges from several blocks, pooled to one row a pair of clusters: exact, in any order and any grouping.

A table is a dict of columns: u and v, the clusters by any whole numbers, and key, the largest key of a contact. It may
have top_u and top_v, the fragments at that contact; count, sum, max and min as a RegionGraph has them; a histogram a
row, as bin_starts, bins and bin_counts; and base, which says that a row is of two fragments that never merged. The
histogram of such a row is one count, at the largest affinity of the pair.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from emcore.errors import InputError
from emcore.segment.graph import HISTOGRAM, LARGEST_LABEL, RegionGraph, check_graph, too_many_edges

Columns = Mapping[str, np.ndarray]
_POOLS = {"count": np.add, "sum": np.add, "max": np.maximum, "min": np.minimum, "key": np.maximum}


def pool_graphs(graphs: Sequence[RegionGraph]) -> RegionGraph:
    """The graph of all contacts of several, which number fragments alike and measured different contacts.

    Sizes and histograms add up where all have them; boxes and running means are not pooled.
    """
    graphs = [check_graph(graph, "pool_graphs", in_order=False) for graph in graphs]
    if not graphs:
        raise InputError("pool_graphs needs at least one graph")
    fragments, sizes = max(graph.fragments for graph in graphs), None
    if all(graph.sizes is not None for graph in graphs):
        sizes = np.zeros(fragments + 1, np.int64)
        for graph in graphs:
            sizes[: graph.fragments + 1] += graph.sizes
    names = ("u", "v", *_POOLS, *(HISTOGRAM if all(graph.bins is not None for graph in graphs) else ()))
    edges = pool_edges(concatenate([{name: getattr(graph, name) for name in names} for graph in graphs]))
    if len(edges["u"]) > LARGEST_LABEL:
        raise too_many_edges()
    return RegionGraph(fragments, sizes=sizes, **edges)


def concatenate(tables: Sequence[Columns]) -> dict[str, np.ndarray]:
    """The rows of all tables, which have the same columns."""
    if not tables or any(set(table) != set(tables[0]) for table in tables):
        raise InputError("tables of edges can be joined if there is one, and if all have the same columns; got "
                         f"{[sorted(table) for table in tables]}")
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0] if name != "bin_starts"}
    if "bin_starts" in tables[0]:
        ends = np.cumsum([0, *(len(table["bins"]) for table in tables)])
        starts = [table["bin_starts"][:-1] + end for table, end in zip(tables, ends)]
        joined["bin_starts"] = np.concatenate([*starts, ends[-1:]]).astype(np.int64)
    return joined


def pool_edges(edges: Columns) -> dict[str, np.ndarray]:
    """One row for every pair of clusters, sorted by (u, v) with u < v.

    Rows of two fragments that never merged are parts of one contact that blocks have cut: of their counts only that at
    the largest affinity stays. All other histograms add up.
    """
    u, v = np.minimum(edges["u"], edges["v"]), np.maximum(edges["u"], edges["v"])
    if (u == v).any():
        raise InputError("an edge must join two clusters; a table has one from a cluster to itself")
    order = _order(u, v)
    u, v = u[order], v[order]
    first = np.ones(len(u), bool)
    first[1:] = (u[1:] != u[:-1]) | (v[1:] != v[:-1])
    starts = np.flatnonzero(first)
    pooled = {"u": u[starts], "v": v[starts]}
    if len(starts) == len(u):  # every pair comes once
        return pooled | _rows(edges, order)
    pair = np.cumsum(first) - 1  # of every row in order
    for name, pool in _POOLS.items():
        if name in edges:
            pooled[name] = pool.reduceat(edges[name][order], starts)
    if "top_u" in edges:
        best = np.flatnonzero(edges["key"][order] == pooled["key"][pair])
        best = order[best[np.searchsorted(pair[best], np.arange(len(starts)))]]
        pooled |= {"top_u": edges["top_u"][best], "top_v": edges["top_v"][best]}
    if "base" in edges:
        pooled["base"] = np.logical_and.reduceat(edges["base"][order], starts)
    if "bin_starts" in edges:
        pooled |= _pool_histograms(edges, order, pair)
    return pooled


def _order(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The rows by (u, v)."""
    if len(u) == 0:
        return np.empty(0, np.int64)
    if int(v.max()) < 2**32:
        return np.argsort(u.astype(np.uint64) << np.uint64(32) | v.astype(np.uint64))
    return np.lexsort((v, u))


def _rows(edges: Columns, order: np.ndarray) -> dict[str, np.ndarray]:
    """The given rows, but for their ends."""
    return rows_of({name: column for name, column in edges.items() if name not in ("u", "v")}, order)


def rows_of(edges: Columns, order: np.ndarray) -> dict[str, np.ndarray]:
    """The given rows of a table."""
    rows = {name: column[order] for name, column in edges.items() if name not in HISTOGRAM}
    if "bin_starts" in edges:
        starts, taken = _bins_of(edges["bin_starts"], order)
        rows |= {"bin_starts": starts, "bins": edges["bins"][taken], "bin_counts": edges["bin_counts"][taken]}
    return rows


def _bins_of(bin_starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(where the bins of each row begin once they stand in the order of rows, the places where they stand now)."""
    lengths = (bin_starts[1:] - bin_starts[:-1])[rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return starts, np.arange(starts[-1]) + np.repeat(bin_starts[:-1][rows] - starts[:-1], lengths)


def _pool_histograms(edges: Columns, order: np.ndarray, pair: np.ndarray) -> dict[str, np.ndarray]:
    """The histograms of all pairs; pair[i] is that of row order[i]."""
    starts, taken = _bins_of(edges["bin_starts"], order)
    bins, counts = edges["bins"][taken], edges["bin_counts"][taken]
    pair_of = np.repeat(pair, np.diff(starts))
    if "base" in edges:  # of several parts of one contact the largest stays
        part = np.repeat(edges["base"][order], np.diff(starts))
        parts = np.flatnonzero(part)
        parts = parts[np.lexsort((bins[parts], pair_of[parts]))]
        smaller = parts[:-1][pair_of[parts[1:]] == pair_of[parts[:-1]]]
        kept = np.ones(len(bins), bool)
        kept[smaller] = False
        pair_of, bins, counts = pair_of[kept], bins[kept], counts[kept]
    code = pair_of.astype(np.uint64) << np.uint64(32) | bins.astype(np.uint64)
    by_bin = np.argsort(code)
    code = code[by_bin]
    first = np.ones(len(code), bool)
    first[1:] = code[1:] != code[:-1]
    places = np.flatnonzero(first)
    code = code[places]
    pairs = int(pair[-1]) + 1
    return {"bin_starts": np.searchsorted(code, np.arange(pairs + 1, dtype=np.uint64) << np.uint64(32)),
            "bins": (code & np.uint64(0xFFFFFFFF)).astype(np.uint32),
            "bin_counts": np.add.reduceat(counts[by_bin], places)}
