"""What a window knows of all the others: a spanning forest of their edges by rank, among its own incomplete clusters.

    forest = spanning([forest_of_one, of_another], incomplete)   # names; at every rank the same names hang together
    source, target, edges = absorptions(edges, height, incomplete, forest)

Forests go up an octree over the windows, and down again what lies outside of each. So small they are, they tell exactly
how well two incomplete clusters are connected elsewhere, and no later merge ever connects them better (docs/blocks.md).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from emcore.blocks.leaves import Columns
from emcore.blocks.windows import places_of, sorted_names
from emcore.kernels import absorption as kernel

FOREST = {"forest_u": np.uint64, "forest_v": np.uint64, "forest_height": np.float64, "forest_key": np.uint64}
NOTHING: Columns = {name: np.empty(0, kind) for name, kind in FOREST.items()}


def spanning(parts: Sequence[Mapping[str, np.ndarray]], terminals: np.ndarray) -> Columns:
    """A forest of the edges of all parts among the terminals (sorted names); parts are forests themselves."""
    edges = {name: np.concatenate([part[name] for part in parts]) for name in FOREST} if parts else NOTHING
    names = sorted_names([edges["forest_u"], edges["forest_v"]])
    u, v = (places_of(edges[end], names) for end in ("forest_u", "forest_v"))
    return forest_of(names, {"u": u, "v": v, "key": edges["forest_key"]}, edges["forest_height"],
                     np.isin(names, terminals, assume_unique=True), np.inf)


def forest_of(names: np.ndarray, edges: Mapping[str, np.ndarray], height: np.ndarray, terminal: np.ndarray,
              end: float) -> Columns:
    """A forest of the edges below the end, whose ends are places among names, of which some are terminals."""
    most = max(0, min(len(height), int(np.count_nonzero(terminal)) - 1))
    ends, chosen = np.empty((most, 2), np.uint32), np.empty(most, np.int64)
    order = below(end, height, edges["key"])
    count = kernel.contract(edges["u"], edges["v"], order, terminal.view(np.uint8), ends, chosen)
    ends, chosen = names[ends[:count]], chosen[:count]
    return {"forest_u": ends[:, 0], "forest_v": ends[:, 1], "forest_height": height[chosen],
            "forest_key": edges["key"][chosen]}


def absorptions(names: np.ndarray, edges: Mapping[str, np.ndarray], height: np.ndarray, incomplete: np.ndarray,
                outside: Mapping[str, np.ndarray], end: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Complete clusters that may merge below the end, what each merges with, and the edges across which they do.

    edges join places among names; incomplete tells which names have edges elsewhere, and outside is the forest there.
    A cluster may merge with one that merges too; chains end at the one whose name stays.
    """
    own = len(height)
    u, v = (np.concatenate([edges[end], places_of(outside[f"forest_{end}"], names)]) for end in ("u", "v"))
    order = below(end, np.concatenate([height, outside["forest_height"]]),
                  np.concatenate([edges["key"], outside["forest_key"]]))
    most = min(own, len(names))
    found, chosen = np.empty((most, 2), np.uint32), np.empty(most, np.int64)
    count = kernel.absorb(u, v, own, order, incomplete.view(np.uint8), found, chosen)
    return found[:count, 0], found[:count, 1], chosen[:count]


def below(end: float, height: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The numbers of the edges below the end, best first."""
    kept = np.flatnonzero(height < end)
    return kept[np.lexsort((key[kept], height[kept]))]
