"""Truth and prediction as one pair: checked alike for every score of voxels, and read together in blocks."""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from emcore.errors import InputError
from emcore.segment.arrays import as_numbers
from emcore.volumes.convert import blocks

BLOCK_BYTES = 256 << 20  # what is read at a time of a volume that is not an array


def checked_resolution(resolution: Sequence[float]) -> NDArray[np.float64]:
    """Three positive sizes in nm."""
    sizes = as_numbers("resolution", resolution)
    if sizes.shape != (3,) or not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise InputError(f"resolution must be three positive sizes in nm, z y x; got {sizes.tolist()}")
    return sizes


def check_shapes(**volumes) -> None:
    """Refuses volumes that do not cover each other, naming both shapes."""
    (name, volume), *others = volumes.items()
    for other_name, other in others:
        if tuple(other.shape) != tuple(volume.shape):
            raise InputError(f"{name} and {other_name} must have the same shape; {name} is {tuple(volume.shape)}, "
                             f"{other_name} is {tuple(other.shape)}")


def check_types(**volumes) -> None:
    """Refuses volumes that hold no labels."""
    for name, volume in volumes.items():
        if volume.dtype.kind not in "uib":
            raise InputError(f"{name} must be integer labels; got {volume.dtype}; turn probabilities into labels "
                             "first, or convert with astype('uint64')")


def check_not_negative(name: str, labels: NDArray) -> None:
    """Refuses labels below 0, which no score knows."""
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise InputError(f"{name} must not be negative; it holds {labels.min()} as {labels.dtype}; write unlabelled "
                         "voxels as 0, or CREMI's background as 2^64 - 1 in uint64")


def boxes(*volumes, shape: Sequence[int] | None = None,
          most_sections: int | None = None) -> Iterator[tuple[slice, ...]]:
    """The whole of arrays, or boxes of whole chunks of volumes, of BLOCK_BYTES at most unless one chunk is larger.

    They cover the shape, which without one is that of the first volume, x before y before z; there is at least one,
    which is empty where the volumes are. most_sections: they are runs of whole sections, of as many as BLOCK_BYTES
    hold, or as a chunk has where those are more, but of no more than these.
    """
    shape = tuple(volumes[0].shape) if shape is None else tuple(shape)
    if 0 in shape or not shape or all(isinstance(volume, np.ndarray) for volume in volumes):
        yield tuple(slice(0, size) for size in shape)
        return
    voxels = BLOCK_BYTES // sum(getattr(volume, "voxel_bytes", volume.dtype.itemsize) for volume in volumes)
    chunks = [tuple(chunk)[-len(shape):] for chunk in (getattr(volume, "chunks", None) for volume in volumes) if chunk]
    if most_sections is None:
        yield from blocks(shape, *(*chunks[:2], None, None)[:2], voxels)
        return
    deep = max((chunk[0] for chunk in chunks), default=1)
    run = min(most_sections, max(deep, voxels // prod(shape[1:]) // deep * deep))
    for z in range(0, shape[0], run):
        yield slice(z, min(z + run, shape[0])), *(slice(0, size) for size in shape[1:])
