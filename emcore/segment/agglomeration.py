"""Agglomeration of a region graph to a merge tree, computed once and cut at any threshold.

Regions merge while 1 - statistic < threshold, the smallest height first. Equal heights are taken in the order of the
edges' keys, a key being the largest among an edge's contacts: with that rule the tree is a function of the graph alone.
"""

from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import agglomeration as kernel
from emcore.kernels.waterz_replay import Replay
from emcore.segment.arrays import as_array, as_count, within
from emcore.segment.graph import RegionGraph, check_graph
from emcore.segment.merge_tree import MergeTree
from emcore.segment.statistics import Statistic, parse_statistic
from emcore.threads import run_parallel, slabs, thread_count


class Remaining(NamedTuple):
    """Edges between the clusters that are left, best first, named by fragments of them."""

    u: np.ndarray
    v: np.ndarray
    height: np.ndarray  # 1 - the statistic that the edge has by now


def agglomerate(graph: RegionGraph, statistic: str | Statistic = "mean", *, ties: str = "canonical",
                threshold: float | None = None, threads: int | None = None) -> MergeTree:
    """Merges the regions of a graph, best contact first, up to a threshold or to the end.

    The statistic of a contact is updated when its regions merge. A merge happens at the height 1 - statistic.

    Args:
        graph: the `RegionGraph`.
        statistic: what ranks the contacts: "mean" (the default), "max", "min", or a quantile like "aff75_his256" (see
            `parse_statistic`).
        ties: "canonical" (the default), or "waterz", which repeats the heap order and float32 arithmetic of waterz.
        threshold: merges are made while their height is below it, 0 to 1. The default None makes all of them.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        The `MergeTree`; `cut` makes labels of it at any threshold.

    Raises:
        InputError: the statistic is unknown, or the graph lacks what it needs.

    Cost:
        It takes 420 ns of one core and 120 bytes per edge.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> fragments = segment.watershed(affs)
        >>> tree = segment.agglomerate(segment.region_graph(fragments, affs))
        >>> tree.a, tree.b, tree.height.round(3)
        (array([1], dtype=uint32), array([2], dtype=uint32), array([0.8]))
    """
    run = Agglomeration(graph, statistic, ties)
    run.advance(threshold, threads)
    return run.tree()


