"""Residual symmetric U-Net for anisotropic volumes: pre-activation blocks, additive skips, fixed bilinear up-sampling.

After Lee et al. 2017 (arXiv 1706.00120). Shapes: (n, c, z, y, x) in and out, logits out.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from emcore.models.layers import Convolution, InstanceNorm, Triple, patchify, unpatchify
from emcore.settings.model import RSUNetModel, RSUNetSizes


def normalisation(kind: str, channels: int, groups: int) -> nn.Module:
    """The norm layer of a block; `groups` is lowered until it divides the channels."""
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "group":
        return nn.GroupNorm(next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0), channels)
    if kind == "instance":
        return InstanceNorm(channels)
    return nn.Identity()


def activation(kind: str) -> nn.Module:
    choices = {"relu": lambda: nn.ReLU(inplace=True), "leakyrelu": lambda: nn.LeakyReLU(0.01, inplace=True),
               "prelu": nn.PReLU, "elu": lambda: nn.ELU(inplace=True)}
    return choices[kind]()


class NormActConv(nn.Sequential):
    """Normalise, activate, convolve to the same size; no bias."""

    def __init__(self, inside: int, outside: int, kernel: Triple, sizes: RSUNetSizes):
        super().__init__(normalisation(sizes.norm, inside, sizes.groups), activation(sizes.act),
                         Convolution(inside, outside, kernel, padding=tuple(k // 2 for k in kernel), bias=False))


class ConvBlock(nn.Module):
    """Four convolutions: into the width, a residual pair, and one behind it."""

    def __init__(self, inside: int, outside: int, kernel: Triple, sizes: RSUNetSizes):
        super().__init__()
        self.pre = NormActConv(inside, outside, kernel, sizes)
        self.residual = nn.Sequential(NormActConv(outside, outside, kernel, sizes),
                                      NormActConv(outside, outside, kernel, sizes))
        self.post = NormActConv(outside, outside, kernel, sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        return self.post(x + self.residual(x))


def bilinear_up(x: Tensor, factor: Triple) -> Tensor:
    """x enlarged as a transposed convolution with the bilinear kernel does it, which fades the border.

    That kernel sees zeros outside the volume, where interpolation repeats the last voxel: the outermost voxels keep
    only their own share. Interpolating and scaling the border is several times faster than a depth-wise convolution.
    """
    out = functional.interpolate(x, scale_factor=tuple(float(f) for f in factor), mode="trilinear")
    for axis, f in enumerate(factor, start=2):
        if f > 1:
            place = torch.arange(out.shape[axis], device=x.device, dtype=out.dtype)
            share = ((torch.minimum(place, place.flip(0)) + 0.5 + f / 2) / f).clamp(max=1)
            out = out * share.view([-1 if a == axis else 1 for a in range(out.dim())])
    return out


def summed_up(x: Tensor, factor: int) -> Tensor:
    """x repeated `factor` times along z; each copy is added to the nearer one of its neighbours, a middle copy to none.

    A transposed convolution by a kernel of ones, 2 factor - factor % 2 sections long, does the same. Sums are no means:
    with an even factor everything but the two ends comes out about twice as large.
    """
    nothing = torch.zeros_like(x[:, :, :1])
    before, behind = torch.cat([nothing, x[:, :, :-1]], 2), torch.cat([x[:, :, 1:], nothing], 2)
    copies = [x + before if 2 * place + 1 < factor else x + behind if 2 * place + 1 > factor else x
              for place in range(factor)]
    return torch.stack(copies, 3).flatten(2, 3)


def enlarged(x: Tensor, factor: Triple, up: str) -> Tensor:
    """x at `factor` times its size; "bilinear_yx" adds sections up where "trilinear" weighs them."""
    if up == "bilinear_yx":
        return summed_up(bilinear_up(x, (1, *factor[1:])), factor[0])
    return bilinear_up(x, factor)


def folded(x: Tensor, factor: Triple) -> Tensor:
    """Blocks of `factor` voxels as the channels of one voxel; nothing is lost."""
    grid = [length // f for length, f in zip(x.shape[2:], factor)]
    return patchify(x, factor).transpose(1, 2).unflatten(2, grid).contiguous()  # the net chooses its layout itself


def unfolded(x: Tensor, factor: Triple) -> Tensor:
    """The inverse of folded."""
    return unpatchify(x.flatten(2).transpose(1, 2), x.shape[1] // prod(factor), x.shape[2:], factor)


class RSUNet(nn.Module):
    """Logits of the input's size; with deep supervision a dict of "output" and ds_1 (bottleneck) to ds_4 (finer)."""

    def __init__(self, model: RSUNetModel = RSUNetModel()):  # noqa: B008 (frozen)
        super().__init__()
        sizes, width = model.rsunet, model.rsunet.width
        self.down, self.fold, self.multiple = sizes.factors, sizes.fold, model.multiple
        self.in_channels, self.up, self.checkpointing = model.in_channels, sizes.up, model.checkpointing
        depth = len(self.down)
        in_channels, out_channels = model.in_channels * prod(self.fold), model.out_channels * prod(self.fold)
        kernels = [(sizes.kernel,) * 3] * len(width) if isinstance(sizes.kernel, int) else list(sizes.kernel)
        kernels += [kernels[-1]] * (len(width) - len(kernels))
        kernels[:sizes.depth_2d] = [sizes.kernel_2d] * min(sizes.depth_2d, len(width))
        self.encoder = nn.ModuleList([ConvBlock(inside, outside, size, sizes) for inside, outside, size
                                      in zip((in_channels, *width[:-1]), width, kernels)])
        self.lateral = nn.ModuleList([nn.Conv3d(width[level + 1], width[level], 1, bias=False)
                                      for level in range(depth)])
        self.decoder = nn.ModuleList([ConvBlock(width[level], width[level], kernels[level], sizes)
                                      for level in range(depth)])
        self.tail = nn.Sequential(normalisation(sizes.norm, width[0], sizes.groups), activation(sizes.act),
                                  nn.Conv3d(width[0], out_channels, 1))
        self.supervised = nn.ModuleList([nn.Conv3d(width[level + 1], out_channels, 1)
                                         for level in reversed(range(depth))][:4] if model.deep_supervision else [])
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        skips, folds = [], self.fold != (1, 1, 1)
        x = folded(x, self.fold) if folds else x
        for level, block in enumerate(self.encoder):
            if level:
                skips.append(x)
                x = functional.max_pool3d(x, self.down[level - 1], self.down[level - 1])
            x = self._run(block, x)
        aside = {}
        for level in reversed(range(len(self.decoder))):
            if len(aside) < len(self.supervised):
                aside[f"ds_{len(aside) + 1}"] = self.supervised[len(aside)](x)
            # the 1x1x1 convolution and the fixed enlargement commute; this order is the cheap one
            x = enlarged(self.lateral[level](x), self.down[level], self.up) + skips[level]
            x = self._run(self.decoder[level], x)
        x = self.tail(x)
        if folds:
            x = unfolded(x, self.fold)
            aside = {name: unfolded(value, self.fold) for name, value in aside.items()}
        return {"output": x, **aside} if aside else x
