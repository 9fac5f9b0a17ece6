"""[train] and [pretrain]: the loop, the optimizer, what is saved and when."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Optimizer:
    kind: Literal["adamw", "adam", "sgd"] = "adamw"  # adam couples weight decay to the gradient, adamw does not
    lr: float = 1e-3  # learning rate at the top of the schedule
    encoder_lr: float | None = None  # of the transformer encoder; none takes lr
    weight_decay: float = 0.01  # of everything but the norms
    decay_norms: bool = False  # decay the parameters of normalisations too
    betas: tuple[float, float] = (0.9, 0.999)  # of adam and adamw
    amsgrad: bool = False  # of adam and adamw
    momentum: float = 0.9  # of sgd
    clip: float = 1.0  # limit of the gradient's norm; 0 does not limit


@dataclass(frozen=True)
class Schedule:
    kind: Literal["constant", "cosine", "warmup_cosine", "stable_decay", "plateau"] = "cosine"  # of the learning rate
    warmup: int = 0  # steps of linear warm-up (warmup_cosine, stable_decay)
    warmup_factor: float = 1e-5  # learning rate of step 0 over lr
    least: float = 0.0  # learning rate at the end
    decay: float = 0.2  # share of all steps that stable_decay spends going down
    every: int = 1  # steps between changes; a schedule in epochs says the steps of an epoch
    factor: float = 0.1  # plateau: learning rate over the one before
    patience: int = 1000  # plateau: windows without improvement
    window: int = 10  # plateau: steps whose mean loss is one value


@dataclass(frozen=True)
class Ema:
    decay: float = 0.0  # of the moving average of the weights; 0 keeps none
    warmup: int = 0  # updates that copy the weights before averaging starts


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


@dataclass(frozen=True)
class Validate:
    steps: int = 1000  # between validations; 0 never
    crops: int = 16  # patches of data.validation, the same ones every time; 0 covers the volumes, patch by patch
    # of the volumes, predicted by [infer] and decoded by [decode]: columns voi/val and rand/val of the log
    scores: tuple[Literal["voi", "rand"], ...] = ()


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
    optimizer: Optimizer = Optimizer()  # what moves the weights
    schedule: Schedule = Schedule()  # of the learning rate, a function of the step
    ema: Ema = Ema()  # moving average of the weights, used by validation and prediction
    save: Save = Save()  # checkpoints
    validate: Validate = Validate()  # on data.validation
    log_steps: int = 10  # between rows of log.csv
    preview_steps: int = 1000  # between preview pictures; 0 makes none
    start_from: str = ""  # checkpoint whose weights start the run; its optimizer and step are not taken
    start_include: tuple[str, ...] = ()  # prefixes of the weights to take from start_from; empty takes all that fit
    start_exclude: tuple[str, ...] = ()  # prefixes not to take
    freeze: tuple[str, ...] = ()  # prefixes of the weights that stay as they start


@dataclass(frozen=True)
class Policy:
    kind: Literal["none", "patch", "adaptive"] = "none"  # decides nothing, every patch, or ratio and edge share
    reward: Literal["reconstruction", "edge", "hard", "hard_edge"] = "reconstruction"  # easy or hard, edges or all
    lr: float = 5e-4  # learning rate of the policy
    weight_decay: float = 1e-4  # of the policy
    weight: float = 0.05  # of the policy loss
    hidden: int = 256  # numbers a patch in the policy
    ratios: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875)  # mask ratios to choose from (adaptive)
    edge_fractions: tuple[float, ...] = (0.25, 0.5, 0.75)  # edge shares to choose from (adaptive)
    least_ratio: float = 0.35  # of hidden patches (patch)
    most_ratio: float = 0.9  # of hidden patches (patch)
    initial_ratio: float = 0.75  # the ratio preferred at the start
    initial_edge_fraction: float = 0.5  # the edge share preferred at the start
    initial_margin: float = 0.0  # by how many logits
    prior_margin: float | None = None  # logits of the prior; none takes initial_margin
    edge_coefficient: float = 0.0  # reward of a unit of edge coverage gained
    edge_fraction_target: float = 0.5  # edge share that costs nothing
    edge_fraction_coefficient: float = 0.0  # cost of being off it
    ratio_coefficient: float = 0.25  # cost of being off the mask ratio
    reward_clip: float = 0.0  # limit of the reward; 0 none
    entropy_coefficient: float = 0.01  # of the policy's entropy
    value_coefficient: float = 0.5  # of the critic's error
    prior_coefficient: float = 0.0  # of the distance from the prior
    normalise_advantage: bool = False  # over the batch
    warmup: int = 0  # steps before the policy is used
    freeze: int = 0  # step at which the policy stops learning; 0 never
    use_frozen: bool = False  # keep deciding by the frozen policy; else chance takes over again


@dataclass(frozen=True)
class Pretrain:
    mask_ratio: float = 0.75  # share of hidden patches
    edge_fraction: float = 0.0  # of the hidden patches that are the strongest edges: 0 random, 1 edges only
    edge_power: float = 1.0  # exponent of the edge score
    edge_noise: float = 0.05  # chance added to the score, in its units
    decoder_width: int = 192  # numbers of the restoring layer
    structure_weight: float = 0.2  # of the difference of gradients
    structure_axis_weights: tuple[float, float, float] = (0.5, 1.0, 1.0)  # z, y, x
    membrane_weight: float = 1.35  # extra weight of patches with edges
    membrane_axis_weights: tuple[float, float, float] = (0.25, 1.0, 1.0)  # z, y, x
    membrane_clip: float = 5.0  # upper bound of the edge map, in multiples of its mean
    policy: Policy = Policy()  # that decides the masks
