"""Merge trees: the merges of an agglomeration in order, from which labels at any threshold are a table look-up away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np

from emcore.errors import InputError
from emcore.kernels import merge_tree as tree_kernel
from emcore.segment.arrays import as_array, as_count, within
from emcore.segment.graph import LARGEST_LABEL, RegionGraph, check_graph, label_view
from emcore.threads import run_parallel, slabs, thread_count


@dataclass(frozen=True)
class MergeTree:
    """Holds merges in the order in which they happen.

    Attributes:
        fragments: the number of fragments; ids are 1 to fragments.
        a: (n,) uint32, a fragment of one of the two clusters.
        b: (n,) uint32, a fragment of the other.
        height: (n,) float64, 1 - the statistic of the affinities, never falling.
        complete_below: merges at this height and above were not computed; inf by default.
        key: (n,) uint64, the key of each merge's contact, which orders equal heights; None where it is unknown.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> tree = segment.MergeTree(3, np.array([1, 1], np.uint32), np.array([2, 3], np.uint32), np.array([0.2, 0.6]))
        >>> tree.table(0.5)  # the labels of fragments 0, 1, 2 and 3
        array([0, 1, 1, 2], dtype=uint32)
    """

    fragments: int
    a: np.ndarray
    b: np.ndarray
    height: np.ndarray
    complete_below: float = np.inf
    key: np.ndarray | None = None

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
        """Gives the label of every fragment at a threshold.

        Args:
            threshold: merges of a height below it are made.

        Returns:
            (fragments + 1,) uint32: clusters are numbered by their first fragments, 0 stays 0.

        Raises:
            InputError: the threshold lies beyond what was computed.
        """
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
    """Merges small regions across their largest affinity.

    This is single linkage that depends on size (Zlateski and Seung 2015, with a constant for their threshold). Contacts
    are taken by falling maximal affinity, then by key. A contact joins its two clusters if either of them is small at
    that moment.

    Args:
        graph: the `RegionGraph`, with sizes.
        size: clusters below so many voxels are small.
        affinity: contacts whose largest affinity is at or below it join nothing, 0 to 1 (default 0).

    Returns:
        The `MergeTree`.

    Raises:
        InputError: the graph has no sizes, or a number does not fit.

    Cost:
        It takes 220 ns of one core and 49 bytes per edge.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 1, 1, 7), 0.5, np.float32)
        >>> graph = segment.region_graph(np.array([[[1, 1, 1, 2, 3, 3, 3]]]), affs)
        >>> len(segment.size_linkage(graph, 2).height)
        1
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
    """Makes the labels of a merge tree at one threshold, or at several.

    Args:
        fragments: labels (z, y, x), uint32 or uint64, from which the tree was made.
        tree: the `MergeTree`.
        threshold: merges of a height below it are made, 0 to 1; one number or a list of them.
        out: an array for the labels of one threshold, which may be fragments itself. By default a new one is made.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32; for several thresholds a list of them.

    Raises:
        InputError: the tree does not fit the fragments, or the threshold lies beyond what was computed.

    Cost:
        It takes 1.8 ns of one core and 4.0 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> tree = segment.MergeTree(3, np.array([1, 1], np.uint32), np.array([2, 3], np.uint32), np.array([0.2, 0.6]))
        >>> segment.cut(np.array([[[1, 2, 3, 0]]], np.uint32), tree, [0.5, 0.7])
        [array([[[1, 1, 2, 0]]], dtype=uint32), array([[[1, 1, 1, 0]]], dtype=uint32)]
    """
    require_tree(tree, "cut")
    if not np.isscalar(threshold):
        if out is not None:
            raise InputError("out takes one threshold; sweep goes through several in one array")
        return [cut(fragments, tree, one, threads=threads) for one in threshold]
    return look_up(fragments, tree.table(threshold), out=out, threads=threads)


def sweep(fragments: np.ndarray, tree: MergeTree, thresholds: Sequence[float], *, out: np.ndarray | None = None,
          threads: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Makes labels at rising thresholds, each time in the same array: copy what is to be kept.

    Args:
        fragments: labels (z, y, x), uint32 or uint64, from which the tree was made.
        tree: the `MergeTree`.
        thresholds: rising numbers of 0 to 1.
        out: an array for the labels, which may be fragments itself and is overwritten. By default a new one is made.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        An iterator of pairs: the threshold and the labels (z, y, x), uint32.

    Raises:
        InputError: the tree does not fit the fragments, or the thresholds do not rise.

    Cost:
        A threshold takes 1.0 ns of one core per voxel; the labels take 4.0 bytes per voxel once.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> tree = segment.MergeTree(3, np.array([1, 1], np.uint32), np.array([2, 3], np.uint32), np.array([0.2, 0.6]))
        >>> fragments = np.array([[[1, 2, 3]]], np.uint32)
        >>> [(at, int(labels.max())) for at, labels in segment.sweep(fragments, tree, [0.5, 0.7])]
        [(0.5, 2), (0.7, 1)]
    """
    require_tree(tree, "sweep")
    thresholds = list(thresholds)
    if any(later < earlier for earlier, later in pairwise(thresholds)):
        raise InputError(f"thresholds must rise; got {thresholds}")
    before = None
    for threshold in thresholds:
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
