"""Truth and prediction as one pair: checked alike for every score of voxels, and read together in blocks."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from emcore.errors import InputError
from emcore.segment.arrays import as_numbers

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


def boxes(*volumes, shape: Sequence[int] | None = None) -> Iterator[tuple[slice, ...]]:
    """The whole of arrays, or boxes of about BLOCK_BYTES of volumes: slabs of whole chunks, or rows of sections too
    large for that. At least one, which is empty where the volumes are.

    shape: what the boxes cover; without it the shape of the first.
    """
    shape = tuple(volumes[0].shape) if shape is None else tuple(shape)
    if len(shape) < 2 or all(isinstance(volume, np.ndarray) for volume in volumes):
        yield tuple(slice(0, size) for size in shape)
        return
    row = max(1, prod(shape[2:])) * sum(volume.dtype.itemsize for volume in volumes)
    chunks = [getattr(volume, "chunks", None) or (1, 1) for volume in volumes]
    deep, high = (max(1, min(shape[axis], max(chunk[axis] for chunk in chunks))) for axis in (0, 1))
    sections = BLOCK_BYTES // (row * max(1, shape[1])) // deep * deep
    rows = max(1, shape[1])
    if sections == 0:
        sections, rows = deep, max(1, BLOCK_BYTES // (row * deep) // high) * high
    for z, y in product(range(0, max(1, shape[0]), sections), range(0, max(1, shape[1]), rows)):
        yield (slice(z, min(z + sections, shape[0])), slice(y, min(y + rows, shape[1])),
               *(slice(0, size) for size in shape[2:]))
