"""From [model] to a net, and whether a patch fits it."""

from collections.abc import Sequence

from torch import nn

from emcore.errors import InputError
from emcore.models.layers import Triple
from emcore.models.mednext import MedNeXt
from emcore.models.rsunet import RSUNet
from emcore.models.unet_v1 import UNetV1
from emcore.models.unetr import UNETR, LightUNETR, LinearHead
from emcore.models.vit import VisionTransformer
from emcore.settings.model import Model


def build_model(model: Model, patch: Triple) -> nn.Module:
    """The net that [model] describes, for patches of this size; a patch that does not fit is told before any step."""
    channels = (model.in_channels, model.out_channels)
    if model.deep_supervision and model.name not in ("rsunet", "mednext"):
        raise InputError(f"model.deep_supervision needs the net rsunet or mednext; got {model.name}")
    if model.checkpointing and model.name not in ("rsunet", "mednext"):
        raise InputError(f"model.checkpointing needs the net rsunet or mednext; got {model.name}")
    extras = {"deep_supervision": model.deep_supervision, "checkpointing": model.checkpointing}
    if model.name == "rsunet":
        sizes = model.rsunet
        net = RSUNet(*channels, sizes.width, fold=sizes.fold, down=sizes.down or None, kernel=sizes.kernel,
                     depth_2d=sizes.depth_2d, kernel_2d=sizes.kernel_2d, norm=sizes.norm, groups=sizes.groups,
                     act=sizes.act, up=sizes.up, **extras)
    elif model.name == "unet_v1":
        net = UNetV1(*channels, model.unet_v1.filters)
    elif model.name == "mednext":
        sizes = model.mednext
        net = MedNeXt(*channels, size=sizes.size, width=sizes.width, kernel=sizes.kernel, heads=dict(sizes.heads),
                      head_blocks=sizes.head_blocks, **extras)
    else:
        sizes = model.transformer
        shape = {"volume": patch, "patch": sizes.patch, "width": sizes.width, "depth": sizes.depth,
                 "heads": sizes.heads, "dropout": sizes.dropout}
        if model.name == "unetr":
            net = UNETR(*channels, **shape, features=sizes.features, head=sizes.head, head_depth=sizes.head_depth,
                        head_bias=sizes.head_bias, taps=sizes.taps)
        elif model.name == "unetr_light":
            net = LightUNETR(*channels, **shape, features=sizes.features)
        else:
            net = LinearHead(*channels, **shape)
    check_patch(net, patch)
    return net


def check_patch(net: nn.Module, patch: Sequence[int]) -> None:
    """Refuses a patch that the net's down-sampling does not divide, naming the two nearest sizes that fit."""
    if isinstance(net, VisionTransformer):
        return  # built for exactly this size
    multiple = net.multiple
    if any(p % m or p < m for p, m in zip(patch, multiple)):
        lower = [max(m, p // m * m) for p, m in zip(patch, multiple)]
        upper = [-(-p // m) * m for p, m in zip(patch, multiple)]
        nearest = f"{lower} or {upper}" if lower != upper else f"{upper}"
        raise InputError(f"a patch of {list(patch)} does not fit this net, which needs multiples of {list(multiple)}; "
                         f"the nearest that fit are {nearest}")
