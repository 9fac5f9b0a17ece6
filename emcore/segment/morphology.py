"""Dilation, erosion and hole filling of masks and labels (z, y, x); what lies outside the volume never counts."""

from collections.abc import Callable, Sequence

import numpy as np

from emcore.errors import InputError
from emcore.segment.arrays import as_array
from emcore.segment.components import connected_components
from emcore.segment.relabeling import unsigned
from emcore.threads import run_parallel, slabs, thread_count


def dilate(labels: np.ndarray, size: int | Sequence[int] = 3, *, footprint: str = "box", iterations: int = 1,
           threads: int | None = None) -> np.ndarray:
    """Grows labels: every voxel takes the largest label in the window around it.

    Args:
        labels: integers or bool (z, y, x).
        size: the odd width of the window in voxels, one number or one for each axis. The default is 3.
        footprint: "box" (the default) takes the whole window, "cross" its middle lines.
        iterations: how often it is done (default 1).
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape and dtype.

    Raises:
        InputError: the labels or the window do not fit.

    Cost:
        It takes 16 ns of one core and 4.1 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> segment.dilate(np.array([[[0, 0, 4, 0, 0]]]), 3)
        array([[[0, 4, 4, 4, 0]]])
    """
    labels, sizes, iterations, threads = _checked(labels, size, footprint, iterations, threads)
    return _windows(labels, np.maximum, sizes, footprint, iterations, threads)


def erode(labels: np.ndarray, size: int | Sequence[int] = 3, *, footprint: str = "box", iterations: int = 1,
          threads: int | None = None) -> np.ndarray:
    """Shrinks labels: a voxel keeps its label where the whole window around it holds this label, and else becomes 0.

    Args:
        labels: integers or bool (z, y, x).
        size: the odd width of the window in voxels, one number or one for each axis. The default is 3.
        footprint: "box" (the default) takes the whole window, "cross" its middle lines.
        iterations: how often it is done (default 1).
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels of the same shape and dtype.

    Raises:
        InputError: the labels or the window do not fit.

    Cost:
        It takes 34 ns of one core and 13 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> segment.erode(np.array([[[4, 4, 4, 0, 0]]]), (1, 1, 3))
        array([[[4, 4, 0, 0, 0]]])
    """
    labels, sizes, iterations, threads = _checked(labels, size, footprint, iterations, threads)
    if labels.dtype == bool:
        return _windows(labels, np.minimum, sizes, footprint, iterations, threads)
    out = labels
    # a cross that is applied again looks at what is left, so each round needs both extremes of the round before
    for _ in range(iterations if footprint == "cross" else 1):
        rounds = 1 if footprint == "cross" else iterations
        low = _windows(out, np.minimum, sizes, footprint, rounds, threads)
        high = _windows(out, np.maximum, sizes, footprint, rounds, threads)
        out = np.where(low == high, low, out.dtype.type(0))
    return out if out is not labels else labels.copy()


def fill_holes(mask: np.ndarray, *, per_section: bool = False, threads: int | None = None) -> np.ndarray:
    """Fills every hole of a mask: background that no path of faces joins to a face of the volume.

    Args:
        mask: bool or integers (z, y, x).
        per_section: True looks at every section alone, and a hole is background that does not reach the edges of its
            section. The default is False.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        bool (z, y, x).

    Raises:
        InputError: the mask does not fit.

    Cost:
        It takes 6.9 ns of one core and 6.2 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> ring = np.ones((1, 3, 3), bool)
        >>> ring[0, 1, 1] = False
        >>> bool(segment.fill_holes(ring, per_section=True).all())
        True
    """
    mask, threads = as_array("mask", mask) != 0, thread_count(threads)
    if mask.ndim != 3:
        raise InputError(f"mask must be (z, y, x); got shape {mask.shape}")
    if not per_section:
        return _without_holes(mask, threads)
    out = np.empty_like(mask)

    def section(z: int) -> None:
        out[z] = _without_holes(mask[z], 1)

    run_parallel(section, [(z,) for z in range(len(mask))], threads)
    return out


