"""What callers hand over as arrays and counts, made plain before a kernel sees it; what cannot be is refused."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from emcore.errors import InputError


def as_array(name: str, values: ArrayLike) -> np.ndarray:
    """values as an array whose elements lie where the machine expects them: a view, or a copy of a packed field.

    Anything that numpy can view is fine, a torch tensor in main memory too. Masked arrays are refused unless nothing
    is masked in them, as the mask would be lost.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(f"{name} is a masked array, whose mask would be lost; fill it, or leave voxels out by a mask")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # tensors say so in each of these ways
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(f"{name} must be an array, or something that numpy can view as one; got "
                         f"{type(values).__name__} ({reason})") from None
    if not array.flags.aligned or any(stride % array.itemsize for stride in array.strides if array.itemsize):
        array = array.copy()
    return array


def as_numbers(name: str, values: ArrayLike) -> np.ndarray:
    """values as float64, of any shape."""
    array = as_array(name, values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be real numbers; got {values!r}" if array.size < 10 else
                         f"{name} must be real numbers; got {array.dtype}")
    return array.astype(np.float64)


def as_count(name: str, value: int) -> int:
    """value as a whole number from 0 on; what exceeds 2**62 is more than any volume has, and is cut there."""
    if not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{name} must be a whole number, 0 or more; got {value!r}")
    return min(int(value), 2**62)


def as_triple(name: str, values: Sequence[int]) -> np.ndarray:
    """Three whole numbers from 0 on, far below the end of 64 bits."""
    triple = as_array(name, values)
    if triple.shape != (3,) or triple.dtype.kind not in "iu" or not 0 <= triple.min() <= triple.max() <= 2**40:
        raise InputError(f"{name} must be three whole numbers (z, y, x), 0 or more; got {values}")
    return np.ascontiguousarray(triple, np.int64)


def within(value: float, low: float, high: float) -> bool:
    """Whether value is one real number from low to high."""
    return isinstance(value, int | float | np.number | np.bool_) and not isinstance(value, np.complexfloating) and (
        bool(low <= value <= high))
