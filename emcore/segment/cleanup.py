"""After the cut: dust is merged into its best neighbour or removed, and voxels on boundaries are cleared."""

from collections.abc import Sequence

import numpy as np

from emcore.errors import InputError
from emcore.segment.affinities import Affinities, as_affinities
from emcore.segment.agglomeration import Agglomeration, Remaining
from emcore.segment.arrays import as_array, as_count, within
from emcore.segment.graph import label_view, largest_label, measure, region_graph
from emcore.segment.merge_tree import MergeTree, link_by_size, look_up
from emcore.segment.relabeling import label_dtype
from emcore.segment.statistics import Statistic
from emcore.threads import run_parallel, slabs, thread_count


def merge_small(labels: np.ndarray, affs: np.ndarray | Affinities, size: int, *, affinity: float = 0.0,
                remove_size: int = 0, statistic: str | Statistic = "mean", channels: Sequence[int] | None = None,
                threads: int | None = None) -> np.ndarray:
    """Merges small segments into the neighbour with the best contact.

    Contacts are taken by falling statistic; one above `affinity` joins its two segments if either of them is small at
    that moment. Afterwards segments below remove_size voxels become 0.

    Args:
        labels: integers (z, y, x).
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`.
        size: segments below so many voxels are small.
        affinity: contacts at or below it join nothing, 0 to 1. The default is 0.
        remove_size: segments that are still below so many voxels become 0. The default 0 removes none.
        statistic: what ranks the contacts; "mean" by default (see `parse_statistic`).
        channels: the channels whose affinities count; by default all that have an offset.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape, uint32, numbered from 1 in the order of the given labels.

    Raises:
        InputError: the shapes differ, or a number does not fit.

    Cost:
        It takes 4.8 ns of one core and 4.1 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> labels = np.array([[[1, 1, 1, 2, 3, 3, 3]]])
        >>> affs = np.full((3, 1, 1, 7), 0.5, np.float32)
        >>> affs[2, 0, 0, 4] = 0.8  # segments 2 and 3 touch across it
        >>> segment.merge_small(labels, affs, 2)[0, 0]
        array([1, 1, 1, 2, 2, 2, 2], dtype=uint32)
    """
    graph = region_graph(labels, affs, statistic=statistic, channels=channels, threads=threads)
    borders = Agglomeration(graph, statistic).remaining()
    return look_up(labels, dust_table(graph.sizes, borders, size, affinity, remove_size), threads=threads)


def merge_dust(labels: np.ndarray, table: np.ndarray, borders: Remaining | None, size: int, *, affinity: float = 0.0,
               remove_size: int = 0, threads: int | None = None) -> np.ndarray:
    """labels, changed in place: their dust is merged as in merge_small, by the heights that borders ended with.

    table: the label of every fragment; borders: between fragments, None where nothing is to be merged.
    """
    none = np.empty(0, np.uint32)
    left = Remaining(none, none, none)
    if borders is not None:
        left = Remaining(table[borders.u], table[borders.v], borders.height)
    sizes, _ = measure(labels, int(table.max()), threads)
    return look_up(labels, dust_table(sizes, left, size, affinity, remove_size), out=labels, threads=threads)


def dust_table(sizes: np.ndarray, borders: Remaining, size: int, affinity: float, remove_size: int) -> np.ndarray:
    """The new label of every segment; sizes counts their voxels, borders come best first."""
    if not within(size, 0, np.inf) or not within(remove_size, 0, np.inf) or not within(
            affinity, 0, 1):
        raise InputError("dust sizes must not be below 0 and affinity must be 0 to 1; "
                         f"got {size}, {remove_size}, {affinity}")
    size, least = as_count("the size of dust to merge", size), as_count("the size of dust to remove", remove_size)
    good = np.flatnonzero(1 - borders.height > affinity)
    edges = link_by_size(borders.u, borders.v, good, sizes, size)
    merged = MergeTree(len(sizes) - 1, borders.u[edges], borders.v[edges], np.zeros(len(edges))).table(1)
    return number_kept(merged, sizes, least)


