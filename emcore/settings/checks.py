"""What settings of several tables must have in common, told before any work."""

from typing import Any

from emcore.errors import InputError
from emcore.settings.channels import channels_of
from emcore.settings.decode import AffinityDecode
from emcore.settings.loss import Loss
from emcore.settings.model import MaskedAutoencoderModel, Net, Transformer, check_patch
from emcore.settings.target import PartnersTarget, PolarityTarget, channel_names


def check_settings(settings: Any) -> None:
    """Refuses settings that cannot be used together; settings: a Settings."""
    model, decode = settings.model, settings.decode
    if isinstance(model, MaskedAutoencoderModel) != (settings.pretrain is not None):
        raise InputError(f"model.name = masked_autoencoder and the table [pretrain] belong together; model.name is "
                         f"{model.name}, and [pretrain] is {'there' if settings.pretrain is not None else 'not there'}")
    if settings.train.optimizer.encoder_lr is not None and not isinstance(model, Transformer):
        raise InputError("train.optimizer.encoder_lr is of the transformer encoder, which model.name = "
                         f"{model.name} does not have")
    if isinstance(decode, AffinityDecode) and decode.low > decode.high:
        raise InputError(f"decode.low must not be above decode.high; got {decode.low} and {decode.high}")
    if any(isinstance(target, PartnersTarget) for target in settings.target) and not any(
            one.kind == "vector" for one in settings.infer.activation):
        raise InputError("the target partners is a vector: infer.activation must name its three channels "
                         'with kind = vector, as in {channels = "3:6", kind = "vector"}')
    if settings.labels.split and any(isinstance(target, PolarityTarget | PartnersTarget) for target in settings.target):
        raise InputError("labels.split gives ids of their own to pieces of labels, but the targets polarity and "
                         "partners read the side of a synapse from its id: leave labels.split false")
    if settings.data.train:  # a recipe that learns, and not one that only predicts, decodes or scores
        check_patch(model.multiple, settings.data.patch)
        if settings.pretrain is None:
            check_terms(settings.loss, model, len(channel_names(settings.target)))


def check_terms(loss: Loss, model: Net, targets: int) -> None:
    """Refuses terms whose slices do not fit the channels of the net and of the target."""
    for number, term in enumerate(loss.terms):
        where = f"loss.terms.{number}"
        if model.heads and term.head not in model.heads:
            raise InputError(f"{where}.head is {term.head!r}; the net has the heads {', '.join(model.heads)}")
        if term.head and not model.heads:
            raise InputError(f"{where}.head is {term.head!r}; the net {model.name} has no heads to choose from")
        if term.of_probabilities and not model.gives_probabilities:
            raise InputError(f"{where}.kind = {term.kind} takes probabilities; the net {model.name} gives logits")
        given = channels_of(term.prediction, model.heads.get(term.head, model.out_channels), f"{where}.prediction")
        wanted = channels_of(term.target, targets, f"{where}.target")
        sizes = given.stop - given.start, wanted.stop - wanted.start
        if term.of_classes and sizes[1] != 1:
            raise InputError(f"{where} is {term.kind}, which needs one target channel of class numbers; got {sizes[1]}")
        if not term.of_classes and sizes[0] != sizes[1]:
            raise InputError(f"{where} compares {sizes[0]} prediction channels with {sizes[1]} target channels; change "
                             "its prediction or target slice")
