"""Affinities and eroded borders of int64 labels (n, z, y, x) on the CPU: compiled loops over sections, on threads.

The same values as the torch code of emcore/data/targets.py, which serves every other device.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from emcore.cache import compiled
from emcore.threads import run_parallel

_LABELS = numba.types.Array(numba.int64, 3, "C", readonly=True)
_OFFSETS = numba.types.Array(numba.int64, 2, "C", readonly=True)


@compiled(lambda _: numba.void(_LABELS, numba.int64, numba.int64, numba.int64[:, :, ::1]), at_once=True)
def _erode_section(labels, section, radius, out):
    """out[section]: 0 where the window around an object's voxel holds another object too."""
    height, width = labels.shape[1:]
    largest, smallest = np.empty(width, np.int64), np.empty(width, np.int64)
    widest, least = np.empty(width, np.int64), np.empty(width, np.int64)
    top = np.int64(2**63 - 1)
    for y in range(height):
        largest[:] = 0
        smallest[:] = top
        for near in range(max(0, y - radius), min(height, y + radius + 1)):
            row = labels[section, near]
            for x in range(width):
                largest[x] = max(largest[x], row[x])
                smallest[x] = min(smallest[x], row[x] if row[x] > 0 else top)
        widest[:] = largest
        least[:] = smallest
        for step in range(1, min(radius, width - 1) + 1):
            ahead, behind = width - step, widest[step:]  # slices: indices that cannot be negative are quick
            after, before, below = largest[step:], smallest[step:], least[step:]
            for x in range(ahead):
                widest[x] = max(widest[x], after[x])
                least[x] = min(least[x], before[x])
            for x in range(ahead):
                behind[x] = max(behind[x], largest[x])
                below[x] = min(below[x], smallest[x])
        row, made = labels[section, y], out[section, y]
        for x in range(width):
            made[x] = 0 if row[x] > 0 and widest[x] != least[x] else row[x]


@compiled(lambda _: numba.void(_LABELS, numba.int64, _OFFSETS, numba.int64, numba.boolean, numba.int64,
                     numba.float32[:, :, :, ::1], numba.boolean[:, :, :, ::1]), at_once=True)
def _affinity_section(labels, z, offsets, least, all_count, border, values, valid):
    """values and valid (channels, z, y, x) of one section; border 0 ignores, 1 learns the foreground, 2 cuts.

    Labels up to `least` count in no edge; all_count says that there are none.
    """
    depth, height, width = labels.shape
    for y in range(height):
        for channel in range(offsets.shape[0]):
            step_z, step_y, step_x = offsets[channel]
            value, count = values[channel, z, y], valid[channel, z, y]
            first, last = max(0, -step_x), min(width, width - step_x)
            inside = 0 <= z + step_z < depth and 0 <= y + step_y < height and first < last
            if not inside or last - first < width:
                here = labels[z, y]
                for x in range(width):
                    value[x] = np.float32(border == 1 and here[x] > 0)
                    count[x] = border != 0 and here[x] > least
            if inside:
                # slices: indices that cannot be negative are quick
                here, there = labels[z, y, first:last], labels[z + step_z, y + step_y, first + step_x:last + step_x]
                value, count = value[first:last], count[first:last]
                for x in range(last - first):
                    value[x] = np.float32((here[x] == there[x]) & (here[x] > 0))
                if all_count:
                    count[:] = True
                else:
                    for x in range(last - first):
                        count[x] = (here[x] > least) & (there[x] > least)


def erode(labels: Tensor, radius: int) -> Tensor:
    found = labels.contiguous().numpy()
    out = np.empty_like(found)
    jobs = [(sample, z, radius, made) for sample, made in zip(found, out) for z in range(len(sample))]
    run_parallel(_erode_section, jobs, torch.get_num_threads())
    return torch.from_numpy(out)


def affinities(labels: Tensor, offsets: Sequence[Sequence[int]], border: str, background: str) -> tuple[Tensor, Tensor]:
    found = labels.contiguous().numpy()
    shape = (len(found), len(offsets), *found.shape[1:])
    values, valid = np.empty(shape, np.float32), np.empty(shape, bool)
    steps = np.array(offsets, np.int64).reshape(-1, 3)
    rule = ("ignore", "replicate", "zero").index(border)
    least = 0 if background == "ignore" else -1
    all_count = bool(found.size) and int(found.min()) > least
    jobs = [(sample, z, steps, least, all_count, rule, *made)
            for sample, *made in zip(found, values, valid) for z in range(len(sample))]
    run_parallel(_affinity_section, jobs, torch.get_num_threads())
    return torch.from_numpy(values), torch.from_numpy(valid)
