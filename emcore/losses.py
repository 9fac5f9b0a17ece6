"""Losses on (n, c, z, y, x) tensors, each one function, and the plan that sums them; fp32 also inside autocast.

`weight` is zero where a voxel does not count. A masked mean divides by the number of voxels that count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from emcore.errors import InputError
from emcore.models.mae import edge_map
from emcore.settings.channels import channels_of
from emcore.settings.loss import (
    BceTerm,
    DiceTerm,
    FocalTerm,
    LegacyBceTerm,
    Loss,
    MaeTerm,
    MseTerm,
    PerChannelBceTerm,
    SigmoidMseTerm,
    SmoothL1Term,
    Squashed,
    Weighed,
    WeightedCeTerm,
)

MOST = 10.0  # no class weighs more than this


@cache
def constant(values: float | tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of the settings, sent to the device once."""
    with torch.inference_mode(False):  # what is made while a net predicts must serve a later training, too
        return torch.tensor(values, device=device, dtype=dtype)


def listed(values: float | Sequence[float]) -> float | tuple[float, ...]:
    """Numbers of the settings as `constant` can remember them; Python may give a list."""
    return tuple(values) if isinstance(values, Sequence) else values


def masked_mean(loss: Tensor, weight: Tensor) -> Tensor:
    return (loss * weight).sum() / (weight > 0).sum().clamp_min(1)


