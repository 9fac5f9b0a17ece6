"""[train] and [pretrain]: the loop, the optimizer, what is saved and when."""

from dataclasses import dataclass
from typing import Literal

from emcore.config.checks import WrongSetting, above, at_least, within


@dataclass(frozen=True)
class Descent:
    """What every optimizer has."""

    kind: str = ""  # what moves the weights
    lr: float = 1e-3  # learning rate at the top of the schedule
    encoder_lr: float | None = None  # learning rate of the transformer encoder; none takes lr
    weight_decay: float = 0.01  # weight decay; it spares the norms
    decay_norms: bool = False  # decay the parameters of normalisations too
    clip: float = 1.0  # limit of the gradient's norm; 0 does not limit

    def __post_init__(self) -> None:
        above(0, self, "lr")
        at_least(0, self, "encoder_lr", "weight_decay", "clip")


@dataclass(frozen=True)
class AdamW(Descent):
    kind: Literal["adamw"] = "adamw"  # Adam with weight decay of its own
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the mean of gradients and of that of their squares
    amsgrad: bool = False  # divide by the largest mean of squares so far

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "betas")


@dataclass(frozen=True)
class Adam(AdamW):
    kind: Literal["adam"] = "adam"  # Adam, which couples weight decay to the gradient


@dataclass(frozen=True)
class Sgd(Descent):
    kind: Literal["sgd"] = "sgd"  # stochastic gradient descent
    momentum: float = 0.9  # share of the step before that is kept

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "momentum")


Optimizer = AdamW | Adam | Sgd


@dataclass(frozen=True)
class ConstantSchedule:
    kind: Literal["constant"] = "constant"  # the learning rate stays


@dataclass(frozen=True)
class Curve:
    """What every schedule has that is a function of the step."""

    kind: str = ""  # how the learning rate changes
    least: float = 0.0  # learning rate at the end
    every: int = 1  # steps between changes; a schedule in epochs says the steps of an epoch

    def __post_init__(self) -> None:
        at_least(0, self, "least")
        at_least(1, self, "every")


@dataclass(frozen=True)
class CosineSchedule(Curve):
    kind: Literal["cosine"] = "cosine"  # half a cosine down to the end


@dataclass(frozen=True)
class WarmedUp(Curve):
    """What a schedule has that rises first."""

    warmup: int = 0  # steps of linear warm-up
    warmup_factor: float = 1e-5  # learning rate of step 0 over lr

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "warmup")
        within(0, 1, self, "warmup_factor")


@dataclass(frozen=True)
class WarmupCosineSchedule(WarmedUp):
    kind: Literal["warmup_cosine"] = "warmup_cosine"  # a rise, then half a cosine down to the end


@dataclass(frozen=True)
class StableDecaySchedule(WarmedUp):
    kind: Literal["stable_decay"] = "stable_decay"  # up, level, and a straight line down
    decay: float = 0.2  # share of all steps that it spends going down

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "decay")


@dataclass(frozen=True)
class PlateauSchedule:
    kind: Literal["plateau"] = "plateau"  # lower whenever the loss has not improved for a while
    least: float = 0.0  # learning rate at the end
    factor: float = 0.1  # learning rate over the one before
    patience: int = 1000  # windows without improvement
    window: int = 10  # steps whose mean loss is one value

    def __post_init__(self) -> None:
        at_least(0, self, "least", "patience")
        at_least(1, self, "window")
        within(0, 1, self, "factor")


Schedule = CosineSchedule | ConstantSchedule | WarmupCosineSchedule | StableDecaySchedule | PlateauSchedule


@dataclass(frozen=True)
class Ema:
    decay: float = 0.0  # decay of the moving average of the weights; 0 keeps no average
    warmup: int = 0  # updates that copy the weights before averaging starts

    def __post_init__(self) -> None:
        at_least(0, self, "warmup")
        if not 0 <= self.decay < 1:
            raise WrongSetting(f"decay must be 0 or more and below 1; got {self.decay}")


Monitor = Literal["loss/val", "loss/train", "jaccard/val", "voi/val", "rand/val"]


@dataclass(frozen=True)
class Save:
    steps: int = 1000  # between checkpoints
    minutes: float = 10.0  # between checkpoints, whichever comes first; 0 counts steps only
    last: int = 2  # newest checkpoints kept
    best: int = 1  # best checkpoints kept besides, by monitor
    # what best means: the lowest, of jaccard the highest. With loss/train every checkpoint is ranked. What ends in /val
    # is known at validated steps alone: each of them is saved and ranked, and no other is ranked. voi and rand are of
    # the decoded volumes, see validate.scores; jaccard is there where all targets are masks
    monitor: Monitor = "loss/val"
    # steps whose mean loss is the loss/train by which a checkpoint is ranked: those up to the checkpoint, however many
    # others were saved between them; all steps so far where the run has fewer
    window: int = 1000
    at: tuple[int, ...] = ()  # steps whose checkpoint is kept for ever

    def __post_init__(self) -> None:
        at_least(1, self, "steps", "window")
        at_least(0, self, "minutes", "last", "best", "at")


@dataclass(frozen=True)
class Validate:
    steps: int = 1000  # between validations; 0 never
    crops: int = 16  # patches of data.validation, the same ones every time; 0 covers the volumes, patch by patch
    # also predict the volumes by [infer], decode them by [decode] and score them: columns voi/val and rand/val of the
    # log
    scores: tuple[Literal["voi", "rand"], ...] = ()

    def __post_init__(self) -> None:
        at_least(0, self, "steps", "crops")


