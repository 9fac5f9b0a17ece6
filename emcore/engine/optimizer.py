"""Parameter groups and the optimizer of [train.optimizer]."""

import torch
from torch import nn

from emcore.errors import InputError
from emcore.settings.train import Adam, AdamW, NoPolicy, Policy, Sgd, Train

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


def build_optimizer(task: nn.Module, train: Train, policy: Policy = NoPolicy()) -> torch.optim.Optimizer:  # noqa: B008
    """The optimizer; each group keeps as "share" its learning rate over train.optimizer.lr."""
    settings = train.optimizer
    encoder = tuple(f"net.{prefix}" for prefix in getattr(getattr(task, "net", task), "encoder", ()))
    norms = {id(p) for module in task.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    groups: dict[tuple, list] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if id(parameter) in norms and not settings.decay_norms else settings.weight_decay
        rate = settings.lr
        if settings.encoder_lr is not None and name.startswith(encoder):
            rate = settings.encoder_lr
        if not isinstance(policy, NoPolicy) and name.startswith("policy."):
            rate, decay = policy.lr, policy.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise InputError("train.freeze leaves nothing to learn")
    listed = [{"params": parameters, "lr": rate, "weight_decay": decay, "share": rate / settings.lr}
              for (rate, decay), parameters in groups.items()]
    fused = all(p.is_cuda for parameters in groups.values() for p in parameters)
    return MAKERS[type(settings)](settings, listed, fused)


def _adam(settings: AdamW, groups: list[dict], fused: bool) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if isinstance(settings, Adam) else torch.optim.AdamW
    return kind(groups, settings.lr, settings.betas, amsgrad=settings.amsgrad, fused=fused)


def _sgd(settings: Sgd, groups: list[dict], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, settings.lr, settings.momentum, fused=fused)


MAKERS = {AdamW: _adam, Adam: _adam, Sgd: _sgd}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
