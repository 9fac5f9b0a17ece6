"""Labels in blocks: each an HDF5 file with a checksum of its own, and one file that reads them all as one dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emcore.blocks.grid import Box, Grid
from emcore.blocks.windows import extent
from emcore.blocks.work import Stage, Work
from emcore.files import assembled
from emcore.record import LABELS
from emcore.volumes.blocks import is_whole, join_blocks, write_block

FOLDER = ".blocks"  # what the name of the folder of all stages ends in


@dataclass(frozen=True)
class LabelWork(Work):
    """Stages of which the last one, `labels`, writes the voxels of every block."""

    grid: Grid

    @property
    def label_type(self) -> np.dtype:
        """Wide enough for a label at every voxel."""
        return np.dtype(np.uint32 if np.prod(self.grid.shape, dtype=float) < 2**32 else np.uint64)

    def path(self, stage: Stage, number: int) -> Path:
        if stage.name != LABELS:
            return super().path(stage, number)
        return self.folder / stage.folder / f"{number:06d}.h5"

    def is_done(self, stage: Stage, number: int) -> bool:
        if stage.name != LABELS:
            return super().is_done(stage, number)
        return is_whole(self.path(stage, number), extent(self.grid.box(number)), self.label_type)

    def write_labels(self, stage: Stage, number: int, labels: np.ndarray) -> None:
        path = self.path(stage, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_block(path, labels.astype(self.label_type, copy=False))

    def where(self, stage: Stage, number: int) -> str:
        box = self.box_of(stage, number)
        if box is None:
            return super().where(stage, number)
        return ", ".join(f"{axis} {span.start} to {span.stop}" for axis, span in zip("zyx", box))

    def box_of(self, stage: Stage, number: int) -> Box | None:
        """The voxels that a task is about; None where it is about no box of them."""
        return self.grid.box(number) if stage.count == self.grid.blocks() else None

    def join(self, out: Path, resolution: Sequence[float] | None, offset: Sequence[float] | None,
             attributes: dict[str, Any]) -> Path:
        """Writes the file whose dataset `labels` reads the blocks; it stands beside the folder of the stages."""
        stage = self.stages()[-1]
        parts = [(self.grid.box(number), self.path(stage, number).relative_to(out.parent).as_posix())
                 for number in range(stage.count)]
        with assembled(out) as path:
            join_blocks(path, LABELS, self.grid.shape, self.label_type, parts, resolution, offset, attributes)
        return out


