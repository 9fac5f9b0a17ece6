"""[[target]]: what the net learns, made from the labels; channels are stacked in the order of the list."""

from dataclasses import dataclass
from typing import Literal

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Target:
    kind: Literal["affinity", "binary", "polarity", "boundary", "signed_distance", "foreground_distance",
                  "instance_distance", "skeleton_distance", "lsd"] = "binary"  # see emcore/data/targets.py
    # affinity: one signed z, y, x offset a channel, in voxels; voxel v tells whether v and v + offset belong together
    offsets: tuple[Triple, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    # edges that leave the patch: not counted, learned as the voxel's own foreground, learned as cuts
    border: Literal["ignore", "replicate", "zero"] = "ignore"
    background: Literal["negative", "ignore"] = "negative"  # edges that touch label 0: learned as cuts, or not counted
    erosion: int = 0  # in-plane voxels taken from both sides where two objects touch, for this target only
    exclusive: bool = False  # polarity: one channel of classes 0, 1 pre, 2 post instead of pre, post, either
    thickness: int = 1  # boundary: voxels
    # boundary: at any change of label, where one side is an object, or between two objects only
    where: Literal["all", "foreground", "contacts"] = "foreground"
    in_plane: bool = False  # boundary and instance_distance: per section
    # instance_distance: 26-connected pieces of an id are objects of their own, and their holes are filled
    relabel: bool = False
    scale: float = 8.0  # signed_distance: tanh(distance / scale), distance in units of the x voxel size
    alpha: float = 0.8  # skeleton_distance: exponent of the energy
    levels: int = 0  # instance_distance, skeleton_distance: classes 0..levels instead of values; 0 keeps values
    sigma: float = 80.0  # lsd: nm of the Gaussian window


def affinity_offsets(targets: tuple[Target, ...]) -> list[Triple] | None:
    """The offsets of all affinity channels, in their order; none where there are no affinities."""
    return [offset for target in targets if target.kind == "affinity" for offset in target.offsets] or None


@dataclass(frozen=True)
class Labels:
    erosion: int = 0  # in-plane voxels taken from both sides where two objects touch, before every target
    split: bool = False  # give disconnected pieces of one id in a patch ids of their own (6-connected)
    smooth: bool = False  # smooth every section's outlines as the 2019 tutorial does; erases what is 3 pixels thin
