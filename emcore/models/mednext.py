"""A ConvNeXt-like U-Net for volumes (after MedNeXt, arXiv 2303.09975): depth-wise convolutions, wide 1x1x1 pairs.

Logits out; with several heads a dict of head name -> logits. Shapes: (n, c, z, y, x).
"""

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from emcore.settings.model import MedNeXtModel

# size -> (widening and number of blocks) of the four encoder stages, the bottleneck and the four decoder stages
SIZES = {
    "S": ((2,) * 9, (2,) * 9),
    "B": ((2, 3, 4, 4, 4, 4, 4, 3, 2), (2,) * 9),
    "M": ((2, 3, 4, 4, 4, 4, 4, 3, 2), (3, 4, 4, 4, 4, 4, 4, 4, 3)),
    "L": ((3, 4, 8, 8, 8, 8, 8, 4, 3), (3, 4, 8, 8, 8, 8, 8, 4, 3)),
}


class Block(nn.Module):
    """Depth-wise convolution, norm per channel, widen, GELU, narrow, plus the input; `change` is "", "down" or "up"."""

    def __init__(self, inside: int, outside: int, widening: int, kernel: int, change: str = ""):
        super().__init__()
        half = kernel // 2
        if change == "up":
            self.mix = nn.ConvTranspose3d(inside, inside, kernel, 2, half, output_padding=1, groups=inside)
            self.shortcut = nn.ConvTranspose3d(inside, outside, 1, 2, output_padding=1)
        else:
            stride = 2 if change == "down" else 1
            self.mix = nn.Conv3d(inside, inside, kernel, stride, half, groups=inside)
            self.shortcut = nn.Conv3d(inside, outside, 1, 2) if change == "down" else nn.Identity()
        self.norm = nn.GroupNorm(inside, inside)
        self.widen = nn.Conv3d(inside, widening * inside, 1)
        self.narrow = nn.Conv3d(widening * inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.narrow(functional.gelu(self.widen(self.norm(self.mix(x)))))


class MedNeXt(nn.Module):
    """Four isotropic halvings; every head is a stack of blocks and a 1x1x1 convolution on the shared features."""

    def __init__(self, model: MedNeXtModel = MedNeXtModel()):  # noqa: B008 (frozen)
        super().__init__()
        width, kernel, out_channels = model.mednext.width, model.mednext.kernel, model.out_channels
        widening, blocks = SIZES[model.mednext.size]
        self.in_channels, self.checkpointing, self.multiple = model.in_channels, model.checkpointing, model.multiple
        widths = [width * 2**level for level in range(5)]

        def stage(channels: int, index: int) -> nn.Sequential:
            return nn.Sequential(*[Block(channels, channels, widening[index], kernel) for _ in range(blocks[index])])

        self.stem = nn.Conv3d(model.in_channels, width, 1)
        self.encoder = nn.ModuleList([stage(widths[level], level) for level in range(4)])
        self.down = nn.ModuleList([Block(widths[level], widths[level + 1], widening[level], kernel, "down")
                                   for level in range(4)])
        self.bottleneck = stage(widths[4], 4)
        self.up = nn.ModuleList([Block(widths[level + 1], widths[level], widening[8 - level], kernel, "up")
                                 for level in range(4)])
        self.decoder = nn.ModuleList([stage(widths[level], 8 - level) for level in range(4)])
        self.heads = nn.ModuleDict({name: self._head(width, channels, model.mednext.head_blocks, widening[8], kernel)
                                    for name, channels in model.heads.items()})
        self.out = None if model.heads else nn.Conv3d(width, out_channels, 1)
        self.supervised = nn.ModuleList([nn.Conv3d(widths[level], out_channels, 1) for level in (4, 3, 2, 1)]
                                        if model.deep_supervision else [])

    @staticmethod
    def _head(width: int, channels: int, blocks: int, widening: int, kernel: int) -> nn.Sequential:
        stack = [Block(width, width, widening, kernel) for _ in range(blocks)]
        return nn.Sequential(*stack, nn.Conv3d(width, channels, 1))

    def _run(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(module, x, use_reentrant=False)
        return module(x)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = self.stem(x)
        skips: list[Tensor] = []
        for stage, down in zip(self.encoder, self.down):
            skips.append(self._run(stage, x))
            x = self._run(down, skips[-1])
        x = self._run(self.bottleneck, x)
        aside = {}
        for level in (3, 2, 1, 0):
            if self.supervised:
                aside[f"ds_{4 - level}"] = self.supervised[3 - level](x)
            x = self._run(self.decoder[level], self._run(self.up[level], x) + skips[level])
        if self.out is None:
            return {name: head(x) for name, head in self.heads.items()}
        return {"output": self.out(x), **aside} if aside else self.out(x)

