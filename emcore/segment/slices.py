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
    """Fragments (z, y, x) of each section, uint32, 1.. through the volume; no fragment crosses sections.

    Seeds are the maxima of the distance to the boundary, where 1 - mean(y and x affinity) >= boundary_threshold.
    The semantics are those of dbMiM with mahotas: see seeded_slices and flood for order and ties.
    """
    threshold = as_numbers("boundary_threshold", boundary_threshold)
    if threshold.shape != () or np.isnan(threshold):
        raise InputError(f"boundary_threshold must be a number; got {boundary_threshold}")
    return seeded_slices(affs, f"maxima_distance-{float(threshold)!r}", threads=threads)


def seeded_slices(affs: np.ndarray | Affinities, seeds: str = "maxima_distance", *,
                  threads: int | None = None) -> np.ndarray:
    """Fragments (z, y, x) of each section by a flood of its boundary map 1 - mean(y and x affinity), uint32, 1...

    seeds, each as it stands or with its number after a dash:
    maxima_distance-0.5: maxima of the distance to the boundary, that is to pixels at or above the number;
    minima: minima of the boundary map, with a number those below it only (all where a section has none below);
    hminima-0.1: minima deeper than this; grid-10: pixels at rows and columns 0, 10, 20 and so on.
    Maxima and minima are 4-connected plateaus, numbered in raster order.
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
    """seeds grown over the height map (y, x) or (z, y, x) to every voxel of mask that they reach; same dtype.

    Watershed without lines over 4 (6) neighbours. The lowest reached voxel spreads first, compared as float32; of
    equal ones the first reached, seeds in raster order before all. A voxel takes its label when it is first reached,
    neighbours in the order -z -y -x +x +y +z. Seeds outside the mask are dropped.
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
