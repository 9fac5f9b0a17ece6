"""Borders between the segments of a cut, pooled from the region graphs of blocks: no agglomeration is run again.

    columns = border_columns(graph, numbers, is_small(numbers, sizes, 100), "mean")   # one block tells these
    a, b, heights = borders_in_order(pool_borders(columns_of_all_blocks, "mean"), "mean")
"""

from collections.abc import Iterable, Mapping

import numpy as np

from emcore.blocks.merges import needed
from emcore.blocks.pooled import Columns, group_starts, pool, pool_all
from emcore.segment.agglomeration import maxima_bins
from emcore.segment.graph import SUM_SCALE
from emcore.segment.statistics import Statistic, parse_statistic


def is_small(numbers: np.ndarray, sizes: np.ndarray, dust_size: int) -> np.ndarray:
    """Whether the segments with these numbers have fewer than dust_size voxels; sizes counts those of every number."""
    return sizes[numbers] < dust_size


def border_columns(graph: Mapping[str, np.ndarray], numbers: np.ndarray, small: np.ndarray,
                   statistic: str | Statistic) -> Columns:
    """The borders that a block's contacts make between segments of which one is small, pooled within the block.

    graph has the columns of a region graph, names (uint64) those of its fragments; numbers and small tell for each of
    these its segment at the cut, and whether that is small in the whole volume.
    """
    statistic = parse_statistic(statistic)
    u, v = graph["u"], graph["v"]
    chosen = np.flatnonzero((numbers[u] != numbers[v]) & (small[u] | small[v]))
    u, v = u[chosen], v[chosen]
    ends = np.sort(np.stack([numbers[u], numbers[v]]).astype(np.uint64), axis=0)
    columns = {"a": ends[0], "b": ends[1], "key": graph["key"][chosen]}
    if statistic.every_contact:  # a row for every bin
        starts, lengths = graph["bin_starts"][chosen], np.diff(graph["bin_starts"])[chosen]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        places = np.repeat(starts, lengths) + within
        columns = {name: np.repeat(values, lengths) for name, values in columns.items()}
        columns |= {"bin": graph["bins"][places], "count": graph["bin_counts"][places]}
    elif statistic.kind == "quantile":  # a row for every pair of fragments, which other blocks may see too
        columns |= {"u": graph["names"][u], "v": graph["names"][v], "max": graph["max"][chosen]}
    else:
        columns |= {name: graph[name][chosen] for name in needed(statistic)}
    return pool(columns, _rows_of(statistic))


def pool_borders(parts: Iterable[Mapping[str, np.ndarray]], statistic: str | Statistic) -> Columns:
    """The borders of all blocks."""
    return pool_all(parts, _rows_of(parse_statistic(statistic)))


def borders_in_order(columns: Mapping[str, np.ndarray],
                     statistic: str | Statistic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, height) of pooled borders, best first: by height, then by key, as Agglomeration.remaining."""
    statistic = parse_statistic(statistic)
    if statistic.kind == "quantile":
        borders = _quantiles(columns, statistic)
    else:
        borders = dict(columns)
        if statistic.kind == "mean":  # the difference is taken before rounding
            whole = columns["count"] * int(SUM_SCALE)
            borders["height"] = (whole - columns["sum"]) / whole
        else:
            borders["height"] = 1 - columns[statistic.kind].astype(np.float64)
    order = np.lexsort((borders["key"], borders["height"]))
    return borders["a"][order], borders["b"][order], borders["height"][order]


def _rows_of(statistic: Statistic) -> tuple[str, ...]:
    """What tells rows apart: the two segments, and what a quantile is over."""
    if statistic.every_contact:
        return "a", "b", "bin"
    return ("a", "b", "u", "v") if statistic.kind == "quantile" else ("a", "b")


def _quantiles(columns: Mapping[str, np.ndarray], statistic: Statistic) -> Columns:
    """The heights of borders: each takes the value of one of its rows, by how much the rows with less of it count."""
    value = columns["bin" if statistic.every_contact else "max"]
    order = np.lexsort((value, columns["b"], columns["a"]))
    value, rows = value[order], {name: columns[name][order] for name in ("a", "b", "key")}
    starts = group_starts(rows, ("a", "b"))
    counts = columns["count"][order] if statistic.every_contact else np.ones(len(order), np.int64)
    total, ends = np.add.reduceat(counts, starts), np.cumsum(counts)
    rank = np.minimum(statistic.quantile * total // 100, total - 1)
    value = value[np.searchsorted(ends, ends[starts] - counts[starts] + rank, side="right")]
    if statistic.bins == 0:
        heights = 1 - value.astype(np.float64)
    else:
        level = value if statistic.every_contact else maxima_bins(value, statistic)
        heights = 1 - (level + 0.5) / statistic.bins
    return {"a": rows["a"][starts], "b": rows["b"][starts], "height": heights,
            "key": np.maximum.reduceat(rows["key"], starts)}
