"""Expected run length and VOI of skeletons: how far one can follow a neuron before the segmentation fails."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.errors import InputError
from emcore.metrics.partitions import Voi, voi
from emcore.metrics.tables import contingency
from emcore.segment.arrays import as_array, as_numbers, within

CONVENTIONS = {
    "em_erl": "on a merging segment all edges are wrong, of every skeleton with any node in it",
    "banis": "on a merging segment the edges of those skeletons are wrong that touch it with enough nodes themselves",
}


class RunLength(NamedTuple):
    """ERL in the unit of the lengths, the ERL of a perfect segmentation, and their ratio NERL; higher is better."""

    expected: float
    perfect: float
    normalized: float
    skeleton_ids: NDArray[np.uint64]
    skeleton_lengths: NDArray[np.float64]
    skeleton_expected: NDArray[np.float64]  # nan for a skeleton without length
    correct_edges: int
    split_edges: int  # between two segments, neither of them 0
    omitted_edges: int  # A node of theirs lies on segment 0.
    merged_edges: int
    merging_segments: NDArray[np.uint64]
    skeleton_edges: NDArray[np.int64]  # (skeletons, 4): correct, split, omitted and merged ones of each


def run_length(skeletons: ArrayLike, segments: ArrayLike, edges: ArrayLike, lengths: ArrayLike,
               contact_nodes: float = 1, convention: str = "em_erl", no_merge: ArrayLike = ()) -> RunLength:
    """Computes the expected run length (ERL) of skeletons in a segmentation; higher is better.

    An edge is correct if both of its nodes are in one segment that does not merge there; correct edges of a skeleton
    need not be connected. A segment merges if two skeletons touch it, each with at least contact_nodes nodes.

    Args:
        skeletons: (n,) the skeleton of each node.
        segments: (n,) the segment under each node (see `labels_at`); 0 is none.
        edges: (m, 2) the two nodes of each edge.
        lengths: (m,) the length of each edge, in any unit.
        contact_nodes: 1 by default. em_erl calls it merge_threshold (50 in pytorch_connectomics), and BANIS has
            ignored_merger_size + 1. math.inf forgives all mergers.
        convention: "em_erl" (the default): on a merging segment all edges are wrong, of every skeleton with any node in
            it. "banis": the edges of those skeletons are wrong that touch it with enough nodes themselves.
        no_merge: the segments under the voxels of a no-merge mask; a segment on more than contact_nodes of them merges
            for each skeleton that touches it. None by default.

    Returns:
        A tuple `RunLength`: expected (ERL, in the unit of the lengths), perfect (that of a perfect segmentation),
        normalized (NERL, their ratio), the numbers of correct, split, omitted and merged edges, and the same for each
        skeleton. ERL is nan where no edge has a length.

    Raises:
        InputError: lengths of the arguments differ, or a number does not fit.

    Cost:
        It takes 160 ns of one core and 110 bytes per node.

    Examples:
        >>> from emcore import metrics
        >>> found = metrics.run_length([1, 1, 1], [4, 4, 5], [[0, 1], [1, 2]], [30.0, 30.0])
        >>> found.expected, found.normalized  # half of the length is in a run of 30
        (15.0, 0.25)
    """
    if convention not in CONVENTIONS:
        raise InputError(f"unknown run length convention {convention!r}; there are {', '.join(CONVENTIONS)}")
    if not within(contact_nodes, 0, math.inf):
        raise InputError(f"contact_nodes must be 0 or more; got {contact_nodes}")
    skeletons, segments, no_merge = (checked_ids(name, ids) for name, ids in (
        ("skeletons", skeletons), ("segments", segments), ("no_merge", no_merge)))
    edges, lengths = checked_edges(skeletons, segments, edges, lengths)

    skeleton_ids, skeleton = np.unique(skeletons, return_inverse=True)
    segment_ids, segment = np.unique(segments, return_inverse=True)
    contacts = contingency(skeleton, segment, ignore_truth=(), threads=1)
    who, where = contacts.truth.astype(np.int64), contacts.labels.astype(np.int64)
    touching = contacts.counts >= contact_nodes
    merging = np.bincount(where[touching], minlength=len(segment_ids)) >= 2
    masked_ids, voxels = np.unique(no_merge, return_counts=True)
    masked = np.isin(segment_ids, masked_ids[voxels > contact_nodes])
    nowhere = segment_ids == 0
    # contacts, sorted by (skeleton, segment), on which every edge is wrong
    wrong = merging[where] & (touching | (convention == "em_erl")) | masked[where] & touching
    keys = who * len(segment_ids) + where

    one, other = segment[edges[:, 0]], segment[edges[:, 1]]
    owner = skeleton[edges[:, 0]]
    omitted = nowhere[one] | nowhere[other]
    split = ~omitted & (one != other)
    contact = np.searchsorted(keys, owner * len(segment_ids) + one)
    merged = ~omitted & ~split & wrong[contact]
    correct = ~omitted & ~split & ~merged
    runs = np.bincount(contact[correct], lengths[correct], minlength=len(keys))
    total = np.bincount(owner, lengths, minlength=len(skeleton_ids))
    squares = np.bincount(who, runs**2, minlength=len(skeleton_ids))
    expected, perfect = (float(part.sum() / total.sum()) if total.sum() else math.nan for part in (squares, total**2))
    return RunLength(expected, perfect, expected / perfect, skeleton_ids, total,
                     np.divide(squares, total, out=np.full(len(total), math.nan), where=total > 0),
                     *(int(np.count_nonzero(kind)) for kind in (correct, split, omitted, merged)),
                     segment_ids[(merging | masked) & ~nowhere],
                     np.stack([np.bincount(owner[kind], minlength=len(skeleton_ids))
                               for kind in (correct, split, omitted, merged)], axis=1))


def skeleton_voi(skeletons: ArrayLike, segments: ArrayLike) -> Voi:
    """Computes VOI in bits of the segments of nodes against their skeletons; each node counts alike.

    BANIS and pytorch_connectomics score in this way. Nodes of skeleton 0 are left out; segment 0 is a segment like any
    other.

    Args:
        skeletons: (n,) the skeleton of each node.
        segments: (n,) the segment under each node (see `labels_at`).

    Returns:
        A tuple (split, merge), see `voi`.

    Raises:
        InputError: the lengths differ, or the ids are no integers.

    Cost:
        It takes 28 ns of one core and 18 bytes per node.

    Examples:
        >>> from emcore import metrics
        >>> metrics.skeleton_voi([1, 1, 2, 2], [3, 3, 3, 3])
        Voi(split=0.0, merge=1.0)
    """
    skeletons, segments = checked_ids("skeletons", skeletons), checked_ids("segments", segments)
    _check_nodes(skeletons, segments)
    return voi(contingency(skeletons, segments, threads=1))


def checked_ids(name: str, ids: ArrayLike) -> NDArray[np.uint64]:
    """A list of ids as uint64."""
    ids = as_array(name, ids)
    if ids.size == 0:
        return np.zeros(0, np.uint64)
    if ids.ndim != 1 or ids.dtype.kind not in "ui":
        raise InputError(f"{name} must be a list of whole numbers; got shape {ids.shape}, {ids.dtype}; lists that mix "
                         "Python and NumPy integers become float64: make them with np.array(..., np.uint64)")
    if ids.min() < 0:
        raise InputError(f"{name} must not be negative; got {ids.min()}")
    return ids.astype(np.uint64)


def _check_nodes(skeletons: NDArray[np.uint64], segments: NDArray[np.uint64]) -> None:
    if len(skeletons) != len(segments):
        raise InputError(f"skeletons and segments must have one id a node; got {len(skeletons)} and {len(segments)}")


def checked_edges(skeletons: NDArray[np.uint64], segments: NDArray[np.uint64], edges: ArrayLike,
                  lengths: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Edges and their lengths, each within one skeleton."""
    _check_nodes(skeletons, segments)
    edges, lengths = as_array("edges", edges), as_numbers("lengths", lengths)
    if edges.size == 0:
        edges = np.zeros((0, 2), np.int64)
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "ui":
        raise InputError(f"edges must be node numbers of shape (n, 2); got shape {edges.shape}, {edges.dtype}")
    if lengths.shape != (len(edges),) or not (np.isfinite(lengths).all() and (lengths >= 0).all()):
        raise InputError(f"lengths must be one finite number, 0 or more, for each of the {len(edges)} edges; "
                         f"got shape {lengths.shape}")
    if len(edges) and not (edges.min() >= 0 and edges.max() < len(skeletons)):
        raise InputError(f"edges name nodes from {edges.min()} to {edges.max()}, but there are {len(skeletons)} nodes")
    crossing = skeletons[edges[:, 0]] != skeletons[edges[:, 1]]
    if crossing.any():
        u, v = edges[crossing][0]
        raise InputError(f"an edge must stay in its skeleton; ({u}, {v}) joins skeletons {skeletons[u]} and "
                         f"{skeletons[v]}")
    return edges.astype(np.int64), lengths
