"""[augment]: what is done to training patches. A step whose probability is 0 is left out. All lengths are in voxels."""

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
    # chance of mirroring along z, y and x; each axis draws for itself
    probability: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Turn(Step):
    probability: float = 0.0  # chance of turning by 90, 180 or 270 degrees in y and x; patches must be square
    any_axis: bool = False  # use any of the 24 rotations of a cube instead; patches must be cubes


@dataclass(frozen=True)
class Rotate(Step):
    probability: float = 0.0  # chance of a turn by any angle in y and x
    degrees: Range = (-180.0, 180.0)  # the angle is drawn from this range


@dataclass(frozen=True)
class Scale(Step):
    probability: float = 0.0  # chance of enlarging or shrinking
    factor: Range = (0.8, 1.2)  # range of the factor, drawn for y and for x; above 1 objects look larger
    together: bool = False  # use one factor for both y and x
    depth: Range = (1.0, 1.0)  # range of the factor along z


@dataclass(frozen=True)
class Shear(Step):
    probability: float = 0.0  # chance of slanting along y and x
    amount: float = 0.1  # the largest slant, in voxels per voxel


@dataclass(frozen=True)
class Elastic(Step):
    probability: float = 0.0  # chance of a smooth random deformation
    sigma: Range = (5.0, 8.0)  # range of the sigma of the Gaussian that smooths the random field
    # size of the field before smoothing: the shift is about magnitude * 0.09 / sigma^1.5, and magnitude * 0.28 / sigma
    # where flat
    magnitude: Range = (50.0, 150.0)
    flat: bool = False  # use one field in y and x for all sections
    depth: float = 1.0  # factor of the shift along z: below 1 for thick sections; 0 bends only within sections


@dataclass(frozen=True)
class Misalignment(Step):
    probability: float = 0.0  # chance that sections are shifted or turned against each other
    displacement: int = 16  # the largest shift along y and along x
    rotate_ratio: float = 0.0  # share of the cases that turn sections instead of shifting them
    slip_ratio: float = 0.5  # share of the cases that move a single section, not all that follow
    labels: bool = True  # move the labels with the image; false moves the image alone


@dataclass(frozen=True)
class Noise(Step):
    probability: float = 0.0  # chance of Gaussian noise
    deviation: float | Range = 0.05  # standard deviation: a range to draw from; a number n means 0 to n
    clip: bool = False  # limit the result to 0..1


@dataclass(frozen=True)
class Shift(Step):
    probability: float = 0.0  # chance that a constant is added
    offset: float = 0.1  # largest constant; its sign is random


@dataclass(frozen=True)
class Gamma(Step):
    probability: float = 0.0  # chance of a gamma correction between the least and largest intensity
    range: Range = (0.7, 1.4)  # range of the exponent


@dataclass(frozen=True)
class Contrast(Step):
    probability: float = 0.0  # chance of another contrast: a factor, an added number, an exponent
    section_ratio: float = 0.0  # share of the cases in which every section draws its own values
    gain: Range = (0.85, 1.15)  # range of the factor
    bias: Range = (-0.05, 0.05)  # range of the number that is added
    gamma: Range = (1.0, 1.0)  # range of the exponent, drawn evenly on a logarithmic scale
    clip: bool = True  # limit the result to 0..1


@dataclass(frozen=True)
class MissingSection(Step):
    probability: float = 0.0  # chance of losing sections of the image; the first and last are spared
    sections: int | tuple[int, int] = 2  # number of sections, or a range
    full: float = 0.5  # chance that a section is lost as a whole; otherwise a rectangle of it is
    part: Range = (0.25, 0.75)  # range of the rectangle's height and width, as shares of the section's
    fill: Range = (0.0, 1.0)  # range of the intensity that fills what is lost


@dataclass(frozen=True)
class DeletedSection(Step):
    probability: float = 0.0  # chance of removing sections from image and labels; first and last are spared
    sections: int = 2  # number of sections; so many more are read for each patch


