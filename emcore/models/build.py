"""From [model] to a net."""

from importlib import import_module

from torch import nn

from emcore.errors import InputError
from emcore.models.layers import Triple
from emcore.models.vit import VisionTransformer
from emcore.settings.model import Model, check_patch


def build_model(model: Model, patch: Triple) -> nn.Module:
    """The net that [model] describes, for patches of this size; a patch that does not fit is told before any step."""
    if not model.net:
        raise InputError(f"model.name = {model.name} predicts nothing: it is what [pretrain] trains, and the weights "
                         "of its encoder are taken by train.start_from")
    check_patch(model.multiple, patch)
    file, name = model.net.split(".")
    net = getattr(import_module(f"emcore.models.{file}"), name)
    return net(model, patch) if issubclass(net, VisionTransformer) else net(model)