def number_kept(merged: np.ndarray, sizes: np.ndarray, least: int) -> np.ndarray:
    """The new number of every segment: one for all that merged, numbered by the smallest segment of each group.

    A group that is empty or has fewer than `least` voxels gets 0, as does segment 0. sizes counts the voxels of every
    segment; merged names its group, by numbers up to its own that rise with the groups' smallest segments.
    """
    voxels = np.zeros(int(merged.max()) + 1, np.int64)
    np.add.at(voxels, merged, sizes)
    keep = voxels >= max(least, 1)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(label_dtype(len(sizes)))[merged]


def remove_small(labels: np.ndarray, size: int, *, threads: int | None = None) -> np.ndarray:
    """Sets segments below a size to 0; the others keep their labels.

    Args:
        labels: integers (z, y, x).
        size: segments below so many voxels become 0.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape: uint64 where a 64-bit label is larger than the number of voxels, otherwise uint32.

    Raises:
        InputError: the labels are no integers, or the size is none or negative.

    Cost:
        It takes 3.3 ns of one core and 4.0 bytes per voxel of uint32 labels whose numbers are small; labels larger than
        the number of voxels are sorted, which takes several times as long.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> segment.remove_small(np.array([[[7, 7, 7, 9]]]), 2)
        array([[[7, 7, 7, 0]]], dtype=uint64)
    """
    if not within(size, 0, np.inf):
        raise InputError(f"size must be a number of voxels, not below 0; got {size!r}")
    labels = label_view(labels, "labels")
    largest = largest_label(labels, threads)
    if largest <= labels.size and largest < 2**32 - 1:
        sizes, _ = measure(labels, largest, threads)
        table = np.where(sizes >= size, np.arange(largest + 1), 0).astype(np.uint32)
        return look_up(labels, table, threads=threads)
    ids, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(counts >= size, ids, 0).astype(ids.dtype)[place].reshape(labels.shape)


def boundary_threshold(labels: np.ndarray, affs: np.ndarray | Affinities, threshold: float, *,
                       threads: int | None = None) -> np.ndarray:
    """Returns a copy of the labels that is zero where the mean of the y and x affinity is below the threshold.

    An edge that would leave the volume counts with the value that affs hold there, or with 0 if affinities are stored
    at the earlier voxel.

    Args:
        labels: integers (z, y, x).
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`.
        threshold: 0 to 1.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape and dtype.

    Raises:
        InputError: the shapes differ, or the threshold lies outside of 0 to 1.

    Cost:
        It takes 2.9 ns of one core and 4.1 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 1, 2, 4), 0.9, np.float32)
        >>> affs[1:, :, :, 2] = 0.1
        >>> segment.boundary_threshold(np.ones((1, 2, 4), np.uint32), affs, 0.5)[0, 0]
        array([1, 1, 0, 1], dtype=uint32)
    """
    if not within(threshold, 0, 1):
        raise InputError(f"threshold must be 0 to 1; got {threshold}")
    labels = as_array("labels", labels)
    checked = as_affinities(affs)
    if checked.shape != labels.shape:
        raise InputError(f"affs must be (channels, z, y, x) over the labels' shape {labels.shape}; "
                         f"got {checked.values.shape}")
    out = labels.copy()
    clear_boundaries(out, checked, tuple(slice(0, length) for length in labels.shape), threshold, threads)
    return out


def clear_boundaries(labels: np.ndarray, affs: Affinities, inside: tuple[slice, slice, slice], threshold: float,
                     threads: int | None = None) -> None:
    """Does what boundary_threshold does to labels in place, which lie `inside` the affinities.

    Labels of a block need one more plane of affinities before them along y and x, unless the volume begins there.
    """
    def clear(start: int, stop: int) -> None:
        for z in range(start, stop):
            total = np.zeros(labels.shape[1:], np.float32)
            for axis in (1, 2):
                here, there = [slice(None)] * 2, list(inside[1:])
                if affs.shifts[axis]:
                    first = max(inside[axis].start - 1, 0)
                    here[axis - 1] = slice(first + 1 - inside[axis].start, None)
                    there[axis - 1] = slice(first, inside[axis].stop - 1)
                total[tuple(here)] += affs.plane(axis, inside[0].start + z)[tuple(there)]
            labels[z][total / 2 < threshold] = 0

    threads = thread_count(threads)
    run_parallel(clear, slabs(labels.shape[0], threads), threads)
