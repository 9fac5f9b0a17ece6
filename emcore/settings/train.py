"""[train] and [pretrain]: the loop, the optimizer, what is saved and when."""

from dataclasses import dataclass
from typing import Literal

from emcore.config.checks import WrongSetting, above, at_least, within


@dataclass(frozen=True)
class Descent:
    """What every optimizer has."""

    kind: str = ""  # which optimizer changes the weights
    lr: float = 1e-3  # largest learning rate of the schedule
    encoder_lr: float | None = None  # learning rate of the transformer encoder; by default lr
    weight_decay: float = 0.01  # weight decay of all weights but those of normalisations
    decay_norms: bool = False  # also decay the weights of normalisations
    clip: float = 1.0  # limit of the gradient's norm; 0: no limit

    def __post_init__(self) -> None:
        above(0, self, "lr")
        at_least(0, self, "encoder_lr", "weight_decay", "clip")


@dataclass(frozen=True)
class AdamW(Descent):
    kind: Literal["adamw"] = "adamw"  # Adam with decoupled weight decay
    betas: tuple[float, float] = (0.9, 0.999)  # decay of the mean of gradients and of that of their squares
    amsgrad: bool = False  # use the AMSGrad variant

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "betas")


@dataclass(frozen=True)
class Adam(AdamW):
    kind: Literal["adam"] = "adam"  # Adam, which couples weight decay to the gradient


@dataclass(frozen=True)
class Sgd(Descent):
    kind: Literal["sgd"] = "sgd"  # stochastic gradient descent
    momentum: float = 0.9  # share of the previous step that is kept

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "momentum")


Optimizer = AdamW | Adam | Sgd


@dataclass(frozen=True)
class ConstantSchedule:
    kind: Literal["constant"] = "constant"  # the learning rate does not change


@dataclass(frozen=True)
class Curve:
    """What every schedule has that is a function of the step."""

    kind: str = ""  # how the learning rate changes
    least: float = 0.0  # learning rate at the end
    every: int = 1  # steps between changes of the learning rate, such as those of an epoch

    def __post_init__(self) -> None:
        at_least(0, self, "least")
        at_least(1, self, "every")


@dataclass(frozen=True)
class CosineSchedule(Curve):
    kind: Literal["cosine"] = "cosine"  # half a cosine, down to least


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
    kind: Literal["warmup_cosine"] = "warmup_cosine"  # a linear rise, then half a cosine down to least


@dataclass(frozen=True)
class StableDecaySchedule(WarmedUp):
    kind: Literal["stable_decay"] = "stable_decay"  # a linear rise, a constant part, a linear fall
    decay: float = 0.2  # share of all steps in which it falls

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "decay")


@dataclass(frozen=True)
class PlateauSchedule:
    kind: Literal["plateau"] = "plateau"  # multiplied by factor when the loss stops improving
    least: float = 0.0  # learning rate at the end
    factor: float = 0.1  # factor of each reduction
    patience: int = 1000  # windows without improvement before a reduction
    window: int = 10  # steps that are averaged to one value of the loss

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
    steps: int = 1000  # steps between checkpoints
    minutes: float = 10.0  # minutes between checkpoints, if they pass first; 0: only steps count
    last: int = 2  # number of newest checkpoints to keep
    best: int = 1  # number of best checkpoints to keep besides, by monitor
    # what best means: the lowest, of jaccard the highest. With loss/train every checkpoint is ranked. What ends in /val
    # is known at validated steps alone: each of them is saved and ranked, and no other is ranked. voi and rand are of
    # the decoded volumes, see validate.scores; jaccard is there where all targets are masks
    monitor: Monitor = "loss/val"
    # steps whose mean loss is the loss/train by which a checkpoint is ranked: those up to the checkpoint, however many
    # others were saved between them; all steps so far where the run has fewer
    window: int = 1000
    at: tuple[int, ...] = ()  # steps whose checkpoints are never deleted

    def __post_init__(self) -> None:
        at_least(1, self, "steps", "window")
        at_least(0, self, "minutes", "last", "best", "at")


@dataclass(frozen=True)
class Validate:
    steps: int = 1000  # steps between validations; 0: never
    crops: int = 16  # patches of data.validation, the same ones every time; 0 covers the volumes, patch by patch
    # also predict the volumes by [infer], decode them by [decode] and score them: columns voi/val and rand/val of the
    # log
    scores: tuple[Literal["voi", "rand"], ...] = ()

    def __post_init__(self) -> None:
        at_least(0, self, "steps", "crops")


