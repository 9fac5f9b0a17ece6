"""Masked pretraining: which patches are hidden, the autoencoder that restores them, and its losses.

Every token goes through the encoder; hidden ones are replaced by a learned token. Edge scores make membranes count
more, both in what is hidden and in what is paid for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from emcore.errors import InputError
from emcore.models.layers import Triple, patchify, unpatchify
from emcore.models.vit import VisionTransformer
from emcore.settings.model import MaskedAutoencoderModel
from emcore.settings.train import Pretrain


def edge_map(x: Tensor, axis_weights: Sequence[float] = (0.25, 1.0, 1.0), clip: float = 5.0) -> Tensor:
    """Weighted absolute backward differences of (n, c, z, y, x), divided by their mean per sample, clipped."""
    if len(axis_weights) != 3 or max(axis_weights) <= 0:
        raise InputError(f"edge axis weights must be 3 values, at least one positive; got {list(axis_weights)}")
    edges = torch.zeros_like(x)
    for axis, weight in enumerate(axis_weights, start=2):
        if weight > 0:
            edges.narrow(axis, 1, x.shape[axis] - 1).add_(x.diff(dim=axis).abs(), alpha=weight)
    mean = edges.flatten(1).mean(1).clamp_min(1e-6).view(-1, 1, 1, 1, 1)
    edges = edges / mean
    return edges.clamp_max(clip) if clip > 0 else edges


def choose_mask(edges: Tensor, ratio: float, edge_fraction: float, power: float, noise: float,
                generator: torch.Generator | None = None) -> Tensor:
    """Boolean (n, patches), true = hidden: the strongest edges for edge_fraction of them, chance for the rest.

    edges are patch scores; edge_fraction 0 is plain random masking, 1 hides edges only.
    """
    n, patches = edges.shape
    hidden = max(1, round(ratio * patches))
    by_edge = min(hidden, max(0, round(hidden * edge_fraction)))
    mask = torch.zeros_like(edges, dtype=torch.bool)
    if by_edge:
        score = edges.clamp_min(0) ** power
        if noise > 0:
            score = score + noise * torch.rand(score.shape, generator=generator, device=score.device)
        mask.scatter_(1, score.topk(by_edge, dim=1).indices, True)
    if hidden > by_edge:
        draw = torch.rand((n, patches), generator=generator, device=edges.device).masked_fill(mask, 2.0)
        mask.scatter_(1, draw.topk(hidden - by_edge, dim=1, largest=False).indices, True)
    return mask


@dataclass(frozen=True)
class Reconstruction:
    """What one forward pass of the autoencoder gives."""

    volume: Tensor  # (n, c, z, y, x) predicted intensities
    loss: Tensor  # pixel + structure_weight * structure
    pixel: Tensor  # weighted squared error of the hidden patches
    structure: Tensor  # difference of gradients, hidden and visible
    weight_mean: Tensor  # mean patch weight, about 1 + membrane_weight


class MaskedAutoencoder(VisionTransformer):
    """Restores hidden patches; with both weights 0 it is a plain masked autoencoder."""

    encoder = (*VisionTransformer.encoder, "mask_token")

    def __init__(self, model: MaskedAutoencoderModel, pretrain: Pretrain, volume: Triple):
        super().__init__(model.in_channels, volume, model.transformer)
        self.pretrain, hidden = pretrain, pretrain.decoder_width
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, self.width), std=0.02))
        voxels = model.in_channels * prod(self.patch)
        self.decoder = nn.Sequential(nn.Linear(self.width, hidden), nn.GELU(), nn.Linear(hidden, voxels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def patch_edges(self, x: Tensor) -> Tensor:
        """Mean edge score of every patch, (n, patches)."""
        edges = edge_map(x, self.pretrain.membrane_axis_weights, self.pretrain.membrane_clip)
        return patchify(edges, self.patch).mean(2).clamp_min(0)

    def forward(self, x: Tensor, mask: Tensor, edges: Tensor | None = None) -> Reconstruction:
        """mask (n, patches) true = hidden; edges: patch_edges(x) where the caller has them already."""
        tokens = torch.where(mask[..., None], self.mask_token.to(x.dtype), self.embed(x)) + self.pos_embed
        predicted = self.decoder(self.encode(tokens)[0])
        with torch.autocast(x.device.type, enabled=False):
            return self._losses(x.float(), predicted.float(), mask, edges)

    def _losses(self, x: Tensor, predicted: Tensor, mask: Tensor, edges: Tensor | None) -> Reconstruction:
        options = self.pretrain
        error = (predicted - patchify(x, self.patch)).square().mean(2)
        weight = torch.ones_like(error)
        if options.membrane_weight > 0:
            weight = 1 + options.membrane_weight * (self.patch_edges(x) if edges is None else edges)
        share = mask * weight
        pixel = ((share * error).sum(1) / share.sum(1).clamp_min(1)).mean()
        volume = unpatchify(predicted, x.shape[1], self.grid, self.patch)
        structure = torch.zeros_like(pixel)
        total = sum(options.structure_axis_weights)
        if options.structure_weight > 0:
            for axis, axis_weight in enumerate(options.structure_axis_weights, start=2):
                if axis_weight > 0:
                    difference = (volume.diff(dim=axis) - x.diff(dim=axis)).abs().mean()
                    structure = structure + axis_weight / total * difference
        return Reconstruction(volume, pixel + options.structure_weight * structure, pixel, structure, weight.mean())
