"""UNETR nets for affinities: the transformer encoder of vit.py and convolutional decoders; logits out.

`UNETR` enlarges isotropically and shrinks z again by one strided convolution, so that anisotropic token patches
(4, 16, 16) fit; `LightUNETR` and `LinearHead` are the small relatives. Key names are those of the published weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from emcore.errors import InputError
from emcore.models.layers import InstanceNorm, Triple
from emcore.models.vit import VisionTransformer
from emcore.settings.model import LightUNETRModel, LinearHeadModel, UNETRModel


def convolution(inside: int, outside: int, kernel: int | Triple = 3, stride: int | Triple = 1) -> nn.Conv3d:
    padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
    return nn.Conv3d(inside, outside, kernel, stride, padding, bias=False)


def norm(channels: int) -> nn.Module:
    return InstanceNorm(channels)


def drop(dropout: float) -> nn.Module:
    return nn.Dropout3d(dropout) if dropout > 0 else nn.Identity()


class ResConv(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, inside: int, outside: int, dropout: float):
        super().__init__()
        self.conv = nn.Sequential(convolution(inside, outside), norm(outside), nn.GELU(), drop(dropout),
                                  convolution(outside, outside), norm(outside))
        self.residual = (nn.Identity() if inside == outside else
                         nn.Sequential(convolution(inside, outside, 1), norm(outside)))

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.conv(x) + self.residual(x))


class TokenUp(nn.Module):
    """A token grid, narrowed and doubled `times` times."""

    def __init__(self, inside: int, outside: int, times: int, dropout: float):
        super().__init__()
        layers = [convolution(inside, outside, 1), norm(outside), nn.GELU()]
        for _ in range(times):
            layers += [nn.ConvTranspose3d(outside, outside, 2, 2, bias=False), norm(outside), nn.GELU(),
                       ResConv(outside, outside, dropout)]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class UpCat(nn.Module):
    """Doubled, fitted to the skip's size where that differs, joined with it."""

    def __init__(self, inside: int, outside: int, skip: int, dropout: float):
        super().__init__()
        self.up = nn.ConvTranspose3d(inside, outside, 2, 2, bias=False)
        self.conv = ResConv(outside + skip, outside, dropout)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([fit(self.up(x), skip), skip], 1))


