"""Merge trees: the merges of an agglomeration in order, from which labels at any threshold are a table look-up away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np

from emcore.errors import InputError
from emcore.kernels import merge_tree as tree_kernel
from emcore.segment.arrays import as_array, as_count, within
from emcore.segment.graph import LARGEST_LABEL, RegionGraph, check_graph, label_view
from emcore.threads import run_parallel, slabs, thread_count


@dataclass(frozen=True)
class MergeTree:
    """Merges in the order they happen: a and b are fragments, one from each of the two clusters."""

    fragments: int  # ids are 1 to fragments
    a: np.ndarray  # uint32
    b: np.ndarray
    height: np.ndarray  # float64, 1 - statistic of the affinities, never falling
    complete_below: float = np.inf  # merges at this height and above were not computed
    key: np.ndarray | None = None  # uint64, of each merge's edge: the order of equal heights, where it is known

    @cached_property
    def _forest(self) -> tuple[np.ndarray, np.ndarray]:
        """(parent, height): i's cluster joins that of fragment parent[i] < i, its smallest, at height[i]."""
        tree = check_tree(self, "cut")
        parent = np.arange(tree.fragments + 1, dtype=np.uint32)
        height = np.full(tree.fragments + 1, np.inf)
        tree_kernel.link(tree.a, tree.b, tree.height.astype(np.float64), parent, height)
        return parent, height

    def parents(self) -> np.ndarray:
        """For every fragment a smaller one that its cluster joins at last, or itself if it joins none, from 0 on."""
        return self._forest[0]

    def table(self, threshold: float) -> np.ndarray:
        """The label of every fragment, uint32: clusters numbered by their first fragments, 0 for 0."""
        if not within(threshold, 0, 1):
            raise InputError(f"threshold must be 0 to 1; got {threshold}")
        parent, height = self._forest
        if threshold > self.complete_below:
            raise InputError(f"the merge tree was computed up to {self.complete_below}; "
                             f"it cannot be cut at {threshold}")
        table = np.empty(len(parent), np.uint32)
        # a tree of waterz has float32 heights, and waterz rounds the threshold to that too
        tree_kernel.number(parent, height, float(self.height.dtype.type(threshold)), table)
        return table


def require_tree(tree: MergeTree, name: str) -> None:
    """Refuses what is no merge tree, naming the call that makes one."""
    if not isinstance(tree, MergeTree):
        raise InputError(f"{name} takes the merge tree that agglomerate(region_graph(fragments, affs)) returns; got "
                         f"{type(tree).__name__}")


def check_tree(tree: MergeTree, name: str) -> MergeTree:
    """The tree with plain arrays, if `name` can work with it: every kernel trusts what this has looked at."""
    require_tree(tree, name)
    a, b, height = (as_array(field, getattr(tree, field)) for field in ("a", "b", "height"))
    key = None if tree.key is None else as_array("key", tree.key)
    wrong = None
    if not isinstance(tree.fragments, int | np.integer) or not 0 <= tree.fragments <= LARGEST_LABEL:
        wrong = f"it numbers fragments up to {tree.fragments}, not up to a number below 2**32 - 1"
    elif a.dtype != np.uint32 or b.dtype != np.uint32 or height.dtype not in (np.float32, np.float64):
        wrong = f"a, b and height must be uint32, uint32 and float64; they are {a.dtype}, {b.dtype} and {height.dtype}"
    elif not a.shape == b.shape == height.shape == (height.size,):
        wrong = f"a, b and height must be equally long; they have the shapes {a.shape}, {b.shape} and {height.shape}"
    elif len(a) and not (min(a.min(), b.min()) >= 1 and max(a.max(), b.max()) <= tree.fragments):
        wrong = f"its merges must name ids 1 to {tree.fragments}; they name {min(a.min(), b.min())} to " \
                f"{max(a.max(), b.max())}"
    elif not np.isfinite(height).all() or (height[1:] < height[:-1]).any():
        wrong = "its heights must be numbers that never fall"
    elif key is not None and (key.dtype != np.uint64 or key.shape != height.shape):
        wrong = f"its keys must be {height.shape} uint64; they are {key.shape} {key.dtype}"
    elif key is not None and ((height[1:] == height[:-1]) & (key[1:] < key[:-1])).any():
        wrong = "its merges at one height must come in the order of their keys"
    elif not within(tree.complete_below, -np.inf, np.inf):
        wrong = f"it says that it was computed up to {tree.complete_below!r}"
    if wrong:
        raise InputError(f"the merge tree is damaged: {wrong}; make it anew with agglomerate")
    return replace(tree, fragments=int(tree.fragments), a=a, b=b, height=height, key=key)


def size_linkage(graph: RegionGraph, size: int, affinity: float = 0.0) -> MergeTree:
    """Size-dependent single linkage: merges across the largest affinities above `affinity` that have a small end.

    Edges are taken by falling maximal affinity (then by key); an edge joins its two clusters if either has fewer than
    `size` voxels at that moment. (Zlateski & Seung 2015, their size threshold as a constant.)
    """
    graph = check_graph(graph, "size_linkage")
    if graph.sizes is None:
        raise InputError("size_linkage needs the sizes of fragments; "
                         "ask for them with region_graph(..., extras=('sizes',))")
    if not within(affinity, 0, 1):
        raise InputError(f"affinity must be 0 to 1; got {affinity}")
    candidates = np.flatnonzero(graph.max > affinity)
    order = candidates[np.lexsort((graph.key[candidates], -graph.max[candidates]))]
    edges = link_by_size(graph.u, graph.v, order, graph.sizes, size)
    heights = 1.0 - graph.max[edges].astype(np.float64)
    return MergeTree(graph.fragments, graph.u[edges], graph.v[edges], heights, 1 - affinity)


def link_by_size(u: np.ndarray, v: np.ndarray, order: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """Those edges that, taken in the given order, join two clusters of which one has fewer than `limit` voxels."""
    limit = as_count("size", limit)
    merged = np.empty(len(order), np.int64)
    parent = np.arange(len(sizes), dtype=np.uint32)
    return merged[: tree_kernel.link_by_size(u, v, order, sizes.copy(), limit, parent, merged)]


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
    """table[fragments]; out may be fragments itself. The table is of uint32 or uint64."""
    fragments = label_view(fragments)
    if out is None:
        out = np.empty(fragments.shape, table.dtype)
    else:
        _check_out(out, fragments, table.dtype)
    threads = thread_count(threads)
    known = run_parallel(lambda start, stop: tree_kernel.look_up(fragments, table, out, start, stop),
                         slabs(fragments.shape[0], threads), threads)
    if not all(known):
        raise InputError(f"fragments hold labels above {len(table) - 1}, which the merge tree does not know")
    return out


def _check_out(out: np.ndarray, fragments: np.ndarray, dtype: np.dtype) -> None:
    """Refuses an array that cannot take the labels of fragments; it may be fragments itself, but not overlap them."""
    if not isinstance(out, np.ndarray) or out.shape != fragments.shape or out.dtype != dtype:
        raise InputError(f"out must be {fragments.shape} {dtype}; got {getattr(out, 'shape', type(out).__name__)} "
                         f"{getattr(out, 'dtype', '')}")
    if not out.flags.writeable or not out.flags.aligned or any(stride % out.itemsize for stride in out.strides):
        raise InputError("out must be an array that may be written, its elements where the machine expects them")
    same = (out.ctypes.data, out.strides, out.itemsize) == (fragments.ctypes.data, fragments.strides,
                                                            fragments.itemsize)
    if not same and np.may_share_memory(out, fragments):
        raise InputError("out may be fragments itself, but not another view of the same memory")
