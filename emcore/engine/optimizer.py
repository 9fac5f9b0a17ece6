"""Parameter groups and the optimizer of [train.optimizer]."""

import torch
from torch import nn

from emcore.errors import InputError
from emcore.settings.train import Optimizer, Train

ENCODER = ("net.pos_embed", "net.patch_embed", "net.encoder_blocks", "net.norm.", "net.mask_token")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def freeze(task: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Keeps the weights whose names begin with a prefix as they are."""
    for prefix in prefixes:
        found = [p for name, p in task.named_parameters() if name.startswith(f"net.{prefix}")]
        if not found:
            names = ", ".join(sorted({name.split(".")[1] for name, _ in task.named_parameters() if "." in name}))
            raise InputError(f"train.freeze: no weight begins with {prefix!r}; the net has {names}")
        for parameter in found:
            parameter.requires_grad_(False)


def build_optimizer(task: nn.Module, train: Train, policy: tuple[float, float] | None = None) -> torch.optim.Optimizer:
    """The optimizer; each group keeps as "share" its learning rate over train.optimizer.lr.

    policy: learning rate and weight decay of the masking policy.
    """
    settings = train.optimizer
    norms = {id(p) for module in task.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    groups: dict[tuple, list] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if id(parameter) in norms and not settings.decay_norms else settings.weight_decay
        rate = settings.lr
        if settings.encoder_lr is not None and name.startswith(ENCODER):
            rate = settings.encoder_lr
        if policy is not None and name.startswith("policy."):
            rate, decay = policy
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise InputError("train.freeze leaves nothing to learn")
    listed = [{"params": parameters, "lr": rate, "weight_decay": decay,
               "share": 1.0 if rate == settings.lr else rate / settings.lr}
              for (rate, decay), parameters in groups.items()]
    fused = all(p.is_cuda for parameters in groups.values() for p in parameters)
    return _make(settings, listed, fused)


def _make(settings: Optimizer, groups: list[dict], fused: bool) -> torch.optim.Optimizer:
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, settings.lr, settings.momentum, fused=fused)
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, settings.lr, settings.betas, amsgrad=settings.amsgrad, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
