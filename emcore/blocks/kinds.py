"""The kinds of decoding besides affinities in blocks: connected, components, polarity. Each is a matter of pieces.

    ranges i, range  of polarity: the largest value of the volume, which says what its threshold means
    pieces i         the parts of a block, each a piece or what a pre, a post and a synapse have in common; its faces
    joints i         which pieces go on in the blocks before
    numbers          the label of every part of every block; small ones have none
    labels i         the voxels
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from emcore import config
from emcore.blocks import runs, store
from emcore.blocks.choice import check_kind, needs_sections
from emcore.blocks.grid import Box
from emcore.blocks.joined import LabelWork
from emcore.blocks.pieces import Columns, Numbered, around, joint_columns, numbered, piece_columns
from emcore.blocks.windows import extent
from emcore.blocks.work import Stage, digest_of
from emcore.decode.affinities import read_affinities
from emcore.decode.labels import connect, grow, sides, with_peak
from emcore.errors import InputError
from emcore.record import LABELS
from emcore.segment.components import connected_components
from emcore.segment.graph import measure
from emcore.segment.morphology import dilate
from emcore.segment.relabeling import label_dtype, relabel
from emcore.segment.synapses import DILATE_SIZE, largest_value, side_masks
from emcore.settings.decode import ComponentsDecode, ConnectedDecode, PolarityDecode
from emcore.volumes import Volume, open_volume

FORMAT = 2  # It names how all stages write their columns; files of another format are not taken.
SIDES = ("pre", "post", "synapse")


@dataclass(frozen=True)
class PieceWork(LabelWork):
    """The decoding of a prediction whose labels are connected pieces."""

    prediction: str  # its path, with the dataset where it has several
    settings: ConnectedDecode | ComponentsDecode | PolarityDecode
    content: str  # a digest of the prediction, by which its files are known

    def __post_init__(self) -> None:
        check_kind(self.settings)
        if needs_sections(self.settings) and any(self.grid.counts(0)[axis] > 1 for axis in (1, 2)):
            raise InputError(f"decode.seed_threshold needs blocks of whole sections, {self.grid.shape[1:]} voxels "
                             f"along y and x; got blocks of {self.grid.block}")

    # ---- stages

    @cached_property
    def folders(self) -> dict[str, str]:
        """The folders of the stages: each name tells every setting that changes what stands in it, and no other."""
        plain = replace(self.settings, remove_size=0)
        if isinstance(plain, PolarityDecode):
            plain = replace(plain, small=0)
        values = (FORMAT, self.content, self.grid.shape, self.grid.block)
        pieces, numbers = (digest_of(values, config.to_table(settings)) for settings in (plain, self.settings))
        return {"ranges": f"ranges-{pieces}", "range": f"range-{pieces}", "pieces": f"pieces-{pieces}",
                "joints": f"joints-{pieces}", "numbers": f"numbers-{numbers}", LABELS: f"labels-{numbers}"}

    @property
    def needs_range(self) -> bool:
        return isinstance(self.settings, PolarityDecode) and not self.settings.exclusive

    def stages(self) -> list[Stage]:
        names = [*(["ranges", "range"] if self.needs_range else []), "pieces", "joints", "numbers", LABELS]
        return [self.stage(name) for name in names]

    def stage(self, name: str) -> Stage:
        return Stage(name, 1 if name in ("range", "numbers") else self.grid.blocks(), self.folders[name])

    def run(self, stage: Stage, number: int) -> None:
        if stage.name == LABELS:
            self.write_labels(stage, number, self.labels(number))
        else:
            store.write(self.path(stage, number), getattr(self, f"make_{stage.name}")(number))

    def read(self, name: str, number: int, *columns: str) -> list[np.ndarray]:
        """Columns of a task of the stage with this name."""
        return store.read(self.path(self.stage(name), number), *columns)

    # ---- the largest value, of polarity

    def make_ranges(self, number: int) -> Columns:
        prediction = open_volume(self.prediction)
        largest = 0.0
        if prediction.dtype.kind == "f":  # what other types hold does not ask for it
            largest = largest_value(sides(prediction, self.settings, self.grid.box(number)))
        return {"largest": np.array([largest])}

    def make_range(self, _: int) -> Columns:
        return {"largest": np.max([self.read("ranges", number, "largest")[0] for number in range(self.grid.blocks())],
                                  axis=0)}

    # ---- pieces

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there are pieces of; the columns of their files begin with these names."""
        return SIDES if isinstance(self.settings, PolarityDecode) else ("piece",)

    def make_pieces(self, number: int) -> Columns:
        core, prediction = self.grid.box(number), open_volume(self.prediction)
        if isinstance(self.settings, PolarityDecode):
            return self.synapse_columns(core, prediction)
        seeds, peaks = None, None
        if isinstance(self.settings, ConnectedDecode):
            window, inside = around(core, self.grid.shape, (1, 1, 1))
            labels = connect(read_affinities(prediction, self.settings, window), self.settings)
        else:  # Where sections have nothing to do with each other, no other section is read.
            window, inside = around(core, self.grid.shape, (int(self.settings.connectivity not in (4, 8)), 1, 1))
            labels, grown_from, peaks = grow(prediction, self.settings, window)
            seeds = grown_from if self.settings.seed_threshold else None
        own, columns = piece_columns(labels, inside, core, self.grid.shape, seeds)
        if peaks is not None:
            columns["with_peak"] = with_peak(own, peaks[inside], len(columns["sizes"]))
        return {**runs.runs_of(own), **prefixed("piece", columns)}

    def synapse_columns(self, core: Box, prediction: Volume) -> Columns:
        """The parts of a block: voxels of one pre and one post piece (0: of none), which lie in one synapse."""
        reach = DILATE_SIZE // 2
        wide, _ = around(core, self.grid.shape, (1, 1 + reach, 1 + reach))
        window, inside = around(core, self.grid.shape, (1, 1, 1))
        part = tuple(slice(span.start - wider.start, span.stop - wider.start) for span, wider in zip(window, wide))
        largest = float(self.read("range", 0, "largest")[0][0]) if self.needs_range else None
        pre, post, union = side_masks(sides(prediction, self.settings, wide), self.settings.threshold,
                                      self.settings.exclusive, largest)
        masks = (pre[part], post[part], dilate(union, (1, DILATE_SIZE, DILATE_SIZE))[part])
        columns, own = {}, {}
        for kind, mask in zip(SIDES, masks):
            own[kind], found = piece_columns(connected_components(mask), inside, core, self.grid.shape)
            columns |= prefixed(kind, found)
        labels, known = relabel(own["pre"].astype(np.uint64) << np.uint64(32) | own["post"])
        synapse = np.zeros(len(known), np.uint32)
        synapse[labels] = own["synapse"]
        synapse[0] = 0
        return {**runs.runs_of(labels), "part_pre": (known >> np.uint64(32)).astype(np.uint32),
                "part_post": known.astype(np.uint32), "part_synapse": synapse,
                "part_sizes": measure(labels, len(known) - 1)[0], **columns}

    def make_joints(self, number: int) -> Columns:
        columns = {}
        for kind in self.kinds:
            columns |= prefixed(kind, joint_columns(self.grid, number, self.reader("pieces", kind)))
        return columns

    def reader(self, name: str, kind: str):
        """A function that reads the columns of one kind of pieces."""
        return lambda number, *columns: self.read(name, number, *(f"{kind}_{column}" for column in columns))

    # ---- numbers

    def make_numbers(self, _: int) -> Columns:
        blocks = range(self.grid.blocks())
        found = [numbered(len(blocks), self.reader("pieces", kind), self.reader("joints", kind)) for kind in self.kinds]
        if isinstance(self.settings, PolarityDecode):
            tables, sizes = self.side_tables(*found)
        else:
            tables, sizes = [found[0].table(number) for number in blocks], found[0].sizes
        dtype = label_dtype(len(sizes) - 1)
        keep = sizes >= self.settings.remove_size
        if isinstance(self.settings, ComponentsDecode) and self.settings.peak:
            sure = np.zeros(len(sizes), bool)
            for number, table in zip(blocks, tables):
                sure[table[self.read("pieces", number, "piece_with_peak")[0]]] = True
            keep &= sure
        kept = np.where(keep, np.arange(len(sizes)), 0).astype(dtype)
        return {f"table_{number}": kept[table] for number, table in zip(blocks, tables)}

    def side_tables(self, pre: Numbered, post: Numbered, synapse: Numbered) -> tuple[list[np.ndarray], np.ndarray]:
        """The labels of the parts of every block, and the voxels of every label."""
        tables, sizes = [], np.zeros(2 * len(synapse.sizes) - 1, np.int64)
        for number in range(self.grid.blocks()):
            pre_of, post_of, synapse_of, voxels = self.read("pieces", number, "part_pre", "part_post", "part_synapse",
                                                            "part_sizes")
            is_pre, is_post = (side.large(self.settings.small)[side.table(number)][of]
                               for side, of in ((pre, pre_of), (post, post_of)))
            twice = 2 * synapse.table(number)[synapse_of]
            tables.append(np.where(is_post, twice, np.where(is_pre, twice - 1, 0)))
            np.add.at(sizes, tables[-1], voxels)
        return tables, sizes

    # ---- labels

    def labels(self, number: int) -> np.ndarray:
        """The labels of a block."""
        table, = self.read("numbers", 0, f"table_{number}")
        begins, pieces = self.read("pieces", number, *runs.NAMES)
        return runs.labels_of(begins, table[pieces], extent(self.grid.box(number)))


def prefixed(kind: str, columns: Columns) -> Columns:
    return {f"{kind}_{name}": values for name, values in columns.items()}
