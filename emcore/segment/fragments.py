"""Fragments: the basins of steepest ascent on nearest-neighbour affinities.

Every voxel marks the edges that equal its largest affinity or reach `high`. Edges marked at both ends join plateaus;
each plateau below `high` with a way up takes one exit: the edge whose later voxel comes first in the volume, then
z before y before x. Fragments are the connected components of the plateau edges and these exits, a set that depends
neither on threads nor on blocks.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import fragments as components
from emcore.kernels import watershed as kernel
from emcore.segment.affinities import Affinities, as_affinities, kernel_view
from emcore.segment.arrays import as_array, as_triple, within
from emcore.threads import run_parallel, slabs, thread_count

_SLAB_VOXELS = 2**31  # runs are numbered in 32 bits within a slab
_VISITED, _OUTSIDE = 64, 128  # bits of a mark
CONTEXT = 2  # voxels around a block: one for the marks at its faces, one more for those at the other ends


def watershed(affs: np.ndarray | Affinities, low: float = 1e-4, high: float = 0.9999, *,
              mask: np.ndarray | None = None, ties: str = "canonical", threads: int | None = None) -> np.ndarray:
    """Cuts affinities into fragments, the small regions from which an agglomeration starts.

    Every voxel joins the neighbour with the largest affinity, and affinities from `high` on join always. An edge that
    leaves the volume or touches a voxel outside of the mask is never used.

    Args:
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8 (code / 255), 0 to 1, or `Affinities`. In
            channel 0 is the affinity of a voxel and its neighbour at z - 1, in channel 1 at y - 1, in channel 2 at x -
            1.
        low: an affinity at or below it never joins two voxels (default 1e-4). A voxel that no edge joins gets 0.
        high: an affinity at or above it always joins (default 0.9999). A lower value gives fewer, larger fragments.
        mask: bool or uint8 (z, y, x); voxels where it is 0 get label 0. By default all voxels count.
        ties: "canonical" (the default) decides equal affinities by the place of the edge. "waterz" splits plateaus by
            the distance to their exits, so that every voxel agrees with waterz 0.10.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32: fragments 1, 2, ... in the raster order of their first voxels, and 0.

    Raises:
        InputError: a shape, dtype or number does not fit, or a value lies outside of 0 to 1 or is not a number.

    Cost:
        It takes 12 ns of one core and 5.0 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> segment.watershed(affs, low=0.1, high=0.95)[0, 0]
        array([1, 1, 1, 2, 2, 2], dtype=uint32)
    """
    return find_fragments(affs, low, high, mask=mask, ties=ties, threads=threads)[0]


def find_fragments(affs: np.ndarray | Affinities, low: float, high: float, *, mask: np.ndarray | None = None,
                   ties: str = "canonical", threads: int | None = None, parts: int | None = None,
                   first_label: int = 1) -> tuple[np.ndarray, int]:
    """(labels, count) of watershed; parts is the number of slabs, threads unless given; labels start at first_label."""
    if ties not in ("canonical", "waterz"):
        raise InputError(f"ties must be 'canonical' or 'waterz'; got {ties!r}")
    checked, threads = as_affinities(affs), thread_count(threads)
    cuts = _cuts(checked.shape, parts or threads)
    marks = _marks(checked, low, high, mask, cuts, threads)
    if marks is None:
        return np.zeros(checked.shape, np.uint32), 0
    keep = kernel.keep_first_exit if ties == "canonical" else kernel.keep_nearest_exit
    keep(marks, _corners(marks, cuts, threads))
    return _components(marks, cuts, threads, first_label)


class BlockFragments(NamedTuple):
    """The fragments of a block, and what unites them with those of the blocks around it.

    Voxels beyond the block are named by their linear index in the volume. Labels that share a plateau through a face
    are one (mutual). Each of these united ones then has at most one exit, the first by its key of all that its labels
    have, and is one with what that leads to. So the fragments of the volume come out, whatever the blocks.
    """

    labels: np.ndarray  # uint32 (z, y, x), the core: 1, 2, ... in raster order of first voxels, 0 for background
    firsts: np.ndarray  # int64, the first voxel of every label
    exit_labels: np.ndarray  # uint32, rising, each label at most once
    exit_keys: np.ndarray  # uint64, 3 times the later voxel of the edge, plus 0, 1 or 2 along z, y or x
    exit_targets: np.ndarray  # int64, the voxel at the end of the exit, which may lie in the core
    mutual_labels: np.ndarray  # uint32, of plateau edges through the three faces before the core
    mutual_targets: np.ndarray  # int64, the voxels at their other ends


def block_fragments(affs: np.ndarray | Affinities, low: float, high: float, *, core: Sequence[slice],
                    origin: Sequence[int], volume_shape: Sequence[int], mask: np.ndarray | None = None,
                    threads: int | None = None) -> BlockFragments:
    """The watershed of the core of a window, as far as the window tells.

    core: three slices within the window, which has CONTEXT more voxels on all sides but where the volume ends.
    origin: where the window begins in the volume.
    """
    checked, threads = as_affinities(affs), thread_count(threads)
    place = _Window(checked.shape, core, origin, volume_shape)
    cuts = _cuts(checked.shape, threads)
    marks = _marks(checked, low, high, mask, cuts, threads)
    if marks is None or 0 in place.shape:
        marks = np.zeros(checked.shape, np.uint8)
    corners = _corners(marks, cuts, threads)
    for axis in range(3):  # plateaus end at the faces of the core
        for beyond in (slice(0, place.starts[axis]), slice(place.stops[axis], None)):
            marks[(slice(None),) * axis + (beyond,)] |= _VISITED | _OUTSIDE
    faces = place.faces(marks)
    plateaus = [face.inner >> face.bit & face.outer >> 5 - face.bit & 1 for face in faces]
    exits = [np.frombuffer(kernel.keep_first_exit(marks, corners), np.int64).reshape(-1, 2)]  # voxel, bit
    for face, plateau in zip(faces, plateaus):
        leaving = face.inner >> face.bit & 1
        voxels = place.positions(face.start, leaving & ~plateau)
        exits.append(np.stack([voxels, np.full(len(voxels), face.bit)], axis=1))
        face.inner[...] = face.inner & ~np.uint8(1 << face.bit) | leaving * np.uint8(_VISITED)  # no background
    inside = np.ascontiguousarray(marks[place.core])
    labels, count = _components(inside, _cuts(inside.shape, threads), threads, 1)
    found, keys, targets = place.edges(labels, np.concatenate(exits))
    order = np.argsort(found)
    shared = [np.empty((0, 2), np.int64)]
    for face, plateau in zip(faces, plateaus):
        if face.bit < 3:
            voxels = place.positions(face.start, _not_implied(face, plateau, labels))
            shared.append(np.stack([voxels, np.full(len(voxels), face.bit)], axis=1))
    mutual, _, others = place.edges(labels, np.concatenate(shared))
    return BlockFragments(labels, place.first_voxels(labels, count), found[order], keys[order], targets[order],
                          mutual, others)


class _Face(NamedTuple):
    """A face of the core within the volume: the voxels on both sides of it, as views of the marks."""

    bit: int  # the bit of the marks that lead through it from inside
    start: np.ndarray  # where inner begins in the window
    inner: np.ndarray
    outer: np.ndarray


class _Window:
    """Where the affinities of a block and its core lie in the volume."""

    def __init__(self, window: tuple[int, int, int], core: Sequence[slice], origin: Sequence[int],
                 volume_shape: Sequence[int]):
        self.window, self.origin, volume = window, as_triple("origin", origin), as_triple("volume_shape", volume_shape)
        if len(core) != 3 or not all(isinstance(part, slice) and part.step in (None, 1) for part in core):
            raise InputError(f"core must be three slices of the window of affinities; got {core}")
        ends = np.array([part.indices(length)[:2] for part, length in zip(core, window)])
        self.starts, self.stops = ends[:, 0], np.maximum(ends[:, 0], ends[:, 1])
        self.core = tuple(map(slice, self.starts.tolist(), self.stops.tolist()))
        self.shape, self.volume = tuple((self.stops - self.starts).tolist()), tuple(volume.tolist())
        before, behind = np.minimum(CONTEXT, self.origin + self.starts), volume - self.origin - self.stops
        if (self.origin + window > volume).any() or (self.starts < before).any() or (
                window - self.stops < np.minimum(CONTEXT, behind)).any():
            raise InputError(f"the window {window} at {origin} of the volume {volume_shape} must lie in it, and hold "
                             f"{CONTEXT} voxels around its core {core} but where the volume ends")
        if prod(self.volume) >= 2**61 or prod(self.shape) >= 2**32 - 1:
            raise InputError(f"a volume takes fewer than 2**61 voxels and a block fewer than 2**32 - 1; got "
                             f"{volume_shape} and {self.shape}")

    def faces(self, marks: np.ndarray) -> list[_Face]:
        """The faces of the core with voxels behind them."""
        found = []
        for axis in range(3):
            for bit, first, step in ((axis, self.starts[axis], -1), (5 - axis, self.stops[axis] - 1, 1)):
                if 0 not in self.shape and 0 <= first + step < self.window[axis]:
                    start, planes = self.starts.copy(), []
                    for at in (first, first + step):
                        start[axis] = at
                        planes.append(marks[tuple(slice(at, at + 1) if other == axis else self.core[other]
                                                  for other in range(3))])
                    start[axis] = first
                    found.append(_Face(bit, start, *planes))
        return found

    def positions(self, start: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The linear indices in the window of nonzero voxels of an array that begins at start."""
        return np.ravel_multi_index((np.argwhere(wanted) + start).T, self.window)

    def edges(self, labels: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(label, key, other voxel) of edges given by a voxel in the core and a bit, as BlockFragments has them."""
        here, bits = np.stack(np.unravel_index(ends[:, 0], self.window)), ends[:, 1]
        there = here.copy()
        axes = np.minimum(bits, 5 - bits)
        there[axes, np.arange(len(bits))] += np.where(bits < 3, -1, 1)
        one, other = (np.ravel_multi_index(tuple(at + self.origin[:, None]), self.volume) for at in (here, there))
        keys = 3 * np.maximum(one, other) + axes
        return labels[tuple(here - self.starts[:, None])], keys.astype(np.uint64), other

    def first_voxels(self, labels: np.ndarray, count: int) -> np.ndarray:
        """The linear index in the volume of the first voxel of every label; labels are numbered by these."""
        at = np.stack(np.unravel_index(first_voxels(labels, count), labels.shape))
        return np.ravel_multi_index(tuple(at + (self.origin + self.starts)[:, None]), self.volume)


def first_voxels(labels: np.ndarray, count: int) -> np.ndarray:
    """The index of the first voxel of each label 1 to count, which are numbered in the order of these voxels."""
    firsts = np.empty(count, np.int64)
    components.first_voxels(labels.reshape(-1), firsts)
    return firsts


def _not_implied(face: _Face, plateau: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Plateau edges through a face without those that follow from the one a voxel before, along x or y.

    That is where both pairs of voxels on one side of the face are in one plateau: what is left out follows from edges
    of smaller keys, so nothing goes round in circles.
    """
    along = 1 if face.bit == 2 else 2
    before, after = ((slice(None),) * along + (part,) for part in (slice(None, -1), slice(1, None)))
    own = labels.take([0], face.bit)
    implied = (plateau[before] & plateau[after] & (own[before] == own[after])
               & face.outer[before] >> 5 - along & face.outer[after] >> along)
    needed = plateau.copy()
    needed[after] &= ~implied
    return needed


def _cuts(shape: Sequence[int], parts: int) -> list[tuple[int, int]]:
    if shape[1] * shape[2] > _SLAB_VOXELS:
        raise InputError(f"a section of affs must have at most 2**31 voxels; got shape {shape}")
    return slabs(shape[0], max(parts, -(-prod(shape) // _SLAB_VOXELS)))


def _marks(checked: Affinities, low: float, high: float, mask: np.ndarray | None, cuts: list[tuple[int, int]],
           threads: int) -> np.ndarray | None:
    """The marks of every voxel; None where there are none."""
    if not (within(low, 0, 1) and within(high, low, 1)):
        raise InputError(f"low and high must be 0 <= low <= high <= 1; got low={low}, high={high}")
    channels, shifts, shape = checked.channels, checked.shifts, checked.shape
    first, high_value = _thresholds(checked, low, high)
    values, inside = kernel_view(checked.values), _mask(mask, shape)
    if prod(shape) == 0 or first is None:
        return None
    marks = np.empty(shape, np.uint8)
    suspects = run_parallel(lambda begin, end: kernel.mark(values, channels, shifts, inside, first, high_value, marks,
                                                           begin, end), cuts, threads)
    if any(suspects):
        checked.check_values(threads=threads)
    return marks


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


def _corners(marks: np.ndarray, cuts: list[tuple[int, int]], threads: int) -> np.ndarray:
    """Where plateaus have something to decide."""
    found = run_parallel(lambda begin, end: kernel.corners(marks, begin, end), cuts, threads)
    return np.frombuffer(b"".join(found), np.int64)


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
