"""Files volume_<iteration>.pth: a bare dict of weights in the grammar of 2019, which the code of that time loads."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from emcore.engine import checkpoint
from emcore.errors import InputError
from emcore.files import writing
from emcore.models.unet_v1 import UNetV1, from_published

FORGET = 0.999  # what a step leaves of the sums behind the batch statistics
SETTLED = 1 / (1 - FORGET)  # what the count of such sums tends to


def load_net(path: str) -> tuple[UNetV1, float]:
    """The net of a file, and the count behind its batch statistics."""
    state = checkpoint.read(path)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"-pm {path} is no bare dict of weights; it holds {', '.join(map(str, list(state)[:5]))}")
    with checkpoint.refused(path, "is no file of this net"):
        counts = [float(value) for name, value in state.items()
                  if name.endswith("_running_iter") and value.numel() == 1]
        return from_published(state), counts[0] if counts else SETTLED


def update_momentum(net: nn.Module, count: float) -> float:
    """The count after one more step; the running statistics become the mean, unbiased, of the steps so far.

    With the fixed momentum of .001 they would take thousands of steps to leave 0 and 1.
    """
    count = FORGET * count + 1
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.momentum = 1 / count
    return count


def save_net(net: nn.Module, path: Path, count: float) -> None:
    """Writes the weights whole or not at all, in the format that torch 1.0 reads."""
    with writing(path) as file:
        torch.save(published(net, count), file, _use_new_zipfile_serialization=False)


def published(net: nn.Module, count: float) -> OrderedDict[str, Tensor]:
    """The 495 tensors that a strict load of May 2019 asks for."""
    out = OrderedDict()
    state = net.state_dict()
    for name, value in state.items():
        name = f"module.{name}"
        out[name] = value.detach().cpu().clone()
        if name.endswith("num_batches_tracked"):
            stem = name.removesuffix("num_batches_tracked")
            out[f"{stem}_tmp_running_mean"] = out[f"{stem}running_mean"] * count
            out[f"{stem}_tmp_running_var"] = out[f"{stem}running_var"] * count
            out[f"{stem}_running_iter"] = torch.tensor([count])
    return out
