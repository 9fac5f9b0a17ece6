"""The face forest: fragments that never cross a face that the net takes for a border, where a voxel has another one.

A face lies between two neighbouring voxels and has their affinity. A voxel's sum is that of its six faces, where those
that leave the volume count as 1. A face above one half has the order 1 + the sums of its two voxels, any other face its
affinity, and a face of affinity 0 has none. Every voxel goes on over its face of the largest order, as the watershed
goes over the largest affinity; what it does with plateaus and ties holds here too.

Such a face leads to the neighbour with the largest sum, so fragments grow around the places that lie deepest inside,
and the sums look at both faces of a voxel along every axis: no border is moved towards one side. The affinities of a
truth itself give its pieces back, since all faces inside of a piece are above one half and all others are 0.

All of it is whole numbers in units of 2^-16, and one voxel needs its surroundings of few voxels, so blocks with a
margin of MARGIN + smooth voxels come to the same bits as the volume.
"""

from math import prod

import numpy as np

from emcore.errors import InputError
from emcore.segment.affinities import Affinities, as_affinities
from emcore.segment.fragments import find_fragments
from emcore.segment.seeds import LARGEST_SMOOTH
from emcore.threads import run_parallel, slabs, thread_count

MARGIN = 1  # voxels around a box that the orders in it look at, besides one for each pass of smoothing
_ONE = 2**16  # affinity 1
_SCALE = np.float32(2.0**-20)  # orders stay below 13 * 2^16, so they lie in 0..1 and are exact as float32
_SMALL = 2**27  # An eighth of so many voxels, or of those of a larger volume, may be in work in all threads together.
_SLAB = 2**20  # voxels of a slab, which takes 40 bytes for each


def face_forest(affs: np.ndarray | Affinities, smooth: int = 0, *, mask: np.ndarray | None = None,
                threads: int | None = None) -> np.ndarray:
    """Cuts affinities into fragments that are centred on faces between voxels instead of on voxels.

    Args:
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`.
        smooth: how often the sums of affinities are averaged with the weights 1, 2, 1 along every axis. Each pass adds
            one half to the variance in voxels and leaves fewer fragments. The default is 0.
        mask: bool or uint8 (z, y, x); faces of voxels where it is 0 are never used. By default all voxels count.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32: fragments 1, 2, ... in the raster order of their first voxels. A voxel without an
        affinity above 0 gets 0.

    Raises:
        InputError: a shape, dtype or number does not fit, or a value lies outside of 0 to 1 or is not a number.

    Cost:
        It takes 48 ns of one core and 24 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 1, 2, 6), 0.5, np.float32)
        >>> affs[2, :, :, 1] = affs[2, :, :, 5] = 0.9  # the middles of two cells
        >>> affs[2, :, :, 3] = 0.1  # the membrane between them
        >>> segment.face_forest(affs)[0, 0]
        array([1, 1, 1, 2, 2, 2], dtype=uint32)
    """
    checked = as_affinities(affs)
    checked.check_values(threads=threads)
    return find_fragments(face_orders(checked, smooth, threads=threads), 0.0, 1.0, mask=mask, threads=threads)[0]


def face_orders(affs: Affinities, smooth: int = 0, *, threads: int | None = None) -> Affinities:
    """The order of every face as Affinities of NEAREST, float32: what the watershed makes the face forest of."""
    if isinstance(smooth, bool) or not isinstance(smooth, int | np.integer) or not 0 <= smooth <= LARGEST_SMOOTH:
        raise InputError(f"smooth must be a whole number of passes from 0 to {LARGEST_SMOOTH}; got {smooth!r}")
    out, threads = np.empty((3, *affs.shape), np.float32), thread_count(threads)
    depth = affs.shape[0]
    sections = max(4 * (smooth + 1), _SLAB // max(1, prod(affs.shape[1:])))

    def fill(begin: int, end: int) -> None:
        low = max(0, begin - smooth - 1)
        sums = _smoothed(_sums(affs, low, min(depth, end + smooth)), smooth)
        for axis in range(3):
            faces = _faces(affs, axis, begin, end)[_part(axis, 0, -1)]
            order = sums[begin - low : end - low] + _ONE
            if axis == 0:  # the first section has no face before it
                skip = int(begin == 0)
                order[skip:] += sums[begin - low - 1 + skip : end - low - 1]
            else:
                order[_part(axis, 1, None)] += sums[begin - low : end - low][_part(axis, None, -1)]
            np.multiply(np.where(2 * faces > _ONE, order, faces), _SCALE, out=out[axis, begin:end])

    cuts = slabs(depth, max(threads, -(-depth // sections)))
    longest = max((end - begin for begin, end in cuts), default=1)
    in_work = max(depth, _SMALL // max(1, prod(affs.shape[1:]))) // 8  # sections of all threads together
    run_parallel(fill, cuts, max(1, min(threads, in_work // longest)))
    return Affinities(out)


def _part(axis: int, start: int | None, stop: int | None) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)


def _faces(affs: Affinities, axis: int, begin: int, end: int) -> np.ndarray:
    """The faces along an axis before the voxels of the sections begin to end, and those behind the last ones, int32."""
    length, shift = affs.shape[axis], affs.shifts[axis]
    shape = [end - begin, *affs.shape[1:]]
    shape[axis] += 1
    faces = np.full(shape, _ONE, np.int32)
    if axis == 0:
        first, last = max(begin, 1), min(end, length - 1)  # faces that do not leave the volume
        if first <= last:
            faces[first - begin : last + 1 - begin] = _whole(affs, axis, first - shift, last + 1 - shift)
    elif length > 1:
        stored = _whole(affs, axis, begin, end)
        faces[_part(axis, 1, -1)] = stored[_part(axis, 0, -1) if shift else _part(axis, 1, None)]
    return faces


def _whole(affs: Affinities, axis: int, begin: int, end: int) -> np.ndarray:
    """The affinities along an axis that are stored in sections, in units of 2^-16, to the nearest, halves to even."""
    values = affs.values[affs.channels[axis], begin:end]
    if affs.table is not None:
        return np.rint(affs.table * np.float32(_ONE)).astype(np.int32)[values]
    return np.rint(values.astype(np.float32, copy=False) * np.float32(_ONE)).astype(np.int32)


def _sums(affs: Affinities, begin: int, end: int) -> np.ndarray:
    """The sum of the six faces of every voxel in sections."""
    total = np.zeros((end - begin, *affs.shape[1:]), np.int32)
    for axis in range(3):
        faces = _faces(affs, axis, begin, end)
        total += faces[_part(axis, 0, -1)]
        total += faces[_part(axis, 1, None)]
    return total


def _smoothed(sums: np.ndarray, passes: int) -> np.ndarray:
    """Means of (1, 2, 1) voxels along z, then y, then x, so often; rounded each time, halves up. Outermost voxels count
    twice, as if the one beyond had their value."""
    for _ in range(passes):
        for axis in range(3):
            total = 2 * (sums + 1)
            total[_part(axis, 1, None)] += sums[_part(axis, None, -1)]
            total[_part(axis, None, 1)] += sums[_part(axis, None, 1)]
            total[_part(axis, None, -1)] += sums[_part(axis, 1, None)]
            total[_part(axis, -1, None)] += sums[_part(axis, -1, None)]
            sums = total >> 2
    return sums