def fit(x: Tensor, like: Tensor) -> Tensor:
    """x at the size of `like`."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return functional.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)


class SharedBlock(nn.Module):
    """In-plane, then across sections, with a shortcut."""

    def __init__(self, channels: int, dropout: float):
        super().__init__()
        self.conv = nn.Sequential(convolution(channels, channels, (1, 3, 3)), norm(channels), nn.GELU(), drop(dropout),
                                  convolution(channels, channels, (3, 1, 1)), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x + self.conv(x))


class AffinityHead(nn.Module):
    """Affinity logits z, y, x and more: separate branches across and within sections, a learned affine per channel."""

    def __init__(self, channels: int, out_channels: int, depth: int, bias: Sequence[float], dropout: float):
        super().__init__()
        if out_channels < 3:
            raise InputError(f"the affinity head needs at least 3 output channels (z, y, x); got {out_channels}")
        self.shared = nn.Sequential(*[SharedBlock(channels, dropout) for _ in range(max(1, depth))])
        self.z_refine = nn.Sequential(convolution(channels, channels, (3, 1, 1)), norm(channels), nn.GELU())
        self.z_head = nn.Conv3d(channels, 1, 1)
        self.xy_refine = nn.Sequential(convolution(channels, channels, (1, 3, 3)), norm(channels), nn.GELU())
        self.xy_head = nn.Conv3d(channels, 2, 1)
        self.extra_head = nn.Conv3d(channels, out_channels - 3, 1) if out_channels > 3 else None
        start = torch.zeros(out_channels)
        start[: len(bias)] = torch.tensor(list(bias)[:out_channels])
        self.channel_scale = nn.Parameter(torch.ones(1, out_channels, 1, 1, 1))
        self.channel_bias = nn.Parameter(start.view(1, -1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        logits = [self.z_head(self.z_refine(x)), self.xy_head(self.xy_refine(x))]
        if self.extra_head is not None:
            logits.append(self.extra_head(x))
        return torch.cat(logits, 1) * self.channel_scale + self.channel_bias


class UNETR(VisionTransformer):
    """The anisotropic UNETR; head "em" has separate z and in-plane branches, "plain" is one 1x1x1 convolution."""

    def __init__(self, model: UNETRModel, volume: Triple):
        sizes, width, dropout = model.transformer, model.transformer.width, model.transformer.dropout
        super().__init__(model.in_channels, volume, sizes, dropout)
        depth, patch, f = sizes.depth, sizes.patch, sizes.features
        taps = [max(0, min(tap, depth - 1)) for tap in sizes.taps or (depth // 4, depth // 2, 3 * depth // 4)]
        self.taps = (taps + [taps[-1]] * 3)[:3]
        self.encoder1 = ResConv(model.in_channels, f, dropout)
        self.encoder2 = TokenUp(width, 2 * f, 3, dropout)
        self.encoder3 = TokenUp(width, 4 * f, 2, dropout)
        self.encoder4 = TokenUp(width, 8 * f, 1, dropout)
        self.decoder5 = UpCat(width, 8 * f, 8 * f, dropout)
        self.decoder4 = UpCat(8 * f, 4 * f, 4 * f, dropout)
        self.decoder3 = UpCat(4 * f, 2 * f, 2 * f, dropout)
        self.decoder2 = UpCat(2 * f, f, f, dropout)
        # the published files hold this tensor also where the patch is isotropic and nothing uses it
        self.anisotropic = patch[0] != patch[1]
        self.dtrans = convolution(2 * f, 2 * f, 3, (max(1, patch[1] // patch[0]), 1, 1))
        self.dtrans.requires_grad_(self.anisotropic)
        self.head = (AffinityHead(f, model.out_channels, sizes.head_depth, sizes.head_bias, dropout)
                     if sizes.head == "em" else nn.Conv3d(f, model.out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        final, taps = self.encode(self.embed(x) + self.pos_embed, self.taps)
        shallow, middle, deep = (self.as_volume(tap) for tap in taps)
        y = self.decoder5(self.as_volume(final), self.encoder4(deep))
        y = self.decoder4(y, self.encoder3(middle))
        y = self.decoder3(y, self.encoder2(shallow))
        if self.anisotropic:
            y = self.dtrans(y)
        return self.head(self.decoder2(y, self.encoder1(x)))


class ConvBlock(nn.Module):
    def __init__(self, inside: int, outside: int, dropout: float):
        super().__init__()
        self.block = nn.Sequential(convolution(inside, outside), norm(outside), nn.GELU(), drop(dropout),
                                   convolution(outside, outside), norm(outside), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class LightUNETR(VisionTransformer):
    """A third of the weights and a fifth of the arithmetic of UNETR."""

    def __init__(self, model: LightUNETRModel, volume: Triple):
        sizes, width, dropout = model.transformer, model.transformer.width, model.transformer.dropout
        super().__init__(model.in_channels, volume, sizes, dropout)
        depth, patch, f = sizes.depth, sizes.patch, sizes.features
        self.taps = (max(0, depth // 2 - 1), max(0, 3 * depth // 4 - 1))

        def enlarge(inside: int, outside: int, factor: Triple) -> nn.Sequential:
            return nn.Sequential(nn.ConvTranspose3d(inside, outside, factor, factor, bias=False), norm(outside),
                                 nn.GELU())

        last = tuple(max(1, p // q) for p, q in zip(patch, (2, 4, 4)))
        self.final_proj = nn.Sequential(convolution(width, 4 * f, 1), norm(4 * f), nn.GELU(),
                                        ConvBlock(4 * f, 4 * f, dropout))
        self.up_late = nn.ConvTranspose3d(4 * f, 4 * f, (1, 2, 2), (1, 2, 2))
        self.skip_late_up = enlarge(width, 4 * f, (1, 2, 2))
        self.decode_late = ConvBlock(8 * f, 4 * f, dropout)
        self.up_mid = nn.ConvTranspose3d(4 * f, 2 * f, 2, 2)
        self.skip_mid_up = enlarge(width, 2 * f, (2, 4, 4))
        self.decode_mid = ConvBlock(4 * f, 2 * f, dropout)
        self.up_full = nn.ConvTranspose3d(2 * f, f, last, last)
        self.input_skip = ConvBlock(model.in_channels, f, dropout)
        self.decode_full = ConvBlock(2 * f, f, dropout)
        self.head = nn.Conv3d(f, model.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        final, (middle, late) = self.encode(self.embed(x) + self.pos_embed, self.taps)
        y = self.up_late(self.final_proj(self.as_volume(final)))
        y = self.up_mid(self.decode_late(torch.cat([y, self.skip_late_up(self.as_volume(late))], 1)))
        y = self.up_full(self.decode_mid(torch.cat([y, self.skip_mid_up(self.as_volume(middle))], 1)))
        skip = self.input_skip(x)
        return self.head(self.decode_full(torch.cat([fit(y, skip), skip], 1)))


class LinearHead(VisionTransformer):
    """The transformer with one transposed convolution from token to patch."""

    def __init__(self, model: LinearHeadModel, volume: Triple):
        sizes = model.transformer
        super().__init__(model.in_channels, volume, sizes, sizes.dropout)
        self.head = nn.ConvTranspose3d(sizes.width, model.out_channels, sizes.patch, sizes.patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.as_volume(self.encode(self.embed(x) + self.pos_embed)[0]))
