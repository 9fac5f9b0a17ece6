"""The wiring diagram: how many synapses join each pair of neurons, from a table of partners."""

from dataclasses import dataclass
from typing import NamedTuple

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


class Degrees(NamedTuple):
    """What each of the neurons of a wiring diagram has, by rising id."""

    neurons: np.ndarray  # (n,) uint64
    outgoing: np.ndarray  # (n,) int64: synapses in which it is presynaptic
    incoming: np.ndarray  # (n,) int64: synapses in which it is postsynaptic
    undirected: np.ndarray  # (n,) int64: synapses of which nobody knows the direction
    partners: np.ndarray  # (n,) int64: other neurons that a synapse joins to it

    @property
    def synapses(self) -> np.ndarray:
        return self.outgoing + self.incoming + self.undirected


def degrees(edges: Connections) -> Degrees:
    """How many synapses and partners each neuron has."""
    neurons = edges.neurons
    pre, post = np.searchsorted(neurons, edges.pre), np.searchsorted(neurons, edges.post)
    sums = [np.zeros(len(neurons), np.int64) for _ in range(3)]
    for place, ends, chosen in ((0, pre, edges.directed), (1, post, edges.directed), (2, pre, ~edges.directed),
                                (2, post, ~edges.directed)):
        np.add.at(sums[place], ends[chosen], edges.count[chosen])
    pairs = np.unique(np.sort(np.stack([pre, post], axis=1), axis=1), axis=0)
    return Degrees(neurons, *sums, np.bincount(pairs.reshape(-1), minlength=len(neurons)))
