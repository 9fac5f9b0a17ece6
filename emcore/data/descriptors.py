"""Local shape descriptors (Sheridan et al. 2023): Gaussian-weighted moments of each object around every voxel."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def _smooth(volumes: Tensor, sigmas: Sequence[float]) -> Tensor:
    """(c, z, y, x) blurred by a Gaussian cut at 3 sigma; zero outside."""
    out = volumes[:, None]
    for axis, sigma in enumerate(sigmas, start=2):
        radius = int(3 * sigma + 0.5)
        steps = torch.arange(-radius, radius + 1, device=volumes.device, dtype=torch.float32)
        bell = torch.exp(-steps.square() / (2 * sigma**2))
        shape = [1] * 5
        shape[axis] = -1
        padding = [0, 0, 0]
        padding[axis - 2] = radius
        out = functional.conv3d(out, (bell / bell.sum()).view(shape), padding=padding)
    return out[:, 0]


def local_shape(labels: Tensor, resolution: Sequence[float], sigma: float) -> Tensor:
    """(n, 10, z, y, x) in 0..1: mean offset z y x, variance z y x, correlation zy zx yx, size; 0 on background."""
    voxels = [sigma / r for r in resolution]
    margin = [int(3 * v + 0.5) for v in voxels]
    out = torch.zeros((labels.shape[0], 10, *labels.shape[1:]), device=labels.device)
    for sample in range(labels.shape[0]):
        for identity in labels[sample].unique():
            if identity <= 0:
                continue
            inside = labels[sample] == identity
            box = tuple(slice(max(0, int(line.min()) - m), int(line.max()) + 1 + m)
                        for line, m in zip(inside.nonzero().T, margin))
            own = inside[box].float()
            place = torch.stack(torch.meshgrid(*(torch.arange(n, device=labels.device) * float(r)
                                                 for n, r in zip(own.shape, resolution)), indexing="ij"))
            first = [own] + [own * c for c in place]
            second = [own * place[i] * place[j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]
            moments = _smooth(torch.stack(first + second), voxels)
            mass = moments[0].clamp_min(1e-12)
            mean = moments[1:4] / mass
            products = torch.stack([mean[i] * mean[j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))])
            spread = moments[4:] / mass - products
            variance = spread[:3].clamp_min(1e-3)
            pearson = torch.stack([spread[3 + k] / (variance[i] * variance[j]).sqrt()
                                   for k, (i, j) in enumerate(((0, 1), (0, 2), (1, 2)))])
            shape = torch.cat([(mean - place) / sigma * 0.5 + 0.5, variance / sigma**2, pearson * 0.5 + 0.5,
                               moments[:1]])
            region = (sample, slice(None), *box)
            out[region] = torch.where(inside[box], shape.clamp(0, 1), out[region])
    return out
