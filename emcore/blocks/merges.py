"""Merges of a window by its own table of edges, and what it hands on to the windows of the next partition.

A cluster is incomplete where edges of it may lie in other windows: its box, in which all of them lie, reaches out of
this one. What an incomplete one could merge with waits: both ends are frozen, and their edge is handed on. Every merge
that is made is one of the whole volume, at its height and with its key, because the statistics are reducible
(docs/blocks.md).
"""

from collections.abc import Iterable, Sequence

import numpy as np

from emcore.blocks.grid import Box, Grid
from emcore.blocks.leaves import NOWHERE, Columns
from emcore.blocks.pooled import group_starts, stack
from emcore.blocks.sweeps import FOREST, absorptions, forest_of, spanning
from emcore.blocks.windows import places_of, sorted_names
from emcore.segment.agglomeration import Agglomeration, maxima_bins
from emcore.segment.graph import HISTOGRAM, RegionGraph
from emcore.segment.pooling import concatenate, pool_edges
from emcore.segment.statistics import Statistic

EVENT = {"u": np.uint32, "v": np.uint32, "a": np.uint64, "b": np.uint64, "height": np.float64,
         "key": np.uint64}  # the columns of merges
TOPS = ("top_u", "top_v")
FEW = 200  # absorptions of fewer than this part of all clusters do not earn another round
SHARED = ("edge", "max", "key", "first")  # the columns of pairs that several blocks see
EDGE = "edge_"  # before the names of the columns of edges that are left
OPEN = "open_"  # before those of edges of which several windows may hold parts


def of_graph(graph: Columns, statistic: Statistic, shared: Columns) -> tuple[np.ndarray, np.ndarray, Columns]:
    """(names, boxes, edges) by the region graph of a block; shared: what `shared_pairs` found for it."""
    names = graph["names"]
    edges = {name: graph[name] for name in ("u", "v", "key", *needed(statistic)) if name in graph}
    edges |= {"top_u": names[graph["u"]], "top_v": names[graph["v"]]}
    if counts_pairs(statistic):  # a pair of fragments counts once, at its maximum
        largest, kept = graph["max"].copy(), np.ones(len(graph["u"]), bool)
        largest[shared["edge"]], edges["key"][shared["edge"]] = shared["max"], shared["key"]
        kept[shared["edge"]] = shared["first"]
        edges = {name: values[kept] for name, values in (edges | {"bins": maxima_bins(largest, statistic)}).items()}
        edges |= {"bin_starts": np.arange(len(edges["u"]) + 1), "bin_counts": np.ones(len(edges["u"]), np.int64)}
    return names, graph["boxes"], edges


def gathered(parts: Sequence[Columns]) -> tuple[np.ndarray, np.ndarray, Columns]:
    """(names, boxes, edges) of a window by what those of the partition before it handed on.

    An edge comes once for every one of them that held a part of it.
    """
    names, boxes = united([(part["names"], part["boxes"]) for part in parts])
    names, boxes = np.append(np.uint64(0), names), np.concatenate([[NOWHERE], boxes]).astype(np.int32)
    tables = []
    for part in parts:
        places = places_of(part["names"], names)
        tables.append(edges_of(part) | {end: places[part[EDGE + end]] for end in ("u", "v")})
    return names, boxes, concatenate(tables)


