"""Agglomeration to a merge tree, computed once; labels at any threshold are a table look-up away.

Regions merge while score < threshold, smallest score first. Equal scores are taken in the order of the edges' keys, a
key being the largest among an edge's contacts: with that rule the tree is a function of the graph alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import agglomeration as kernel
from emcore.kernels import merge_tree as tree_kernel
from emcore.kernels.waterz_replay import Replay
from emcore.segment.graph import RegionGraph, label_view
from emcore.segment.scores import Score, parse_score
from emcore.threads import run_parallel, slabs, thread_count


@dataclass(frozen=True)
class MergeTree:
    """Merges in the order they happen: a and b are fragments, one from each of the two clusters."""

    fragments: int  # ids are 1 to fragments
    a: np.ndarray  # uint32
    b: np.ndarray
    score: np.ndarray  # float64, 1 - statistic of the affinities, never falling
    complete_below: float = np.inf  # merges of this score and above were not computed

    @cached_property
    def _forest(self) -> tuple[np.ndarray, np.ndarray]:
        """(parent, height): i's cluster joins that of fragment parent[i] < i, its smallest, at height[i]."""
        parent = np.arange(self.fragments + 1, dtype=np.uint32)
        height = np.full(self.fragments + 1, np.inf)
        tree_kernel.link(self.a, self.b, self.score.astype(np.float64), parent, height)
        return parent, height

    def table(self, threshold: float) -> np.ndarray:
        """The label of every fragment, uint32: clusters numbered by their first fragments, 0 for 0."""
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold must be 0 to 1; got {threshold}")
        if threshold > self.complete_below:
            raise InputError(f"the merge tree was computed up to {self.complete_below}; "
                             f"it cannot be cut at {threshold}")
        table = np.empty(self.fragments + 1, np.uint32)
        # a tree of waterz has its float32 scores, and waterz rounds the threshold to that too
        tree_kernel.number(*self._forest, float(self.score.dtype.type(threshold)), table)
        return table


class Remaining(NamedTuple):
    """Edges between the clusters that are left, best first, named by fragments of them."""

    u: np.ndarray
    v: np.ndarray
    score: np.ndarray


def agglomerate(graph: RegionGraph, score: str | Score = "mean", *, tie_break: str = "canonical",
                threshold: float | None = None, threads: int | None = None) -> MergeTree:
    """The merges of a region graph, up to the threshold or to the end.

    tie_break="waterz" replays the heap order and the float32 arithmetic of waterz, for comparisons.
    """
    return agglomerate_until(graph, score, tie_break, threshold, threads=threads)[0]


def agglomerate_until(graph: RegionGraph, score: str | Score, tie_break: str = "canonical",
                      threshold: float | None = None, with_remaining: bool = False,
                      threads: int | None = None) -> tuple[MergeTree, Remaining | None]:
    """The merge tree, and the edges that are left if wanted (with the scores that waterz keeps if it is replayed)."""
    if tie_break not in ("canonical", "waterz"):
        raise InputError(f"tie_break must be 'canonical' or 'waterz'; got {tie_break!r}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold must be 0 to 1; got {threshold}")
    score = parse_score(score)
    end = np.inf if threshold is None else threshold
    remaining = None
    if tie_break == "waterz":
        replay = replay_waterz(graph, score, end)
        a, b = np.empty((2, replay.merge_count), np.uint32)
        scores = np.empty(replay.merge_count, np.float32)
        replay.merges(a, b, scores)
        if with_remaining:
            u, v = np.empty((2, len(graph.u)), np.uint32)
            left_scores = np.empty(len(graph.u), np.float32)
            left = replay.remaining(u, v, left_scores)
            order = np.argsort(left_scores[:left], kind="stable")
            remaining = Remaining(u[order], v[order], left_scores[order])
        return MergeTree(graph.fragments, a, b, scores, end), remaining
    clusters = kernel.Clusters(score.kind, graph.fragments + 1, graph.u, graph.v, graph.key)
    _set_statistics(clusters, graph, score)
    edges, scores = _merge_all(clusters, graph, end, thread_count(threads))
    if with_remaining:
        numbers, left_scores = np.empty(len(graph.u), np.uint32), np.empty(len(graph.u))
        left = clusters.remaining(numbers, left_scores)
        order = np.lexsort((graph.key[numbers[:left]], left_scores[:left]))
        remaining = Remaining(graph.u[numbers[order]], graph.v[numbers[order]], left_scores[order])
    return MergeTree(graph.fragments, graph.u[edges], graph.v[edges], scores, end), remaining


def size_linkage(graph: RegionGraph, size: int, affinity: float = 0.0) -> MergeTree:
    """Size-dependent single linkage: merges across the largest affinities above `affinity` that have a small end.

    Edges are taken by falling maximal affinity (then by key); an edge joins its two clusters if either has fewer than
    `size` voxels at that moment. (Zlateski & Seung 2015, their size threshold as a constant.)
    """
    if graph.sizes is None:
        raise InputError("size_linkage needs the sizes of fragments; "
                         "ask for them with region_graph(..., statistics=('sizes',))")
    if not 0 <= affinity <= 1:
        raise InputError(f"affinity must be 0 to 1; got {affinity}")
    candidates = np.flatnonzero(graph.max > affinity)
    order = candidates[np.lexsort((graph.key[candidates], -graph.max[candidates]))]
    edges = link_by_size(graph.u, graph.v, order, graph.sizes, size)
    scores = 1.0 - graph.max[edges].astype(np.float64)
    return MergeTree(graph.fragments, graph.u[edges], graph.v[edges], scores, 1 - affinity)


