"""Edits in blocks: what lies inside the objects that they name, gathered from the files of all blocks.

Only the fragments of these objects are held in memory, with the merges and contacts among them; every table of a
block is read once. Names of fragments rise as their numbers do in the whole volume, so parts are those of the whole.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from emcore.blocks.leaves import Columns
from emcore.segment.edits import EDGES, Decisions, Inside, edited


def named_objects(blocks: Iterable[tuple[np.ndarray, np.ndarray]],
                  objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(names rising, labels) of all fragments of the objects; blocks: (names, labels) of the fragments in each."""
    found = [np.zeros((2, 0), np.uint64)]
    for names, labels in blocks:
        kept = np.isin(labels, objects) & (names > 0)
        found.append(np.stack([names[kept], labels[kept].astype(np.uint64)]))
    every = np.unique(np.concatenate(found, axis=1), axis=1)
    return every[0], every[1]


def merges_inside(names: np.ndarray, parts: Iterable[Sequence[np.ndarray]], threshold: float) -> np.ndarray:
    """The merges (n, 2) among these fragments below the threshold, by rank and in their order.

    parts: (a, b, height, key) of the merges that a window made.
    """
    rows = [(np.zeros((0, 2), np.int64), np.zeros(0), np.zeros(0, np.uint64))]
    for a, b, height, key in parts:
        ends, known = ranks(names, np.stack([a, b], axis=1))
        kept = known.all(1) & (height < threshold)
        rows.append((ends[kept], height[kept], key[kept]))
    ends, height, key = (np.concatenate(column) for column in zip(*rows))
    return ends[np.lexsort((key, height))]


def edges_inside(names: np.ndarray, labels: np.ndarray, parts: Iterable[Columns]) -> Columns:
    """The contacts within the objects, by rank; parts: the columns of the graph of a block."""
    rows = [{"u": np.zeros(0, np.int64), "v": np.zeros(0, np.int64), "count": np.zeros(0, np.int64),
              "sum": np.zeros(0, np.int64), "key": np.zeros(0, np.uint64)}]
    for part in parts:
        local, known = ranks(names, part["names"])
        u, v = local[part["u"]], local[part["v"]]
        kept = known[part["u"]] & known[part["v"]]
        kept[kept] = labels[u[kept]] == labels[v[kept]]
        rows.append({"u": u[kept], "v": v[kept]} | {name: part[name][kept] for name in ("count", "sum", "key")})
    return {name: np.concatenate([row[name] for row in rows]) for name in EDGES}


def ranks(names: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(where names stand among those that rise, whether they are there)."""
    at = np.minimum(np.searchsorted(names, wanted), max(0, len(names) - 1))
    return at, names[at] == wanted if len(names) else np.zeros(wanted.shape, bool)


def edit_columns(names: np.ndarray, labels: np.ndarray, merges: np.ndarray, edges: Columns, decisions: Decisions,
                 largest: int) -> Columns:
    """The fragments whose label changes, and what it becomes."""
    new = edited(Inside(names, labels, merges, dict(edges)), decisions, largest)
    changed = new != labels
    return {"names": names[changed], "labels": new[changed]}


def held(labels: np.ndarray, fragments: np.ndarray, names: np.ndarray, changes: Sequence[np.ndarray]) -> np.ndarray:
    """The labels of a block, changed in place where they are not 0.

    fragments are numbers within the block, names those of these; changes: (names rising, the new label of each).
    """
    at, known = ranks(changes[0], names)
    table = np.zeros(len(names), labels.dtype)
    table[known] = changes[1][at[known]]
    touched = known[fragments] & (labels != 0)
    labels[touched] = table[fragments[touched]]
    return labels