@dataclass(frozen=True)
class Train:
    steps: int = 100_000  # optimizer steps in all
    batch: int = 4  # patches per step, over all GPUs and micro-batches together
    accumulate: int = 1  # micro-batches that make up one step; more need less memory
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"  # auto: bf16 where a probe finds it sound and faster
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto falls back to plain where it fails
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"  # memory layout; auto measures both
    deterministic: bool = False  # use only algorithms that give the same bits every time
    sync_batchnorm: bool = False  # batch normalisation over all GPUs together
    optimizer: Optimizer = AdamW()  # which optimizer changes the weights
    schedule: Schedule = CosineSchedule()  # how the learning rate changes with the step
    ema: Ema = Ema()  # moving average of the weights, which validation and prediction use
    save: Save = Save()  # checkpoints
    validate: Validate = Validate()  # how data.validation is used
    log_steps: int = 10  # steps between rows of log.csv
    preview_steps: int = 1000  # steps between preview pictures; 0: none
    # the run starts from the weights of this checkpoint, a file or a name of `emcore models`, but at step 0
    start_from: str = ""
    start_include: tuple[str, ...] = ()  # take only weights whose names start so; empty: all that fit
    start_exclude: tuple[str, ...] = ()  # take no weights whose names start so
    freeze: tuple[str, ...] = ()  # weights whose names start so do not change

    def __post_init__(self) -> None:
        at_least(0, self, "preview_steps")
        at_least(1, self, "steps", "batch", "accumulate", "log_steps")
        if self.batch % self.accumulate:
            raise WrongSetting(f"batch must be a multiple of accumulate, which is {self.accumulate}; got {self.batch}")


@dataclass(frozen=True)
class NoPolicy:
    kind: Literal["none"] = "none"  # patches are hidden by chance, by the settings of [pretrain]


@dataclass(frozen=True)
class Learned:
    """What every policy has that is learned: an actor, a critic and a reward."""

    kind: str = ""  # what it decides
    # the error counts as a cost, or for hard as a gain; edge and hard_edge add what lies on edges
    reward: Literal["reconstruction", "edge", "hard", "hard_edge"] = "reconstruction"
    lr: float = 5e-4  # learning rate of the policy
    weight_decay: float = 1e-4  # weight decay of the policy
    weight: float = 0.05  # weight of the policy's loss
    hidden: int = 256  # hidden numbers per patch in the policy
    edge_coefficient: float = 0.0  # reward for each unit of edges that are hidden
    ratio_coefficient: float = 0.25  # penalty for a wrong mask ratio
    reward_clip: float = 0.0  # limit of the reward; 0: no limit
    entropy_coefficient: float = 0.01  # weight of the policy's entropy
    value_coefficient: float = 0.5  # weight of the critic's error
    normalise_advantage: bool = False  # normalise the advantage over the batch
    warmup: int = 0  # steps before the policy is used
    freeze: int = 0  # step at which the policy stops learning; 0: never
    use_frozen: bool = False  # then keep using the frozen policy; false: hide patches by chance

    def __post_init__(self) -> None:
        above(0, self, "lr")
        at_least(0, self, "weight_decay", "warmup", "freeze", "reward_clip")
        at_least(1, self, "hidden")


@dataclass(frozen=True)
class PatchPolicy(Learned):
    kind: Literal["patch"] = "patch"  # decides for every patch whether it is hidden
    least_ratio: float = 0.35  # least share of hidden patches
    most_ratio: float = 0.9  # largest share of hidden patches

    def __post_init__(self) -> None:
        super().__post_init__()
        within(0, 1, self, "least_ratio", "most_ratio")


@dataclass(frozen=True)
class AdaptivePolicy(Learned):
    kind: Literal["adaptive"] = "adaptive"  # decides the mask ratio and the share of edges
    ratios: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875)  # mask ratios to choose from
    edge_fractions: tuple[float, ...] = (0.25, 0.5, 0.75)  # edge shares to choose from
    initial_ratio: float = 0.75  # ratio that is preferred at the start
    initial_edge_fraction: float = 0.5  # edge share that is preferred at the start
    initial_margin: float = 0.0  # how strongly they are preferred, in logits
    prior_margin: float | None = None  # the same for the prior; by default initial_margin
    edge_fraction_target: float = 0.5  # edge share without a penalty
    edge_fraction_coefficient: float = 0.0  # penalty for another edge share
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
    edge_fraction: float = 0.0  # share of hidden patches chosen by strong edges: 0 none, 1 all
    edge_power: float = 1.0  # exponent of a patch's edge score
    edge_noise: float = 0.05  # size of the random number that is added to that score
    decoder_width: int = 192  # width of the decoder
    structure_weight: float = 0.2  # weight of the error of image gradients
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