class Agglomeration:
    """Makes the merges of a region graph, up to one threshold after another.

    Of the graph only the ends of its edges are kept. For a whole graph up to one threshold `agglomerate` is enough.

    Args:
        graph: the `RegionGraph`.
        statistic: what ranks the contacts; "mean" by default (see `parse_statistic`).
        ties: "canonical" (the default), or "waterz", which repeats the heap order and float32 arithmetic of waterz.
        frozen: ids that have edges elsewhere, where the graph is of one block of a volume. They stay as they are, and
            so does all that would merge with them first, so that every merge made is one of the whole volume. None by
            default.
        maxima: True says that the histograms of the graph are of the largest affinities of pairs of fragments, where
            the statistic is a quantile of those. The default is False.
        limit: two clusters that both have more voxels never merge. The default None merges clusters of any size.

    Raises:
        InputError: the statistic is unknown, or the graph lacks what the arguments need.

    Cost:
        It takes 290 ns of one core and 120 bytes per edge.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> run = segment.Agglomeration(segment.region_graph(segment.watershed(affs), affs))
        >>> run.advance(0.5)
        >>> len(run.tree().height)
        0
        >>> run.advance()
        >>> len(run.tree().height)
        1
    """

    def __init__(self, graph: RegionGraph, statistic: str | Statistic = "mean", ties: str = "canonical",
                 frozen: np.ndarray | None = None, maxima: bool = False, limit: int | None = None):
        if ties not in ("canonical", "waterz"):
            raise InputError(f"ties must be 'canonical' or 'waterz'; got {ties!r}")
        statistic, graph = parse_statistic(statistic), check_graph(graph, "agglomerate", any_bins=maxima)
        if limit is not None and (ties == "waterz" or graph.sizes is None):
            raise InputError("limit needs the sizes of a graph, and ties='canonical'")
        if ties == "waterz" and (frozen is not None or maxima):
            raise InputError("ties='waterz' works on whole volumes only: leave frozen and maxima out")
        if maxima and (statistic.kind != "quantile" or statistic.every_contact or graph.bins is None):
            raise InputError("maxima=True is for graphs with histograms and quantiles of maxima, like aff85_his256")
        self.fragments, self.u, self.v = graph.fragments, graph.u, graph.v
        self._statistic, self._maxima, self._frozen = statistic, maxima, None
        self._levels = np.empty(0, np.uint32)  # for maxima, the bin that a level of the kernel stands for
        self.end = 0.0  # every merge below it has been made
        self._queues: list[kernel.Queue] = []
        self._made: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # by _merges since the last step
        if ties == "waterz":
            self._run = Replay(statistic.kind, graph.fragments + 1, graph.u, graph.v)
            _set_replay(self._run, graph, statistic)
        else:
            self._run = kernel.Clusters(statistic.kind, graph.fragments + 1, graph.u, graph.v, graph.key)
            if maxima:
                self._levels = _set_maxima(self._run, graph, statistic)
            else:
                _set_statistics(self._run, graph, statistic)
            if limit is not None:
                self._run.keep_apart(graph.sizes, as_count("limit", limit))
        if frozen is not None:
            self._frozen = _as_ids(frozen, graph.fragments)
            self._run.freeze(self._frozen)

    def advance(self, threshold: float | None = None, threads: int | None = None) -> None:
        """Makes every merge below a threshold that is still to be made.

        Args:
            threshold: 0 to 1. The default None makes all merges that there are.
            threads: how many threads to use; all cores by default. The number changes no bit of the result.

        Raises:
            InputError: the threshold is no number of 0 to 1.
        """
        if threshold is not None and not within(threshold, 0, 1):
            raise InputError(f"threshold must be 0 to 1; got {threshold}")
        end = np.inf if threshold is None else threshold
        if isinstance(self._run, Replay):
            self._run.run(end)
        else:
            self._made = None
            self._merge(end, thread_count(threads))
        self.end = max(self.end, end)

    def _merge(self, end: float, threads: int) -> None:
        """The first time, each thread takes a range of ids, and of these what no edge to another range can concern.

        One thread does the rest. Pairs that are each other's best may merge before their turn without a trace, as
        the statistics are reducible.
        """
        u, clusters = self.u, self._run
        if self._frozen is not None:
            self._queues.append(kernel.Queue(clusters, True))
            self._queues[-1].run(end, 0, len(u), self.fragments + 1)
            return
        if not self._queues and threads > 1 and len(u) > 0:
            borders = np.unique([0, *(int(u[first]) for first, _ in slabs(len(u), threads)[1:]), self.fragments + 1])
            clusters.freeze_between(borders)
            self._queues = [kernel.Queue(clusters, True) for _ in borders[1:]]
            firsts = np.searchsorted(u, borders.astype(u.dtype)).tolist()
            jobs = list(zip(self._queues, firsts, firsts[1:], borders[1:].tolist()))
            run_parallel(lambda queue, *part: queue.run(end, *part), jobs, threads)
        self._queues.append(kernel.Queue(clusters, False))
        self._queues[-1].run(end, 0, len(u), self.fragments + 1)

    def tree(self) -> MergeTree:
        """The merges that have been made so far; with frozen ids they are not all, so that no cut can be made."""
        if isinstance(self._run, Replay):
            a, b = np.empty((2, self._run.merge_count), np.uint32)
            heights = np.empty(self._run.merge_count, np.float32)
            self._run.merges(a, b, heights)
            return MergeTree(self.fragments, a, b, heights, self.end)
        edges, heights, keys = self._merges()
        complete = self.end if self._frozen is None or len(self._frozen) == 0 else 0.0
        return MergeTree(self.fragments, self.u[edges], self.v[edges], heights, complete, keys)

    def merges(self) -> np.ndarray:
        """For every merge of the tree the number of the graph's edge, uint32, that has the merge's key."""
        if isinstance(self._run, Replay):
            raise InputError("ties='waterz' does not tell which edges merged")
        return self._merges()[0]

    def _merges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._made is None:
            count = sum(queue.merge_count for queue in self._queues)
            self._made = np.empty(count, np.uint32), np.empty(count), np.empty(count, np.uint64)
            kernel.in_order(self._run, self._queues, *self._made)
        return self._made

    def roots(self) -> np.ndarray:
        """The smallest fragment of the cluster of every fragment, uint32, from 0 on."""
        roots = self.tree().parents()
        while (roots[roots] != roots).any():
            roots = roots[roots]
        return roots

    def remaining(self) -> Remaining:
        """The edges that are left between clusters; with the ties of waterz, at the heights that it keeps."""
        if isinstance(self._run, Replay):
            u, v = np.empty((2, len(self.u)), np.uint32)
            heights = np.empty(len(self.u), np.float32)
            left = self._run.remaining(u, v, heights)
            order = np.argsort(heights[:left], kind="stable")
            return Remaining(u[order], v[order], heights[order])
        numbers, heights, keys = self._remaining()
        order = np.lexsort((keys, heights))
        return Remaining(self.u[numbers[order]], self.v[numbers[order]], heights[order])

    def _remaining(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        left = self._run.remaining_count
        numbers, heights, keys = np.empty(left, np.uint32), np.empty(left), np.empty(left, np.uint64)
        self._run.remaining(numbers, heights, keys)
        return numbers, heights, keys

    def remaining_edges(self) -> dict[str, np.ndarray]:
        """Columns of the edges that are left between clusters, from which the agglomeration can go on elsewhere.

        u < v are the smallest fragments of the two clusters, height is 1 - the statistic, and key and top are the
        pooled key and the number of the graph's edge that has it. What the statistic looks at comes as in a graph:
        count and sum; max, or min, to what 1 minus it tells; bin_starts, bins and bin_counts.
        """
        if isinstance(self._run, Replay):
            raise InputError("ties='waterz' does not tell the statistics of edges")
        if self._statistic.kind == "quantile" and not (self._maxima or self._statistic.every_contact):
            raise InputError("the edges that are left have histograms only where the graph had them: give maxima=True")
        top, heights, key = self._remaining()
        a, b = np.empty((2, len(top)), np.uint32)
        count, total = np.empty((2, len(top)), np.int64)
        self._run.remaining_ends(a, b, count, total)
        roots, kind = self.roots(), self._statistic.kind
        found = {"u": np.minimum(roots[a], roots[b]), "v": np.maximum(roots[a], roots[b]), "top": top, "key": key,
                 "height": heights}
        if kind == "mean":
            return found | {"count": count, "sum": total}
        if kind != "quantile":
            return found | {kind: (1 - heights).astype(np.float32)}
        starts, bins = np.zeros(len(top) + 1, np.int64), np.empty(self._run.remaining_bins, np.uint32)
        counts = np.empty(len(bins), np.int64)
        self._run.histograms(starts, bins, counts)
        return found | {"bin_starts": starts, "bins": self._levels[bins] if self._maxima else bins,
                        "bin_counts": counts}


def _set_replay(run: Replay, graph: RegionGraph, statistic: Statistic) -> None:
    if statistic.every_contact:
        raise InputError("ties='waterz' is for mean, max, min and quantiles of maxima")
    if statistic.kind == "quantile":
        levels, level = quantile_levels(graph, statistic)
        run.set_levels(statistic.quantile, (1 - levels).astype(np.float32), level)
    elif statistic.kind == "mean":
        if graph.running_mean is None:
            raise InputError("ties='waterz' needs the means as waterz adds them up; "
                             "ask for them with region_graph(..., extras=('running_mean',))")
        run.set_values(graph.running_mean, graph.count)
    else:
        run.set_values(graph.max if statistic.kind == "max" else graph.min, graph.count)


def _as_ids(ids: np.ndarray, fragments: int) -> np.ndarray:
    """ids of fragments as the kernels take them."""
    array = as_array("frozen", ids)
    if array.ndim != 1 or array.dtype.kind not in "ui" or (
            array.size and not (array.min() >= 1 and array.max() <= fragments)):
        raise InputError(f"frozen must be ids of 1 to {fragments}; got {array.shape} {array.dtype}"
                         + (f", {array.min()} to {array.max()}" if array.size else ""))
    return array.astype(np.uint32)


def _set_statistics(run: kernel.Clusters, graph: RegionGraph, statistic: Statistic) -> None:
    if statistic.kind == "mean":
        run.set_means(graph.sum, graph.count)
    elif statistic.kind == "max":
        run.set_extremes(graph.max)
    elif statistic.kind == "min":
        run.set_extremes(graph.min)
    else:
        if statistic.every_contact and graph.bins is None:
            raise InputError("a quantile over every contact needs the histograms of the graph; "
                             "ask for them with region_graph(..., extras=('histogram',))")
        levels, level = quantile_levels(graph, statistic)
        run.set_levels(statistic.quantile, levels, level)
        if statistic.every_contact:
            run.add_counts(graph.bin_starts, graph.bins, graph.bin_counts)


def quantile_levels(graph: RegionGraph, statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
    """(height of every level, level of every edge's largest affinity); a level is a bin, or one of the values."""
    if statistic.bins == 0:
        values, level = np.unique(graph.max, return_inverse=True)
        return 1 - values.astype(np.float64), level.astype(np.uint32)
    return 1 - (np.arange(statistic.bins) + 0.5) / statistic.bins, maxima_bins(graph.max, statistic)


def maxima_bins(largest: np.ndarray, statistic: Statistic) -> np.ndarray:
    """The bins of float32 affinities, uint32, that are the largest of pairs; the bits of each where none are wanted.

    Bits order like the numbers themselves, so histograms of them pool without a table of all values.
    """
    if statistic.bins == 0:
        return (largest + np.float32(0)).view(np.uint32)  # -0.0 has become 0.0
    return np.minimum(largest * np.float32(statistic.bins), statistic.bins - 1).astype(np.uint32)


def _set_maxima(run: kernel.Clusters, graph: RegionGraph, statistic: Statistic) -> np.ndarray:
    """The bin of every level, after the run got its histograms in levels."""
    if statistic.bins == 0:
        bins, level = np.unique(graph.bins, return_inverse=True)
        heights, limit = 1 - bins.view(np.float32).astype(np.float64), int(np.float32(1).view(np.uint32)) + 1
    else:
        bins, level, limit = np.arange(statistic.bins, dtype=np.uint32), graph.bins, statistic.bins
        heights = 1 - (bins + 0.5) / statistic.bins
    if len(graph.bins) and graph.bins.max() >= limit:
        raise InputError(f"the bins of {statistic.name} lie below {limit}; the graph has {graph.bins.max()}")
    run.set_levels(statistic.quantile, heights, np.empty(0, np.uint32))
    run.add_counts(graph.bin_starts, level.astype(np.uint32, copy=False), graph.bin_counts)
    return bins
