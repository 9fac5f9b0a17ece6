"""A cut of the merges of all blocks: what every cluster is called at a threshold, from the top of the octree down.

A block knows its clusters by the names that they have when nothing more merges in it. A merge further up never has a
smaller height than those inside of its two clusters, so below the threshold a name means the same on every level.
"""

import numpy as np

from emcore.blocks.leaves import Columns
from emcore.blocks.windows import moved
from emcore.kernels import overlaps as kernel


def settled(names: np.ndarray, u: np.ndarray, v: np.ndarray, height: np.ndarray, threshold: float,
            above: tuple[np.ndarray, np.ndarray] | None) -> Columns:
    """The names that the clusters of a block have at a threshold; above: (names, final) of the block that holds it."""
    below = np.flatnonzero(height < threshold)
    roots = np.empty(len(names), np.int64)
    kernel.unite(np.stack([u[below], v[below]], axis=1).astype(np.int64), roots)
    final = names[roots]
    return {"names": names, "final": final if above is None else moved(final, *above)}
