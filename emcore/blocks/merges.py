"""Merges of a block by its own table of edges, and what climbs to the block above it.

A fragment is incomplete where other blocks measure some of its edges. What an incomplete one could merge with waits:
both ends are frozen, and their edge climbs. Every merge that is made is one of the whole volume, at its height and with
its key, because the statistics are reducible (docs/blocks.md).
"""

from collections.abc import Sequence

import numpy as np

from emcore.blocks.leaves import Columns
from emcore.blocks.windows import places_of, sorted_names
from emcore.segment.agglomeration import Agglomeration, maxima_bins
from emcore.segment.graph import HISTOGRAM, RegionGraph
from emcore.segment.pooling import concatenate
from emcore.segment.statistics import Statistic

SIDES = tuple(f"{side}_{axis}" for axis in range(3) for side in ("low", "high"))
EDGE = "edge_"  # before the names of the columns of edges that climb


def of_graph(graph: Columns, statistic: Statistic) -> Columns:
    """The merges of a leaf, by the region graph of its block."""
    names = graph["names"]
    edges = {name: graph[name] for name in ("u", "v", "key", *needed(statistic)) if name in graph}
    edges |= {"top_u": names[graph["u"]], "top_v": names[graph["v"]]}
    if statistic.kind == "quantile" and not statistic.every_contact:  # a pair of fragments counts once, at its maximum
        count = len(graph["u"])
        edges |= {"bin_starts": np.arange(count + 1), "bins": maxima_bins(graph["max"], statistic),
                  "bin_counts": np.ones(count, np.int64), "base": np.ones(count, bool)}
    return merged(names, edges, {side: names[graph[side]] for side in SIDES}, statistic)


def climbs(name: str) -> bool:
    """Whether a column of merges goes up to the block above."""
    return name == "names" or name in SIDES or name.startswith(EDGE)


def of_children(children: Sequence[Columns], outer: Sequence[set[str]]) -> tuple[np.ndarray, Columns, Columns]:
    """(names, edges, faces) of a block by what its children left; outer: which faces of each child are its faces.

    An edge comes once for every child that holds a part of it.
    """
    # an incomplete fragment passes through every block above it, as the block that cuts it may hold none of its edges
    climbing = [child["names"][is_climbing(child)] for child in children]
    names = np.concatenate([np.zeros(1, np.uint64), sorted_names(climbing)])
    parts = []
    for child in children:
        part = {name.removeprefix(EDGE): values for name, values in child.items() if name.startswith(EDGE)}
        places = places_of(child["names"], names)
        part |= {end: places[part[end]] for end in ("u", "v")}
        parts.append(part)
    faces = {side: sorted_names([child[side] for child, own in zip(children, outer) if side in own]) for side in SIDES}
    return names, concatenate(parts), faces


def is_climbing(child: Columns) -> np.ndarray:
    """Which names of a child its block knows: those of the ends of edges that are left, and those at its faces."""
    found = np.zeros(len(child["names"]), bool)
    for end in ("u", "v"):
        found[child[EDGE + end]] = True
    for side in SIDES:
        found[places_of(child[side], child["names"])] = True
    return found


def merged(names: np.ndarray, edges: Columns, faces: Columns, statistic: Statistic) -> Columns:
    """Everything that can merge here: the merges in order, and the edges that are left between frozen clusters."""
    frozen = places_of(sorted_names(list(faces.values())), names)
    run = Agglomeration(graph_of(len(names) - 1, edges), statistic, frozen=frozen if len(frozen) else None,
                        maxima="base" in edges)
    run.advance()
    tree, made, left = run.tree(), run.merges(), run.remaining_edges()
    top = left.pop("top")
    left |= {"top_u": edges["top_u"][top], "top_v": edges["top_v"][top]}
    if "base" in left:  # an edge whose ends have not merged here is the one that came in
        left["base"] &= edges["base"][top]
    return {"names": names, "u": tree.a, "v": tree.b, "height": tree.height, "key": tree.key,
            "a": edges["top_u"][made], "b": edges["top_v"][made], **faces,
            **{EDGE + name: values for name, values in left.items()}}


def needed(statistic: Statistic) -> tuple[str, ...]:
    """The columns of edges that a statistic is computed from."""
    if statistic.kind == "quantile":
        return HISTOGRAM
    return {"mean": ("count", "sum"), "max": ("max",), "min": ("min",)}[statistic.kind]


def graph_of(fragments: int, edges: Columns) -> RegionGraph:
    """Edges as a region graph; what the statistic does not look at is filled in."""
    count = len(edges["u"])
    blank = {"count": np.ones(count, np.int64), "sum": np.zeros(count, np.int64), "max": np.zeros(count, np.float32),
             "min": np.zeros(count, np.float32)}
    given = {name: edges[name] for name in (*blank, "u", "v", "key", *HISTOGRAM) if name in edges}
    return RegionGraph(fragments, **(blank | given))


def outer_sides(child: Sequence[int], siblings: Sequence[Sequence[int]]) -> set[str]:
    """Which faces of a child, given by its place among its siblings, are faces of their parent."""
    sides = set()
    for axis in range(3):
        along = [place[axis] for place in siblings]
        if child[axis] == min(along):
            sides.add(f"low_{axis}")
        if child[axis] == max(along):
            sides.add(f"high_{axis}")
    return sides
