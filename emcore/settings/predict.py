"""[infer]: predicting volumes."""

from dataclasses import dataclass
from typing import Literal

from emcore.config.checks import WrongSetting, at_least, within

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Activation:
    channels: str = ":"  # channels of the prediction, written like a Python slice
    # what turns logits into values; vector: three channels z, y, x stay as they are, and views turn them back
    kind: Literal["sigmoid", "tanh", "softmax", "none", "vector"] = "sigmoid"


@dataclass(frozen=True)
class Views:
    flips: tuple[int, ...] = ()  # axes 0 z, 1 y, 2 x; every subset of them is predicted too
    turns: bool = False  # quarter turns in y and x as well: four times the views
    combine: Literal["mean", "min", "max"] = "mean"  # how the views become one

    def __post_init__(self) -> None:
        within(0, 2, self, "flips")


@dataclass(frozen=True)
class Infer:
    checkpoint: str = ""  # file to predict with, or a name of `emcore models`; empty: the newest of the run
    # which weights of the checkpoint; auto takes the averaged ones where there are some
    weights: Literal["auto", "averaged", "plain"] = "auto"
    window: Triple | None = None  # voxels of one pass through the net; none takes data.patch
    # overlap of neighbouring windows as a share of the window: one number, or one each for z, y and x
    overlap: float | tuple[float, float, float] = 0.5
    blend: Literal["bump", "gaussian", "constant"] = "bump"  # weight of a window's voxels, from its middle to its edge
    pad: Triple = (0, 0, 0)  # voxels of mirrored context around the volume, which are cut off again
    batch: int = 0  # windows in one pass; 0: four on a GPU, one on a CPU
    activation: tuple[Activation, ...] = (Activation(),)  # channels not named stay logits
    select: tuple[int, ...] = ()  # channels that are written; empty writes all
    dtype: Literal["float32", "float16", "uint8", "affinity8"] = "float32"  # affinity8: 8 bits that keep what saturates
    views: Views = Views()  # test-time augmentation
    # voxels z, y, x that one process predicts at a time, and not again after a kill; none and 0 choose by memory
    tile: Triple | None = None
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto compiles for much work on a GPU
    # memory layout of the weights; auto measures both, once a result
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"

    def __post_init__(self) -> None:
        at_least(1, self, "window")
        at_least(0, self, "pad", "batch", "select", "tile")
        for share in self.overlaps:
            if not 0 <= share < 1:
                raise WrongSetting(f"overlap must be 0 or more and below 1; got {share}")
        if any(one.kind == "vector" for one in self.activation):
            if self.dtype in ("uint8", "affinity8"):
                raise WrongSetting("dtype must be float32 or float16 with an activation of kind = vector, whose values "
                                   f"are below 0, too; got {self.dtype}")
            if self.views.combine != "mean":
                raise WrongSetting("views.combine must be mean with an activation of kind = vector; "
                                   f"got {self.views.combine}")

    @property
    def overlaps(self) -> tuple[float, float, float]:
        """The overlap along z, y and x."""
        return self.overlap if isinstance(self.overlap, tuple) else (self.overlap,) * 3
