"""[loss]: a plan of terms, summed."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Term:
    kind: Literal["bce", "per_channel_bce", "dice", "mse", "mae", "smooth_l1", "sigmoid_mse", "focal", "weighted_ce",
                  "legacy_bce"] = "bce"  # see emcore/losses.py: one function each
    weight: float = 1.0  # factor in the sum
    prediction: str = ":"  # channels of the prediction, as a Python slice: "0:3", "-1:", "2"
    target: str = ":"  # channels of the target, likewise
    head: str = ""  # which head of a net with several
    # of positive voxels in bce: one for all or one a channel; "auto" is negatives per positive of the batch
    positive_weight: Literal["auto"] | float | tuple[float, ...] | None = None
    # weight map from the class sizes of the target; see class_balance in emcore/losses.py
    balance: Literal["none", "halves", "superhuman", "positive", "negative"] = "none"
    channel_weights: tuple[float, ...] = ()  # of sigmoid_mse and bce, one a channel; empty means all 1
    class_weights: tuple[float, ...] = ()  # of weighted_ce, one a class; empty means all 1
    membrane_weight: float = 0.0  # extra weight on edges of the image: 1 + this times the normalised edge map
    membrane_axis_weights: tuple[float, float, float] = (0.25, 1.0, 1.0)  # share of z, y, x in the edge map
    membrane_clip: float = 4.0  # upper bound of the edge map, in multiples of its mean
    over: Literal["weights", "voxels"] = "weights"  # sigmoid_mse is divided by the sum of weights, or by the voxels
    tanh: bool = False  # squash the prediction first (mse, mae, smooth_l1)
    smooth: float = 1e-5  # added above and below in dice
    gamma: float = 2.0  # exponent of focal


@dataclass(frozen=True)
class Loss:
    terms: tuple[Term, ...] = (Term(),)  # summed with their weights
    uncertainty: bool = False  # learn the balance of the terms: sum of exp(-s) L / 2 + s / 2
    clamp: float = 20.0  # predictions are limited to +- this before every term; 0 does not
    levels: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)  # weights of deep supervision, finest level first
