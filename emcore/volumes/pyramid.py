"""Coarser levels of a volume: which ones there are, and how their voxels follow from those of the next finer one.

An axis is halved where it is among the finest: sections of 40 x 4 x 4 nm become 40 x 8 x 8, 40 x 16 x 16, 40 x 32 x 32
and then 80 x 64 x 64. Voxel i of a halved axis covers the voxels 2 i and 2 i + 1 of the finer level.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from emcore.errors import InputError

NEARLY_EQUAL = math.sqrt(2)  # an axis is halved where its voxels are less than this factor longer than the shortest
MOST_LEVELS = 40
PIECE_BYTES = 32 << 20  # So much of the finer level is read at a time.
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Level:
    """One level: voxels z y x, `start` counted from the origin of its grid, `factors` from the next finer level."""

    shape: Triple
    start: Triple
    factors: Triple
    resolution: tuple[float, float, float]


def plan_levels(shape: Triple, start: Triple, resolution: Sequence[float] | None, chunk: Sequence[int],
                count: int | None = None) -> tuple[Level, ...]:
    """The levels from the finest on: `count` of them, or by default until one fits into a chunk.

    The grid is fixed to the origin of the coordinates, so a level whose start is odd begins in the middle of a voxel
    of the coarser one. Without a resolution the voxels count as cubes.
    """
    if count is not None and not 1 <= count <= MOST_LEVELS:
        raise InputError(f"a volume is stored at 1 to {MOST_LEVELS} levels; got {count}")
    levels = [Level(tuple(shape), tuple(start), (1, 1, 1), tuple(resolution or (1.0, 1.0, 1.0)))]
    while len(levels) != (count or MOST_LEVELS):
        last = levels[-1]
        if count is None and all(length <= size for length, size in zip(last.shape, chunk)):
            break
        coarser = halved(last)
        if coarser.shape == last.shape:
            if count is not None:
                raise InputError(f"a volume of {shape} voxels has {len(levels)} levels, the last of {last.shape}; "
                                 f"got {count}")
            break
        levels.append(coarser)
    return tuple(levels)


def halved(level: Level) -> Level:
    """The next coarser level; the same shape where nothing can be halved."""
    sizes = [size for size, length in zip(level.resolution, level.shape) if length > 1]
    factors = tuple(2 if length > 1 and size < NEARLY_EQUAL * min(sizes) else 1
                    for size, length in zip(level.resolution, level.shape))
    start = tuple(first // factor for first, factor in zip(level.start, factors))
    stop = [-(-(first + length) // factor) for first, length, factor in zip(level.start, level.shape, factors)]
    shape = tuple(end - first for first, end in zip(start, stop))
    return Level(shape, start, factors, tuple(size * factor for size, factor in zip(level.resolution, factors)))


def by_mode(dtype: np.dtype, layer: str) -> bool:
    """Whether coarser voxels are the most frequent value: labels, and integers whose mean no float holds."""
    return layer == "segmentation" or dtype.kind == "b" or (dtype.kind in "iu" and dtype.itemsize == 8)


def shrunk(array: Any, finer: Level, coarser: Level, box: tuple[slice, ...], mode: bool) -> np.ndarray:
    """The voxels of a box of the coarser level, made from `array`, the finer one, of axes (c,) z, y, x.

    A window that the volume's border cuts counts the voxels that it has.
    """
    spans, margins = list(box[:-3]), [(0, 0)] * (len(box) - 3)
    for axis, span in enumerate(box[-3:]):
        first = coarser.factors[axis] * (span.start + coarser.start[axis]) - finer.start[axis]
        last = first + coarser.factors[axis] * (span.stop - span.start)
        spans.append(slice(max(0, first), min(finer.shape[axis], last)))
        margins.append((max(0, -first), max(0, last - finer.shape[axis])))
    block = np.asarray(array[tuple(spans)])
    if any(map(any, margins)):  # with two voxels an axis repeating the edge changes neither the mean nor the mode
        block = np.pad(block, margins, mode="edge")
    return downsampled(block, coarser.factors, mode)


def pieces(box: tuple[slice, ...], chunk: Sequence[int], finer_bytes: int) -> Iterator[tuple[slice, ...]]:
    """The box in boxes of whole chunks (counted from its corner), each made of about PIECE_BYTES of the finer level.

    finer_bytes: bytes of the finer level that a voxel is made of.
    """
    lengths = [span.stop - span.start for span in box]
    size = [min(part, length) for part, length in zip(chunk, lengths)]
    for axis in reversed(range(len(size))):
        room = max(1, PIECE_BYTES // (math.prod(size) * finer_bytes))
        size[axis] = min(lengths[axis], size[axis] * room)
    for corner in itertools.product(*(range(span.start, span.stop, step) for span, step in zip(box, size))):
        yield tuple(slice(low, min(low + step, span.stop)) for low, step, span in zip(corner, size, box))


def downsampled(block: np.ndarray, factors: Sequence[int], mode: bool) -> np.ndarray:
    """One value for each window of that size (1 or 2 an axis) in the last three axes.

    The mean, of integers the nearest one and halves upwards; or the most frequent value, of equally frequent ones
    that which comes first in the order of reading (x fastest). A mean over NaN is NaN.
    """
    starts = itertools.product(*(range(factor) for factor in factors))
    parts = [block[..., z::factors[0], y::factors[1], x::factors[2]] for z, y, x in starts]
    if len(parts) == 1:
        return block
    return mode_of(parts) if mode else mean_of(parts, block.dtype)


def mean_of(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    total = parts[0].astype(np.float64 if dtype.kind == "f" else np.int64 if dtype.itemsize == 4 else np.int32)
    for part in parts[1:]:
        total += part
    return (total / len(parts) if dtype.kind == "f" else (total + len(parts) // 2) // len(parts)).astype(dtype)


def mode_of(parts: list[np.ndarray]) -> np.ndarray:
    result = parts[0].copy()
    mixed = np.zeros(result.shape, bool)  # most windows lie within one label
    for part in parts[1:]:
        mixed |= part != parts[0]
    values = [part[mixed] for part in parts]
    most, chosen = np.zeros(len(values[0]), np.uint8), values[0].copy()
    for place, value in enumerate(values):
        # the first voxel of a label counts all of it, a later one fewer, so that equals never replace the first
        count = np.ones(len(value), np.uint8)
        for other in values[place + 1:]:
            count += value == other
        better = count > most
        chosen[better], most[better] = value[better], count[better]
    result[mixed] = chosen
    return result
