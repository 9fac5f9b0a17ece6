"""Distance targets of label batches (n, z, y, x): exact Euclidean, anisotropic, on the labels' device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emcore import segment


def squared_distance(labels: Tensor, resolution: Sequence[float]) -> Tensor:
    """Squared distance (n, z, y, x) to the nearest voxel of another label; 0 on label 0, infinite if there is none."""
    if labels.device.type == "cpu":
        return torch.stack([torch.from_numpy(segment.distance_transform(label.numpy(), resolution, squared=True))
                            for label in labels])
    return _squared_distance(labels, resolution)


def _squared_distance(labels: Tensor, resolution: Sequence[float]) -> Tensor:
    """The same on any device: along each axis the least of (steps² + what the voxel there had), all pairs of a line.

    A voxel of another label is a distance of its own; one of the same label passes on what it had. Quadratic in the
    line's length, which a GPU does faster than any sweep for the sizes of a patch.
    """
    distance = torch.full(labels.shape, torch.inf, device=labels.device)
    for axis, unit in zip((3, 2, 1), reversed(tuple(resolution))):
        ids, had = labels.movedim(axis, -1).contiguous(), distance.movedim(axis, -1).contiguous()
        length = ids.shape[-1]
        steps = torch.arange(length, device=labels.device, dtype=torch.float32) * unit
        square = (steps[:, None] - steps[None, :]).square()
        lines, olds = ids.view(-1, length), had.view(-1, length)
        best = torch.empty_like(olds)
        for start in range(0, len(lines), 1 + 2**24 // length**2):  # bounds the pairs held at once to 64 MiB
            part = slice(start, start + 1 + 2**24 // length**2)
            other = lines[part, None, :] != lines[part, :, None]
            best[part] = (square + torch.where(other, 0.0, olds[part, None, :])).amin(-1)
        distance = best.view(ids.shape).movedim(-1, axis)
    return torch.where(labels == 0, 0.0, distance).contiguous()


def signed_distance(labels: Tensor, resolution: Sequence[float], scale: float) -> Tensor:
    """tanh(d / scale): positive inside the foreground, negative outside, d in units of the x voxel size."""
    relative = [r / resolution[2] for r in resolution]
    inside = labels > 0
    distance = squared_distance(inside.long() + 1, relative).sqrt()
    return torch.tanh(torch.where(inside, distance, -distance) / scale)


def foreground_distance(labels: Tensor) -> Tensor:
    """tanh(inside / 8 - outside / 50), in voxels: steep within the foreground, flat around it."""
    inside = labels > 0
    distance = squared_distance(inside.long() + 1, (1.0, 1.0, 1.0)).sqrt()
    return torch.tanh(torch.where(inside, distance / 8, -distance / 50))


def _dense(labels: Tensor) -> tuple[Tensor, int]:
    """Ids counted up over the whole batch, one range a sample, so that one scatter serves all; 0 stays 0."""
    samples = torch.arange(labels.shape[0], device=labels.device).view(-1, 1, 1, 1).expand_as(labels)
    pairs = torch.stack([samples.flatten(), labels.clamp_min(0).flatten()], 1)
    ids, inverse = pairs.unique(dim=0, return_inverse=True)
    return torch.where(labels > 0, inverse.view_as(labels) + 1, 0), len(ids) + 1


def instance_distance(labels: Tensor, resolution: Sequence[float], in_plane: bool, relabel: bool = False) -> Tensor:
    """Distance to the border of each object over its largest distance, (0, 1]; -1 on background.

    relabel: every 26-connected piece of an id (8-connected where sections count alone) is an object of its own and
    has its holes filled; the larger value counts where one piece lies in a hole of another.
    """
    if relabel:
        found = [_distance_of_pieces(label, resolution, in_plane) for label in labels.clamp_min(0).cpu().numpy()]
        return torch.from_numpy(np.stack(found)).to(labels.device)
    if in_plane:
        n, z = labels.shape[:2]
        flat = instance_distance(labels.reshape(n * z, 1, *labels.shape[2:]), resolution, False)
        return flat.view(labels.shape)
    distance = squared_distance(labels.clamp_min(0), resolution).sqrt()
    distance = torch.where(distance.isinf(), 1.0, distance)
    ids, count = _dense(labels)
    most = torch.zeros(count, device=labels.device).scatter_reduce(0, ids.flatten(), distance.flatten(), "amax")
    return torch.where(labels > 0, distance / (most[ids] + 1e-6), -1.0)


def _distance_of_pieces(labels: np.ndarray, resolution: Sequence[float], in_plane: bool) -> np.ndarray:
    pieces = segment.connected_components(labels, 8 if in_plane else 26)
    out = np.full(labels.shape, -1, np.float32)
    around = (0 if in_plane else 1, 1, 1)
    for identity, (low, high) in enumerate(_boxes(pieces), start=1):
        box = tuple(slice(max(0, first - more), last + 1 + more) for first, last, more in zip(low, high, around))
        filled = segment.fill_holes(pieces[box] == identity, per_section=in_plane, threads=1)
        distance = segment.distance_transform(filled.view(np.uint8), resolution, threads=1)
        distance[np.isinf(distance)] = 1.0
        energy = distance / (distance[filled].max() + np.float32(1e-6))
        out[box] = np.maximum(out[box], np.where(filled, energy, np.float32(-1)))
    return out


def _boxes(pieces: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """First and last voxel along each axis of the pieces 1, 2, ..."""
    places = np.flatnonzero(pieces)
    if not len(places):
        return []
    ids = pieces.reshape(-1)[places]
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=0))
    lines = [np.asarray(line)[order] for line in np.unravel_index(places, pieces.shape)]
    low, high = ([extreme.reduceat(line, starts).tolist() for line in lines] for extreme in (np.minimum, np.maximum))
    return list(zip(map(list, zip(*low)), map(list, zip(*high))))


def skeleton_distance(labels: Tensor, resolution: Sequence[float], alpha: float, skeleton: Tensor | None) -> Tensor:
    """(b / (s + b)) ** alpha with b the distance to the border and s to the object's skeleton; -1 on background.

    An object without skeleton voxels in the patch takes b over its largest b instead.
    """
    border = squared_distance(labels.clamp_min(0), resolution).sqrt()
    border = torch.where(border.isinf(), 1.0, border)
    out = torch.full_like(border, -1.0)
    for sample in range(labels.shape[0]):
        for identity in labels[sample].unique():
            if identity <= 0:
                continue
            inside = labels[sample] == identity
            box = tuple(slice(int(line.min()), int(line.max()) + 1) for line in inside.nonzero().T)
            own, b = inside[box], border[sample][box]
            bones = (skeleton[sample][box] == identity) & own if skeleton is not None else torch.zeros_like(own)
            if bones.any():
                s = squared_distance((~bones).long()[None], resolution)[0].sqrt()
                energy = (b / (s + b + 1e-6)) ** alpha
            else:
                energy = (b / b[own].max()) ** alpha
            out[sample][box] = torch.where(own & (energy > 0), energy, out[sample][box])
    return out


def quantise_energy(energy: Tensor, levels: int) -> Tensor:
    """Class 0 for background (below 0), 1..levels for equal steps of 0..1; values unchanged for levels = 0."""
    if levels == 0:
        return energy
    return torch.where(energy < 0, 0, (energy * levels).floor().clamp(0, levels - 1) + 1).float()
