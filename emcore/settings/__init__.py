"""Every setting of a run, one TOML table each; `python -m emcore config train` prints them all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from emcore.config import translated
from emcore.files import check_name
from emcore.settings.augment import Augment
from emcore.settings.blocks import Blocks
from emcore.settings.checks import check_settings
from emcore.settings.data import Data
from emcore.settings.decode import Decode, NoDecode
from emcore.settings.evaluate import Evaluate
from emcore.settings.loss import Loss
from emcore.settings.model import Model, RSUNetModel
from emcore.settings.predict import Infer
from emcore.settings.target import BinaryTarget, Labels, Target
from emcore.settings.train import Pretrain, Train
from emcore.settings.tune import Tune


@dataclass(frozen=True)
class Settings:
    name: str  # name of the run, whose folder is outputs/<name>
    outputs: str = "outputs"  # folder in which all runs stand
    seed: int = 0  # seed of the weights, the choice of patches and the augmentation
    device: str = "auto"  # auto, cpu, cuda or mps (the GPU of an Apple processor)
    data: Data = Data()  # volumes and patches
    augment: Augment = Augment()  # what is done to training patches
    labels: Labels = Labels()  # what is done to labels before targets are made
    target: tuple[Target, ...] = (BinaryTarget(),)  # what the net learns; channels are stacked
    loss: Loss = Loss()  # how prediction and target are compared
    model: Model = RSUNetModel()  # the net
    train: Train = Train()  # steps, optimizer, checkpoints and validation
    infer: Infer = Infer()  # prediction of data.test
    decode: Decode = NoDecode()  # how predictions become labels
    blocks: Blocks = Blocks()  # how large volumes are decoded piece by piece; changes no bit of the labels
    evaluate: Evaluate = Evaluate()  # scores against truth
    tune: Tune = Tune()  # search for the best [decode]
    pretrain: Pretrain | None = None  # masked pretraining of a transformer instead of learning targets

    OLDER: ClassVar[str] = ("[pretrain] trains the net masked_autoencoder, so model.name is taken to be that; a file "
                            "that does not say so is read until the next release")

    def __post_init__(self) -> None:
        check_name(self.name, "the name of a run")

    def check(self) -> None:
        check_settings(self)

    @staticmethod
    def older(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
        """A table of an older version as one of today; None for one that is of today.

        There masked pretraining took the sizes of a transformer from the table of any net.
        """
        model = given.get("model", {})
        masked = given.get("pretrain") is not None or before.get("pretrain") is not None
        if not masked or not isinstance(model, Mapping):
            return None
        name = model.get("name", before.get("model", {}).get("name"))
        if name == "masked_autoencoder":
            return None
        return {**given, "model": translated(Model, {**model, "name": "masked_autoencoder"})}


# script -> the tables that it reads
READS = {
    "train": ("name", "outputs", "seed", "device", "data", "augment", "labels", "target", "loss", "model", "train",
              "pretrain"),
    "infer": ("name", "outputs", "device", "data", "target", "train.precision", "infer", "decode", "blocks"),
    "evaluate": ("name", "outputs", "seed", "data", "target", "infer", "decode", "evaluate", "tune"),
}