def united(records: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(names, boxes): every name once, sorted, and the box around all its boxes."""
    names = sorted_names([names for names, _ in records])
    every = np.tile(np.array(NOWHERE, np.int32), (len(names), 1))
    for own, boxes in records:
        at = places_of(own, names)
        every[at, :3], every[at, 3:] = np.minimum(every[at, :3], boxes[:, :3]), np.maximum(every[at, 3:], boxes[:, 3:])
    return names, every


def handed_on(names: np.ndarray, boxes: np.ndarray, edges: Columns, box: Box, windows: Grid) -> Columns:
    """What is left in a box, for every window of the next partition that shares voxels with it.

    A window gets the names whose boxes it touches. An edge goes where the boxes of both its ends and this one begin.
    """
    left = reaches_out(boxes, box)
    left[edges["u"]] = left[edges["v"]] = True
    corners = np.maximum(boxes[edges["u"], :3], boxes[edges["v"], :3])
    holders = windows.numbers_at([np.maximum(along, span.start) for along, span in zip(corners.T, box)])
    columns = {}
    for number in windows.overlapping(box):
        there, places = windows.box(number), np.empty(len(names), np.uint32)
        here = np.flatnonzero(left & np.all([(boxes[:, axis] < span.stop) & (boxes[:, axis + 3] >= span.start)
                                             for axis, span in enumerate(there)], axis=0))
        places[here] = np.arange(len(here))
        part = chosen_rows(edges, holders == number)
        part |= {end: places[part[end]] for end in ("u", "v")}
        part = {"names": names[here], "boxes": boxes[here], **{EDGE + name: values for name, values in part.items()}}
        columns |= {f"{name}_{number}": values for name, values in part.items()}
    return columns


def edges_of(columns: Columns, prefix: str = EDGE) -> Columns:
    """The edges that are left in a window."""
    return {name.removeprefix(prefix): values for name, values in columns.items() if name.startswith(prefix)}


def for_sweep(names: np.ndarray, boxes: np.ndarray, edges: Columns, height: np.ndarray, box: Box,
              end: float) -> Columns:
    """What is left, with the forest of the edges that are whole in a box.

    An edge between two incomplete clusters is open, as other windows may hold parts of it, and is named by clusters.
    """
    incomplete = reaches_out(boxes, box)
    is_open = incomplete[edges["u"]] & incomplete[edges["v"]]
    whole, parts = chosen_rows(edges, ~is_open), chosen_rows(edges, is_open)
    forest, left = forest_of(names, whole, height[~is_open], incomplete, end), incomplete.copy()
    left[whole["u"]] = left[whole["v"]] = left[0] = True
    left, places = np.flatnonzero(left).astype(np.uint32), np.cumsum(left, dtype=np.uint32) - np.uint32(1)
    whole["height"] = height[~is_open]
    return {"left": left, "boxes": boxes[left],
            **{EDGE + name: places[values] if name in ("u", "v") else values for name, values in whole.items()},
            **{OPEN + name: names[values] if name in ("u", "v") else values for name, values in parts.items()},
            **forest, "terminals": names[incomplete], "terminal_boxes": boxes[incomplete]}


def after(before: Columns, found: Columns) -> Columns:
    """All merges in a window, of which some were made before, between clusters that were left then."""
    left, roots = before["left"], np.arange(len(before["names"]), dtype=np.uint32)
    roots[left] = left[found["root"]]
    found |= {end: left[found[end]] for end in ("u", "v")}
    return {"names": before["names"], "root": roots[before["root"]],
            **{name: np.concatenate([before[name], found[name]]) for name in EVENT}}


def with_open(edges: Columns, names: np.ndarray, before: Columns) -> Columns:
    """Edges with the open ones that were set aside."""
    parts = edges_of(before, OPEN)
    return pool_edges(concatenate([edges, parts | {end: places_of(parts[end], names) for end in ("u", "v")}]))


def is_swept(name: str) -> bool:
    """Whether a node of a sweep reads a column of its children."""
    return name in (*FOREST, "terminals", "terminal_boxes") or (name.startswith(OPEN) and not name.endswith(TOPS))


def swept(children: Sequence[Columns], box: Box, statistic: Statistic, end: float) -> Columns:
    """The same of a node in the octree over the windows: open edges of its children that are whole in it are closed.

    The closed ones belong to its forest, and to what its children are told of the outside.
    """
    names, boxes = united([(child["terminals"], child["terminal_boxes"]) for child in children])
    parts = [edges_of(child, OPEN) for child in children]
    edges = pool_edges(concatenate([part | {end: places_of(part[end], names) for end in ("u", "v")} for part in parts]))
    incomplete = reaches_out(boxes, box)
    is_open = incomplete[edges["u"]] & incomplete[edges["v"]]
    whole, parts = chosen_rows(edges, ~is_open), chosen_rows(edges, is_open)
    closed = forest_of(names, whole, heights_of(whole, statistic), np.ones(len(names), bool), end)
    terminals = names[incomplete]
    return {**{name.replace("forest", "closed"): values for name, values in closed.items()},
            **{OPEN + name: names[values] if name in ("u", "v") else values for name, values in parts.items()},
            **spanning([*children, closed], terminals), "terminals": terminals, "terminal_boxes": boxes[incomplete]}


def heights_of(edges: Columns, statistic: Statistic) -> np.ndarray:
    """1 - the statistic of every edge."""
    if len(edges["u"]) == 0:
        return np.empty(0)
    ends = {end: edges[end] + np.uint32(1) for end in ("u", "v")}  # a graph has no edge at 0
    graph = graph_of(int(ends["v"].max()), edges | ends)
    left = Agglomeration(graph, statistic, maxima=counts_pairs(statistic)).remaining_edges()
    height = np.empty(len(edges["u"]))
    height[left["top"]] = left["height"]
    return height


def reaches_out(boxes: np.ndarray, box: Box) -> np.ndarray:
    """Which clusters are incomplete in a box, as edges of theirs may lie outside of it."""
    return np.any([(boxes[:, axis] < span.start) | (boxes[:, axis + 3] >= span.stop)
                   for axis, span in enumerate(box)], axis=0)


def settled(names: np.ndarray, boxes: np.ndarray, edges: Columns, box: Box, statistic: Statistic, end: float,
            height: np.ndarray | None = None, outside: Columns | None = None) -> tuple[Columns, Columns, np.ndarray]:
    """Everything that can merge in a box below the end: (merges, the edges that are left, their heights).

    Without the forest that lies outside, complete clusters merge with one another only; height says that this has been
    done. With it, an incomplete one absorbs complete ones; it keeps its name, by which other windows know it. Of a
    merge, u and v are the places of names of the two clusters, a and b the fragments whose contact has the key. root is
    the place of the name that stays, where boxes has the box of the whole cluster.
    """
    incomplete, root = reaches_out(boxes, box), np.arange(len(names), dtype=np.uint32)
    frozen, events = np.flatnonzero(incomplete), [{name: np.empty(0, kind) for name, kind in EVENT.items()}]
    while True:
        if height is None:
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
        if len(made) <= len(names) // FEW:  # the next sweep finds these, too
            break
        events.append({"u": source, "v": target, "a": edges["top_u"][made], "b": edges["top_v"][made],
                       "height": height[made], "key": edges["key"][made]})
        roots = np.arange(len(names), dtype=np.uint32)
        roots[source] = target
        while (roots[roots] != roots).any():
            roots = roots[roots]
        root = roots[root]
        edges, height = pool_edges(edges, roots), None
    edges, height = taken_on(edges, height, incomplete, end)
    boxes, gone = boxes.copy(), np.flatnonzero(root != np.arange(len(names)))
    for side, extreme in enumerate((np.minimum,) * 3 + (np.maximum,) * 3):
        extreme.at(boxes[:, side], root[gone], boxes[gone, side])
    return {"names": names, "root": root, "boxes": boxes,
            **{name: np.concatenate([event[name] for event in events]) for name in EVENT}}, edges, height


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
        edge = np.flatnonzero(graph["incomplete"][graph["u"]] & graph["incomplete"][graph["v"]])
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
