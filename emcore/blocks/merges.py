"""Merges of a block by its own table of edges, and what climbs to the block above it.

A fragment is incomplete where other blocks measure some of its edges. What an incomplete one could merge with waits:
both ends are frozen, and their edge climbs. Every merge that is made is one of the whole volume, at its height and with
its key, because the statistics are reducible (docs/blocks.md).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from emcore.blocks.leaves import Columns
from emcore.blocks.pooled import group_starts, stack
from emcore.blocks.sweeps import absorptions, forest_of
from emcore.blocks.windows import places_of, sorted_names
from emcore.segment.agglomeration import Agglomeration, maxima_bins
from emcore.segment.graph import HISTOGRAM, RegionGraph
from emcore.segment.pooling import concatenate, pool_edges
from emcore.segment.statistics import Statistic

SIDES = tuple(f"{side}_{axis}" for axis in range(3) for side in ("low", "high"))
EVENT = ("u", "v", "a", "b", "height", "key")  # the columns of merges
SHARED = ("edge", "max", "key", "first")  # the columns of pairs that several blocks see
EDGE = "edge_"  # before the names of the columns of edges that climb


def of_graph(graph: Columns, statistic: Statistic, end: float, shared: Columns) -> Columns:
    """The merges of a leaf by the region graph of its block alone; shared: what `shared_pairs` found for it."""
    names = graph["names"]
    edges = {name: graph[name] for name in ("u", "v", "key", *needed(statistic)) if name in graph}
    edges |= {"top_u": names[graph["u"]], "top_v": names[graph["v"]]}
    if counts_pairs(statistic):  # a pair of fragments counts once, at its maximum
        largest, kept = graph["max"].copy(), np.ones(len(graph["u"]), bool)
        largest[shared["edge"]], edges["key"][shared["edge"]] = shared["max"], shared["key"]
        kept[shared["edge"]] = shared["first"]
        edges = {name: values[kept] for name, values in (edges | {"bins": maxima_bins(largest, statistic)}).items()}
        edges |= {"bin_starts": np.arange(len(edges["u"]) + 1), "bin_counts": np.ones(len(edges["u"]), np.int64)}
    return settled(names, edges, {side: names[graph[side]] for side in SIDES}, statistic, end)


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
        part, places = edges_of(child), places_of(child["names"], names)
        part |= {end: places[part[end]] for end in ("u", "v")}
        parts.append(part)
    return names, concatenate(parts), faces_of(children, outer)


def of_itself(before: Columns, outside: Columns, statistic: Statistic, end: float) -> Columns:
    """What else merges in a block once it knows the forest that lies outside of it."""
    faces = {side: before[side] for side in SIDES}
    made = settled(before["names"], pool_edges(edges_of(before)), faces, statistic, end, outside)
    return made | {"root": made["root"][before["root"]],
                   **{name: np.concatenate([before[name], made[name]]) for name in EVENT}}


def edges_of(columns: Columns) -> Columns:
    """The edges that are left in a block."""
    return {name.removeprefix(EDGE): values for name, values in columns.items() if name.startswith(EDGE)}


def faces_of(children: Sequence[Columns], outer: Sequence[set[str]]) -> Columns:
    """The incomplete fragments at each face of a block."""
    return {side: sorted_names([child[side] for child, own in zip(children, outer) if side in own]) for side in SIDES}


def incomplete_of(columns: Columns) -> np.ndarray:
    """The names of the fragments that have edges in other blocks, sorted."""
    return sorted_names([columns[side] for side in SIDES])


def is_climbing(child: Columns) -> np.ndarray:
    """Which names of a child its block knows: those of the ends of edges that are left, and those at its faces."""
    found = np.zeros(len(child["names"]), bool)
    for end in ("u", "v"):
        found[child[EDGE + end]] = True
    for side in SIDES:
        found[places_of(child[side], child["names"])] = True
    return found


def settled(names: np.ndarray, edges: Columns, faces: Columns, statistic: Statistic, end: float,
            outside: Columns | None = None) -> Columns:
    """Everything that can merge here below the end: the merges, the edges that are left, and their forest.

    Without the forest that lies outside, complete clusters merge with one another only. With it, an incomplete one
    absorbs complete ones; it keeps its name, by which other blocks know it. Of a merge, u and v are the places of names
    of the two clusters, a and b the fragments whose contact has the key. root is the place of the name that stays.
    """
    frozen, root, events = places_of(incomplete_of(faces), names), np.arange(len(names), dtype=np.uint32), []
    incomplete = np.zeros(len(names), bool)
    incomplete[frozen] = True
    while True:
        run = Agglomeration(graph_of(len(names) - 1, edges), statistic, frozen=frozen if len(frozen) else None,
                            maxima=counts_pairs(statistic))
        run.advance(end)
        tree, made, left, roots = run.tree(), run.merges(), run.remaining_edges(), run.roots()
        events.append({"u": tree.a, "v": tree.b, "a": edges["top_u"][made], "b": edges["top_v"][made],
                       "height": tree.height, "key": tree.key})
        top, height = left.pop("top"), left.pop("height")
        edges = left | {"top_u": edges["top_u"][top], "top_v": edges["top_v"][top]}
        root = roots[root]
        if outside is None:
            break
        source, target, made = absorptions(names, edges, height, incomplete, outside, end)
        if len(made) == 0:
            break
        events.append({"u": source, "v": target, "a": edges["top_u"][made], "b": edges["top_v"][made],
                       "height": height[made], "key": edges["key"][made]})
        roots = np.arange(len(names), dtype=np.uint32)
        roots[source] = target
        while (roots[roots] != roots).any():
            roots = roots[roots]
        root = roots[root]
        edges = pool_edges(edges, roots)
    edges, height = taken_on(edges, height, incomplete, end)
    return {"names": names, "root": root, **faces, **{EDGE + name: values for name, values in edges.items()},
            **{name: np.concatenate([event[name] for event in events]) for name in EVENT},
            **forest_of(names, edges, height, incomplete, end)}


def taken_on(edges: Columns, height: np.ndarray, incomplete: np.ndarray, end: float) -> tuple[Columns, np.ndarray]:
    """The edges without those of complete clusters that have none below the end.

    Their edges pool with each other alone, and none ever gets better, so that nothing below the end depends on them.
    """
    is_alive = incomplete.copy()
    for place in ("u", "v"):
        is_alive[edges[place][height < end]] = True
    kept = is_alive[edges["u"]] & is_alive[edges["v"]]
    return chosen_rows(edges, kept), height[kept]


def chosen_rows(edges: Columns, kept: np.ndarray) -> Columns:
    """Some of the edges, with their histograms."""
    rows = {name: values[kept] for name, values in edges.items() if name not in HISTOGRAM}
    if "bins" in edges:
        lengths = np.diff(edges["bin_starts"])
        bins = np.repeat(kept, lengths)
        rows |= {"bin_starts": np.append(0, np.cumsum(lengths[kept])), "bins": edges["bins"][bins],
                 "bin_counts": edges["bin_counts"][bins]}
    return rows


def counts_pairs(statistic: Statistic) -> bool:
    """Whether a statistic is of the largest affinities of pairs of fragments, which several blocks may see."""
    return statistic.kind == "quantile" and not statistic.every_contact


def shared_pairs(graphs: Iterable[Columns]) -> Columns:
    """Pairs of fragments that touch in several blocks, each with its maximum and key in the volume.

    A pair belongs to the first of its blocks (first). For block i the columns are edge_i (which edge of its graph),
    max_i, key_i and first_i.
    """
    parts = []
    for block, graph in enumerate(graphs):
        incomplete = np.zeros(len(graph["names"]), bool)
        for side in SIDES:
            incomplete[graph[side]] = True
        edge = np.flatnonzero(incomplete[graph["u"]] & incomplete[graph["v"]])
        parts.append({"u": graph["names"][graph["u"][edge]], "v": graph["names"][graph["v"][edge]], "edge": edge,
                      "block": np.full(len(edge), block), "max": graph["max"][edge], "key": graph["key"][edge]})
    blocks, rows = len(parts), stack(parts)
    order = np.lexsort((rows["block"], rows["v"], rows["u"]))
    rows = {name: values[order] for name, values in rows.items()}
    starts = group_starts(rows, ("u", "v"))
    lengths = np.diff(starts, append=len(order))
    for name in ("max", "key"):
        rows[name] = np.repeat(np.maximum.reduceat(rows[name], starts), lengths) if len(starts) else rows[name]
    rows["first"] = np.zeros(len(order), bool)
    rows["first"][starts] = True
    kept = np.flatnonzero(np.repeat(lengths > 1, lengths))
    kept = kept[np.argsort(rows["block"][kept], kind="stable")]
    cuts = np.searchsorted(rows["block"][kept], np.arange(blocks + 1))
    return {f"{name}_{block}": rows[name][kept[cuts[block]:cuts[block + 1]]]
            for block in range(blocks) for name in SHARED}


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
