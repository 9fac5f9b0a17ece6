"""What one training step computes: a module around the net, so that torch's DistributedDataParallel sees all of it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emcore.data.targets import FALSE, make_targets, prepare_labels
from emcore.engine.arithmetic.mode import Mode
from emcore.engine.arithmetic.net import autocast, place, widest
from emcore.errors import InputError
from emcore.losses import LossPlan
from emcore.models.build import build_model
from emcore.models.decision import DecisionModule, policy_loss
from emcore.models.mae import MaskedAutoencoder, choose_mask
from emcore.settings import Settings
from emcore.settings.checks import check_terms
from emcore.settings.target import channel_names
from emcore.settings.train import AdaptivePolicy, NoPolicy


class Supervised(nn.Module):
    """Loss of a batch of augmented patches: targets are made here, on the device."""

    def __init__(self, settings: Settings, mode: Mode, resolution: tuple[float, float, float]):
        super().__init__()
        self.settings, self.mode, self.resolution = settings, mode, resolution
        self.net = build_model(settings.model, settings.data.patch)
        self.plan = LossPlan(settings.loss)
        self.columns = [f"loss/train/{number} {term.kind}" for number, term in enumerate(settings.loss.terms)]
        self.names = channel_names(settings.target)
        check_terms(settings.loss, settings.model, len(self.names))
        # outside of the module tree: a compiled net shares the parameters and must not name them twice
        self.runner = [self.net]

    def prepare(self) -> None:
        """Puts the mode to work, once the net is on its device."""
        self.runner = [place(self.net, self.mode)]

    def targets(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The values, and how much each counts: 0, 1, or more where an earlier net invented an object."""
        false = batch["label"] == FALSE
        labels = prepare_labels(batch["label"].masked_fill(false, 0), self.settings.labels)
        values, valid = make_targets(labels, self.settings.target, self.resolution, batch.get("mask"),
                                     batch.get("skeleton"))
        if any(volume.found for volume in (*self.settings.data.train, *self.settings.data.validation)):
            valid = valid * torch.where(false, self.settings.data.false_weight, 1.0)[:, None]
        return values, valid

    def forward(self, batch: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        value, *_ = self._compared(batch)
        return value.total, dict(zip(self.columns, (term.detach() for term in value.terms)))

    def _compared(self, batch: Mapping[str, Tensor]) -> tuple[Any, Tensor | Mapping[str, Tensor], Tensor, Tensor]:
        """Loss, prediction, targets and which of them count."""
        with torch.no_grad():
            target, valid = self.targets(batch)
        with autocast(self.mode.precision, self.mode.device):
            prediction = self.runner[0](batch["image"])
        return self.plan(prediction, target, valid, batch["image"]), prediction, target, valid

    @property
    def learns_masks(self) -> bool:
        """Whether each channel of the prediction is a mask."""
        targets, model = self.settings.target, self.settings.model
        return all(target.is_mask for target in targets) and (
            model.out_channels == len(self.names) and not model.heads)

    @torch.no_grad()
    def overlap(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the voxels of all its masks in both prediction and target, and in either."""
        value, prediction, target, valid = self._compared(batch)
        if isinstance(prediction, Mapping):
            prediction = prediction["output"]
        valid = valid > 0
        found = prediction >= (0.5 if self.settings.model.gives_probabilities else 0.0)
        truth = target > 0
        both, either = (found & truth & valid).sum(), ((found | truth) & valid).sum()
        return value.total, torch.stack([both, either]).to(widest(both.device))

    @torch.no_grad()
    def preview(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[str]]:
        """Target and prediction, (channels, z, y, x) of the first sample in 0..1, and the names of the channels."""
        target, _ = self.targets({name: value[:1] for name, value in batch.items()})
        with autocast(self.mode.precision, self.mode.device):
            prediction = self.net(batch["image"][:1])
        if isinstance(prediction, Mapping):
            prediction = prediction["output"] if "output" in prediction else torch.cat(list(prediction.values()), 1)
        shown = prediction[0].float()
        if not self.settings.model.gives_probabilities:
            shown = shown.sigmoid()
        return target[0], shown, self.names


class Masked(nn.Module):
    """Masked pretraining: the autoencoder, its mask, and the policy that may choose it."""

    columns = ("loss/train/pixel", "loss/train/structure", "membrane_weight_mean", "mask_ratio", "edge_coverage",
               "loss/train/policy")
    names = ("restored",)
    learns_masks = False

    def __init__(self, settings: Settings, mode: Mode, resolution: tuple[float, float, float]):
        super().__init__()
        if settings.pretrain is None:
            raise InputError("masked pretraining needs the table [pretrain]")
        self.settings, self.mode, self.pretrain = settings, mode, settings.pretrain
        self.net = MaskedAutoencoder(settings.model, settings.pretrain, settings.data.patch)
        policy = settings.pretrain.policy
        if isinstance(policy, AdaptivePolicy):  # before the warm-up ends, these are the settings of the mask
            self.columns = (*self.columns, "sampled_mask_ratio", "edge_fraction")
        self.policy = None
        if not isinstance(policy, NoPolicy):
            self.policy = DecisionModule(policy, settings.model.transformer.width, settings.pretrain.mask_ratio)

    def prepare(self) -> None:
        place(self.net, Mode(self.mode.device, self.mode.precision, self.mode.layout, False))

    def _decides(self, step: int) -> tuple[bool, bool]:
        """Whether the policy chooses this step's mask, and whether it learns from it."""
        policy = self.pretrain.policy
        if self.policy is None or step < policy.warmup:
            return False, False
        frozen = policy.freeze > 0 and step >= policy.freeze
        return (policy.use_frozen, False) if frozen else (True, True)

    def forward(self, batch: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, options = batch["image"], self.pretrain
        edges = self.net.patch_edges(image)
        used, learns = self._decides(step)
        decision = None
        if used:
            with torch.no_grad():
                tokens = self.net.embed(image)
            decision = self.policy.decide(tokens, edges, deterministic=not learns)
            mask = decision.mask
        else:
            mask = choose_mask(edges, options.mask_ratio, options.edge_fraction, options.edge_power, options.edge_noise)
        with autocast(self.mode.precision, self.mode.device):
            out = self.net(image, mask, edges)
        loss, policy_term = out.loss, torch.zeros((), device=image.device)
        if learns:
            error = (out.volume.detach() - image).square().flatten(1).mean(1)
            policy_term = policy_loss(decision, error, options.policy)
            loss = loss + options.policy.weight * policy_term
        if self.policy is not None:  # every parameter takes part in every step, as DistributedDataParallel wants
            loss = loss + 0 * sum(p.sum() for p in self.policy.parameters())
        share = (edges * mask).sum(1) / mask.sum(1).clamp_min(1)
        values = [out.pixel, out.structure, out.weight_mean, mask.float().mean(), share.mean(), policy_term]
        if isinstance(options.policy, AdaptivePolicy):
            values += ([decision.ratio.mean(), decision.edge_fraction.mean()] if used
                       else [loss.new_tensor(options.mask_ratio), loss.new_tensor(options.edge_fraction)])
        return loss, dict(zip(self.columns, (value.detach() for value in values), strict=True))

    @torch.no_grad()
    def preview(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[str]]:
        image = batch["image"][:1]
        edges = self.net.patch_edges(image)
        options = self.pretrain
        mask = choose_mask(edges, options.mask_ratio, options.edge_fraction, options.edge_power, 0.0)
        return image[0], self.net(image, mask, edges).volume[0].clamp(0, 1), list(self.names)
