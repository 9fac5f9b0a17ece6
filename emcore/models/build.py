"""From [model] to a net."""

from torch import nn

from emcore.errors import InputError
from emcore.models.layers import Triple
from emcore.models.mednext import MedNeXt
from emcore.models.rsunet import RSUNet
from emcore.models.unet_v1 import UNetV1
from emcore.models.unetr import UNETR, LightUNETR, LinearHead
from emcore.models.vit import VisionTransformer
from emcore.settings.model import (
    LightUNETRModel,
    LinearHeadModel,
    MedNeXtModel,
    Model,
    RSUNetModel,
    UNETRModel,
    UNetV1Model,
    check_patch,
)

NETS = {RSUNetModel: RSUNet, UNetV1Model: UNetV1, MedNeXtModel: MedNeXt, UNETRModel: UNETR,
        LightUNETRModel: LightUNETR, LinearHeadModel: LinearHead}


def build_model(model: Model, patch: Triple) -> nn.Module:
    """The net that [model] describes, for patches of this size; a patch that does not fit is told before any step."""
    if type(model) not in NETS:
        raise InputError(f"model.name = {model.name} predicts nothing: it is what [pretrain] trains, and the weights "
                         "of its encoder are taken by train.start_from")
    check_patch(model.multiple, patch)
    net = NETS[type(model)]
    return net(model, patch) if issubclass(net, VisionTransformer) else net(model)