@dataclass(frozen=True)
class Train:
    steps: int = 100_000  # optimizer steps in all
    batch: int = 4  # samples of one step over all ranks and micro-batches
    accumulate: int = 1  # micro-batches of one step: less memory
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"  # auto: bf16 where a probe finds it sound and faster
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto falls back to plain where it fails
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"  # memory layout; auto measures both
    deterministic: bool = False  # only algorithms that repeat bit for bit
    sync_batchnorm: bool = False  # batch statistics over all ranks
    optimizer: Optimizer = AdamW()  # what moves the weights
    schedule: Schedule = CosineSchedule()  # how the learning rate changes with the step
    ema: Ema = Ema()  # moving average of the weights, used by validation and prediction
    save: Save = Save()  # checkpoints
    validate: Validate = Validate()  # how data.validation is used
    log_steps: int = 10  # between rows of log.csv
    preview_steps: int = 1000  # between preview pictures; 0 makes none
    # the run starts from the weights of this checkpoint, a file or a name of `emcore models`, but at step 0
    start_from: str = ""
    start_include: tuple[str, ...] = ()  # prefixes of the weights to take from start_from; empty takes all that fit
    start_exclude: tuple[str, ...] = ()  # prefixes not to take
    freeze: tuple[str, ...] = ()  # prefixes of the weights that stay as they start

    def __post_init__(self) -> None:
        at_least(0, self, "preview_steps")
        at_least(1, self, "steps", "batch", "accumulate", "log_steps")
        if self.batch % self.accumulate:
            raise WrongSetting(f"batch must be a multiple of accumulate, which is {self.accumulate}; got {self.batch}")


@dataclass(frozen=True)
class NoPolicy:
    kind: Literal["none"] = "none"  # chance and [pretrain] decide


@dataclass(frozen=True)
class Learned:
    """What every policy has that is learned: an actor, a critic and a reward."""

    kind: str = ""  # what it decides
    # the error counts as a cost, or for hard as a gain; edge and hard_edge add what lies on edges
    reward: Literal["reconstruction", "edge", "hard", "hard_edge"] = "reconstruction"
    lr: float = 5e-4  # learning rate of the policy
    weight_decay: float = 1e-4  # weight decay of the policy
    weight: float = 0.05  # weight of the policy's loss
    hidden: int = 256  # numbers a patch in the policy
    edge_coefficient: float = 0.0  # reward of a unit of edge coverage gained
    ratio_coefficient: float = 0.25  # cost of being off the mask ratio
    reward_clip: float = 0.0  # limit of the reward; 0 none
    entropy_coefficient: float = 0.01  # weight of the policy's entropy
    value_coefficient: float = 0.5  # weight of the critic's error
    normalise_advantage: bool = False  # over the batch
    warmup: int = 0  # steps before the policy is used
    freeze: int = 0  # step at which the policy stops learning; 0 never
    use_frozen: bool = False  # keep deciding by the frozen policy; else chance takes over again

    def __post_init__(self) -> None:
        above(0, self, "lr")
        at_least(0, self, "weight_decay", "warmup", "freeze", "reward_clip")
        at_least(1, self, "hidden")


@dataclass(frozen=True)
class PatchPolicy(Learned):
    kind: Literal["patch"] = "patch"  # it decides for every patch whether it is hidden
    least_ratio: float = 0.35  # least share of hidden patches
    most_ratio: float = 0.9  # largest share of hidden patches

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "least_ratio", "most_ratio")


@dataclass(frozen=True)
class AdaptivePolicy(Learned):
    kind: Literal["adaptive"] = "adaptive"  # it decides the mask ratio and the edge share
    ratios: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875)  # mask ratios to choose from
    edge_fractions: tuple[float, ...] = (0.25, 0.5, 0.75)  # edge shares to choose from
    initial_ratio: float = 0.75  # the ratio preferred at the start
    initial_edge_fraction: float = 0.5  # the edge share preferred at the start
    initial_margin: float = 0.0  # logits by which they are preferred
    prior_margin: float | None = None  # logits of the prior; none takes initial_margin
    edge_fraction_target: float = 0.5  # edge share that costs nothing
    edge_fraction_coefficient: float = 0.0  # cost of being off it
    prior_coefficient: float = 0.0  # weight of the distance from the prior

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "ratios", "edge_fractions")
        if not self.ratios or not self.edge_fractions:
            raise WrongSetting("ratios and edge_fractions must not be empty: the policy chooses from them")


Policy = NoPolicy | PatchPolicy | AdaptivePolicy


@dataclass(frozen=True)
class Pretrain:
    mask_ratio: float = 0.75  # share of hidden patches
    edge_fraction: float = 0.0  # share of the hidden patches that are the strongest edges: 0 random, 1 edges only
    edge_power: float = 1.0  # exponent of the edge score
    edge_noise: float = 0.05  # chance added to the score, in its units
    decoder_width: int = 192  # numbers of the restoring layer
    structure_weight: float = 0.2  # weight of the difference of gradients
    structure_axis_weights: tuple[float, float, float] = (0.5, 1.0, 1.0)  # z, y, x
    membrane_weight: float = 1.35  # extra weight of patches with edges
    membrane_axis_weights: tuple[float, float, float] = (0.25, 1.0, 1.0)  # z, y, x
    membrane_clip: float = 5.0  # upper bound of the edge map, in multiples of its mean
    policy: Policy = NoPolicy()  # the policy that decides the masks

    def __post_init__(self) -> None:
        within(0, 1, self, "mask_ratio", "edge_fraction")
        at_least(1, self, "decoder_width")
        at_least(0, self, "edge_power", "edge_noise", "structure_weight", "membrane_weight", "structure_axis_weights",
                 "membrane_axis_weights")
