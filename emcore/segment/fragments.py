"""Fragments: the basins of steepest ascent on nearest-neighbour affinities.

Every voxel marks the edges that equal its largest affinity or reach `high`. Edges marked at both ends join plateaus;
each plateau below `high` with a way up takes one exit: the edge whose later voxel comes first in the volume, then
z before y before x. Fragments are the connected components of the plateau edges and these exits, a set that depends
neither on threads nor on blocks.
"""

import numpy as np

from emcore.errors import InputError
from emcore.kernels import fragments as components
from emcore.kernels import watershed as kernel
from emcore.segment.affinities import Affinities, as_affinities, kernel_view
from emcore.segment.arrays import as_array, within
from emcore.threads import run_parallel, slabs, thread_count

_SLAB_VOXELS = 2**31  # runs are numbered in 32 bits within a slab


def watershed(affs: np.ndarray | Affinities, low: float = 1e-4, high: float = 0.9999, *,
              mask: np.ndarray | None = None, ties: str = "canonical", threads: int | None = None) -> np.ndarray:
    """Labels (z, y, x), uint32: fragments 1, 2, ... in raster order of their first voxels, 0 = no affinity above low.

    Edges that leave the volume or touch a voxel outside mask are never used. ties="waterz" splits plateaus by distance
    to their exits, voxel for voxel like waterz 0.10.
    """
    return find_fragments(affs, low, high, mask=mask, ties=ties, threads=threads)[0]


def find_fragments(affs: np.ndarray | Affinities, low: float, high: float, *, mask: np.ndarray | None = None,
                   ties: str = "canonical", threads: int | None = None, parts: int | None = None,
                   first_label: int = 1) -> tuple[np.ndarray, int]:
    """(labels, count) of watershed; parts is the number of slabs, threads unless given; labels start at first_label."""
    if ties not in ("canonical", "waterz"):
        raise InputError(f"ties must be 'canonical' or 'waterz'; got {ties!r}")
    if not (within(low, 0, 1) and within(high, low, 1)):
        raise InputError(f"low and high must be 0 <= low <= high <= 1; got low={low}, high={high}")
    checked = as_affinities(affs)
    channels, shifts, shape = checked.channels, checked.shifts, checked.shape
    if shape[1] * shape[2] > _SLAB_VOXELS:
        raise InputError(f"a section of affs must have at most 2**31 voxels; got shape {shape}")
    threads = thread_count(threads)
    voxels = shape[0] * shape[1] * shape[2]
    cuts = slabs(shape[0], max(parts or threads, -(-voxels // _SLAB_VOXELS)))
    first, high_value = _thresholds(checked, low, high)
    if voxels == 0 or first is None:
        return np.zeros(shape, np.uint32), 0
    marks = np.empty(shape, np.uint8)
    values, inside = kernel_view(checked.values), _mask(mask, shape)
    suspects = run_parallel(lambda begin, end: kernel.mark(values, channels, shifts, inside, first, high_value, marks,
                                                           begin, end), cuts, threads)
    if any(suspects):
        checked.check_values(threads=threads)
    _resolve(marks, ties, cuts, threads)
    return _components(marks, cuts, threads, first_label)


def _mask(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if mask is None:
        return None
    mask = as_array("mask", mask)
    if mask.shape != shape or mask.dtype not in (np.bool_, np.uint8):
        raise InputError(f"mask must be {shape} of bool or uint8, nonzero inside; got {mask.shape} {mask.dtype}")
    return mask.view(np.uint8)


def _thresholds(checked: Affinities, low: float, high: float) -> tuple:
    """The smallest value above low (None if no value is) and the smallest at or above both high and that one.

    Both in the type the kernel compares in, so that every type decides as the float32 it stands for.
    """
    low, high = np.float32(low), np.float32(high)
    if checked.table is not None:
        first = int(np.searchsorted(checked.table, low, side="right"))
        return (first if first < 256 else None), max(first, int(np.searchsorted(checked.table, high)))
    if checked.values.dtype == np.float16:
        every = np.arange(0x3C01, dtype=np.int16)  # the bits of all float16 from 0 to 1
        values = every.view(np.float16).astype(np.float32)
        first = int(np.searchsorted(values, low, side="right"))
        return first, max(first, int(np.searchsorted(values, high)))
    first = np.nextafter(low, np.float32(2))
    return float(first), float(max(first, high))


def _resolve(marks: np.ndarray, ties: str, cuts: list[tuple[int, int]], threads: int) -> None:
    """Leaves each plateau with exits one of them (canonical), or each of its voxels one way (waterz)."""
    found = run_parallel(lambda begin, end: kernel.corners(marks, begin, end), cuts, threads)
    corners = np.frombuffer(b"".join(found), np.int64)
    keep = kernel.keep_first_exit if ties == "canonical" else kernel.keep_nearest_exit
    keep(marks, corners)


def _components(marks: np.ndarray, cuts: list[tuple[int, int]], threads: int,
                first_label: int) -> tuple[np.ndarray, int]:
    """(labels, count): the connected components of all marked edges."""
    shape = marks.shape
    section = shape[1] * shape[2]
    labels = np.empty(shape, np.uint32)
    flat = labels.reshape(-1)
    parents = [flat[begin * section : end * section] for begin, end in cuts]
    planes = [np.empty(shape[1:], np.uint32) for _ in cuts]
    jobs = [(marks, parent, plane, *cut) for parent, plane, cut in zip(parents, planes, cuts)]
    counts = run_parallel(components.link, jobs, threads)
    bases = np.cumsum([0, *(roots for _, roots in counts)]).tolist()
    table = np.arange(bases[-1], dtype=np.uint64 if bases[-1] > 2**32 else np.uint32)
    joined = sum(components.join_seam(marks, cuts[s][0], planes[s - 1], parents[s - 1], bases[s - 1],
                                      parents[s], bases[s], table) for s in range(1, len(cuts)))
    count = bases[-1] - joined
    wide = first_label + count > 2**32
    table = table.astype(np.uint64, copy=False) if wide else table
    components.number(table, first_label)
    out = np.empty(shape, np.uint64) if wide else labels
    table = table.astype(out.dtype, copy=False)
    run_parallel(components.spread, [(marks, parents[s], counts[s][0], table[bases[s] : bases[s + 1]], out, *cuts[s])
                                     for s in range(len(cuts))], threads)
    return out, count
