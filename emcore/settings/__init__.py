"""Every setting of a run, one TOML table each; `python -m emcore config train` prints them all."""

from dataclasses import dataclass

from emcore.files import check_name
from emcore.settings.augment import Augment
from emcore.settings.data import Data
from emcore.settings.evaluate import Evaluate
from emcore.settings.loss import Loss
from emcore.settings.model import Model
from emcore.settings.predict import Decode, Infer
from emcore.settings.target import Labels, Target
from emcore.settings.train import Pretrain, Train
from emcore.settings.tune import Tune


@dataclass(frozen=True)
class Settings:
    name: str  # of the run: everything it writes stands in outputs/<name>
    outputs: str = "outputs"  # folder of the run folders
    seed: int = 0  # of weights, samples and augmentations
    device: str = "auto"  # auto, cpu or cuda
    data: Data = Data()  # volumes and patches
    augment: Augment = Augment()  # what is done to training patches
    labels: Labels = Labels()  # what is done to labels before targets are made
    target: tuple[Target, ...] = (Target(),)  # what the net learns; channels are stacked
    loss: Loss = Loss()  # how far it is from it
    model: Model = Model()  # the net
    train: Train = Train()  # the loop
    infer: Infer = Infer()  # prediction of data.test
    decode: Decode = Decode()  # labels from predictions
    evaluate: Evaluate = Evaluate()  # scores against truth
    tune: Tune = Tune()  # search for the best [decode]
    pretrain: Pretrain | None = None  # masked pretraining of the transformer instead of learning targets

    def __post_init__(self) -> None:
        check_name(self.name, "the name of a run")


# script -> the tables that it reads
READS = {
    "train": ("data", "augment", "labels", "target", "loss", "model", "train", "pretrain"),
    "infer": ("data", "target", "infer", "decode"),
    "evaluate": ("data", "infer", "decode", "evaluate", "tune"),
}
