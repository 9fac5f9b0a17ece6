"""[infer] and [decode]: predicting volumes and turning predictions into labels."""

from dataclasses import dataclass
from typing import Literal

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Activation:
    channels: str = ":"  # of the prediction, as a Python slice
    kind: Literal["sigmoid", "tanh", "softmax", "none"] = "sigmoid"  # what turns logits into values


@dataclass(frozen=True)
class Views:
    flips: tuple[int, ...] = ()  # axes 0 z, 1 y, 2 x; every subset of them is predicted too
    turns: bool = False  # quarter turns in y and x as well: four times the views
    combine: Literal["mean", "min", "max"] = "mean"  # of the views


@dataclass(frozen=True)
class Infer:
    checkpoint: str = ""  # file to predict with; empty takes the newest of the run
    window: Triple | None = None  # voxels of one pass through the net; none takes data.patch
    overlap: float = 0.5  # of neighbouring windows, share of the window
    blend: Literal["bump", "gaussian", "constant"] = "bump"  # weight of a window's voxels, from its middle to its edge
    pad: Triple = (0, 0, 0)  # voxels of mirrored context around the volume, cut off again
    batch: int = 4  # windows in one pass
    activation: tuple[Activation, ...] = (Activation(),)  # channels not named stay logits
    select: tuple[int, ...] = ()  # channels that are written; empty writes all
    dtype: Literal["float32", "float16", "uint8", "affinity8"] = "float32"  # affinity8: 8 bits that keep what saturates
    views: Views = Views()  # test-time augmentation
    slab: int = 64  # sections that are finished and written at a time, which bounds the memory


@dataclass(frozen=True)
class Decode:
    kind: Literal["none", "affinities", "components", "polarity"] = "none"  # how a prediction becomes labels
    score: str = "mean"  # of merges: mean, max, min, aff85_his256, ... (affinities)
    threshold: float = 0.5  # merge while 1 - affinity is below it (affinities); foreground above it (others)
    low: float = 1e-4  # affinities at or below join nothing
    high: float = 0.9999  # affinities at or above always join
    dust_size: int = 0  # voxels under which a segment joins its best neighbour (affinities)
    dust_affinity: float = 0.0  # that the neighbour needs
    remove_size: int = 0  # voxels under which what is left is removed
    connectivity: Literal[6, 18, 26] = 26  # components
    small: int = 128  # polarity: voxels under which a pre or post part is removed
    exclusive: bool = False  # polarity: classes instead of independent channels