def _without_holes(mask: np.ndarray, threads: int) -> np.ndarray:
    """The mask (2D or 3D) with the holes filled."""
    background, count = connected_components(~mask, count=True, threads=threads)
    filled = np.ones(count + 1, bool)
    for axis in range(mask.ndim):
        faces = np.moveaxis(background, axis, 0)
        for face in (faces[:1], faces[-1:]):
            filled[face] = False
    filled[0] = True  # the mask itself
    return filled[background]


def _checked(labels: np.ndarray, size: int | Sequence[int], footprint: str, iterations: int,
             threads: int | None) -> tuple[np.ndarray, tuple[int, ...], int, int]:
    """(labels, the window along z, y and x, iterations, threads)."""
    labels = as_array("labels", labels)
    if labels.ndim != 3:
        raise InputError(f"labels must be (z, y, x); got shape {labels.shape}")
    threads = thread_count(threads)
    if labels.dtype != bool:
        dtype = labels.dtype.newbyteorder("=")
        labels = unsigned(labels, threads=threads).view(dtype)
    sizes = (size,) * 3 if np.isscalar(size) else tuple(size)
    if len(sizes) != 3 or not all(isinstance(one, int | np.integer) and one > 0 and one % 2 for one in sizes):
        raise InputError(f"size must be odd, one number or three (z, y, x); got {size}")
    if footprint not in ("box", "cross"):
        raise InputError(f"footprint must be 'box' or 'cross'; got {footprint!r}")
    if not isinstance(iterations, int | np.integer) or iterations < 0:
        raise InputError(f"iterations must not be below 0, and must be a whole number; got {iterations}")
    # after as many rounds as the volume is long in all, every window is the volume
    return labels, tuple(int(one) for one in sizes), min(int(iterations), sum(labels.shape)), threads


def _windows(labels: np.ndarray, extreme: Callable, sizes: tuple[int, ...], footprint: str, iterations: int,
             threads: int) -> np.ndarray:
    """A new array of the extreme (np.maximum or np.minimum) of every window, taken iterations times."""
    if labels.size == 0 or iterations == 0:
        return labels.copy()
    if footprint == "cross":
        for _ in range(iterations):
            labels = _cross(labels, extreme, sizes, threads)
        return labels
    # boxes of boxes are boxes
    depth, height, width = ((size - 1) * iterations + 1 for size in sizes)
    out = np.empty(labels.shape, labels.dtype)

    def columns(start: int, stop: int) -> None:
        out[:, start:stop] = _running(labels[:, start:stop], 0, depth, extreme)

    def section(z: int) -> None:
        out[z] = _running(_running(out[z], 0, height, extreme), 1, width, extreme)

    run_parallel(columns, slabs(labels.shape[1], labels.shape[1]), threads)
    run_parallel(section, [(z,) for z in range(len(labels))], threads)
    return out


def _cross(labels: np.ndarray, extreme: Callable, sizes: tuple[int, ...], threads: int) -> np.ndarray:
    """A new array of the extremes over the three lines through every voxel."""
    out = np.empty(labels.shape, labels.dtype)

    def columns(start: int, stop: int) -> None:
        out[:, start:stop] = _running(labels[:, start:stop], 0, sizes[0], extreme)

    def section(z: int) -> None:
        for axis in (0, 1):
            extreme(out[z], _running(labels[z], axis, sizes[axis + 1], extreme), out=out[z])

    run_parallel(columns, slabs(labels.shape[1], labels.shape[1]), threads)
    run_parallel(section, [(z,) for z in range(len(labels))], threads)
    return out


def _running(values: np.ndarray, axis: int, size: int, extreme: Callable) -> np.ndarray:
    """The extreme of the window of `size` voxels along the axis, cut at the ends.

    Windows double in length until two of them, overlapping, are as long as wanted: log2(size) passes.
    """
    reach = min(size // 2, values.shape[axis] - 1)
    if reach == 0:
        return values
    ends = [(0, 0)] * values.ndim
    ends[axis] = (reach, reach)
    # repeating the last voxel adds nothing to a window that holds it: what is cut off at an end never counts
    window, length, wanted = np.moveaxis(np.pad(values, ends, mode="edge"), axis, 0), 1, 2 * reach + 1
    while length < wanted:
        step = min(length, wanted - length)
        window = extreme(window[:-step], window[step:])
        length += step
    return np.moveaxis(window, 0, axis)
