"""Pieces of decoding in blocks, each against the same thing done on the whole volume at once."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment.pooling import concatenate, pool_edges

# ---- tables of edges


def random_table(rng, rows, clusters, base, wide):
    """Edges with repeats in any order; those of two clusters below `base` are parts of a contact of two fragments."""
    ends = np.stack([rng.integers(1, clusters, rows), rng.integers(1, clusters, rows)])
    u, v = ends[:, ends[0] != ends[1]].astype(np.uint64)
    rows = len(u)
    table = {"u": u, "v": v, "key": rng.permutation(rows).astype(np.uint64),
             "top_u": rng.integers(0, 2**60, rows).astype(np.uint64), "top_v": rng.integers(0, 9, rows).astype(np.uint64),
             "count": rng.integers(1, 2**40, rows), "sum": rng.integers(0, 2**60 // max(1, rows), rows),
             "max": rng.random(rows).astype(np.float32), "min": rng.random(rows).astype(np.float32),
             "base": (u < base) & (v < base)}
    lengths = np.where(table["base"], 1, rng.integers(1, 5, rows))
    table["bin_starts"] = np.concatenate([[0], np.cumsum(lengths)])
    table["bins"] = np.concatenate([np.zeros(0, np.int64), *(np.sort(rng.choice(6, n, replace=False)) for n in lengths)]
                                   ).astype(np.uint32)
    counts = rng.integers(1, 9, len(table["bins"]))
    table["bin_counts"] = np.where(np.repeat(table["base"], lengths), 1, counts)
    if wide:
        table["u"], table["v"] = (table[end] * np.uint64(2**40 + 1) for end in "uv")
    return table


def pooled_by_hand(table):
    found = {}
    for row in range(len(table["u"])):
        u, v = sorted((int(table["u"][row]), int(table["v"][row])))
        bins = slice(int(table["bin_starts"][row]), int(table["bin_starts"][row + 1]))
        histogram = dict(zip(table["bins"][bins].tolist(), table["bin_counts"][bins].tolist()))
        found.setdefault((u, v), []).append((row, histogram))
    rows = []
    for (u, v), parts in sorted(found.items()):
        where = [row for row, _ in parts]
        top = max(where, key=lambda row: int(table["key"][row]))
        total = {}
        if table["base"][where[0]]:
            total[max(max(histogram) for _, histogram in parts)] = 1
        else:
            for _, histogram in parts:
                for level, count in histogram.items():
                    total[level] = total.get(level, 0) + count
        rows.append((u, v, sum(int(table["count"][row]) for row in where), sum(int(table["sum"][row]) for row in where),
                     max(table["max"][where]), min(table["min"][where]), int(table["key"][top]),
                     int(table["top_u"][top]), int(table["top_v"][top]), bool(table["base"][where[0]]),
                     tuple(sorted(total.items()))))
    return rows


def as_rows(table):
    columns = [table[name].tolist() for name in ("u", "v", "count", "sum", "max", "min", "key", "top_u", "top_v", "base")]
    starts = table["bin_starts"].tolist()
    histograms = [tuple(zip(table["bins"][a:b].tolist(), table["bin_counts"][a:b].tolist()))
                  for a, b in zip(starts, starts[1:])]
    return list(zip(*columns, histograms, strict=True))


@pytest.mark.parametrize("wide", [False, True])
def test_edges_pool_as_a_dictionary_says(wide):
    rng = np.random.default_rng(0)
    for rows in (0, 1, 2, 5, 40, 300, 300):
        for clusters, base in ((3, 0), (5, 9), (9, 5), (400, 200)):
            table = random_table(rng, rows, clusters, base, wide)
            pooled = pool_edges(table)
            assert as_rows(pooled) == pooled_by_hand(table)
            for name, column in table.items():
                assert pooled[name].dtype == column.dtype
            parts = [random_table(rng, rows // 2, clusters, base, wide), table]
            joined = concatenate(parts)
            assert as_rows(joined) == as_rows(parts[0]) + as_rows(parts[1])
            joined["key"] = rng.permutation(len(joined["key"])).astype(np.uint64)
            cut = len(joined["u"]) // 3
            halves = [select(joined, np.arange(len(joined["u"])) < cut), select(joined, np.arange(len(joined["u"])) >= cut)]
            again = pool_edges(concatenate([pool_edges(half) for half in halves]))
            assert as_rows(again) == pooled_by_hand(joined)


def select(table, rows):
    lengths = np.diff(table["bin_starts"])
    chosen = {name: column[np.repeat(rows, lengths)] if name in ("bins", "bin_counts") else column[rows]
              for name, column in table.items() if name != "bin_starts"}
    return chosen | {"bin_starts": np.concatenate([[0], np.cumsum(lengths[rows])])}


def test_tables_that_cannot_be_pooled_are_refused():
    table = random_table(np.random.default_rng(1), 9, 5, 0, False)
    with pytest.raises(InputError, match="from a cluster to itself"):
        pool_edges(table | {"v": table["u"]})
    with pytest.raises(InputError, match="all have the same columns"):
        concatenate([table, {name: column for name, column in table.items() if name != "base"}])
    with pytest.raises(InputError, match="if there is one"):
        concatenate([])
