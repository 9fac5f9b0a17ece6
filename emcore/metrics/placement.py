"""Where a prediction and its truth lie on each other: by their offsets, or by a crop that a user names."""

from collections.abc import Sequence
from dataclasses import replace

from emcore.errors import InputError
from emcore.metrics.score import overlap
from emcore.volumes import Volume

Box = tuple[slice, slice, slice]


def placed(ours: Volume, truth: Volume, crop: Sequence[int] | None) -> tuple[tuple[int, ...], ...]:
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
        return start, start, size
    if size == theirs and fits(shape):
        return start, (0, 0, 0), size
    if size == shape and fits(theirs):
        return (0, 0, 0), start, size
    raise InputError(f"evaluate.crop {list(crop)} is a box of {size} voxels and does not fit: {names}; it must lie in "
                     "the larger one and be as large as the smaller one")


def box(start: Sequence[int], shape: Sequence[int]) -> Box:
    return tuple(slice(low, low + n) for low, n in zip(start, shape))
