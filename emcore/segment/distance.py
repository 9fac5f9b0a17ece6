"""Exact Euclidean distance transforms of label volumes and masks, in the unit of the resolution; 2D too."""

from collections.abc import Sequence

import numpy as np

from emcore.errors import InputError
from emcore.kernels import distance as kernel
from emcore.segment.arrays import as_array, as_numbers
from emcore.segment.relabeling import unsigned
from emcore.threads import run_parallel, slabs, thread_count

_TILE = 32  # columns that the kernel takes at once


def distance_transform(labels: np.ndarray, resolution: Sequence[float] | None = None, *, squared: bool = False,
                       black_border: bool = False, threads: int | None = None) -> np.ndarray:
    """float32 distance of every voxel to the centre of the nearest voxel of another label, background included.

    0 on background (label 0), inf where there is no other label. labels are (z, y, x) or (y, x), resolution one size
    an axis (default 1). black_border=True: outside of the volume counts as another label. Exact up to the rounding
    of float32: the relative error is below 3e-7, and none where all squares are whole numbers below 2**24.
    """
    labels, threads = unsigned(labels, threads=threads), thread_count(threads)
    if labels.ndim not in (2, 3):
        raise InputError(f"labels must be (z, y, x) or (y, x); got shape {labels.shape}")
    sizes = _sizes(resolution, labels.shape)
    out = np.empty(labels.shape, np.float32)
    if labels.size == 0:
        return out
    volume, target = labels, out
    border = black_border
    if labels.ndim == 2:  # rows as planes: every axis of the volume but the middle one is an axis of the image
        volume, target, sizes = labels[:, None], out[:, None], (sizes[0], 1.0, sizes[1])
        border = False
    run_parallel(kernel.planes, [(volume, target, start, stop, sizes[1], sizes[2], border, black_border)
                                 for start, stop in slabs(len(volume), threads)], threads)
    tiles = target.shape[1] * -(-target.shape[2] // _TILE)
    run_parallel(kernel.columns, [(volume, target, start, stop, sizes[0], black_border, not squared)
                                  for start, stop in slabs(tiles, threads)], threads)
    return out


def _sizes(resolution: Sequence[float] | None, shape: tuple[int, ...]) -> tuple[float, ...]:
    """One positive voxel size an axis, such that no square leaves float32."""
    sizes = np.ones(len(shape)) if resolution is None else as_numbers("resolution", resolution)
    if sizes.shape != (len(shape),) or not ((sizes > 1e-15) & (sizes * max(1, *shape) < 1e15)).all():
        raise InputError(f"resolution must be {len(shape)} positive sizes, one an axis of labels; got {resolution}")
    return tuple(sizes.tolist())


def signed_distance(mask: np.ndarray, resolution: Sequence[float] | None = None, *,
                    threads: int | None = None) -> np.ndarray:
    """float32 distance to the nearest voxel of the other kind: positive inside mask, negative outside.

    inf everywhere if all of mask is set, -inf if none is.
    """
    mask = as_array("mask", mask)
    inside = mask if mask.dtype == bool else unsigned(mask, "mask", threads) > 0
    distance = distance_transform(inside.view(np.uint8) + np.uint8(1), resolution, threads=threads)
    return np.negative(distance, out=distance, where=~inside)
