"""Where a prediction and its truth lie on each other, and the table of what both cover, read in blocks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.metrics.borders import box_border_mask, neuron_border_mask
from emcore.metrics.pairs import boxes
from emcore.metrics.pooled import added_up
from emcore.metrics.tables import Contingency, contingency
from emcore.volumes import Volume

Box = tuple[slice, ...]


class Shared(NamedTuple):
    """Where the part that is compared begins in the prediction and in the truth, and its shape."""

    start: tuple[int, ...]
    truth_start: tuple[int, ...]
    shape: tuple[int, ...]

    def without_ends(self, sections: int) -> "Shared":
        """The part without so many sections at either end."""
        (z, *rest), (truth_z, *truth_rest), (depth, *shape) = self
        return Shared((z + sections, *rest), (truth_z + sections, *truth_rest), (depth - 2 * sections, *shape))

    @property
    def ours(self) -> Box:
        return box(self.start, self.shape)

    @property
    def theirs(self) -> Box:
        return box(self.truth_start, self.shape)

    def notes(self, truth: Volume) -> list[str]:
        """What is to be said where not all of the truth is compared."""
        return [] if self.shape == truth.shape else [
            f"scored where both volumes are: {self.shape} voxels from {self.truth_start} of the truth {truth.shape}"]


@dataclass(frozen=True)
class Part:
    """The part of a volume that is compared, as a function makes it of the voxels whenever a box of them is read."""

    volume: Volume
    start: tuple[int, ...]
    shape: tuple[int, ...]
    make: Callable[[np.ndarray], np.ndarray]
    dtype: np.dtype
    channel: tuple[int, ...] = ()  # the one that is read where there are several

    @property
    def chunks(self) -> tuple[int, ...] | None:
        return self.volume.chunks

    @property
    def voxel_bytes(self) -> int:
        """What a voxel takes while it is read."""
        return self.volume.dtype.itemsize + self.dtype.itemsize

    def values(self, box: Box) -> np.ndarray:
        return self.volume[(*self.channel, *moved(box, self.start))]

    def __getitem__(self, box: Box) -> np.ndarray:
        return self.make(self.values(box))


class Borders(NamedTuple):
    """How near to a border of the truth a voxel does not count: in nm within its section, or in a box of voxels."""

    nm: float | None = None
    xy: int = 0
    z: int = 0

    def __str__(self) -> str:
        return f"{self.nm:g} nm" if self.nm else f"{self.xy} x {self.z} voxels" if self.xy or self.z else "none"

    def reach(self, resolution: Sequence[float] | None) -> tuple[int, int, int]:
        """How many voxels around a block the mask of the block depends on."""
        if self.nm is not None:
            is_near = self.nm and math.isfinite(self.nm)
            return 0, *(math.ceil(self.nm / size) + 1 if is_near else 0 for size in resolution[1:])
        return (self.z + 1, self.xy + 1, self.xy + 1) if self.xy or self.z else (0, 0, 0)

    def mask(self, truth: np.ndarray, resolution: Sequence[float] | None, threads: int | None) -> np.ndarray | None:
        if self.nm is not None:
            return neuron_border_mask(truth, resolution, self.nm, threads)
        return box_border_mask(truth, self.xy, self.z, threads) if self.xy or self.z else None


NO_BORDERS = Borders()


def overlap(prediction: Volume, truth: Volume) -> Shared:
    """Where the part that both volumes cover starts in either of them, and its shape."""
    resolution = prediction.resolution or truth.resolution
    known = truth.resolution or resolution
    if resolution and not np.allclose(resolution, known, rtol=1e-3):
        raise InputError(f"the prediction {prediction.name} has voxels of {resolution} nm, the truth {truth.name} "
                         f"of {known} nm; resample one of them")
    same_place = prediction.offset == truth.offset
    if same_place and prediction.shape == truth.shape:
        return Shared((0, 0, 0), (0, 0, 0), truth.shape)
    if not resolution or (same_place and not any(truth.offset)):
        raise InputError(f"the prediction {prediction.name} has the shape {prediction.shape}, the truth {truth.name} "
                         f"{truth.shape}, and the files do not say how they lie; store resolution and offset (nm, "
                         "z y x), or give volumes of one shape")
    shift = (np.array(prediction.offset) - truth.offset) / resolution
    whole = np.rint(shift).astype(np.int64)
    if np.abs(shift - whole).max() > 0.01:
        raise InputError(f"the prediction {prediction.name} lies {tuple(shift.tolist())} voxels (z, y, x) off the "
                         f"truth {truth.name}, which is not a whole number")
    truth_start = np.maximum(whole, 0)
    shape = np.minimum(whole + prediction.shape, truth.shape) - truth_start
    if (shape <= 0).any():
        raise InputError(f"the volumes do not overlap: the prediction {prediction.name} covers the voxels "
                         f"{tuple(whole.tolist())} to {tuple((whole + prediction.shape).tolist())} (z, y, x) of the "
                         f"truth {truth.name}, which ends at {truth.shape}")
    return Shared(*(tuple(int(length) for length in triple) for triple in (truth_start - whole, truth_start, shape)))


def placed(ours: Volume, truth: Volume, crop: Sequence[int] | None) -> Shared:
    """Where what is scored begins in either volume, and its shape: by evaluate.crop, or by the volumes' offsets."""
    shape, theirs = ours.shape[-3:], truth.shape
    names = f"the prediction {ours.name} has the shape {shape}, the truth {truth.name} {theirs}"
    if crop is None:
        resolution = ours.resolution or truth.resolution
        if shape != theirs and ours.offset == truth.offset and not (resolution and any(truth.offset)):
            inside = [(a - b) // 2 for a, b in zip(shape, theirs)]
            if min(inside) >= 0 or max(a - b for a, b in zip(shape, theirs)) <= 0:
                edges = [(abs(low), abs(low) + min(a, b)) for low, a, b in zip(inside, shape, theirs)]
                edges = [edge for pair in edges for edge in pair]
                raise InputError(f"{names}, and the files do not say how they lie; if one is the middle of the other, "
                                 f"set evaluate.crop = {edges}")
            raise InputError(f"{names}; neither holds the other, so no crop fits: store resolution and offset (nm, z "
                             "y x) with them")
        return overlap(replace(ours, shape=shape), truth)
    start, size = crop[::2], tuple(b - a for a, b in zip(crop[::2], crop[1::2]))

    def fits(whole: Sequence[int]) -> bool:
        return all(0 <= low < low + n <= length for low, n, length in zip(start, size, whole))

    if min(size) > 0 and shape == theirs and fits(shape):
        return Shared(start, start, size)
    if size == theirs and fits(shape):
        return Shared(start, (0, 0, 0), size)
    if size == shape and fits(theirs):
        return Shared((0, 0, 0), start, size)
    raise InputError(f"evaluate.crop {list(crop)} is a box of {size} voxels and does not fit: {names}; it must lie in "
                     "the larger one and be as large as the smaller one")


def box(start: Sequence[int], shape: Sequence[int]) -> Box:
    return tuple(slice(low, low + n) for low, n in zip(start, shape))


def moved(box: Box, start: Sequence[int]) -> Box:
    return tuple(slice(span.start + at, span.stop + at) for span, at in zip(box, start))


def whole_table(prediction: Volume, truth: Volume, place: Shared, borders: Borders = NO_BORDERS,
                usable: Volume | None = None, threads: int | None = None) -> Contingency:
    """The table of the part that both cover, read box by box; the border mask sees past each box's edge.

    usable: 0 where a voxel of the truth is left out.
    """
    if usable is not None and usable.shape != truth.shape:
        raise InputError(f"the mask {usable.name} must have the shape {truth.shape} of the truth {truth.name}; "
                         f"it has {usable.shape}")
    resolution = truth.resolution or prediction.resolution
    if borders.nm is not None and resolution is None:
        raise InputError(f"--border-nm needs the size of a voxel, but neither {truth.name} nor {prediction.name} "
                         "says its resolution; give --resolution Z Y X")
    reach = borders.reach(resolution)

    def table(block: Box) -> Contingency:
        theirs = moved(block, place.truth_start)
        wider = tuple(slice(max(0, span.start - far), min(end, span.stop + far))
                      for span, far, end in zip(theirs, reach, truth.shape))
        labels = truth[wider]
        inner = moved(theirs, [-span.start for span in wider])
        mask = borders.mask(labels, resolution, threads)
        mask = None if mask is None else mask[inner]
        if usable is not None:
            unusable = usable[theirs] == 0
            mask = unusable if mask is None else mask | unusable
        return contingency(labels[inner], prediction[moved(block, place.start)], (), (), mask, threads)

    return added_up(map(table, boxes(truth, prediction, shape=place.shape)))
