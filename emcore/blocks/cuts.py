"""A cut of the merges of all windows: what every cluster is called at a threshold, last partition first.

Each name stands for the fragment that has it. A merge says that the fragments of two names are in one cluster wherever
the threshold is above its height, so names that hang together by merges below the threshold are one. In the block above
only the name that stays in the end is known, and what does not hang together with that one does not merge there.
"""

from collections.abc import Callable, Sequence

import numpy as np

from emcore.blocks.leaves import Columns
from emcore.blocks.pooled import pool_all
from emcore.blocks.windows import moved, places_of
from emcore.kernels import overlaps as kernel


def settled(names: np.ndarray, root: np.ndarray, u: np.ndarray, v: np.ndarray, height: np.ndarray, threshold: float,
            above: Sequence[Sequence[np.ndarray]]) -> Columns:
    """The names that the clusters of a window have at a threshold.

    above: (names, final) of each window that it handed something on to; what several of them know is called alike.
    root is the place of the name that each name's cluster has in the end.
    """
    below = np.flatnonzero(height < threshold)
    groups = np.empty(len(names), np.int64)
    kernel.unite(np.stack([u[below], v[below]], axis=1).astype(np.int64), groups)
    called, staying = np.arange(len(names)), np.flatnonzero(root == np.arange(len(names)))
    called[groups[staying]] = staying
    final = names[called[groups]]
    if above:
        known, known_final = map(np.concatenate, zip(*above))
        order = np.argsort(known)
        final = moved(final, known[order], known_final[order])
    return {"names": names, "final": final}


def numbered(read: Callable[[int], Sequence[np.ndarray]], blocks: int) -> Columns:
    """How many segments a cut has, and for block i its clusters (final_i, sorted) with their labels (number_i).

    A label is the rank of a cluster by its smallest fragment. read: (names, final) of the fragments of a block.
    """
    firsts = (smallest(*read(block)) for block in range(blocks))
    clusters = pool_all(({"final": final, "min": names} for names, final in firsts), ("final",))
    order, number = np.argsort(clusters["min"]), np.empty(len(clusters["min"]), np.uint64)
    number[order] = np.arange(len(order))
    columns = {"segments": np.array([len(order) - 1])}
    for block in range(blocks):
        final = columns[f"final_{block}"] = np.unique(read(block)[1])
        columns[f"number_{block}"] = number[places_of(final, clusters["final"], np.int64)]
    return columns


def smallest(names: np.ndarray, final: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the smallest name, the cluster) of every cluster among fragments whose names rise."""
    clusters, first = np.unique(final, return_index=True)
    return names[first], clusters
