"""[augment]: what is done to training patches; probability 0 leaves a step out. Lengths in voxels, y and x alike."""

from dataclasses import dataclass
from typing import Literal

from emcore.config.checks import within

Range = tuple[float, float]


class Step:
    """What every augmentation has: a chance."""

    def __post_init__(self) -> None:
        within(0, 1, self, "probability")

    @property
    def chance(self) -> float:
        """The chance that a patch is changed; a step that draws for every section has another one for that."""
        return self.probability


@dataclass(frozen=True)
class Flip(Step):
    probability: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of each axis z, y, x on its own


@dataclass(frozen=True)
class Turn(Step):
    probability: float = 0.0  # of 1, 2 or 3 quarter turns in y and x; patches must be square
    any_axis: bool = False  # any of the 24 turns of a cube instead; patches must be cubes


@dataclass(frozen=True)
class Rotate(Step):
    probability: float = 0.0  # of a turn by any angle in y and x
    degrees: Range = (-180.0, 180.0)  # of the turn


@dataclass(frozen=True)
class Scale(Step):
    probability: float = 0.0  # of enlarging or shrinking
    factor: Range = (0.8, 1.2)  # above 1 shows things larger; y and x each draw one
    together: bool = False  # one factor for y and x
    depth: Range = (1.0, 1.0)  # factor of z


@dataclass(frozen=True)
class Shear(Step):
    probability: float = 0.0  # of slanting y and x
    amount: float = 0.1  # at most, voxels a voxel


@dataclass(frozen=True)
class Elastic(Step):
    probability: float = 0.0  # of a smooth random deformation
    sigma: Range = (5.0, 8.0)  # of the Gaussian that smooths the random field
    # of the field before smoothing: the shift is about magnitude * 0.09 / sigma^1.5, of a flat one * 0.28 / sigma
    magnitude: Range = (50.0, 150.0)
    flat: bool = False  # one field in y and x for all sections
    depth: float = 1.0  # factor of the shift along z: below 1 where sections are thick, 0 bends within them alone


@dataclass(frozen=True)
class Misalignment(Step):
    probability: float = 0.0  # of sections that are shifted or turned against each other
    displacement: int = 16  # at most, each of y and x
    rotate_ratio: float = 0.0  # share of the cases that turn instead of shift
    slip_ratio: float = 0.5  # share of the cases that move one section instead of all that follow
    labels: bool = True  # labels move with the image; false moves the image alone


@dataclass(frozen=True)
class Noise(Step):
    probability: float = 0.0  # of Gaussian noise
    deviation: float | Range = 0.05  # at most, every sample draws 0..this; or a range
    clip: bool = False  # to 0..1


@dataclass(frozen=True)
class Shift(Step):
    probability: float = 0.0  # of a constant added
    offset: float = 0.1  # at most, either sign


@dataclass(frozen=True)
class Gamma(Step):
    probability: float = 0.0  # of a power of the intensities between their least and largest
    range: Range = (0.7, 1.4)  # of the exponent


@dataclass(frozen=True)
class Contrast(Step):
    probability: float = 0.0  # of gain, bias and exponent
    section_ratio: float = 0.0  # share of the cases where every section draws its own
    gain: Range = (0.85, 1.15)  # factor
    bias: Range = (-0.05, 0.05)  # added
    gamma: Range = (1.0, 1.0)  # exponent, drawn evenly on a logarithmic scale
    clip: bool = True  # to 0..1


@dataclass(frozen=True)
class MissingSection(Step):
    probability: float = 0.0  # of sections without image; never the first or last
    sections: int | tuple[int, int] = 2  # how many, or a range
    full: float = 0.5  # share of whole sections; else a rectangle
    part: Range = (0.25, 0.75)  # height and width of the rectangle over the section's
    fill: Range = (0.0, 1.0)  # its one intensity


@dataclass(frozen=True)
class DeletedSection(Step):
    probability: float = 0.0  # of sections taken out of image and labels; never the first or last
    sections: int = 2  # how many; the patch is read deeper by as many


