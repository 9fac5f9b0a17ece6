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
    # which weights of the checkpoint; auto takes the averaged ones where there are some
    weights: Literal["auto", "averaged", "plain"] = "auto"
    window: Triple | None = None  # voxels of one pass through the net; none takes data.patch
    overlap: float = 0.5  # of neighbouring windows, share of the window
    blend: Literal["bump", "gaussian", "constant"] = "bump"  # weight of a window's voxels, from its middle to its edge
    pad: Triple = (0, 0, 0)  # voxels of mirrored context around the volume, cut off again
    batch: int = 0  # windows in one pass; 0: four on a GPU, one on a CPU
    activation: tuple[Activation, ...] = (Activation(),)  # channels not named stay logits
    select: tuple[int, ...] = ()  # channels that are written; empty writes all
    dtype: Literal["float32", "float16", "uint8", "affinity8"] = "float32"  # affinity8: 8 bits that keep what saturates
    views: Views = Views()  # test-time augmentation
    slab: int = 64  # sections of one part: what is done by one process, and not done again after a kill
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile; auto compiles for much work on a GPU
    # memory layout of the weights; auto measures both, once a result
    layout: Literal["auto", "channels_last", "contiguous"] = "auto"


@dataclass(frozen=True)
class Link:
    iou: float = 0.5  # overlap over union from which two segments are one, where one of them ends; 0: never
    best_buddy: bool = True  # also where both end and each overlaps the other most
    one_sided: float = 0.8  # also from this overlap over the smaller area; 0: never
    one_sided_size: int = 100  # voxels that the smaller area needs then
    affinity: float = 0.0  # mean z affinity over the overlap that every join needs
    min_size: int = 0  # voxels in a section under which a segment joins nothing


@dataclass(frozen=True)
class Contour:
    binary: tuple[float, float] = (0.9, 0.85)  # seeds and foreground lie above it
    contour: tuple[float, float] = (0.8, 1.1)  # seeds and foreground lie below it
    distance: tuple[float, float] = (0.5, -0.5)  # seeds and foreground lie above it
    min_seed: int = 5  # voxels under which a seed does not count


@dataclass(frozen=True)
class Decode:
    # how a prediction becomes labels: watershed and agglomeration of affinities, voxels that affinities connect, mutex
    # watershed of affinities of any range, pieces of foreground, pre- and postsynaptic sides, instances from
    # foreground, contour and distance
    kind: Literal["none", "affinities", "connected", "mutex", "components", "polarity", "contour"] = "none"
    # that are used; affinities, connected: those along z, y, x, taken as nearest neighbours; empty: found by offsets,
    # and every channel for the other kinds
    channels: tuple[int, ...] = ()
    threshold: float = 0.5  # merge while 1 - affinity is below it (affinities); what counts is above it (others)
    thresholds: tuple[float, ...] = ()  # one for each channel in place of threshold (connected, components)
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)  # added to the logits of the affinities along z, y, x
    temperature: float = 1.0  # then divides the logits
    fragments: str = "watershed"  # or floods of single sections: maxima_distance-0.5, minima, hminima-0.1, grid-10
    score: str = "mean"  # of merges: mean, max, min, aff85_his256, ... (affinities)
    # equal scores and plateaus: by a rule that holds for blocks and threads alike, or one by one as waterz takes them
    ties: Literal["canonical", "waterz"] = "canonical"
    low: float = 1e-4  # affinities at or below join nothing (watershed)
    high: float = 0.9999  # affinities at or above always join (watershed)
    boundary: float = 0.0  # voxels whose mean y and x affinity is below it are cleared (affinities)
    dust_size: int = 0  # voxels under which a segment joins its best neighbour (affinities)
    dust_affinity: float = 0.0  # that the neighbour needs
    remove_size: int = 0  # voxels under which what is left is removed
    link: Link | None = None  # join segments across sections in the end (affinities)
    strides: Triple = (1, 1, 1)  # mutex: only every so many voxels hold apart
    connectivity: Literal[4, 8, 6, 18, 26] = 26  # components; 4 and 8 take every section on its own
    seed_threshold: float = 0.0  # components: pieces above it are grown over the foreground; 0: foreground pieces
    small: int = 128  # polarity: voxels under which a pre or post part is removed
    exclusive: bool = False  # polarity: classes instead of independent channels
    contour: Contour = Contour()  # thresholds of kind = "contour"
