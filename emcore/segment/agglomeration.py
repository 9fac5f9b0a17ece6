"""Agglomeration of a region graph to a merge tree, computed once and cut at any threshold.

Regions merge while 1 - statistic < threshold, the smallest height first. Equal heights are taken in the order of the
edges' keys, a key being the largest among an edge's contacts: with that rule the tree is a function of the graph alone.
"""

from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import agglomeration as kernel
from emcore.kernels.waterz_replay import Replay
from emcore.segment.arrays import within
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
    """The merges of a region graph, up to the threshold or to the end.

    ties="waterz" replays the heap order and the float32 arithmetic of waterz, for comparisons.
    """
    run = Agglomeration(graph, statistic, ties)
    run.advance(threshold, threads)
    return run.tree()


class Agglomeration:
    """The merges of a region graph, made up to one threshold after another.

    Of the graph only the ends of its edges are still needed.
    """

    def __init__(self, graph: RegionGraph, statistic: str | Statistic = "mean", ties: str = "canonical"):
        if ties not in ("canonical", "waterz"):
            raise InputError(f"ties must be 'canonical' or 'waterz'; got {ties!r}")
        statistic, graph = parse_statistic(statistic), check_graph(graph, "agglomerate")
        self.fragments, self.u, self.v = graph.fragments, graph.u, graph.v
        self.end = 0.0  # every merge below it has been made
        self._queues: list[kernel.Queue] = []
        if ties == "waterz":
            self._run = Replay(statistic.kind, graph.fragments + 1, graph.u, graph.v)
            _set_replay(self._run, graph, statistic)
        else:
            self._run = kernel.Clusters(statistic.kind, graph.fragments + 1, graph.u, graph.v, graph.key)
            _set_statistics(self._run, graph, statistic)

    def advance(self, threshold: float | None = None, threads: int | None = None) -> None:
        """Makes every merge below the threshold that is still to be made; None makes all there are."""
        if threshold is not None and not within(threshold, 0, 1):
            raise InputError(f"threshold must be 0 to 1; got {threshold}")
        end = np.inf if threshold is None else threshold
        if isinstance(self._run, Replay):
            self._run.run(end)
        else:
            self._merge(end, thread_count(threads))
        self.end = max(self.end, end)

    def _merge(self, end: float, threads: int) -> None:
        """The first time, each thread takes a range of ids, and of these what no edge to another range can concern.

        One thread does the rest. Pairs that are each other's best may merge before their turn without a trace, as
        the statistics are reducible.
        """
        u, clusters = self.u, self._run
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
        """The merges that have been made so far."""
        if isinstance(self._run, Replay):
            a, b = np.empty((2, self._run.merge_count), np.uint32)
            heights = np.empty(self._run.merge_count, np.float32)
            self._run.merges(a, b, heights)
            return MergeTree(self.fragments, a, b, heights, self.end)
        count = sum(queue.merge_count for queue in self._queues)
        edges, heights = np.empty(count, np.uint32), np.empty(count)
        kernel.in_order(self._run, self._queues, edges, heights)
        return MergeTree(self.fragments, self.u[edges], self.v[edges], heights, self.end)

    def remaining(self) -> Remaining:
        """The edges that are left between clusters; with the ties of waterz, at the heights that it keeps."""
        if isinstance(self._run, Replay):
            u, v = np.empty((2, len(self.u)), np.uint32)
            heights = np.empty(len(self.u), np.float32)
            left = self._run.remaining(u, v, heights)
            order = np.argsort(heights[:left], kind="stable")
            return Remaining(u[order], v[order], heights[order])
        left = self._run.remaining_count
        numbers, heights, keys = np.empty(left, np.uint32), np.empty(left), np.empty(left, np.uint64)
        self._run.remaining(numbers, heights, keys)
        order = np.lexsort((keys, heights))
        return Remaining(self.u[numbers[order]], self.v[numbers[order]], heights[order])


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
    level = np.minimum(graph.max * np.float32(statistic.bins), statistic.bins - 1).astype(np.uint32)
    return 1 - (np.arange(statistic.bins) + 0.5) / statistic.bins, level