@dataclass(frozen=True)
class LostSection(Step):
    probability: float = 0.0  # of a section replaced by a neighbour's image
    sections: int | tuple[int, int] = 1  # how many, or a range
    by: Literal["random", "previous", "next", "mean"] = "random"  # which neighbour


@dataclass(frozen=True)
class MissingPart(Step):
    probability: float = 0.0  # of a black rectangle in one section
    size: Range = (0.1, 0.25)  # its sides over the section's


@dataclass(frozen=True)
class Fold(Step):
    probability: float = 0.0  # of a band across a section; after one, two sections are spared
    patches: float = 1.0  # share of the patches that have such sections at all
    width: int = 40  # half its width

    @property
    def chance(self) -> float:
        return self.patches


@dataclass(frozen=True)
class Blur(Step):
    probability: float = 0.0  # of sections out of focus
    sections: int | tuple[int, int] = 2  # how many, or a range
    sigma: Range = (1.0, 3.0)  # of the Gaussian
    kernel: int = 11  # its width
    motion: bool = False  # along a line instead: a moving stage
    full: float = 0.5  # share of whole sections; else a rectangle
    part: Range = (0.25, 0.75)  # its height and width over the section's


@dataclass(frozen=True)
class CutNoise(Step):
    probability: float = 0.0  # of uniform noise in a box, clipped to 0..1
    size: Range = (0.1, 0.4)  # its sides over the patch's
    scale: Range = (0.05, 0.15)  # of the noise


@dataclass(frozen=True)
class CutBlur(Step):
    probability: float = 0.0  # of a box at lower resolution
    size: Range = (0.1, 0.4)  # its sides over the patch's
    factor: Range = (2.0, 8.0)  # by which it is shrunk and enlarged again


@dataclass(frozen=True)
class Stripes(Step):
    probability: float = 0.0  # of bright or dark lines across sections
    count: tuple[int, int] = (1, 5)  # how many
    thickness: tuple[int, int] = (1, 3)  # of each
    intensity: Range = (0.7, 1.3)  # factor
    degrees: float = 10.0  # off the x axis, at most


@dataclass(frozen=True)
class Mixup(Step):
    probability: float = 0.0  # of a weighted mean with another image of the batch; labels stay
    share: Range = (0.8, 1.0)  # of the own image


@dataclass(frozen=True)
class CopyPaste(Step):
    probability: float = 0.0  # of an object copied, turned, into background
    largest: float = 0.7  # objects up to this share of the patch
    labels: bool = True  # the copy gets an id of its own


@dataclass(frozen=True)
class Augment:
    flip: Flip = Flip((0.0, 0.0, 0.0))  # mirror
    turn: Turn = Turn()  # quarter turns
    rotate: Rotate = Rotate()  # any angle
    scale: Scale = Scale()  # larger or smaller
    shear: Shear = Shear()  # slanted
    elastic: Elastic = Elastic()  # bent
    misalignment: Misalignment = Misalignment()  # sections against each other
    deleted_section: DeletedSection = DeletedSection()  # sections lost for image and labels
    noise: Noise = Noise()  # every voxel
    shift: Shift = Shift()  # brighter or darker
    gamma: Gamma = Gamma()  # mid tones
    contrast: Contrast = Contrast()  # gain, bias, exponent, by section if wanted
    missing_section: MissingSection = MissingSection()  # constant sections
    lost_section: LostSection = LostSection()  # repeated sections
    missing_part: MissingPart = MissingPart()  # black rectangles
    fold: Fold = Fold()  # bands
    blur: Blur = Blur()  # out of focus or moving
    cut_noise: CutNoise = CutNoise()  # noisy boxes
    cut_blur: CutBlur = CutBlur()  # coarse boxes
    stripes: Stripes = Stripes()  # lines
    mixup: Mixup = Mixup()  # two images
    copy_paste: CopyPaste = CopyPaste()  # an object more
    # of these steps one is drawn for each sample, and then done with its own probability; empty: each on its own
    exclusive: tuple[str, ...] = ()
