"""Volumes as patches and back, and layers whose memory layout decides their speed on a CPU.

Weights and values of the layers are those of torch's own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

Triple = tuple[int, int, int]


def patchify(x: Tensor, patch: Triple) -> Tensor:
    """(n, c, z, y, x) as (n, patches, c * pz * py * px); patches run z slowest, voxels in a patch c slowest."""
    n, c, *size = x.shape
    (z, y, w), (pz, py, px) = (s // p for s, p in zip(size, patch)), patch
    x = x.reshape(n, c, z, pz, y, py, w, px).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return x.reshape(n, z * y * w, c * pz * py * px)


def unpatchify(patches: Tensor, channels: int, grid: Triple, patch: Triple) -> Tensor:
    """The inverse of patchify."""
    x = patches.reshape(patches.shape[0], *grid, channels, *patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(patches.shape[0], channels, *(g * p for g, p in zip(grid, patch)))


def channels_come_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


class InstanceNorm(nn.InstanceNorm3d):
    """Instance norm with weights that leaves channels last where they are; torch's copies to the other layout."""

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not channels_come_last(x):
            return super().forward(x)
        # a batch of one has the statistics of its only instance
        samples = [functional.batch_norm(sample, None, None, self.weight, self.bias, True, eps=self.eps)
                   for sample in x.split(1)]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


class Convolution(nn.Conv3d):
    """A convolution that, within sections and with channels last, is one of two dimensions: the same sums, faster."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.kernel_size[0] == 1 and self.stride == (1, 1, 1) and self.kernel_size != (1, 1, 1)
        if not flat or not channels_come_last(x):
            return super().forward(x)
        n, channels, depth, *plane = x.shape
        sections = x.transpose(1, 2).reshape(n * depth, channels, *plane)
        out = functional.conv2d(sections, self.weight[:, :, 0], self.bias, padding=self.padding[1:])
        return out.view(n, depth, -1, *out.shape[2:]).transpose(1, 2)
