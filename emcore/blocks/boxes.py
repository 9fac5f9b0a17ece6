"""What the commands share that look at a box of a volume of labels, block by block: mesh and statistics."""

import argparse
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from emcore.blocks.grid import Box, Grid
from emcore.blocks.windows import extent
from emcore.blocks.work import Stage, Work, digest_of
from emcore.errors import InputError
from emcore.volumes import Volume, fetched
from emcore.volumes.address import located
from emcore.volumes.stamp import stamp

BLOCK = 256, 256, 256


@dataclass(frozen=True)
class BoxWork(Work):
    """A work on a box of a volume of labels, whose first stage has a task for each block of it."""

    labels: str
    box: Box
    grid: Grid  # cuts the box
    content: str  # tells the labels from others
    needs_less = "fewer --workers or a smaller --block need less"

    def where(self, stage: Stage, number: int) -> str:
        if stage != self.stages()[0]:
            return super().where(stage, number)
        return ", ".join(f"{axis} {span.start} to {span.stop}"
                         for axis, span in zip("zyx", self.within_volume(self.grid.box(number))))

    def within_volume(self, window: Box) -> Box:
        """Where a window of the box lies in the volume."""
        return tuple(slice(own.start + span.start, own.start + span.stop) for own, span in zip(self.box, window))


def add_arguments(parser: argparse.ArgumentParser, of_box: str, of_block: str) -> None:
    """Adds --box, --resolution, --block and --workers, with what the command says of a box and of a block."""
    parser.add_argument("--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help=f"only these voxels; {of_box}")
    parser.add_argument("--resolution", nargs=3, type=float, metavar=("Z", "Y", "X"),
                        help="nm of a voxel, where the file says none or a wrong one")
    parser.add_argument("--block", nargs=3, type=int, default=BLOCK, metavar=("Z", "Y", "X"),
                        help=f"voxels of a block (default 256 256 256{of_block}")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: as many as there are cores)")


def check_arguments(options: argparse.Namespace) -> None:
    if min(options.block) < 1 or options.workers < 0:
        raise InputError(f"--block and --workers must be above 0; got {options.block} and {options.workers}")


def box_of(text: str | None, volume: Volume) -> Box:
    """The voxels that z0:z1,y0:y1,x0:x1 names; the whole volume where nothing is given."""
    if text is None:
        return tuple(slice(0, length) for length in volume.shape)
    try:
        return tuple(slice(*ends) for ends in fetched.box_of(text.replace(" ", ""), volume.shape))
    except InputError:
        raise InputError(f"--box is z0:z1,y0:y1,x0:x1, in voxels within {volume.shape} of {volume.name}; got "
                         f"{text!r}") from None


def grid_of(box: Box, block: Sequence[int]) -> Grid:
    """The blocks of a box, none larger than the box itself."""
    return Grid(extent(box), tuple(map(min, block, extent(box))))


def path_of(labels: str) -> str:
    """The labels as every worker finds them."""
    return located(os.getcwd(), labels)


def content_of(reference: str, volume: Volume, box: Box) -> str:
    """A digest that tells the labels of a box from others, by their files alone."""
    told = stamp(reference) or secrets.token_hex(8)  # what cannot be told from others is not gone on with
    return digest_of(told, volume.shape, str(volume.dtype), [(span.start, span.stop) for span in box])
