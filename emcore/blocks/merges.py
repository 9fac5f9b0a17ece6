"""Merges of a block by its own table of edges, and what climbs to the block above it.

A fragment is incomplete where other blocks measure some of its edges. What an incomplete one could merge with waits:
both ends are frozen, and their edge climbs. Every merge that is made is one of the whole volume, at its height and with
its key, because the statistics are reducible (docs/blocks.md).
"""

from collections.abc import Sequence

import numpy as np

from emcore.blocks.leaves import Columns
from emcore.blocks.windows import sorted_names
from emcore.segment.agglomeration import Agglomeration
from emcore.segment.graph import RegionGraph
from emcore.segment.pooling import pool_edges
from emcore.segment.statistics import Statistic

SIDES = [f"{side}_{axis}" for axis in range(3) for side in ("low", "high")]


def of_graph(graph: Columns, statistic: Statistic) -> Columns:
    """The merges of a leaf, by the region graph of its block."""
    names = graph["names"]
    edges = {name: graph[name] for name in ("u", "v", "count", "sum", "max", "min", "key")}
    edges |= {"top_u": names[graph["u"]], "top_v": names[graph["v"]]}
    if statistic.kind == "quantile" and statistic.every_contact:
        edges |= {name: graph[name] for name in ("bin_starts", "bins", "bin_counts")}
    elif statistic.kind == "quantile":  # every edge is one pair of fragments, and counts once, at its maximum
        count = len(graph["u"])
        edges |= {"bin_starts": np.arange(count + 1), "bins": bins_of(graph["max"], statistic),
                  "bin_counts": np.ones(count, np.int64), "base": np.ones(count, bool)}
    faces = {side: names[graph[side]] for side in SIDES}
    return merged(names, edges, faces, statistic)


def of_children(children: Sequence[Columns], outer: Sequence[Sequence[str]], statistic: Statistic) -> Columns:
    """The merges of a block by what its children left; outer: the faces of each child that are faces of the block."""
    names = np.concatenate([np.zeros(1, np.uint64), sorted_names(
        [child["names"][child[end]] for child in children for end in ("edge_u", "edge_v")])])
    parts = []
    for child in children:
        place = np.searchsorted(names, child["names"]).astype(np.uint32)
        part = {name.removeprefix("edge_"): values for name, values in child.items() if name.startswith("edge_")}
        part["u"], part["v"] = place[part["u"]], place[part["v"]]
        parts.append(part)
    edges = pool_edges(concatenated(parts))
    none = [np.empty(0, np.uint64)]
    faces = {side: sorted_names(none + [child[side] for child, own in zip(children, outer) if side in own])
             for side in SIDES}
    return merged(names, edges, faces, statistic)


def merged(names: np.ndarray, edges: Columns, faces: Columns, statistic: Statistic) -> Columns:
    """Everything that can merge here: the merges in order, and the edges that are left between frozen clusters."""
    incomplete = sorted_names(list(faces.values()))
    frozen = np.flatnonzero(np.isin(names, incomplete)).astype(np.uint32)
    run = Agglomeration(graph_of(len(names) - 1, edges), statistic, frozen=frozen, maxima="base" in edges)
    run.advance()
    tree, left, merges = run.tree(), run.remaining_edges(), run.merges()
    columns = {"names": names, "u": tree.a, "v": tree.b, "height": tree.height, "key": tree.key,
               "a": edges["top_u"][merges], "b": edges["top_v"][merges], **faces}
    return columns | {f"edge_{name}": values for name, values in left_edges(left, edges, run.roots()).items()}
