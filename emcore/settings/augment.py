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
    probability: tuple[float, float, float] = (0.5, 0.5, 0.5)  # chance to mirror along z, y and x, each on its own


@dataclass(frozen=True)
class Turn(Step):
    probability: float = 0.0  # chance of 1, 2 or 3 quarter turns in y and x; patches must be square
    any_axis: bool = False  # draw one of the 24 turns of a cube instead; patches must be cubes


@dataclass(frozen=True)
class Rotate(Step):
    probability: float = 0.0  # chance of a turn by any angle in y and x
    degrees: Range = (-180.0, 180.0)  # the angle is drawn from this range


@dataclass(frozen=True)
class Scale(Step):
    probability: float = 0.0  # chance of enlarging or shrinking
    factor: Range = (0.8, 1.2)  # range of the factor; above 1 things look larger; y and x each draw one
    together: bool = False  # draw one factor for y and x
    depth: Range = (1.0, 1.0)  # range of the factor along z


@dataclass(frozen=True)
class Shear(Step):
    probability: float = 0.0  # chance of slanting y and x
    amount: float = 0.1  # the largest slant, in voxels per voxel


@dataclass(frozen=True)
class Elastic(Step):
    probability: float = 0.0  # chance of a smooth random deformation
    sigma: Range = (5.0, 8.0)  # range of the width of the Gaussian that smooths the random field
    # size of the field before smoothing: the shift is about magnitude * 0.09 / sigma^1.5, and magnitude * 0.28 / sigma
    # where flat
    magnitude: Range = (50.0, 150.0)
    flat: bool = False  # one field in y and x for all sections
    depth: float = 1.0  # factor of the shift along z: below 1 where sections are thick, 0 bends within them alone


@dataclass(frozen=True)
class Misalignment(Step):
    probability: float = 0.0  # chance of sections that are shifted or turned against each other
    displacement: int = 16  # the largest shift along y and along x
    rotate_ratio: float = 0.0  # share of the cases that turn instead of shift
    slip_ratio: float = 0.5  # share of the cases that move one section instead of all that follow
    labels: bool = True  # labels move with the image; false moves the image alone


@dataclass(frozen=True)
class Noise(Step):
    probability: float = 0.0  # chance of Gaussian noise
    deviation: float | Range = 0.05  # a number: every sample draws its deviation from 0 to it; or a range to draw from
    clip: bool = False  # clip the result to 0..1


@dataclass(frozen=True)
class Shift(Step):
    probability: float = 0.0  # chance of an added constant
    offset: float = 0.1  # the largest constant, of either sign


@dataclass(frozen=True)
class Gamma(Step):
    probability: float = 0.0  # chance of a power of the intensities between their least and largest
    range: Range = (0.7, 1.4)  # range of the exponent


@dataclass(frozen=True)
class Contrast(Step):
    probability: float = 0.0  # chance of gain, bias and exponent
    section_ratio: float = 0.0  # share of the cases where every section draws its own
    gain: Range = (0.85, 1.15)  # range of the factor
    bias: Range = (-0.05, 0.05)  # range of the number that is added
    gamma: Range = (1.0, 1.0)  # range of the exponent, drawn evenly on a logarithmic scale
    clip: bool = True  # clip the result to 0..1


@dataclass(frozen=True)
class MissingSection(Step):
    probability: float = 0.0  # chance of sections without image; the first and the last are spared
    sections: int | tuple[int, int] = 2  # number of sections, or a range
    full: float = 0.5  # share of whole sections; the others lose a rectangle
    part: Range = (0.25, 0.75)  # range of the rectangle's height and width as a share of the section's
    fill: Range = (0.0, 1.0)  # range of the one intensity that fills it


@dataclass(frozen=True)
class DeletedSection(Step):
    probability: float = 0.0  # chance of sections taken out of image and labels; the first and the last are spared
    sections: int = 2  # number of sections; the patch is read deeper by as many


@dataclass(frozen=True)
class LostSection(Step):
    probability: float = 0.0  # chance of a section that shows a neighbour's image
    sections: int | tuple[int, int] = 1  # number of sections, or a range
    by: Literal["random", "previous", "next", "mean"] = "random"  # the neighbour whose image is shown


@dataclass(frozen=True)
class MissingPart(Step):
    probability: float = 0.0  # chance of a black rectangle in one section
    size: Range = (0.1, 0.25)  # range of the rectangle's sides as a share of the section's


@dataclass(frozen=True)
class Fold(Step):
    probability: float = 0.0  # chance of a band across a section; after one, two sections are spared
    patches: float = 1.0  # share of the patches that have such sections at all
    width: int = 40  # half the width of the band

    @property
    def chance(self) -> float:
        return self.patches


@dataclass(frozen=True)
class Blur(Step):
    probability: float = 0.0  # chance of sections out of focus
    sections: int | tuple[int, int] = 2  # number of sections, or a range
    sigma: Range = (1.0, 3.0)  # range of the width of the Gaussian
    kernel: int = 11  # number of pixels that the Gaussian covers
    motion: bool = False  # blur along a line instead, like a moving stage
    full: float = 0.5  # share of whole sections; in the others a rectangle is blurred
    part: Range = (0.25, 0.75)  # range of the rectangle's height and width as a share of the section's


@dataclass(frozen=True)
class CutNoise(Step):
    probability: float = 0.0  # chance of uniform noise in a box, clipped to 0..1
    size: Range = (0.1, 0.4)  # range of the box's sides as a share of the patch's
    scale: Range = (0.05, 0.15)  # range of the largest noise


@dataclass(frozen=True)
class CutBlur(Step):
    probability: float = 0.0  # chance of a box at lower resolution
    size: Range = (0.1, 0.4)  # range of the box's sides as a share of the patch's
    factor: Range = (2.0, 8.0)  # range of the factor by which the box is shrunk and enlarged again


@dataclass(frozen=True)
class Stripes(Step):
    probability: float = 0.0  # chance of bright or dark lines across sections
    count: tuple[int, int] = (1, 5)  # range of the number of lines
    thickness: tuple[int, int] = (1, 3)  # range of the thickness of a line
    intensity: Range = (0.7, 1.3)  # range of the factor on a line
    degrees: float = 10.0  # largest angle between a line and the x axis


@dataclass(frozen=True)
class Mixup(Step):
    probability: float = 0.0  # chance of a weighted mean with another image of the batch; labels stay
    share: Range = (0.8, 1.0)  # range of the weight of the own image


@dataclass(frozen=True)
class CopyPaste(Step):
    probability: float = 0.0  # chance of an object that is copied, turned, into background
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
    # one of these steps is drawn for each sample and then done with its own probability; empty: each step on its own
    exclusive: tuple[str, ...] = ()
