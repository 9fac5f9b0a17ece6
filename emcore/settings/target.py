"""[[target]]: what the net learns, made from the labels; channels are stacked in the order of the list."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from emcore.config.checks import above, at_least

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Eroded:
    """What every target has."""

    kind: str = ""  # which kind of target it is
    erosion: int = 0  # voxels removed within sections from both sides of a contact, for this target only

    is_mask: ClassVar[bool] = False  # whether each channel is a mask: clefts, mitochondria or membranes

    def __post_init__(self) -> None:
        at_least(0, self, "erosion")

    @property
    def channels(self) -> list[str]:
        """A short name for every channel."""
        return [self.kind.replace("_", " ")]


@dataclass(frozen=True)
class BinaryTarget(Eroded):
    kind: Literal["binary"] = "binary"  # 1 in objects, 0 in the background

    is_mask: ClassVar[bool] = True


@dataclass(frozen=True)
class AffinityTarget(Eroded):
    kind: Literal["affinity"] = "affinity"  # whether two voxels belong to one object
    # one signed z, y, x offset a channel, in voxels; voxel v tells whether v and v + offset belong together
    offsets: tuple[Triple, ...] = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    # edges that leave the patch: not counted, learned as the voxel's own foreground, learned as cuts
    border: Literal["ignore", "replicate", "zero"] = "ignore"
    background: Literal["negative", "ignore"] = "negative"  # edges that touch label 0: learned as cuts, or not counted

    @property
    def channels(self) -> list[str]:
        return ["affinity " + " ".join(map(str, offset)) for offset in self.offsets]


@dataclass(frozen=True)
class PolarityTarget(Eroded):
    kind: Literal["polarity"] = "polarity"  # sides of synapses: odd ids are presynaptic, even ids postsynaptic
    exclusive: bool = False  # one channel of classes (0 none, 1 pre, 2 post) instead of three channels

    @property
    def is_mask(self) -> bool:
        return not self.exclusive

    @property
    def channels(self) -> list[str]:
        return [self.kind] if self.exclusive else ["pre", "post", "synapse"]


@dataclass(frozen=True)
class PartnersTarget(Eroded):
    # where each postsynaptic voxel (even ids) lies as seen from the middle of its presynaptic side (the odd id before
    # it), along z, y and x in units of 100 nm; other voxels do not count
    kind: Literal["partners"] = "partners"

    @property
    def channels(self) -> list[str]:
        return [f"from pre {axis}" for axis in "zyx"]


@dataclass(frozen=True)
class BoundaryTarget(Eroded):
    kind: Literal["boundary"] = "boundary"  # voxels at a border between labels
    thickness: int = 1  # thickness of the border in voxels
    # all: at any change of label; foreground: one side is an object; contacts: both are
    where: Literal["all", "foreground", "contacts"] = "foreground"
    in_plane: bool = False  # treat each section on its own

    is_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "thickness")


@dataclass(frozen=True)
class SignedDistanceTarget(Eroded):
    kind: Literal["signed_distance"] = "signed_distance"  # distance to the border, negative outside objects
    scale: float = 8.0  # the target is tanh(distance / scale), with the distance in voxels along x

    def __post_init__(self) -> None:
        super().__post_init__()
        above(0, self, "scale")


@dataclass(frozen=True)
class ForegroundDistanceTarget(Eroded):
    # distance d to the border: tanh(d / 8) inside objects, -tanh(d / 50) outside
    kind: Literal["foreground_distance"] = "foreground_distance"


@dataclass(frozen=True)
class InstanceDistanceTarget(Eroded):
    kind: Literal["instance_distance"] = "instance_distance"  # distance to the object's border; -1 outside objects
    in_plane: bool = False  # treat each section on its own
    relabel: bool = False  # make each 26-connected piece of a label an object, and fill its holes
    levels: int = 0  # classes 0 to levels replace the values; 0 keeps the values

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "levels")


@dataclass(frozen=True)
class SkeletonDistanceTarget(Eroded):
    kind: Literal["skeleton_distance"] = "skeleton_distance"  # closeness to the skeleton of the object
    alpha: float = 0.8  # exponent of the energy
    levels: int = 0  # classes 0 to levels replace the values; 0 keeps the values

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(0, self, "levels")


@dataclass(frozen=True)
class LsdTarget(Eroded):
    kind: Literal["lsd"] = "lsd"  # local shape descriptors
    sigma: float = 80.0  # sigma of the Gaussian window in nm

    def __post_init__(self) -> None:
        super().__post_init__()
        above(0, self, "sigma")

    @property
    def channels(self) -> list[str]:
        return [f"lsd {part}" for part in ("z", "y", "x", "zz", "yy", "xx", "zy", "zx", "yx", "size")]


Target = (BinaryTarget | AffinityTarget | PolarityTarget | PartnersTarget | BoundaryTarget | SignedDistanceTarget
          | ForegroundDistanceTarget | InstanceDistanceTarget | SkeletonDistanceTarget | LsdTarget)


def channel_names(targets: tuple[Target, ...]) -> list[str]:
    """A short name for every channel of all targets, in their order."""
    return [name for target in targets for name in target.channels]


def affinity_offsets(targets: tuple[Target, ...]) -> list[Triple] | None:
    """The offsets of all affinity channels, in their order; none where there are no affinities."""
    return [offset for target in targets if isinstance(target, AffinityTarget) for offset in target.offsets] or None


@dataclass(frozen=True)
class Labels:
    erosion: int = 0  # voxels removed within sections from both sides of a contact, for every target
    split: bool = False  # give each 6-connected piece of a label in a patch a label of its own
    smooth: bool = False  # smooth outlines as the 2019 tutorial does, which removes what is 3 pixels thin

    def __post_init__(self) -> None:
        at_least(0, self, "erosion")