def link_by_size(u: np.ndarray, v: np.ndarray, order: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """Those edges that, taken in the given order, join two clusters of which one has fewer than `limit` voxels."""
    merged = np.empty(len(order), np.int64)
    parent = np.arange(len(sizes), dtype=np.uint32)
    return merged[: tree_kernel.link_by_size(u, v, order, sizes.copy(), limit, parent, merged)]


def replay_waterz(graph: RegionGraph, score: Score, threshold: float) -> Replay:
    """The state of waterz after it has merged up to the threshold."""
    run = Replay(score.kind, graph.fragments + 1, graph.u, graph.v)
    if score.every_contact:
        raise InputError("tie_break='waterz' is for mean, max, min and quantiles of maxima")
    if score.kind == "quantile":
        levels, level = quantile_levels(graph, score)
        run.set_levels(score.quantile, (1 - levels).astype(np.float32), level)
    elif score.kind == "mean":
        if graph.running_mean is None:
            raise InputError("tie_break='waterz' needs the means as waterz adds them up; "
                             "ask for them with region_graph(..., statistics=('running_mean',))")
        run.set_values(graph.running_mean, graph.count)
    else:
        run.set_values(graph.max if score.kind == "max" else graph.min, graph.count)
    run.run(threshold)
    return run


def _merge_all(clusters: kernel.Clusters, graph: RegionGraph, end: float, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """(number of an edge that joins the two clusters, score) of every merge, in order.

    Each thread takes a range of ids, and of these what no edge to another range can concern; one thread does the rest.
    That pairs which are best for both may merge early without a trace is theorem 1 of the merge order.
    """
    total, nodes = len(graph.u), graph.fragments + 1
    queues = []
    if threads > 1 and total > 0:
        borders = np.unique([0, *(int(graph.u[first]) for first, _ in slabs(total, threads)[1:]), nodes])
        clusters.freeze_between(borders)
        queues = [kernel.Queue(clusters, True) for _ in borders[1:]]
        starts = np.searchsorted(graph.u, borders)
        jobs = zip(queues, starts.tolist(), starts[1:].tolist(), borders[1:].tolist())
        run_parallel(lambda queue, *part: queue.run(end, *part), jobs, threads)
    queues.append(kernel.Queue(clusters, False))
    queues[-1].run(end, 0, total, nodes)
    count = sum(queue.merge_count for queue in queues)
    edges, scores = np.empty(count, np.uint32), np.empty(count)
    kernel.in_order(queues, edges, scores)
    return edges, scores


def _set_statistics(run: kernel.Clusters, graph: RegionGraph, score: Score) -> None:
    if score.kind == "mean":
        run.set_means(graph.sum, graph.count)
    elif score.kind == "max":
        run.set_extremes(graph.max)
    elif score.kind == "min":
        run.set_extremes(graph.min)
    else:
        if score.every_contact and graph.bins is None:
            raise InputError("a quantile over every contact needs the histograms of the graph; "
                             "ask for them with region_graph(..., statistics=('histogram',))")
        levels, level = quantile_levels(graph, score)
        run.set_levels(score.quantile, levels, level)
        if score.every_contact:
            run.add_counts(graph.bin_starts, graph.bins, graph.bin_counts)


def quantile_levels(graph: RegionGraph, score: Score) -> tuple[np.ndarray, np.ndarray]:
    """(score of every level, level of every edge's largest affinity); a level is a bin, or one of the values."""
    if score.bins == 0:
        values, level = np.unique(graph.max, return_inverse=True)
        return 1 - values.astype(np.float64), level.astype(np.uint32)
    level = np.minimum(graph.max * np.float32(score.bins), score.bins - 1).astype(np.uint32)
    return 1 - (np.arange(score.bins) + 0.5) / score.bins, level


def cut(fragments: np.ndarray, tree: MergeTree, threshold: float | Sequence[float], *, out: np.ndarray | None = None,
        threads: int | None = None) -> np.ndarray | list[np.ndarray]:
    """The labels (z, y, x), uint32, at a threshold, or a list of them for several; out may be fragments itself."""
    if not np.isscalar(threshold):
        if out is not None:
            raise InputError("out takes one threshold; loop over the thresholds, or use tree.table")
        return [cut(fragments, tree, one, threads=threads) for one in threshold]
    return look_up(fragments, tree.table(threshold), out=out, threads=threads)


def look_up(fragments: np.ndarray, table: np.ndarray, *, out: np.ndarray | None = None,
            threads: int | None = None) -> np.ndarray:
    """table[fragments], uint32; out may be fragments itself."""
    fragments = label_view(fragments)
    if out is None:
        out = np.empty(fragments.shape, np.uint32)
    elif out.shape != fragments.shape or out.dtype != np.uint32:
        raise InputError(f"out must be {fragments.shape} uint32; got {out.shape} {out.dtype}")
    threads = thread_count(threads)
    known = run_parallel(lambda start, stop: tree_kernel.look_up(fragments, table, out, start, stop),
                         slabs(fragments.shape[0], threads), threads)
    if not all(known):
        raise InputError(f"fragments hold labels above {len(table) - 1}, which the merge tree does not know")
    return out
