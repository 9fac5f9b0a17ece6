"""The wiring diagram: how many synapses join each pair of neurons, from a table of partners."""

from dataclasses import dataclass

import numpy as np

from emcore.segment.votes import runs_of
from emcore.segment.wiring import Partners


@dataclass(frozen=True, eq=False)
class Connections:
    """Holds a row for each pair of neurons that synapses join, ordered by pre, then by post.

    Attributes:
        pre: (n,) uint64, the presynaptic neuron; the smaller id where the direction is unknown.
        post: (n,) uint64, the postsynaptic neuron.
        directed: (n,) bool, whether it is known which of the two is presynaptic.
        count: (n,) int64, the number of synapses.
        size: (n,) int64, the voxels of these synapses.
        contact_area: (n,) float64, nm².

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> labels = np.array([[[7, 7, 7, 9, 9, 9]]])
        >>> synapses = np.array([[[0, 0, 1, 2, 0, 0]]])  # synapse 1: voxels 1 are presynaptic, voxels 2 postsynaptic
        >>> edges = segment.connections(segment.partners(labels, synapses, resolution=(40, 8, 8)))
        >>> edges.pre, edges.post, edges.count
        (array([7], dtype=uint64), array([9], dtype=uint64), array([1]))
    """

    pre: np.ndarray
    post: np.ndarray
    directed: np.ndarray
    count: np.ndarray
    size: np.ndarray
    contact_area: np.ndarray

    def __len__(self) -> int:
        return len(self.pre)

    @property
    def neurons(self) -> np.ndarray:
        """The ids of all neurons that a synapse joins to another, rising."""
        return np.unique(np.concatenate([self.pre, self.post]))


def connections(table: Partners) -> Connections:
    """Counts the synapses of each pair of neurons; synapses that lack one of the two neurons are left out.

    Args:
        table: the `Partners`, as `partners` returns them.

    Returns:
        The `Connections`.

    Cost:
        The rows are sorted once; a row takes about 100 bytes.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> labels = np.array([[[7, 7, 7, 9, 9, 9]]])
        >>> found = segment.partners(labels, np.array([[[0, 0, 1, 2, 0, 0]]]), resolution=(40, 8, 8))
        >>> segment.connections(found).neurons
        array([7, 9], dtype=uint64)
    """
    kept = np.flatnonzero(table.resolved)
    order = kept[np.lexsort((table.directed[kept], table.post[kept], table.pre[kept]))]
    columns = [getattr(table, name)[order] for name in ("pre", "post", "directed")]
    starts = runs_of(*columns)
    pair = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    count = np.bincount(pair, minlength=len(starts))
    size = np.zeros(len(starts), np.int64)
    np.add.at(size, pair, table.size[order])
    area = np.bincount(pair, table.contact_area[order], len(starts))
    return Connections(*(column[starts] for column in columns), count, size, area)
