"""The 2019 synapse network ("unetv0"): residual U-Net with local squeeze-and-excitation gates, probabilities out.

Key names are those of the published checkpoints, so they load as they are. Shapes: (n, c, z, y, x); z must be even,
y and x multiples of 32.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from emcore.settings.model import UNetV1Model


def conv_norm_act(inside: int, outside: int, kernel: tuple, dilation: tuple = (1, 1, 1),
                  act: bool = True) -> nn.Sequential:
    """Edge padding, convolution without bias, batch norm, ELU; the padding layer holds index 0 of the keys."""
    pad = [d * (k // 2) for k, d in zip(kernel, dilation)]
    padded = nn.Sequential(nn.ReplicationPad3d((pad[2],) * 2 + (pad[1],) * 2 + (pad[0],) * 2),
                           nn.Conv3d(inside, outside, kernel, dilation=dilation, bias=False))
    # momentum .001 as published: on one device the running statistics need thousands of steps to settle
    layers = [padded, nn.BatchNorm3d(outside, momentum=0.001)]
    return nn.Sequential(*layers, nn.ELU(inplace=True)) if act else nn.Sequential(*layers)


class Residual(nn.Module):
    """The main path plus a projected shortcut, then ELU."""

    def __init__(self, inside: int, outside: int, kind: str):
        super().__init__()
        if kind == "bottleneck":
            path = [conv_norm_act(inside, outside, (1, 1, 1)),
                    conv_norm_act(outside, outside, (3, 3, 3), dilation=(1, 2, 2)),
                    conv_norm_act(outside, outside, (1, 1, 1), act=False)]
        else:
            kernel = (1, 3, 3) if kind == "2d" else (3, 3, 3)
            path = [conv_norm_act(inside, outside, kernel), conv_norm_act(outside, outside, kernel, act=False)]
        self.conv = nn.Sequential(*path)
        self.projector = conv_norm_act(inside, outside, (1, 1, 1), act=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.elu(self.conv(x) + self.projector(x))


class Gate(nn.Module):
    """x(1 + g): g is a sigmoid of pooled features, enlarged again; local, unlike the usual global gate."""

    def __init__(self, channels: int, reduction: int, pool: tuple[int, int, int]):
        super().__init__()
        narrow = channels // reduction
        self.se = nn.Sequential(
            nn.AvgPool3d(pool, pool),
            nn.Conv3d(channels, narrow, 1), nn.BatchNorm3d(narrow, momentum=0.001), nn.ELU(inplace=True),
            nn.Conv3d(narrow, channels, 1), nn.BatchNorm3d(channels, momentum=0.001), nn.Sigmoid(),
            nn.Upsample(scale_factor=tuple(float(p) for p in pool), mode="trilinear", align_corners=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + x * self.se(x)


class UNetV1(nn.Module):
    """Probabilities of the input's size."""

    def __init__(self, model: UNetV1Model = UNetV1Model()):  # noqa: B008 (frozen)
        super().__init__()
        self.in_channels, self.multiple = model.in_channels, model.multiple
        a, b, c, d, e = model.unet_v1.filters
        gates = {1: (2, (1, 16, 16)), 2: (4, (1, 8, 8)), 3: (8, (1, 4, 4)), 4: (16, (2, 2, 2))}

        def stage(inside: int, outside: int, kind: str, level: int) -> nn.Sequential:
            return nn.Sequential(Residual(inside, outside, kind), Gate(outside, *gates[level]))

        self.layer1_E = stage(model.in_channels, a, "2d", 1)
        self.layer2_E = stage(a, b, "2d", 2)
        self.layer3_E = stage(b, c, "3d", 3)
        self.layer4_E = stage(c, d, "bottleneck", 4)
        self.center = stage(d, e, "bottleneck", 4)
        self.layer1_D = stage(a, a, "2d", 1)
        self.layer2_D = stage(b, b, "2d", 2)
        self.layer3_D = stage(c, c, "3d", 3)
        self.layer4_D = stage(d, d, "bottleneck", 4)
        self.conv1 = conv_norm_act(b, a, (1, 1, 1))
        self.conv2 = conv_norm_act(c, b, (1, 1, 1))
        self.conv3 = conv_norm_act(d, c, (1, 1, 1))
        self.conv4 = conv_norm_act(e, d, (1, 1, 1))
        self.fconv = conv_norm_act(a, model.out_channels, (3, 3, 3), act=False)

    def forward(self, x: Tensor) -> Tensor:
        def down(x):
            return functional.max_pool3d(x, (1, 2, 2), (1, 2, 2))

        def up(x):
            return functional.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="trilinear", align_corners=False)

        e1 = self.layer1_E(x)
        e2 = self.layer2_E(down(e1))
        e3 = self.layer3_E(down(e2))
        e4 = self.layer4_E(down(e3))
        x = self.center(down(e4))
        x = self.layer4_D(up(self.conv4(x)) + e4)
        x = self.layer3_D(up(self.conv3(x)) + e3)
        x = self.layer2_D(up(self.conv2(x)) + e2)
        x = self.layer1_D(up(self.conv1(x)) + e1)
        return torch.sigmoid(self.fconv(x))
