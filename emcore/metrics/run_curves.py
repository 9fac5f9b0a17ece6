"""The expected run length after every merge of a merge tree, from one look at the fragments under the nodes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.errors import InputError
from emcore.kernels.folding import running_sum
from emcore.metrics.curves import BestThreshold, ThresholdCurve, checked_tree
from emcore.metrics.skeletons import CONVENTIONS, checked_edges, checked_ids
from emcore.segment.arrays import within
from emcore.segment.merge_tree import MergeTree


@dataclass(frozen=True, eq=False)
class RunLengthCurve:
    """Holds ERL and NERL after 0, 1, ... and all merges of a tree, in arrays one longer than its merges.

    Attributes:
        height: (n,) the height of each merge, never falling.
        end: the largest threshold.
        expected: (n + 1,) float64, ERL in the unit of the lengths; nan where no edge has a length.
        perfect: the ERL of a perfect segmentation.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics, segment
        >>> tree = segment.MergeTree(2, np.array([1], np.uint32), np.array([2], np.uint32), np.array([0.2]))
        >>> curve = metrics.run_length_curve([1, 1, 1], [1, 1, 2], [[0, 1], [1, 2]], [30.0, 30.0], tree)
        >>> curve.normalized, curve.best().value
        (array([0.25, 1.  ]), 1.0)
    """

    height: NDArray
    end: float
    expected: NDArray[np.float64]
    perfect: float

    @property
    def normalized(self) -> NDArray[np.float64]:
        """NERL: ERL as a share of that of a perfect segmentation."""
        return self.expected / self.perfect

    def merges_below(self, threshold: float) -> int:
        """Counts the merges that a threshold does, which is the index of its state in every array.

        Args:
            threshold: merges of a height below it are made.

        Returns:
            The number.
        """
        return int(np.searchsorted(self.height, self.height.dtype.type(threshold), side="left"))

    def best(self) -> BestThreshold:
        """The largest NERL that some threshold reaches; the first of equals. nan where there is none."""
        if not len(self.expected) or math.isnan(self.expected[0]):
            return BestThreshold(math.nan, math.nan, 0)
        reachable = np.ones(len(self.expected), bool)
        reachable[1:] = self.height < np.append(self.height[1:], self.end)
        merges = int(np.where(reachable, self.expected, -1.0).argmax())
        return BestThreshold(ThresholdCurve.threshold_of(self, merges), float(self.normalized[merges]), merges)


class Cluster:
    """What the skeletons have in a cluster of fragments."""

    __slots__ = ("nodes", "open", "runs", "small", "squares", "touching")

    def __init__(self) -> None:
        self.nodes: dict[int, int] = {}  # skeleton -> its nodes here
        self.runs: dict[int, float] = {}  # skeleton -> the length of its edges with both nodes here
        self.open: list[list] = []  # edges that leave: fragment, fragment, skeleton, length, whether it leaves still
        self.touching = 0  # skeletons with enough nodes
        self.squares = 0.0  # summed over all runs
        self.small = 0.0  # the part that skeletons with too few nodes add

    def add(self, skeleton: int, nodes: int, run: float, enough: float) -> None:
        """Adds nodes and a run of a skeleton."""
        had, length = self.nodes.get(skeleton, 0), self.runs.get(skeleton, 0.0)
        self.nodes[skeleton], self.runs[skeleton] = had + nodes, length + run
        before, after = length**2, (length + run) ** 2
        self.squares += after - before
        touched, touches = had >= enough, had + nodes >= enough
        self.touching += touches - touched
        self.small += (0.0 if touches else after) - (0.0 if touched else before)

    def worth(self, convention: str) -> float:
        """The squares of the runs that count."""
        if self.touching < 2:
            return self.squares
        return 0.0 if convention == "em_erl" else self.small


def run_length_curve(skeletons: ArrayLike, fragments: ArrayLike, edges: ArrayLike, lengths: ArrayLike,
                     tree: MergeTree, contact_nodes: float = 1, convention: str = "em_erl") -> RunLengthCurve:
    """Computes the expected run length at every threshold of a merge tree.

    Each value is that of `run_length` with the labels of the threshold. A merge changes the runs in the two clusters
    that it joins and nothing else, so all thresholds together cost about as much as one.

    Args:
        skeletons: (n,) the skeleton of each node.
        fragments: (n,) the fragment under each node (see `labels_at`); 0 is none.
        edges: (m, 2) the two nodes of each edge.
        lengths: (m,) the length of each edge, in any unit.
        tree: the `MergeTree` of the fragments.
        contact_nodes: see `run_length`; 1 by default.
        convention: see `run_length`; "em_erl" by default.

    Returns:
        The `RunLengthCurve`.

    Raises:
        InputError: lengths of the arguments differ, or the tree does not belong to the fragments.

    Cost:
        It takes 1,500 ns of one core and 170 bytes per node.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics, segment
        >>> tree = segment.MergeTree(2, np.array([1], np.uint32), np.array([2], np.uint32), np.array([0.2]))
        >>> metrics.run_length_curve([1, 1, 1], [1, 1, 2], [[0, 1], [1, 2]], [30.0, 30.0], tree).expected
        array([15., 60.])
    """
    if convention not in CONVENTIONS:
        raise InputError(f"unknown run length convention {convention!r}; there are {', '.join(CONVENTIONS)}")
    if not within(contact_nodes, 0, math.inf):
        raise InputError(f"contact_nodes must be 0 or more; got {contact_nodes}")
    skeletons, fragments = checked_ids("skeletons", skeletons), checked_ids("fragments", fragments)
    edges, lengths = checked_edges(skeletons, fragments, edges, lengths)
    a, b, height = checked_tree(tree)
    count = int(tree.fragments)
    if len(fragments) and int(fragments.max()) > count:
        raise InputError(f"the tree is of {count} fragments, but a node lies on fragment {int(fragments.max())}; use "
                         "the tree that was made from these fragments")
    _, skeleton = np.unique(skeletons, return_inverse=True)
    total = np.bincount(skeleton[edges[:, 0]], lengths) if len(edges) else np.zeros(1)
    enough = max(contact_nodes, 1)
    clusters = _clusters(skeleton, fragments.astype(np.int64), edges, lengths, enough)
    start = math.fsum(cluster.worth(convention) for cluster in clusters.values())
    changes = _changes(clusters, a, b, count, enough, convention)
    sums = np.empty(len(a) + 1)
    whole = float(total.sum())
    running_sum(changes, start, 1.0, sums)
    end = float(getattr(tree, "complete_below", math.inf))
    if len(height) == 0 or height[-1] <= 1:
        end = min(end, 1.0)
    if not whole:
        return RunLengthCurve(height, end, np.full(len(sums), math.nan), math.nan)
    return RunLengthCurve(height, end, np.maximum(sums, 0) / whole, float((total**2).sum()) / whole)


def _clusters(skeleton: NDArray, fragments: NDArray[np.int64], edges: NDArray, lengths: NDArray,
              enough: float) -> dict[int, Cluster]:
    """Every fragment that has nodes, as a cluster of its own."""
    clusters: dict[int, Cluster] = {}
    runs: dict[tuple[int, int], float] = {}
    leaving = []
    ends = fragments[edges]
    for one, other, owner, length in zip(*ends.T.tolist(), skeleton[edges[:, 0]].tolist(), lengths.tolist()):
        if one and one == other:
            runs[owner, one] = runs.get((owner, one), 0.0) + length
        elif one and other:
            leaving.append([one, other, owner, length, True])
    pairs, nodes = np.unique(np.stack([skeleton, fragments], 1), axis=0, return_counts=True)
    for (owner, fragment), number in zip(pairs.tolist(), nodes.tolist()):
        if fragment:
            clusters.setdefault(fragment, Cluster()).add(owner, number, runs.get((owner, fragment), 0.0), enough)
    for edge in leaving:
        clusters[edge[0]].open.append(edge)
        clusters[edge[1]].open.append(edge)
    return clusters


def _changes(clusters: dict[int, Cluster], a: Sequence[int], b: Sequence[int], fragments: int, enough: float,
             convention: str) -> NDArray[np.float64]:
    """By how much each merge changes the sum of squares that count. The clusters are used up."""
    parent = list(range(fragments + 1))
    changes = np.zeros(len(a))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for step, (one, other) in enumerate(zip(a.tolist(), b.tolist())):
        keep, gone = root(one), root(other)
        if keep == gone:
            continue
        large, little = clusters.get(keep), clusters.get(gone)
        if large is None or (little is not None and len(large.nodes) + len(large.open)
                             < len(little.nodes) + len(little.open)):
            keep, gone, large, little = gone, keep, little, large
        parent[gone] = keep
        if little is None:  # one of the two has no node, so nothing changes
            continue
        before = large.worth(convention) + little.worth(convention)
        for owner, nodes in little.nodes.items():
            large.add(owner, nodes, little.runs[owner], enough)
        for edge in little.open:
            if edge[4] and root(edge[0]) == root(edge[1]):
                edge[4] = False  # the other cluster has it in its list, too
                large.add(edge[2], 0, edge[3], enough)
            elif edge[4]:
                large.open.append(edge)
        del clusters[gone]
        changes[step] = large.worth(convention) - before
    return changes
