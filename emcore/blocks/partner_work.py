"""decode.kind = "partners" in blocks: a vector may point to any block, so all synapses are known before any is given.

    ranges i, range  the largest value of the volume, which says what the threshold means, unless classes are exclusive
    pieces i         the presynaptic pieces of a block, with the sums of their places
    joints i         which of them go on in the blocks before
    middles          the number of every piece in the volume, and the middle of every synapse
    reached i        the postsynaptic voxels of a block by the synapse that their vectors come from, in pieces
    seams i          which of these go on in the blocks before
    numbers          the label of every postsynaptic piece; small ones have none
    labels i         the voxels

The sums are whole numbers, so the middles are those of the whole volume to the bit, and so is what a voxel is given.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from emcore import config
from emcore.blocks import runs
from emcore.blocks.grid import Box
from emcore.blocks.kinds import PieceWork, prefixed
from emcore.blocks.pieces import Columns, around, joint_columns, numbered, piece_columns
from emcore.blocks.windows import corner, extent
from emcore.blocks.work import Stage, digest_of
from emcore.decode.labels import with_vectors
from emcore.record import LABELS
from emcore.segment.components import connected_components
from emcore.segment.synapses import largest_value, partner_masks, reached
from emcore.settings.decode import PartnersDecode
from emcore.volumes import Volume, open_volume

FORMAT = 1  # It names how all stages write their columns; files of another format are not taken.
AXES = range(3)


@dataclass(frozen=True)
class PartnerWork(PieceWork):
    """The decoding of a prediction of sides and vectors."""

    settings: PartnersDecode
    resolution: tuple[float, ...]  # That of the prediction, which may change where the voxels do not.

    # ---- stages

    @cached_property
    def folders(self) -> dict[str, str]:
        asked = self.settings
        values = (FORMAT, self.content, self.grid.shape, self.grid.block, self.resolution)
        sides = digest_of(values, asked.channels, asked.threshold, asked.exclusive)
        every = digest_of(values, config.to_table(asked))
        return {**{name: f"{name}-{sides}" for name in ("ranges", "range", "pieces", "joints")},
                **{name: f"{name}-{every}" for name in ("middles", "reached", "seams", "numbers", LABELS)}}

    @property
    def needs_range(self) -> bool:
        return not self.settings.exclusive

    def stages(self) -> list[Stage]:
        names = [*(["ranges", "range"] if self.needs_range else []), "pieces", "joints", "middles", "reached",
                 "seams", "numbers", LABELS]
        return [self.stage(name) for name in names]

    def stage(self, name: str) -> Stage:
        return Stage(name, 1 if name in ("range", "middles", "numbers") else self.grid.blocks(), self.folders[name])

    # ---- the presynaptic side

    def make_ranges(self, number: int) -> Columns:
        values = with_vectors(open_volume(self.prediction), self.settings, self.grid.box(number))
        return {"largest": np.array([largest_value(values[:3])])}

    def make_pieces(self, number: int) -> Columns:
        prediction, core = open_volume(self.prediction), self.grid.box(number)
        window, inside = around(core, self.grid.shape, (1, 1, 1))
        pre, _ = self.masks(prediction, window)[1]
        own, columns = piece_columns(connected_components(pre), inside, core, self.grid.shape)
        at = np.argwhere(own)
        piece, sums = own[tuple(at.T)], np.zeros((len(columns["sizes"]) + 1, 3), np.int64)
        np.add.at(sums, piece, at + np.array(corner(core)))
        sums = {f"sum_{axis}": sums[1:, axis] for axis in AXES}
        return {**runs.runs_of(own), **prefixed("pre", columns | sums)}

    def masks(self, prediction: Volume, window: Box) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """What is predicted in a window, and where pre and post hold there."""
        values = with_vectors(prediction, self.settings, window)
        largest = float(self.read("range", 0, "largest")[0][0]) if self.needs_range else None
        return values, partner_masks(values, self.settings.threshold, self.settings.exclusive, largest)

    def make_joints(self, number: int) -> Columns:
        return prefixed("pre", joint_columns(self.grid, number, self.reader("pieces", "pre")))

    def make_middles(self, _: int) -> Columns:
        blocks = range(self.grid.blocks())
        found = numbered(len(blocks), self.reader("pieces", "pre"), self.reader("joints", "pre"))
        kept = np.flatnonzero(found.large(self.settings.small))
        sums = np.zeros((len(found.sizes), 3), np.int64)
        for number in blocks:
            parts = self.read("pieces", number, *(f"pre_sum_{axis}" for axis in AXES))
            np.add.at(sums, found.table(number)[1:], np.stack(parts, 1))
        labels = np.zeros(len(found.sizes), self.label_type)
        labels[kept] = 2 * np.arange(1, len(kept) + 1) - 1
        middles = sums[kept] / found.sizes[kept, None]
        return {**{f"middle_{axis}": middles[:, axis] for axis in AXES},
                **{f"table_{number}": labels[found.table(number)] for number in blocks}}

    # ---- the postsynaptic side

    def make_reached(self, number: int) -> Columns:
        core = self.grid.box(number)
        window, inside = around(core, self.grid.shape, (1, 1, 1))
        values, (_, post) = self.masks(open_volume(self.prediction), window)
        middles = self.read("middles", 0, *(f"middle_{axis}" for axis in AXES))
        labels = reached(values, post, np.stack(middles, 1), self.resolution, self.settings.reach_nm, corner(window))
        own, columns = piece_columns(connected_components(labels), inside, core, self.grid.shape)
        synapse = np.zeros(len(columns["sizes"]) + 1, labels.dtype)
        synapse[own] = labels[inside]
        synapse[0] = 0
        return {**runs.runs_of(own), "synapse": synapse, **prefixed("post", columns)}

    def make_seams(self, number: int) -> Columns:
        return prefixed("post", joint_columns(self.grid, number, self.reader("reached", "post")))

    def make_numbers(self, _: int) -> Columns:
        blocks = range(self.grid.blocks())
        found = numbered(len(blocks), self.reader("reached", "post"), self.reader("seams", "post"))
        large = found.large(self.settings.small)
        return {f"table_{number}": np.where(large[found.table(number)], self.read("reached", number, "synapse")[0],
                                            0).astype(self.label_type) for number in blocks}

    # ---- labels

    def labels(self, number: int) -> np.ndarray:
        """The labels of a block."""
        sides = [self.side(stage, tables, number) for stage, tables in (("pieces", "middles"), ("reached", "numbers"))]
        return np.maximum(*sides)  # a voxel is of one side at most

    def side(self, stage: str, tables: str, number: int) -> np.ndarray:
        table, = self.read(tables, 0, f"table_{number}")
        begins, pieces = self.read(stage, number, *runs.NAMES)
        return runs.labels_of(begins, table[pieces], extent(self.grid.box(number)))
