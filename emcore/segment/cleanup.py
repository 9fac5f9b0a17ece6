"""After the cut: dust is merged into its best neighbour or removed, and voxels on boundaries are cleared."""

import numpy as np

from emcore.errors import InputError
from emcore.segment.affinities import check_affinities
from emcore.segment.arrays import as_array, as_count, within
from emcore.segment.graph import label_view, largest_label, measure, region_graph
from emcore.segment.merge_tree import MergeTree, Remaining, finish, link_by_size, look_up, start
from emcore.segment.scores import Score
from emcore.threads import run_parallel, slabs, thread_count


def merge_small(labels: np.ndarray, affs: np.ndarray, size: int, *, affinity: float = 0.0, remove: int = 0,
                score: str | Score = "mean", threads: int | None = None, **convention) -> np.ndarray:
    """labels with segments below `size` voxels merged into a neighbour, uint32, numbered in the order of the labels.

    Borders are taken by rising score (1 - affinity); one above `affinity` joins its two segments if either is small at
    that moment. Then segments below `remove` voxels become 0. convention: offsets, channels, edge and table, as in
    region_graph.
    """
    graph = region_graph(labels, affs, score=score, threads=threads, **convention)
    borders = finish(start(graph, score), threshold=0, with_remaining=True, threads=threads)[1]
    return look_up(labels, dust_table(graph.sizes, borders, size, affinity, remove), threads=threads)


def merge_dust(labels: np.ndarray, table: np.ndarray, borders: Remaining | None, size: int, *, affinity: float = 0.0,
               remove: int = 0, threads: int | None = None) -> np.ndarray:
    """labels, changed in place: their dust is merged as in merge_small, by the scores that borders ended with.

    table: the label of every fragment; borders: between fragments, None where nothing is to be merged.
    """
    none = np.empty(0, np.uint32)
    left = Remaining(none, none, none)
    if borders is not None:
        left = Remaining(table[borders.u], table[borders.v], borders.score)
    sizes, _ = measure(labels, int(table.max()), threads)
    return look_up(labels, dust_table(sizes, left, size, affinity, remove), out=labels, threads=threads)


def dust_table(sizes: np.ndarray, borders: Remaining, size: int, affinity: float, remove: int) -> np.ndarray:
    """The new label of every segment; sizes counts their voxels, borders come best first."""
    if not within(size, 0, np.inf) or not within(remove, 0, np.inf) or not within(affinity, 0, 1):
        raise InputError("dust sizes must not be below 0 and affinity must be 0 to 1; "
                         f"got {size}, {remove}, {affinity}")
    size, remove = as_count("the size of dust to merge", size), as_count("the size of dust to remove", remove)
    good = np.flatnonzero(1 - borders.score > affinity)
    edges = link_by_size(borders.u, borders.v, good, sizes, size)
    merged = MergeTree(len(sizes) - 1, borders.u[edges], borders.v[edges], np.zeros(len(edges))).table(1)
    voxels = np.zeros(int(merged.max()) + 1, np.int64)
    np.add.at(voxels, merged, sizes)
    keep = voxels >= max(remove, 1)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.uint32)[merged]


def remove_small(labels: np.ndarray, size: int, *, threads: int | None = None) -> np.ndarray:
    """labels with every segment below `size` voxels set to 0; the others keep their labels."""
    if not within(size, -np.inf, np.inf):
        raise InputError(f"size must be a number of voxels; got {size!r}")
    labels = label_view(labels, "labels")
    largest = largest_label(labels, threads)
    if largest <= labels.size and largest < 2**32 - 1:
        sizes, _ = measure(labels, largest, threads)
        table = np.where(sizes >= size, np.arange(largest + 1), 0).astype(np.uint32)
        return look_up(labels, table, threads=threads)
    ids, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(counts >= size, ids, 0).astype(ids.dtype)[place].reshape(labels.shape)


def boundary_threshold(labels: np.ndarray, affs: np.ndarray, threshold: float, *, offsets=None, edge: str = "later",
                       table: np.ndarray | None = None, threads: int | None = None) -> np.ndarray:
    """labels with 0 where the mean of the affinities towards smaller y and x is below the threshold, a new array.

    Where such an edge would leave the volume, what affs hold there counts, or 0 if it is stored at the earlier voxel.
    """
    if not within(threshold, 0, 1):
        raise InputError(f"threshold must be 0 to 1; got {threshold}")
    labels = as_array("labels", labels)
    checked = check_affinities(affs, offsets=offsets, edge=edge, table=table, values=False)
    if checked.values.shape[1:] != labels.shape:
        raise InputError(f"affs must be (channels, z, y, x) over the labels' shape {labels.shape}; "
                         f"got {checked.values.shape}")
    out = labels.copy()

    def clear(start: int, stop: int) -> None:
        for z in range(start, stop):
            total = np.zeros(labels.shape[1:], np.float32)
            for axis in (1, 2):
                plane = checked.values[checked.channels[axis], z]
                plane = plane.astype(np.float32) if checked.table is None else checked.table[plane]
                if checked.shifts[axis]:
                    here, there = [slice(None)] * 2, [slice(None)] * 2
                    here[axis - 1], there[axis - 1] = slice(1, None), slice(None, -1)
                    total[tuple(here)] += plane[tuple(there)]
                else:
                    total += plane
            out[z][total / 2 < threshold] = 0

    threads = thread_count(threads)
    run_parallel(clear, slabs(labels.shape[0], threads), threads)
    return out
