"""Agglomeration to a merge tree, computed once; labels at any threshold are a table look-up away.

Regions merge while score < threshold, smallest score first. Equal scores are taken in the order of the edges' keys, a
key being the largest among an edge's contacts: with that rule the tree is a function of the graph alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np

from emcore.errors import InputError
from emcore.kernels import agglomeration as kernel
from emcore.kernels import merge_tree as tree_kernel
from emcore.kernels.waterz_replay import Replay
from emcore.segment.arrays import as_array, as_count, within
from emcore.segment.graph import LARGEST_LABEL, RegionGraph, check_graph, label_view
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
        tree = check_tree(self, "cut")
        parent = np.arange(tree.fragments + 1, dtype=np.uint32)
        height = np.full(tree.fragments + 1, np.inf)
        tree_kernel.link(tree.a, tree.b, tree.score.astype(np.float64), parent, height)
        return parent, height

    def table(self, threshold: float) -> np.ndarray:
        """The label of every fragment, uint32: clusters numbered by their first fragments, 0 for 0."""
        if not within(threshold, 0, 1):
            raise InputError(f"threshold must be 0 to 1; got {threshold}")
        parent, height = self._forest
        if threshold > self.complete_below:
            raise InputError(f"the merge tree was computed up to {self.complete_below}; "
                             f"it cannot be cut at {threshold}")
        table = np.empty(len(parent), np.uint32)
        # a tree of waterz has its float32 scores, and waterz rounds the threshold to that too
        tree_kernel.number(parent, height, float(self.score.dtype.type(threshold)), table)
        return table


def require_tree(tree: MergeTree, name: str) -> None:
    """Refuses what is no merge tree, naming the call that makes one."""
    if not isinstance(tree, MergeTree):
        raise InputError(f"{name} takes the merge tree that agglomerate(region_graph(fragments, affs)) returns; got "
                         f"{type(tree).__name__}")


def check_tree(tree: MergeTree, name: str) -> MergeTree:
    """The tree with plain arrays, if `name` can work with it: every kernel trusts what this has looked at."""
    require_tree(tree, name)
    a, b, score = (as_array(field, getattr(tree, field)) for field in ("a", "b", "score"))
    wrong = None
    if not isinstance(tree.fragments, int | np.integer) or not 0 <= tree.fragments <= LARGEST_LABEL:
        wrong = f"it numbers fragments up to {tree.fragments}, not up to a number below 2**32 - 1"
    elif a.dtype != np.uint32 or b.dtype != np.uint32 or score.dtype not in (np.float32, np.float64):
        wrong = f"a, b and score must be uint32, uint32 and float64; they are {a.dtype}, {b.dtype} and {score.dtype}"
    elif not a.shape == b.shape == score.shape == (score.size,):
        wrong = f"a, b and score must be equally long; they have the shapes {a.shape}, {b.shape} and {score.shape}"
    elif len(a) and not (min(a.min(), b.min()) >= 1 and max(a.max(), b.max()) <= tree.fragments):
        wrong = f"its merges must name ids 1 to {tree.fragments}; they name {min(a.min(), b.min())} to " \
                f"{max(a.max(), b.max())}"
    elif not np.isfinite(score).all() or (score[1:] < score[:-1]).any():
        wrong = "its scores must be numbers that never fall"
    elif not within(tree.complete_below, -np.inf, np.inf):
        wrong = f"it says that it was computed up to {tree.complete_below!r}"
    if wrong:
        raise InputError(f"the merge tree is damaged: {wrong}; make it anew with agglomerate")
    return replace(tree, fragments=int(tree.fragments), a=a, b=b, score=score)


class Remaining(NamedTuple):
    """Edges between the clusters that are left, best first, named by fragments of them."""

    u: np.ndarray
    v: np.ndarray
    score: np.ndarray


class Started(NamedTuple):
    """An agglomeration about to run; of the graph, only the ends of its edges are still needed."""

    run: kernel.Clusters | Replay
    fragments: int
    u: np.ndarray
    v: np.ndarray


def agglomerate(graph: RegionGraph, score: str | Score = "mean", *, tie_break: str = "canonical",
                threshold: float | None = None, threads: int | None = None) -> MergeTree:
    """The merges of a region graph, up to the threshold or to the end.

    tie_break="waterz" replays the heap order and the float32 arithmetic of waterz, for comparisons.
    """
    return finish(start(graph, score, tie_break), threshold, threads=threads)[0]


def start(graph: RegionGraph, score: str | Score, tie_break: str = "canonical") -> Started:
    """The clusters of a graph before the first merge."""
    if tie_break not in ("canonical", "waterz"):
        raise InputError(f"tie_break must be 'canonical' or 'waterz'; got {tie_break!r}")
    score, graph = parse_score(score), check_graph(graph, "agglomerate")
    if tie_break == "waterz":
        run = Replay(score.kind, graph.fragments + 1, graph.u, graph.v)
        _set_replay(run, graph, score)
    else:
        run = kernel.Clusters(score.kind, graph.fragments + 1, graph.u, graph.v, graph.key)
        _set_statistics(run, graph, score)
    return Started(run, graph.fragments, graph.u, graph.v)


def finish(started: Started, threshold: float | None = None, with_remaining: bool = False,
           threads: int | None = None) -> tuple[MergeTree, Remaining | None]:
    """The merge tree, and the edges that are left if wanted (with the scores that waterz keeps if it is replayed)."""
    if threshold is not None and not within(threshold, 0, 1):
        raise InputError(f"threshold must be 0 to 1; got {threshold}")
    run, fragments, u, v = started
    end = np.inf if threshold is None else threshold
    remaining = None
    if isinstance(run, Replay):
        run.run(end)
        a, b = np.empty((2, run.merge_count), np.uint32)
        scores = np.empty(run.merge_count, np.float32)
        run.merges(a, b, scores)
        if with_remaining:
            left_u, left_v = np.empty((2, len(u)), np.uint32)
            left_scores = np.empty(len(u), np.float32)
            left = run.remaining(left_u, left_v, left_scores)
            order = np.argsort(left_scores[:left], kind="stable")
            remaining = Remaining(left_u[order], left_v[order], left_scores[order])
        return MergeTree(fragments, a, b, scores, end), remaining
    edges, scores = _merge_all(run, fragments, u, end, thread_count(threads))
    if with_remaining:
        left = run.remaining_count
        numbers, left_scores, keys = np.empty(left, np.uint32), np.empty(left), np.empty(left, np.uint64)
        run.remaining(numbers, left_scores, keys)
        order = np.lexsort((keys, left_scores))
        remaining = Remaining(u[numbers[order]], v[numbers[order]], left_scores[order])
    return MergeTree(fragments, u[edges], v[edges], scores, end), remaining


def size_linkage(graph: RegionGraph, size: int, affinity: float = 0.0) -> MergeTree:
    """Size-dependent single linkage: merges across the largest affinities above `affinity` that have a small end.

    Edges are taken by falling maximal affinity (then by key); an edge joins its two clusters if either has fewer than
    `size` voxels at that moment. (Zlateski & Seung 2015, their size threshold as a constant.)
    """
    graph = check_graph(graph, "size_linkage")
    if graph.sizes is None:
        raise InputError("size_linkage needs the sizes of fragments; "
                         "ask for them with region_graph(..., statistics=('sizes',))")
    if not within(affinity, 0, 1):
        raise InputError(f"affinity must be 0 to 1; got {affinity}")
    candidates = np.flatnonzero(graph.max > affinity)
    order = candidates[np.lexsort((graph.key[candidates], -graph.max[candidates]))]
    edges = link_by_size(graph.u, graph.v, order, graph.sizes, size)
    scores = 1.0 - graph.max[edges].astype(np.float64)
    return MergeTree(graph.fragments, graph.u[edges], graph.v[edges], scores, 1 - affinity)


def link_by_size(u: np.ndarray, v: np.ndarray, order: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """Those edges that, taken in the given order, join two clusters of which one has fewer than `limit` voxels."""
    limit = as_count("size", limit)
    merged = np.empty(len(order), np.int64)
    parent = np.arange(len(sizes), dtype=np.uint32)
    return merged[: tree_kernel.link_by_size(u, v, order, sizes.copy(), limit, parent, merged)]


def _set_replay(run: Replay, graph: RegionGraph, score: Score) -> None:
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


def _merge_all(clusters: kernel.Clusters, fragments: int, u: np.ndarray, end: float,
               threads: int) -> tuple[np.ndarray, np.ndarray]:
    """(number of an edge that joins the two clusters, score) of every merge, in order.

    Each thread takes a range of ids, and of these what no edge to another range can concern; one thread does the rest.
    Pairs that are each other's best may merge before their turn without a trace, as scores are reducible.
    """
    queues = []
    if threads > 1 and len(u) > 0:
        borders = np.unique([0, *(int(u[first]) for first, _ in slabs(len(u), threads)[1:]), fragments + 1])
        clusters.freeze_between(borders)
        queues = [kernel.Queue(clusters, True) for _ in borders[1:]]
        firsts = np.searchsorted(u, borders.astype(u.dtype)).tolist()
        jobs = list(zip(queues, firsts, firsts[1:], borders[1:].tolist()))
        run_parallel(lambda queue, *part: queue.run(end, *part), jobs, threads)
    queues.append(kernel.Queue(clusters, False))
    queues[-1].run(end, 0, len(u), fragments + 1)
    count = sum(queue.merge_count for queue in queues)
    edges, scores = np.empty(count, np.uint32), np.empty(count)
    kernel.in_order(clusters, queues, edges, scores)
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


@overload
def cut(fragments: np.ndarray, tree: MergeTree, threshold: float, *, out: np.ndarray | None = None,
        threads: int | None = None) -> np.ndarray: ...
@overload
def cut(fragments: np.ndarray, tree: MergeTree, threshold: Sequence[float], *, out: None = None,
        threads: int | None = None) -> list[np.ndarray]: ...
def cut(fragments: np.ndarray, tree: MergeTree, threshold: float | Sequence[float], *, out: np.ndarray | None = None,
        threads: int | None = None) -> np.ndarray | list[np.ndarray]:
    """The labels (z, y, x), uint32, at a threshold, or a list of them for several; out may be fragments itself."""
    require_tree(tree, "cut")
    if not np.isscalar(threshold):
        if out is not None:
            raise InputError("out takes one threshold; sweep goes through several in one array")
        return [cut(fragments, tree, one, threads=threads) for one in threshold]
    return look_up(fragments, tree.table(threshold), out=out, threads=threads)


def sweep(fragments: np.ndarray, tree: MergeTree, thresholds: Sequence[float], *, out: np.ndarray | None = None,
          threads: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """(threshold, labels) for rising thresholds, each time in the same array: copy what is to be kept.

    out may be fragments itself, which is then overwritten; without it the labels take one new array.
    """
    require_tree(tree, "sweep")
    before = None
    for threshold in sorted(thresholds):
        table = tree.table(threshold)
        if before is None:
            out = look_up(fragments, table, out=out, threads=threads)
        else:  # from the labels there are: they lie in one array with those to come
            step = np.zeros(int(before.max()) + 1, np.uint32)
            step[before] = table
            look_up(out, step, out=out, threads=threads)
        before = table
        yield threshold, out


def look_up(fragments: np.ndarray, table: np.ndarray, *, out: np.ndarray | None = None,
            threads: int | None = None) -> np.ndarray:
    """table[fragments], uint32; out may be fragments itself."""
    fragments = label_view(fragments)
    if out is None:
        out = np.empty(fragments.shape, np.uint32)
    else:
        _check_out(out, fragments)
    threads = thread_count(threads)
    known = run_parallel(lambda start, stop: tree_kernel.look_up(fragments, table, out, start, stop),
                         slabs(fragments.shape[0], threads), threads)
    if not all(known):
        raise InputError(f"fragments hold labels above {len(table) - 1}, which the merge tree does not know")
    return out


def _check_out(out: np.ndarray, fragments: np.ndarray) -> None:
    """Refuses an array that cannot take the labels of fragments; it may be fragments itself, but not overlap them."""
    if not isinstance(out, np.ndarray) or out.shape != fragments.shape or out.dtype != np.uint32:
        raise InputError(f"out must be {fragments.shape} uint32; got {getattr(out, 'shape', type(out).__name__)} "
                         f"{getattr(out, 'dtype', '')}")
    if not out.flags.writeable or not out.flags.aligned or any(stride % 4 for stride in out.strides):
        raise InputError("out must be an array that may be written, its elements where the machine expects them")
    same = (out.ctypes.data, out.strides, out.itemsize) == (fragments.ctypes.data, fragments.strides,
                                                            fragments.itemsize)
    if not same and np.may_share_memory(out, fragments):
        raise InputError("out may be fragments itself, but not another view of the same memory")
