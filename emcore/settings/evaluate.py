"""[evaluate]: which scores."""

from dataclasses import dataclass
from typing import Literal

from emcore.config.checks import WrongSetting, above, at_least, parsed, within
from emcore.segment.statistics import parse_statistic

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Sweep:
    thresholds: tuple[float, ...] = (0.35, 0.4, 0.45, 0.5, 0.55)  # every merge tree is scored at these thresholds
    # each triple is added to the logits along z, y, x and makes a variant
    biases: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0),)
    temperatures: tuple[float, ...] = (1.0,)  # each is combined with every bias
    statistics: tuple[str, ...] = ()  # merge statistics; empty: decode.statistic
    replicate: bool = False  # affinity_dice and _iou: an edge out of the volume is true where its voxel is of an object

    def __post_init__(self) -> None:
        within(0, 1, self, "thresholds")
        above(0, self, "temperatures")
        parsed(self, "statistics", parse_statistic)
        if not self.thresholds:
            raise WrongSetting("thresholds must not be empty: every merge tree is scored at them")


@dataclass(frozen=True)
class Blockwise:
    chunk: Triple = (32, 512, 512)  # voxels of a block that is normalised and predicted on its own
    halo: Triple = (8, 64, 64)  # voxels around a block that are also predicted and then cut off
    seam: Triple = (2, 16, 16)  # voxels on either side of a plane between blocks that count as its seam
    without_halo: bool = False  # also score blocks without a halo

    def __post_init__(self) -> None:
        at_least(1, self, "chunk")
        at_least(0, self, "halo", "seam")


@dataclass(frozen=True)
class Evaluate:
    # names of the table in docs/scores.md; membranes look at the prediction, those of voxels where there are no labels
    # (decode.kind = "none"), too, and the others at labels
    scores: tuple[str, ...] = ("voi", "rand")
    convention: str = "cremi"  # name of the Rand convention, one of that page
    crop: tuple[int, int, int, int, int, int] | None = None  # z0 z1 y0 y1 x0 x1: the part of the volume that is scored
    border_nm: float = 0.0  # voxels within this distance of a border in their section do not count; 0: all count
    border_xy: int = 0  # the same as a box of voxels, as dbMiM does it; not together with border_nm
    border_z: int = 0  # the same along z, with border_xy
    threshold: float = 0.5  # threshold for jaccard, dice and clefts of predictions that have no labels
    channel: int = 0  # channel of the prediction that is scored
    cleft_nm: float = 200.0  # a cleft voxel that is farther than this from the other side is false
    instance_iou: float = 0.5  # IoU from which an object counts as found
    # how the pieces of a truth that is a mask connect (decode.connectivity); instances and the report take each piece
    # for an object; 0 means that the truth has ids
    pieces: Literal[0, 4, 8, 6, 18, 26] = 0
    synapse_iou: float = 0.2  # IoU above which a synapse counts as found
    synapse_size: int = 0  # synapses of fewer voxels do not count (300 for EM-R50)
    synapse_margin: int = 0  # sections at each end that do not count (14 for EM-R50)
    partner_nm: float = 400.0  # a predicted site that is farther from the true one is wrong
    neurons: str | None = None  # labels of neurons for partners, besides those of the truth
    # file or folder of skeletons in nm for run_length (docs/connectome.md); without it those of the truth are traced
    skeletons: str | None = None
    sweep: Sweep | None = None  # dbMiM's calibrations and thresholds, written to its files
    blockwise: Blockwise = Blockwise()  # the settings of python -m emcore blockwise

    def __post_init__(self) -> None:
        at_least(0, self, "border_nm", "border_xy", "border_z", "channel", "cleft_nm", "synapse_size",
                 "synapse_margin")
        above(0, self, "partner_nm")
        within(0, 1, self, "threshold", "instance_iou", "synapse_iou")
        if self.border_nm and (self.border_xy or self.border_z):
            raise WrongSetting("border_nm and border_xy or border_z are two masks: set one of them to 0")