@dataclass(frozen=True)
class LostSection(Step):
    probability: float = 0.0  # chance that a section shows the image of a neighbour
    sections: int | tuple[int, int] = 1  # number of sections, or a range
    by: Literal["random", "previous", "next", "mean"] = "random"  # the neighbour whose image is shown


@dataclass(frozen=True)
class MissingPart(Step):
    probability: float = 0.0  # chance of a black rectangle in one section
    size: Range = (0.1, 0.25)  # range of the rectangle's sides, as shares of the section's


@dataclass(frozen=True)
class Fold(Step):
    probability: float = 0.0  # chance of a band across a section; the two sections after it are spared
    patches: float = 1.0  # share of the patches that may have such sections
    width: int = 40  # half the width of the band

    @property
    def chance(self) -> float:
        return self.patches


@dataclass(frozen=True)
class Blur(Step):
    probability: float = 0.0  # chance that sections are out of focus
    sections: int | tuple[int, int] = 2  # number of sections, or a range
    sigma: Range = (1.0, 3.0)  # range of the sigma of the Gaussian
    kernel: int = 11  # width of the window of the Gaussian
    motion: bool = False  # blur along a line instead, as a moving stage does
    full: float = 0.5  # chance that a section is blurred as a whole; otherwise a rectangle of it is
    part: Range = (0.25, 0.75)  # range of the rectangle's height and width, as shares of the section's


@dataclass(frozen=True)
class CutNoise(Step):
    probability: float = 0.0  # chance of uniform noise in a box; the result is limited to 0..1
    size: Range = (0.1, 0.4)  # range of the box's sides, as shares of the patch's
    scale: Range = (0.05, 0.15)  # range of the largest value of the noise


@dataclass(frozen=True)
class CutBlur(Step):
    probability: float = 0.0  # chance that a box has a lower resolution
    size: Range = (0.1, 0.4)  # range of the box's sides, as shares of the patch's
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
    probability: float = 0.0  # chance of mixing in another image of the batch; the labels stay
    share: Range = (0.8, 1.0)  # range of the weight of the patch's own image


@dataclass(frozen=True)
class CopyPaste(Step):
    probability: float = 0.0  # chance that a turned copy of an object is put into the background
    largest: float = 0.7  # largest object that is copied, as a share of the patch
    labels: bool = True  # give the copy a label of its own; false leaves the labels as they are


@dataclass(frozen=True)
class Augment:
    flip: Flip = Flip((0.0, 0.0, 0.0))  # mirrors the patch
    turn: Turn = Turn()  # turns it by multiples of 90 degrees
    rotate: Rotate = Rotate()  # turns it by any angle
    scale: Scale = Scale()  # makes objects larger or smaller
    shear: Shear = Shear()  # slants the patch
    elastic: Elastic = Elastic()  # bends the patch at random
    misalignment: Misalignment = Misalignment()  # moves sections against each other
    deleted_section: DeletedSection = DeletedSection()  # removes sections from image and labels
    noise: Noise = Noise()  # adds noise to every voxel
    shift: Shift = Shift()  # makes the patch brighter or darker
    gamma: Gamma = Gamma()  # changes the mid tones
    contrast: Contrast = Contrast()  # changes the contrast, by section if wanted
    missing_section: MissingSection = MissingSection()  # replaces sections by one intensity
    lost_section: LostSection = LostSection()  # replaces sections by their neighbours
    missing_part: MissingPart = MissingPart()  # blackens a rectangle of a section
    fold: Fold = Fold()  # fills a band across a section with its mean
    blur: Blur = Blur()  # blurs sections
    cut_noise: CutNoise = CutNoise()  # adds noise in a box
    cut_blur: CutBlur = CutBlur()  # lowers the resolution of a box
    stripes: Stripes = Stripes()  # draws lines across sections
    mixup: Mixup = Mixup()  # mixes two images
    copy_paste: CopyPaste = CopyPaste()  # copies an object
    # one of these steps is drawn for each sample and then done with its own probability; empty: each step on its own
    exclusive: tuple[str, ...] = ()
