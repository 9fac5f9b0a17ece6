"""Skeletons of labels beyond memory: objects whose boxes lie together are read and traced at once."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.memory import check_memory
from emcore.segment.arrays import as_count
from emcore.segment.graph import measure
from emcore.segment.label_table import LabelStatistics, check_statistics
from emcore.segment.relabeling import relabel, unsigned
from emcore.segment.skeletons import Skeleton, Way, traced, way_of
from emcore.threads import thread_count

MOST_VOXELS = 2**26  # A box that is read for several objects has no more voxels.
BOX_BYTES = 24  # A voxel of a box takes so much beside its labels: its number, its piece, its distance, runs.
OBJECT_BYTES = 100  # A voxel of an object takes so much while it is traced, a rough one more than a smooth one.


def skeletonize_boxes(labels: Any, resolution: Sequence[float], table: LabelStatistics, *, scale: float = 1.5,
                      const_nm: float | None = None, dust_voxels: int = 0, most_voxels: int = MOST_VOXELS,
                      threads: int | None = None) -> Iterator[tuple[int, Skeleton]]:
    """Finds the skeletons of labels that need not fit into memory, box by box.

    Each skeleton is the same to the bit as that of `skeletonize` for the whole volume. Objects whose boxes lie in a box
    of most_voxels voxels are read together, a larger object alone.

    Args:
        labels: integers (z, y, x) that are read by slices, such as an open volume, a dataset of h5py or an array.
        resolution: the size of a voxel in nm, z, y, x.
        table: `label_statistics` of the labels, which says where each object lies.
        scale: see `skeletonize` (default 1.5).
        const_nm: see `skeletonize`; by default ten voxel sides, at least 100.
        dust_voxels: pieces of fewer voxels have no tree (default 0).
        most_voxels: the voxels of a box that is read for several objects (default 2**26); it changes no bit.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        An iterator over label and `Skeleton`, by the place of their boxes and not by rising label.

    Raises:
        InputError: an argument does not fit, the table is not that of the labels, or an object needs more memory than
            there is.

    Cost:
        A voxel of a box takes the bytes of its label and 24 more, and a voxel of an object that is traced 100. Boxes
        that overlap are read again. The time grows with the depth of an object as that of `skeletonize` does.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> labels = np.array([[[5, 5, 0, 7, 7]]])
        >>> table = segment.label_statistics(labels)
        >>> [label for label, _ in segment.skeletonize_boxes(labels, (40, 8, 8), table)]
        [5, 7]
    """
    way = way_of(labels.shape, resolution, scale, const_nm, dust_voxels)
    table, most = check_statistics(table), as_count("most_voxels", most_voxels)
    threads = thread_count(threads)
    order, starts = groups(table, most)
    for start, stop in itertools.pairwise(starts):
        rows = order[start:stop]
        yield from trace_group(labels, way, table.ids[rows], table.voxels[rows], table.boxes[rows], threads)


def groups(table: LabelStatistics, most_voxels: int, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(rows of the table in the order of their places, where each group of them begins, and their number).

    Objects with larger boxes than most_voxels come first. Several objects of a group have no more voxels than one of so
    many equal parts of all.
    """
    order = np.lexsort(table.boxes[:, 0].T[::-1] // max(1, round(most_voxels ** (1 / 3)) // 2))
    # Places are told by coarse steps, so that neighbours along y and z come soon after each other, too.
    large = np.prod(table.boxes[:, 1] - table.boxes[:, 0], axis=1) > most_voxels
    order = np.concatenate([order[large[order]], order[~large[order]]])
    starts, box, held, most_held = [], None, 0, int(table.voxels.sum()) / parts
    for place, row in enumerate(order.tolist()):
        first, end = table.boxes[row].tolist()
        if box is not None:
            joined = list(map(min, box[0], first)), list(map(max, box[1], end))
            held += int(table.voxels[row])
            if np.prod(np.subtract(joined[1], joined[0])) <= most_voxels and held <= most_held:
                box = joined
                continue
        box, held = (first, end), int(table.voxels[row])
        starts.append(place)
    return order, np.array([*starts, len(order)], np.int64)


def box_around(boxes: np.ndarray, shape: Sequence[int]) -> tuple[slice, slice, slice]:
    """The box of all boxes, with a voxel around where the volume has one: the nearest other voxel lies in it."""
    first, end = np.maximum(boxes[:, 0].min(0) - 1, 0), np.minimum(boxes[:, 1].max(0) + 1, shape)
    return tuple(slice(start, stop) for start, stop in zip(first.tolist(), end.tolist()))


def trace_group(labels: Any, way: Way, ids: np.ndarray, voxels: np.ndarray, boxes: np.ndarray,
                threads: int) -> Iterator[tuple[int, Skeleton]]:
    """The skeletons of some labels of a volume, from one box around theirs."""
    box = box_around(boxes, labels.shape)
    size = int(np.prod([span.stop - span.start for span in box], dtype=object))
    at_once = int(np.sort(voxels)[-threads:].sum())
    check_memory((np.dtype(labels.dtype).itemsize + BOX_BYTES) * size + OBJECT_BYTES * at_once,
                 f"tracing {f'label {ids[0]}' if len(ids) == 1 else f'{len(ids)} labels'} in a box of {size} voxels",
                 "use fewer workers, read fewer voxels at once, or cut the labels" if len(ids) > 1 else
                 "use fewer workers, or cut the labels")
    part, first = unsigned(labels[box], threads=threads), np.array([span.start for span in box])
    if len(ids) == 1:
        fits = int(ids[0]) <= np.iinfo(part.dtype).max  # A larger one would become the id of another label.
        part = (part == part.dtype.type(ids[0])).view(np.uint8) if fits else np.zeros(part.shape, np.uint8)
        names, wanted = np.array([0, ids[0]], np.uint64), np.array([False, True])
        sizes, spans = np.array([0, np.count_nonzero(part)]), np.array([np.zeros((2, 3), int), span_of(part)])
    else:
        dense, names = relabel(part, threads=threads)
        names = names.astype(np.uint64)
        wanted = np.isin(names, ids)
        sizes, spans = measure(dense, len(names) - 1, threads, with_boxes=True)
        spans = spans.reshape(-1, 2, 3) + np.array([[0], [1]])
        part = np.where(wanted, np.arange(len(names)), 0).astype(np.uint32)[dense]
        del dense
    check_table(ids, voxels, boxes, names[wanted], sizes[wanted], spans[wanted] + first)
    for number, skeleton in traced(part, way, first, threads):
        yield int(names[number]), skeleton


def span_of(mask: np.ndarray) -> np.ndarray:
    """The first voxel of a mask along each axis, and the one behind its last; zeros where it is empty."""
    plane = mask.any(axis=0)
    places = [np.flatnonzero(line) for line in (mask.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))]
    return np.array([[place[0] for place in places], [place[-1] + 1 for place in places]] if plane.any() else
                    np.zeros((2, 3), int))


def check_table(ids: np.ndarray, voxels: np.ndarray, boxes: np.ndarray, names: np.ndarray, sizes: np.ndarray,
                spans: np.ndarray) -> None:
    """Refuses rows of a table whose objects are other ones in the labels; names, sizes, spans: what was read of them.

    An object that lies elsewhere would be cut, or would lack the voxels around it, and its skeleton be a wrong one.
    """
    order = np.argsort(names)
    place = np.searchsorted(names, ids, sorter=order)
    for row, at in enumerate(place.tolist()):
        at = order[at] if at < len(names) and names[order[at]] == ids[row] else None
        found = 0 if at is None else int(sizes[at])
        if found == 0 or found != voxels[row]:
            raise InputError(f"the table is not that of the labels: near its box label {ids[row]} has {found} voxels, "
                             f"and in the table {voxels[row]}; make the table by label_statistics of these labels")
        if not np.array_equal(spans[at], boxes[row]):
            raise InputError(f"the table is not that of the labels: label {ids[row]} lies in the box "
                             f"{spans[at].tolist()}, and by the table in {boxes[row].tolist()}; make the table by "
                             "label_statistics of these labels")