def automatic_weight(target: Tensor, weight: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Negatives per positive among the voxels that count, at most MOST; 1 where a class is absent."""
    counts = weight > 0
    positive = (counts & (target > 0.5)).sum(dim=dims, keepdim=True).float()
    negative = counts.sum(dim=dims, keepdim=True).float() - positive
    return torch.where((positive > 0) & (negative > 0), (negative / positive.clamp_min(1)).clamp_max(MOST), 1.0)


def positive_weight(term: BceTerm | PerChannelBceTerm, target: Tensor, weight: Tensor) -> Tensor | None:
    if term.positive_weight is None:
        return None
    if term.positive_weight == "auto":
        return automatic_weight(target, weight)
    values = constant(listed(term.positive_weight), target.device, target.dtype).flatten()
    if values.numel() not in (1, target.shape[1]):
        raise InputError(f"positive_weight needs 1 or {target.shape[1]} values, got {values.numel()}")
    return values.view(1, -1, 1, 1, 1)


def channel_weight(term: BceTerm | SigmoidMseTerm, target: Tensor) -> Tensor:
    if not term.channel_weights:
        return torch.ones(1, device=target.device)
    if len(term.channel_weights) != target.shape[1]:
        raise InputError(f"channel_weights needs {target.shape[1]} values, got {len(term.channel_weights)}")
    return constant(listed(term.channel_weights), target.device).view(1, -1, 1, 1, 1)


def bce(term: BceTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy of logits, masked mean; with membrane or channel weights their weighted mean."""
    loss = functional.binary_cross_entropy_with_logits(prediction, target, reduction="none",
                                                       pos_weight=positive_weight(term, target, weight))
    if term.membrane_weight > 0 or term.channel_weights:
        weight = weight * channel_weight(term, target)
        return (loss * weight).sum() / weight.expand_as(loss).sum().clamp_min(1)
    return masked_mean(loss, weight)


def per_channel_bce(term: PerChannelBceTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The sum over channels of their masked means; each channel's positives weigh its negatives per positive."""
    positive = (weight > 0) & (target > 0.5)
    count = positive.sum((0, 2, 3, 4), keepdim=True).float()
    rest = (weight > 0).sum((0, 2, 3, 4), keepdim=True).float() - count
    factor = torch.where(count > 0, (rest / count.clamp_min(1)).clamp_max(MOST), 1.0)
    if term.positive_weight not in (None, "auto"):
        factor = positive_weight(term, target, weight)
    loss = functional.binary_cross_entropy_with_logits(prediction, target, reduction="none", pos_weight=factor)
    return ((loss * weight).sum((0, 2, 3, 4)) / (weight > 0).sum((0, 2, 3, 4)).clamp_min(1)).sum()


def dice(term: DiceTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - 2 p t / (p + t) of sigmoids per sample and channel, mean; what does not count is background in both."""
    counts = (weight > 0).to(target.dtype)
    probability, target = prediction.sigmoid() * counts, target * counts
    both = (probability * target).sum((2, 3, 4))
    either = probability.sum((2, 3, 4)) + target.sum((2, 3, 4))
    return (1 - (2 * both + term.smooth) / (either + term.smooth)).mean()


def _squashed(term: Squashed, prediction: Tensor) -> Tensor:
    return prediction.tanh() if term.tanh else prediction


def mse(term: MseTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return masked_mean((_squashed(term, prediction) - target).square(), weight)


def mae(term: MaeTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return masked_mean((_squashed(term, prediction) - target).abs(), weight)


def smooth_l1(term: SmoothL1Term, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return masked_mean(functional.smooth_l1_loss(_squashed(term, prediction), target, reduction="none"), weight)


def sigmoid_mse(term: SigmoidMseTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Squared error of probabilities with channel and membrane weights, over the sum of weights or the voxels."""
    channel = channel_weight(term, target)
    loss = (prediction.sigmoid() - target).square() * class_balance(term, target, "superhuman") * channel * weight
    if term.over == "voxels":
        return loss.sum() / (target.shape[0] * target[0, 0].numel())
    return loss.sum() / (channel * weight).expand_as(loss).sum().clamp_min(1)


def focal(term: FocalTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy damped where the net is already sure: (1 - p)^gamma."""
    loss = functional.binary_cross_entropy_with_logits(prediction, target, reduction="none")
    missed = prediction.sigmoid() * (1 - target) + (1 - prediction.sigmoid()) * target
    return masked_mean(loss * missed.pow(term.gamma), weight)


def weighted_ce(term: WeightedCeTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of classes (one integer target channel), class-weighted mean of the voxels that count."""
    classes = target[:, 0].long()
    if term.class_weights and len(term.class_weights) != prediction.shape[1]:
        raise InputError(f"class_weights needs {prediction.shape[1]} values, got {len(term.class_weights)}")
    values = constant(listed(term.class_weights or (1.0,) * prediction.shape[1]), prediction.device)
    loss = functional.cross_entropy(prediction, classes, reduction="none")
    weight = values[classes] * weight[:, 0]
    return (loss * weight).sum() / weight.sum().clamp_min(1e-12)


def legacy_bce(term: LegacyBceTerm, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of probabilities (a net with its own sigmoid), mean over all voxels, not over the weights.

    balance "positive" (the later rule): positives weigh (1 - q) / q with q = max(mean label, 0.01) of the sample;
    "negative" (the first rule): negatives weigh p / (1 - p), so an empty sample has no loss.
    """
    loss = functional.binary_cross_entropy(prediction.clamp(0, 1), target, reduction="none")
    return (loss * weight).mean()


def class_balance(term: Weighed, target: Tensor, only: str | None = None) -> Tensor:
    """The weight map of term.balance; `only` names the one rule that the calling loss applies by itself."""
    one = torch.ones(1, device=target.device)
    if only is not None and term.balance != only:
        return one
    if term.balance == "halves":  # either class gets half of the weight
        positive = (target > 0).float()
        count, total = positive.sum(), float(target.numel())
        both = (count > 0) & (count < total)  # decided on the device, which the host need not wait for
        balanced = torch.where(target > 0, (total / (2 * count)).clamp_max(MOST),
                               (total / (2 * (total - count))).clamp_max(MOST))
        return torch.where(both, balanced, 1.0)
    if term.balance == "superhuman":  # the larger class is lowered to the size of the smaller, per sample and channel
        share = (target > 0.5).float().mean((2, 3, 4), keepdim=True).clamp(0.05, 0.99)
        return torch.where(share > 0.5, torch.where(target > 0.5, 1.0, share / (1 - share)),
                           torch.where(target > 0.5, (1 - share) / share, 1.0))
    if term.balance in ("positive", "negative"):
        rare = target if term.balance == "positive" else 1 - target
        least = 1e-2 if term.balance == "positive" else 1e-3
        share = rare.mean((1, 2, 3, 4), keepdim=True).clamp_min(least)
        return rare * (1 - share) / share + (1 - rare)
    return one


def weighed(term: Weighed, target: Tensor, weight: Tensor, image: Tensor | None, where: str) -> Tensor:
    """The weight with that of the classes and of membranes, which leave 0 where a voxel does not count."""
    if term.balance != "superhuman":
        weight = weight * class_balance(term, target)
    if term.membrane_weight > 0:
        if image is None:
            raise InputError(f"{where}.membrane_weight needs the image beside the prediction")
        edges = edge_map(image[:, :1].float(), term.membrane_axis_weights, term.membrane_clip)
        membranes = (1 + term.membrane_weight * edges).expand_as(weight)
        valid = weight > 0
        weight = weight * membranes / ((membranes * valid).sum() / valid.sum().clamp_min(1)).clamp_min(1e-6)
    return weight


LOSSES = {BceTerm: bce, PerChannelBceTerm: per_channel_bce, DiceTerm: dice, MseTerm: mse, MaeTerm: mae,
          SmoothL1Term: smooth_l1, SigmoidMseTerm: sigmoid_mse, FocalTerm: focal, WeightedCeTerm: weighted_ce,
          LegacyBceTerm: legacy_bce}


@dataclass(frozen=True)
class LossValue:
    total: Tensor  # what is differentiated
    terms: tuple[Tensor, ...]  # every term before its weight, full size only


class LossPlan(nn.Module):
    """Sums the terms of [loss]; holds the learned balance, if any."""

    def __init__(self, loss: Loss):
        super().__init__()
        self.loss = loss
        # log variances of the terms (Kendall et al. 2018, arXiv 1705.07115)
        self.balance = nn.Parameter(torch.zeros(len(loss.terms))) if loss.uncertainty else None

    def forward(self, prediction: Tensor | Mapping[str, Tensor], target: Tensor, valid: Tensor | None = None,
                image: Tensor | None = None) -> LossValue:
        """prediction: logits, or a dict of heads or of deep supervision ("output", "ds_1" ...); valid: 0 = ignore."""
        with torch.autocast(target.device.type, enabled=False):
            target = target.float()
            weight = torch.ones_like(target) if valid is None else valid.float().expand_as(target)
            if not (isinstance(prediction, Mapping) and "output" in prediction):
                terms = self._terms(prediction, target, weight, image)
                return LossValue(self._sum(terms), tuple(terms))
            terms = self._terms(prediction["output"], target, weight, image)
            aside = sorted((value for name, value in prediction.items() if name != "output"),
                           key=lambda value: -value[0, 0].numel())
            total = self.loss.levels[0] * self._sum(terms)
            for share, level in zip(self.loss.levels[1:], aside):
                small = [shrink(tensor, level.shape[2:], how) for tensor, how in
                         ((target, "value"), (weight, "least"), (image, "value"))]
                total = total + share * self._sum(self._terms(level, *small))
            return LossValue(total, tuple(terms))

    def _sum(self, terms: list[Tensor]) -> Tensor:
        weighted = [term.weight * value for term, value in zip(self.loss.terms, terms)]
        if self.balance is None:
            return torch.stack(weighted).sum()
        return sum(0.5 * (-s).exp() * value + 0.5 * s for s, value in zip(self.balance, weighted))

    def _terms(self, prediction: Tensor | Mapping[str, Tensor], target: Tensor, weight: Tensor,
               image: Tensor | None) -> list[Tensor]:
        values = []
        for number, term in enumerate(self.loss.terms):
            given = (prediction[term.head] if isinstance(prediction, Mapping) else prediction).float()
            if self.loss.clamp > 0 and not term.of_probabilities:
                given = given.clamp(-self.loss.clamp, self.loss.clamp)
            given = given[:, channels_of(term.prediction, given.shape[1], f"loss.terms.{number}.prediction")]
            chosen = channels_of(term.target, target.shape[1], f"loss.terms.{number}.target")
            wanted, counts = target[:, chosen], weight[:, chosen]
            if isinstance(term, Weighed):
                counts = weighed(term, wanted, counts, image, f"loss.terms.{number}")
            values.append(LOSSES[type(term)](term, given, wanted, counts))
        return values


def shrink(tensor: Tensor | None, size: torch.Size, how: str) -> Tensor | None:
    """A target, image ("value": interpolated; class numbers stay whole) or weight ("least") at a coarser level."""
    if tensor is None or tensor.shape[2:] == size:
        return tensor
    if how == "least":  # a coarse voxel counts only if every voxel in it does
        factor = tuple(a // b for a, b in zip(tensor.shape[2:], size))
        return -functional.max_pool3d(-tensor, factor, factor)
    nearest = functional.interpolate(tensor, size=size, mode="nearest-exact")
    between = functional.interpolate(tensor, size=size, mode="trilinear").clamp(tensor.min(), tensor.max())
    return torch.where((tensor == tensor.round()).all(), nearest, between)
