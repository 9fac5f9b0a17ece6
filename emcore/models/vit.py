"""The 3D vision transformer that the masked autoencoder pretrains and the UNETR nets reuse, key names included."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from emcore.errors import InputError
from emcore.models.layers import Triple
from emcore.settings.model import EncoderSizes


class PatchEmbed(nn.Module):
    """One token a patch; tokens run z slowest, x fastest."""

    def __init__(self, in_channels: int, width: int, patch: Triple):
        super().__init__()
        self.proj = nn.Conv3d(in_channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with packed query, key, value weights (the key names of torch's own module)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.view(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, tokens, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout),
                                 nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patch embedding, learned positions, blocks and a final norm, for one fixed volume size."""

    encoder = ("pos_embed", "patch_embed", "encoder_blocks", "norm.")  # prefixes of its weights

    def __init__(self, in_channels: int, volume: Triple, sizes: EncoderSizes, dropout: float = 0.0):
        super().__init__()
        patch, width, heads = sizes.patch, sizes.width, sizes.heads
        if any(v % p for v, p in zip(volume, patch)):
            raise InputError(f"the volume {list(volume)} must be a multiple of the token patch {list(patch)} on "
                             "every axis")
        self.in_channels, self.volume, self.patch, self.width = in_channels, tuple(volume), patch, width
        self.grid = tuple(v // p for v, p in zip(volume, patch))
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.patch_embed = PatchEmbed(in_channels, width, patch)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        self.encoder_blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(sizes.depth)])
        self.norm = nn.LayerNorm(width)

    @property
    def multiple(self) -> Triple:
        """Positions are learned for one size, so the patch of the data must be exactly that."""
        return self.volume

    def embed(self, x: Tensor) -> Tensor:
        if tuple(x.shape[2:]) != self.volume:
            raise InputError(f"this net was built for volumes of {list(self.volume)}; got {list(x.shape[2:])}")
        return self.patch_embed(x)

    def encode(self, tokens: Tensor, taps: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """The normed final tokens and the outputs of the blocks named in taps (before the norm)."""
        hidden = []
        for block in self.encoder_blocks:
            tokens = block(tokens)
            hidden.append(tokens)
        return self.norm(tokens), [hidden[tap] for tap in taps]

    def as_volume(self, tokens: Tensor) -> Tensor:
        """(n, tokens, width) as (n, width, z, y, x) of the token grid."""
        return tokens.transpose(1, 2).reshape(tokens.shape[0], self.width, *self.grid)


def resize_positions(positions: Tensor, old: Triple, new: Triple) -> Tensor:
    """Learned positions of one token grid, trilinearly interpolated to another."""
    if old[0] * old[1] * old[2] != positions.shape[1]:
        raise InputError(f"positions of {positions.shape[1]} tokens do not belong to a grid of {list(old)}")
    volume = positions.transpose(1, 2).reshape(1, -1, *old)
    return functional.interpolate(volume.float(), size=new, mode="trilinear").flatten(2).transpose(1, 2)


def transfer_encoder(net: nn.Module, state: Mapping[str, Tensor], grid: Triple | None = None,
                     include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[str]:
    """Copies every tensor whose name and shape fit, positions resized from `grid`; returns the names copied.

    include and exclude are prefixes of names; without include every name is allowed.
    """
    own = net.state_dict()
    taken = {}
    for name, value in state.items():
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
        wanted = name.startswith(tuple(include)) if include else True
        if name not in own or not wanted or name.startswith(tuple(exclude)):
            continue
        if name == "pos_embed" and value.shape != own[name].shape and value.shape[2:] == own[name].shape[2:]:
            if grid is None:
                raise InputError(f"the checkpoint has positions for {value.shape[1]} tokens, this net "
                                 f"{own[name].shape[1]}; its config, which tells the grid, is missing")
            value = resize_positions(value, grid, net.grid)
        if value.shape == own[name].shape:
            taken[name] = value
    net.load_state_dict(taken, strict=False)
    return sorted(taken)
