"""[loss]: a plan of terms, summed; `kind` says which of these tables a term is. Their functions: emcore/losses.py."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from emcore.config.checks import at_least


@dataclass(frozen=True)
class Compared:
    """What every term has."""

    kind: str = ""  # which kind of loss it is
    weight: float = 1.0  # factor of this term in the sum
    prediction: str = ":"  # channels of the prediction, as a Python slice: "0:3", "-1:", "2"
    target: str = ":"  # channels of the target, as a Python slice
    head: str = ""  # name of the head that is compared, if the net has several

    of_probabilities: ClassVar[bool] = False  # whether it takes probabilities, which are not limited; else logits
    of_classes: ClassVar[bool] = False  # whether its target is one channel of class numbers


@dataclass(frozen=True)
class Weighed(Compared):
    """What a term has that is a mean over weighed voxels."""

    # weight map from the class sizes of the target; see class_balance in emcore/losses.py
    balance: Literal["none", "halves", "positive", "negative"] = "none"
    membrane_weight: float = 0.0  # extra weight on edges of the image: 1 + this times the normalised edge map
    membrane_axis_weights: tuple[float, float, float] = (0.25, 1.0, 1.0)  # weights of z, y and x in the edge map
    membrane_clip: float = 4.0  # upper limit of the edge map, in multiples of its mean

    def __post_init__(self) -> None:
        at_least(0, self, "membrane_weight", "membrane_axis_weights")


@dataclass(frozen=True)
class BceTerm(Weighed):
    kind: Literal["bce"] = "bce"  # binary cross-entropy
    # weight of positive voxels: one for all or one per channel; "auto" is negatives per positive of the batch
    positive_weight: Literal["auto"] | float | tuple[float, ...] | None = None
    channel_weights: tuple[float, ...] = ()  # one weight per channel; empty: all are 1


@dataclass(frozen=True)
class PerChannelBceTerm(Weighed):
    kind: Literal["per_channel_bce"] = "per_channel_bce"  # the sum over channels of binary cross-entropies
    # weight of positive voxels: one for all or one per channel; "auto", the default, is negatives per positive of each
    # channel
    positive_weight: Literal["auto"] | float | tuple[float, ...] | None = None


@dataclass(frozen=True)
class DiceTerm(Compared):
    kind: Literal["dice"] = "dice"  # Dice overlap of the sigmoid and the mask
    smooth: float = 1e-5  # number added to numerator and denominator


@dataclass(frozen=True)
class Squashed(Weighed):
    """What a term has that compares values."""

    tanh: bool = False  # apply tanh to the prediction first


@dataclass(frozen=True)
class MseTerm(Squashed):
    kind: Literal["mse"] = "mse"  # squared error


@dataclass(frozen=True)
class MaeTerm(Squashed):
    kind: Literal["mae"] = "mae"  # absolute error


@dataclass(frozen=True)
class SmoothL1Term(Squashed):
    kind: Literal["smooth_l1"] = "smooth_l1"  # absolute error, which is squared near 0


@dataclass(frozen=True)
class SigmoidMseTerm(Weighed):
    kind: Literal["sigmoid_mse"] = "sigmoid_mse"  # squared error of the sigmoid
    # weight map from the class sizes of the target; see class_balance in emcore/losses.py
    balance: Literal["none", "halves", "superhuman", "positive", "negative"] = "none"
    channel_weights: tuple[float, ...] = ()  # one weight per channel; empty: all are 1
    over: Literal["weights", "voxels"] = "weights"  # divide by the sum of the weights, or by the number of voxels


@dataclass(frozen=True)
class FocalTerm(Weighed):
    kind: Literal["focal"] = "focal"  # cross-entropy that counts less where the net is sure
    gamma: float = 2.0  # exponent of the damping


@dataclass(frozen=True)
class WeightedCeTerm(Weighed):
    kind: Literal["weighted_ce"] = "weighted_ce"  # cross-entropy of classes
    class_weights: tuple[float, ...] = ()  # one weight per class; empty: all are 1

    of_classes: ClassVar[bool] = True


@dataclass(frozen=True)
class LegacyBceTerm(Weighed):
    kind: Literal["legacy_bce"] = "legacy_bce"  # cross-entropy of probabilities, a mean over all voxels

    of_probabilities: ClassVar[bool] = True


Term = (BceTerm | PerChannelBceTerm | DiceTerm | MseTerm | MaeTerm | SmoothL1Term | SigmoidMseTerm | FocalTerm
        | WeightedCeTerm | LegacyBceTerm)


@dataclass(frozen=True)
class Loss:
    terms: tuple[Term, ...] = (BceTerm(),)  # terms, which are added up with their weights
    uncertainty: bool = False  # learn a number s for each term L, which counts as exp(-s) L / 2 + s / 2
    clamp: float = 20.0  # logits are limited to this size before every term; 0: no limit
    # weights of the levels of deep supervision, the finest first
    levels: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)

    def __post_init__(self) -> None:
        at_least(0, self, "clamp")
