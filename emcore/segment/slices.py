"""Watershed of each section on its own, from seeds made of its boundary map; and the priority flood for any seeds."""

from collections.abc import Callable
from math import prod

import numpy as np

from emcore.errors import InputError
from emcore.kernels import flood as kernel
from emcore.kernels import sections
from emcore.segment.affinities import Affinities, as_affinities
from emcore.segment.arrays import as_array, as_numbers
from emcore.segment.distance import distance_transform
from emcore.segment.seeds import parse_seeds
from emcore.threads import run_parallel, slabs, thread_count


def slice_watershed(affs: np.ndarray | Affinities, *, boundary_threshold: float = 0.5,
                    threads: int | None = None) -> np.ndarray:
    """Cuts each section into fragments, seeded by the maxima of the distance to the boundary.

    A pixel belongs to the boundary where 1 - the mean of the y and x affinity is at least boundary_threshold. The rules
    are those of dbMiM with mahotas; `seeded_slices` and `flood` tell order and ties.

    Args:
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`.
        boundary_threshold: 0 to 1. The default is 0.5.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Fragments (z, y, x), uint32, numbered from 1 through the volume; none crosses sections.

    Raises:
        InputError: the affinities or the threshold do not fit.

    Cost:
        It takes 180 ns of one core and 4.1 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 5, 11), 0.9, np.float32)
        >>> affs[1:, :, :, 5] = 0.1  # a membrane at x = 5
        >>> segment.slice_watershed(affs)[:, 2, ::10]
        array([[1, 2],
               [3, 4]], dtype=uint32)
    """
    threshold = as_numbers("boundary_threshold", boundary_threshold)
    if threshold.shape != () or np.isnan(threshold):
        raise InputError(f"boundary_threshold must be a number; got {boundary_threshold}")
    return seeded_slices(affs, f"maxima_distance-{float(threshold)!r}", threads=threads)


def seeded_slices(affs: np.ndarray | Affinities, seeds: str = "maxima_distance", *,
                  threads: int | None = None) -> np.ndarray:
    """Cuts each section into fragments by a flood of its boundary map, 1 - the mean of the y and x affinity.

    Args:
        affs: affinities (3 or more, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`.
        seeds: how seeds are found, as it stands or with its number behind a dash. "maxima_distance-0.5" (the default,
            with 0.5) takes the maxima of the distance to the boundary, which are the pixels at or above the number.
            "minima" takes the minima of the boundary map, and with a number only those below it (all, where a section
            has none below). "hminima-0.1" takes minima that are deeper than the number. "grid-10" takes the pixels at
            rows and columns 0, 10, 20 and so on. Maxima and minima are 4-connected plateaus in raster order.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Fragments (z, y, x), uint32, numbered from 1 through the volume; none crosses sections.

    Raises:
        InputError: the affinities do not fit, or no such seeds are known.

    Cost:
        It takes 150 ns of one core and 4.1 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 7), 0.9, np.float32)
        >>> affs[1:, :, :, 3] = 0.1  # a membrane at x = 3
        >>> segment.seeded_slices(affs, "minima")[:, 0, 0]
        array([1, 3], dtype=uint32)
    """
    checked = as_affinities(affs)
    checked.check_values(threads=threads)
    find_seeds = _seed_finder(seeds)
    if prod(checked.shape[1:]) >= 2**32:
        raise InputError(f"a section must have fewer than 2**32 pixels; got {checked.shape[1:]}, "
                         "cut the volume in y or x")
    labels = np.zeros(checked.shape, np.uint32)
    if labels.size == 0:
        return labels

    def section(z: int) -> int:
        boundary = np.ascontiguousarray(1 - (_later(checked, 1, z) + _later(checked, 2, z)) * np.float32(0.5))
        count = find_seeds(boundary, labels[z])
        kernel.flood(boundary[None], labels[z:z + 1], None)
        return count

    threads = thread_count(threads)
    counts = run_parallel(section, [(z,) for z in range(len(labels))], threads)
    before = np.concatenate([[0], np.cumsum(counts)])
    if before[-1] > np.iinfo(np.uint32).max:
        raise InputError(f"the volume has {before[-1]} fragments, more than uint32 names; cut it into blocks")

    def shift(start: int, stop: int) -> None:
        labels[start:stop] += before[start:stop, None, None].astype(np.uint32)

    run_parallel(shift, slabs(len(labels), threads), threads)
    return labels


