"""Files volume_<iteration>.pth: a bare dict of weights in the grammar of 2019, which the code of that time loads."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from emcore.engine import checkpoint
from emcore.errors import InputError
from emcore.files import writing
from emcore.models.unet_v1 import UNetV1
from emcore.settings.model import UNetV1Model, UNetV1Sizes

# buffers of the synchronised batch norm of that time, of no use for running the net
NUISANCE = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")
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


def from_published(state: Mapping[str, Tensor]) -> UNetV1:
    """The net of a published state dict of either era, in eval mode; widths and channels are read off the shapes."""
    clean = OrderedDict((name.removeprefix("module."), value) for name, value in state.items()
                        if name.rsplit(".", 1)[-1] not in NUISANCE)
    try:
        filters = [clean[f"{stage}.0.projector.0.1.weight"].shape[0] for stage in
                   ("layer1_E", "layer2_E", "layer3_E", "layer4_E", "center")]
        inside = clean["layer1_E.0.projector.0.1.weight"].shape[1]
        outside = clean["fconv.0.1.weight"].shape[0]
    except KeyError as missing:
        raise InputError(f"this is no unet_v1 checkpoint: it has no tensor {missing}; it begins with "
                         f"{', '.join(list(clean)[:5]) or 'nothing'}") from None
    model = UNetV1Model(in_channels=inside, out_channels=outside, unet_v1=UNetV1Sizes(tuple(filters)))
    with torch.device("meta"):  # the sizes are those of a file: no memory is taken before all tensors fit
        wanted = UNetV1(model).state_dict()
    for name in wanted:
        if name.endswith("num_batches_tracked"):  # absent in files of the oldest torch versions
            clean.setdefault(name, torch.zeros((), dtype=torch.int64))
    wrong = [name for name in wanted if name not in clean or clean[name].shape != wanted[name].shape]
    wrong += [name for name in clean if name not in wanted]
    if wrong:
        raise InputError(f"this unet_v1 checkpoint differs in {len(wrong)} tensors, first {', '.join(wrong[:5])}")
    net = UNetV1(model)
    net.load_state_dict(clean)
    return net.eval()


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
