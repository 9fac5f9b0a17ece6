"""What of a volume stands in the page: a coarse grid of voxels small enough to embed, read block by block."""

import base64
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emcore.volumes import Volume

COARSEST = 4  # voxels that one grid point stands for, at most, along an axis; beyond that the middle is cut out
BLOCK_BYTES = 32 << 20  # read at a time
Triple = tuple[int, int, int]


class Grid(NamedTuple):
    """Points at start, start + step, ... of a volume (z, y, x); each stands for the step voxels from there on."""

    start: Triple
    step: Triple
    shape: Triple

    def voxel(self, point: Sequence[int]) -> Triple:
        """The voxel in the middle of what a point stands for."""
        return tuple(int(a + k * p + k // 2) for a, k, p in zip(self.start, self.step, point))


def choose_grid(box: Sequence[tuple[int, int]], resolution: Sequence[float], limit: int) -> Grid:
    """The grid over a box (first and last + 1 voxel of each axis) with at most `limit` points.

    The finest axes are thinned out first, so that its points come to lie about equally far apart in nm.
    """
    step, extent = np.ones(3, int), np.array([last - first for first, last in box])
    while (extent // step).prod() > limit:
        spacing = np.where((step < COARSEST) & (extent > step), step * np.array(resolution), np.inf)
        if np.isinf(spacing).all():
            break
        step[np.isclose(spacing, spacing.min())] += 1
    shape = np.maximum(extent // step, 1)
    side = int(shape.max())
    while np.minimum(shape, side).prod() > limit:
        side -= max(1, side // 50)
    shape = np.minimum(shape, side)
    start = [first + int(rest) // 2 for (first, _), rest in zip(box, extent - shape * step)]
    return Grid(tuple(start), tuple(step.tolist()), tuple(shape.tolist()))


def sample(volume: Volume, channel: int | None, shift: Sequence[int], grid: Grid, average: bool) -> np.ndarray:
    """The values of a volume on the grid, 0 where it does not reach: means in the section for images, else one voxel.

    shift: where the volume's first voxel lies, in voxels of the grid.
    """
    out = np.zeros(grid.shape, np.float32 if average else volume.dtype)
    step, first = np.array(grid.step), np.array(grid.start) - shift  # first: voxel of the volume at point 0
    low = np.clip(-(first // step), 0, grid.shape)  # the points whose voxels are all in the volume
    high = np.clip((np.array(volume.shape[-3:]) - first) // step, low, grid.shape)
    if (low == high).any():
        return out
    from_x, to_x = (first + low * step)[2], (first + high * step)[2]
    row = int(step[1] * (to_x - from_x)) * volume.dtype.itemsize
    rows = max(1, min(int(high[1] - low[1]), BLOCK_BYTES // row))
    sections = max(1, BLOCK_BYTES // (row * rows * int(step[0])))
    leading = () if channel is None else (channel,)
    for z in range(low[0], high[0], sections):
        z_end = min(z + sections, high[0])
        from_z = first[0] + z * step[0] + step[0] // 2
        for y in range(low[1], high[1], rows):
            y_end = min(y + rows, high[1])
            # all sections between, which HDF5 reads many times faster than every second one
            read = volume[(*leading, slice(from_z, from_z + (z_end - z - 1) * step[0] + 1),
                           slice(first[1] + y * step[1], first[1] + y_end * step[1]), slice(from_x, to_x))][::step[0]]
            if average:
                cells = read.reshape(z_end - z, y_end - y, step[1], high[2] - low[2], step[2])
                read = cells.mean((2, 4), dtype=np.float32)
            else:
                read = read[:, step[1] // 2::step[1], step[2] // 2::step[2]]
            out[z:z_end, y:y_end, low[2]:high[2]] = read
    return out


def pack(values: np.ndarray) -> dict[str, Any]:
    """Unsigned integers for the page: differences along x, deflated, as base64."""
    changes = values.astype(values.dtype.newbyteorder("<"))
    changes[..., 1:] -= values[..., :-1]
    return {"bits": 8 * values.dtype.itemsize, "data": base64.b64encode(zlib.compress(changes.tobytes(), 7)).decode()}


def pack_grey(values: np.ndarray, low: float, high: float) -> dict[str, Any]:
    """Values low to high as 0 to 255; what is not a number is 0."""
    scaled = (np.nan_to_num(values, nan=low) - np.float32(low)) * np.float32(255 / (high - low or 1))
    return pack(np.clip(scaled, 0, 255).round().astype(np.uint8))