def flood(height: np.ndarray, seeds: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Grows seeds over a height map, lowest voxels first: a seeded watershed without lines.

    The lowest voxel that is reached spreads first; heights are compared as float32. Of equal ones the voxel that was
    reached first spreads first, and seeds come before all in raster order. A voxel takes its label when it is first
    reached; neighbours (4 in two dimensions, 6 in three) are taken in the order -z -y -x +x +y +z.

    Args:
        height: the map (y, x) or (z, y, x), any real dtype.
        seeds: labels of the same shape; 0 is no seed. Seeds outside of the mask are dropped.
        mask: bool of the same shape; only voxels where it is true are reached. By default all can be.

    Returns:
        Labels in the shape and dtype of seeds; 0 where no seed reaches.

    Raises:
        InputError: the shapes differ, or a dtype does not fit.

    Cost:
        It takes 630 ns of one core and 44 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> segment.flood(np.array([[0.1, 0.2, 0.9, 0.3, 0.1]]), np.array([[1, 0, 0, 0, 2]]))
        array([[1, 1, 1, 2, 2]])
    """
    height, seeds = as_array("height", height), as_array("seeds", seeds)
    if height.ndim not in (2, 3) or height.dtype.kind not in "fiub":
        raise InputError(f"height must be (y, x) or (z, y, x) real numbers; got {height.shape} {height.dtype}")
    if seeds.shape != height.shape or seeds.dtype.kind not in "iu":
        raise InputError(f"seeds must be whole numbers of shape {height.shape}; got {seeds.shape} {seeds.dtype}")
    if height.size >= 2**32:
        raise InputError(f"flood takes fewer than 2**32 voxels at once; got {height.size}, cut the volume into blocks")
    if mask is not None:
        mask = as_array("mask", mask) != 0
        if mask.shape != height.shape:
            raise InputError(f"mask must have the shape {height.shape} of height; got {mask.shape}")
    height = np.ascontiguousarray(height, np.float32)
    if np.isnan(height if mask is None else height[mask]).any():
        raise InputError("height holds NaN, which has no place in an order; replace it or mask it out")
    labels = seeds.astype(np.uint64 if seeds.dtype.itemsize == 8 else np.uint32, order="C")
    if mask is not None:
        labels[~mask] = 0
        mask = mask.view(np.uint8)
    if height.ndim == 2:
        kernel.flood(height[None], labels[None], None if mask is None else mask[None])
    else:
        kernel.flood(height, labels, mask)
    return labels.astype(seeds.dtype, copy=False)


def _later(affs: Affinities, axis: int, z: int) -> np.ndarray:
    """The float32 affinities along y or x of a section, each at the later pixel of its edge; 0 where there is none."""
    plane = affs.plane(axis, z)
    if not affs.shifts[axis]:
        return plane
    moved, before = np.zeros_like(plane), (slice(None),) * (axis - 1)
    moved[(*before, slice(1, None))] = plane[(*before, slice(None, -1))]
    return moved


def _seed_finder(seeds: str) -> Callable[[np.ndarray, np.ndarray], int]:
    """A function that writes the seeds of a boundary map into labels and returns their number."""
    name, value = parse_seeds(seeds)

    def maxima_distance(boundary: np.ndarray, labels: np.ndarray) -> int:
        return sections.label_maxima(distance_transform(boundary < value, squared=True, threads=1), labels)

    def minima(boundary: np.ndarray, labels: np.ndarray) -> int:
        count = sections.label_maxima(-boundary, labels)
        low = (labels > 0) & (boundary < value)
        if not low.any():
            return count
        kept, numbers = np.unique(labels[low], return_inverse=True)
        labels[:] = 0
        labels[low] = numbers + 1
        return len(kept)

    def hminima(boundary: np.ndarray, labels: np.ndarray) -> int:
        filled = np.empty_like(boundary)
        sections.fill_shallow(boundary, value, filled)
        return sections.label_maxima(-filled, labels)

    def grid(boundary: np.ndarray, labels: np.ndarray) -> int:
        points = labels[::int(value), ::int(value)]
        points[:] = np.arange(1, points.size + 1).reshape(points.shape)
        return points.size

    return {"maxima_distance": maxima_distance, "minima": minima, "hminima": hminima, "grid": grid}[name]
