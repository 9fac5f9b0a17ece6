"""Where windows stand and how their voxels are weighed; the lattice is anchored at the volume's first voxel."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from emcore.settings.predict import Infer

Triple = tuple[int, int, int]


def starts(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis; the last one is moved back to end with the axis."""
    if length <= window:
        return [0]
    found = list(range(0, length - window + 1, step_of(window, overlap)))
    return found if found[-1] == length - window else [*found, length - window]


def step_of(window: int, overlap: float) -> int:
    return max(1, round(window * (1 - min(max(overlap, 0.0), 0.99))))


def touching(places: Sequence[int], window: int, low: int, high: int) -> Sequence[int]:
    """Those of the windows that begin at `places`, which ascend, that have voxels in [low, high)."""
    return places[bisect_right(places, low - window):bisect_left(places, high)]


def passes(size: Triple, infer: Infer, window: Triple) -> int:
    """How many windows go through the net for a volume of this size, every view counted."""
    padded = (length + 2 * pad for length, pad in zip(size, infer.pad))
    lattice = [len(starts(length, width, overlap)) for length, width, overlap in zip(padded, window, infer.overlaps)]
    return prod(lattice) * len(views_of(infer.views.flips, infer.views.turns))


def weights(window: Triple, blend: str) -> Tensor:
    """Weight (z, y, x) of a window's voxels: bump fades to nearly 0, gaussian has sigma of half the half width."""
    axes = []
    for n in window:
        u = 2 * (np.arange(n) + 1) / (n + 1) - 1
        if blend == "bump":
            line = np.exp(-1 / (1 - u**2))
            axes.append(line / line.max())
        else:
            axes.append(np.linspace(-1, 1, n) if n > 1 else np.zeros(1))
    z, y, x = (axis.reshape([-1 if i == a else 1 for i in range(3)]) for a, axis in enumerate(axes))
    if blend == "bump":
        values = np.maximum(z * y * x, 1e-5)
    elif blend == "gaussian":
        values = 1e-4 + np.exp(-(z**2 + y**2 + x**2) / (2 * 0.5**2))
    else:
        values = np.ones(window)
    return torch.from_numpy(np.broadcast_to(values, window).astype(np.float32).copy())


def views_of(flips: Sequence[int], turns: bool) -> list[tuple[tuple[int, ...], int]]:
    """(axes to flip, quarter turns) of every view, the plain one first, none twice."""
    subsets = [tuple(axis for bit, axis in enumerate(sorted(set(flips))) if number >> bit & 1)
               for number in range(2 ** len(set(flips)))]
    found, seen = [], set()
    for k in range(4 if turns else 1):
        for subset in subsets:
            matrix = tuple(map(tuple, _matrix(subset, k)))
            if matrix not in seen:
                seen.add(matrix)
                found.append((subset, k))
    return found


def _matrix(flips: Sequence[int], turns: int) -> np.ndarray:
    """The linear part of the view: an offset of the source becomes matrix @ offset in the view."""
    flip = np.diag([-1 if axis in flips else 1 for axis in range(3)])
    # rot90 takes y, x to -x, y of the turned volume
    turn = np.linalg.matrix_power(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), turns % 4)
    return turn @ flip


def forward_view(x: Tensor, view: tuple[tuple[int, ...], int]) -> Tensor:
    """(n, c, z, y, x) as the view shows it."""
    flips, turns = view
    x = x.flip([axis + 2 for axis in flips]) if flips else x
    return x.rot90(turns, (3, 4)) if turns else x


def inverse_view(x: Tensor, view: tuple[tuple[int, ...], int]) -> Tensor:
    flips, turns = view
    x = x.rot90(-turns, (3, 4)) if turns else x
    return x.flip([axis + 2 for axis in flips]) if flips else x


def turned_back(values: Tensor, vectors: Sequence[slice], view: tuple[tuple[int, ...], int]) -> Tensor:
    """(n, c, z, y, x) values of a view, put back already, whose vectors along z, y, x point as they do without it."""
    matrix = np.rint(_matrix(*view)).astype(int)
    out = values.clone() if vectors else values
    for channels in vectors:
        for axis, column in enumerate(matrix.T):
            seen = int(np.flatnonzero(column)[0])
            out[:, channels.start + axis] = values[:, channels.start + seen] * int(column[seen])
    return out


def channel_plan(offsets: Sequence[Sequence[int]] | None, channels: int,
                 view: tuple[tuple[int, ...], int]) -> list[tuple[int, Triple]] | None:
    """For every output channel: which channel of the view holds it, and by which shift; None if a channel has none.

    A channel that says whether v and v + o belong together says in a flipped view the same of v and v - o, stored at
    the other voxel: its value has to move by o. Channels without an offset ((0, 0, 0) or None) stay.
    """
    if offsets is None:
        return [(c, (0, 0, 0)) for c in range(channels)]
    matrix = np.rint(_matrix(*view)).astype(int)
    # the offsets of the view's channels, turned back
    seen = [tuple((matrix.T @ np.array(offset)).tolist()) for offset in offsets]
    plan = []
    for offset in (tuple(o) for o in offsets):
        negative = tuple(-v for v in offset)
        if offset in seen:
            plan.append((seen.index(offset), (0, 0, 0)))
        elif negative in seen:
            plan.append((seen.index(negative), offset))
        else:
            return None
    return plan + [(c, (0, 0, 0)) for c in range(len(plan), channels)]


def shifted(values: Tensor, shift: Triple) -> tuple[Tensor, Tensor]:
    """out(v) = values(v + shift) of (n, z, y, x), and where v + shift lay inside."""
    out = torch.zeros_like(values)
    inside = torch.zeros(values.shape[1:], dtype=torch.bool, device=values.device)
    here, there = [], []
    for length, step in zip(values.shape[1:], shift):
        here.append(slice(max(0, -step), length - max(0, step)))
        there.append(slice(max(0, step), length - max(0, -step)))
    out[(slice(None), *here)] = values[(slice(None), *there)]
    inside[tuple(here)] = True
    return out, inside
