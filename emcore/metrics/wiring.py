"""Edges of a wiring diagram that are found: pairs of neurons with at least so many synapses."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.errors import InputError
from emcore.metrics.instances import detection
from emcore.metrics.tables import Contingency, of_table
from emcore.segment.arrays import as_array

AT_LEAST = (1, 2, 5)  # synapses


class EdgeScore(NamedTuple):
    """Directed edges of at least so many synapses; nan where there is none to divide by."""

    synapses: int
    f1: float
    precision: float
    recall: float
    found: int  # in both
    invented: int
    missed: int


def edge_scores(truth: ArrayLike, prediction: ArrayLike, at_least: Sequence[int] = AT_LEAST) -> list[EdgeScore]:
    """Scores a wiring diagram: which pairs of neurons are joined by at least so many synapses in both of two lists.

    An edge of the prediction is right where the truth joins the same two neurons in the same direction by at least as
    many synapses as are asked for.

    Args:
        truth: (n, 2) integers, the pre- and the postsynaptic neuron of each synapse. A synapse that names 0 is left
            out.
        prediction: (m, 2), the same, in the ids of the truth (see `matched_ids`).
        at_least: the numbers of synapses to ask for; (1, 2, 5) by default.

    Returns:
        A list with a tuple for each number: (synapses, f1, precision, recall, found, invented, missed); nan where there
        is none to divide by.

    Raises:
        InputError: the lists are not of this shape and dtype.

    Cost:
        It takes 6,400 ns of one core and 600 bytes per synapse.

    Examples:
        >>> from emcore import metrics
        >>> metrics.edge_scores([[1, 2], [1, 2], [3, 4]], [[1, 2], [1, 2]], at_least=[1])[0].recall
        0.5
    """
    if not len(at_least) or any(not isinstance(least, int | np.integer) or least < 1 for least in at_least):
        raise InputError(f"at_least must be whole numbers from 1 on; got {tuple(at_least)}")
    counted = {name: _edges(name, pairs) for name, pairs in (("truth", truth), ("prediction", prediction))}
    scores = []
    for least in at_least:
        true, ours = ({edge for edge, count in edges.items() if count >= least} for edges in counted.values())
        found, invented, missed = len(true & ours), len(ours - true), len(true - ours)
        precision, recall, f1 = detection(found, invented, missed)
        scores.append(EdgeScore(int(least), f1, precision, recall, found, invented, missed))
    return scores


@of_table
def matched_ids(table: Contingency) -> dict[int, int]:
    """Finds for each label the true object that most of its voxels lie in.

    Args:
        table: the `Contingency` of truth and labels; voxels that it ignores have no vote.

    Returns:
        A dict from label to true id: of equal ones the smaller id, 0 if it lies in none. A label of ignored voxels
        alone is not in it.

    Raises:
        InputError: this is not a table.

    Cost:
        It takes 210 ns of one core and 130 bytes per pair.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.matched_ids(metrics.contingency(np.array([1, 1, 2, 2]), np.array([3, 3, 3, 4])))
        {3: 1, 4: 2}
    """
    order = np.lexsort((table.truth[table.kept], -table.n, table.columns))
    first = np.unique(table.columns[order], return_index=True)[1]
    return dict(zip(table.label_ids.tolist(), table.truth[table.kept][order[first]].tolist()))


def renamed(ids: NDArray[np.uint64], names: dict[int, int]) -> NDArray[np.uint64]:
    """The ids under other names, 0 where one has none."""
    return np.array([names.get(one, 0) for one in ids.ravel().tolist()], np.uint64).reshape(ids.shape)


def _edges(name: str, pairs: ArrayLike) -> dict[tuple[int, int], int]:
    """Every edge with its synapses."""
    pairs = as_array(name, pairs)
    if pairs.size == 0:
        return {}
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "ui" or pairs.min() < 0:
        raise InputError(f"{name} must be the ids of pre- and postsynaptic neurons, whole numbers from 0 on of shape "
                         f"(n, 2); got shape {pairs.shape}, {pairs.dtype}")
    edges, counts = np.unique(pairs[(pairs != 0).all(1)], axis=0, return_counts=True)
    return {(pre, post): count for (pre, post), count in zip(edges.tolist(), counts.tolist())}
