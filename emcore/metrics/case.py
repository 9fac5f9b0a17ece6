"""A volume to score, and the tables and counts that its scores are read from: box by box, in any volume's memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from emcore.errors import InputError
from emcore.memory import check_memory, memory_there
from emcore.metrics.binary import Confusion, confusion
from emcore.metrics.foreground import NOBODY_KNOWS, states_of, true_foreground, unknown
from emcore.metrics.pairs import boxes
from emcore.metrics.partitions import ignored_truth, scores_by, square_sums
from emcore.metrics.pieces import Pieces
from emcore.metrics.placement import Borders, Part, Shared, moved, placed, whole_table
from emcore.metrics.pooled import added_up, pool
from emcore.metrics.tables import Contingency, contingency
from emcore.segment.affinities import above, stored_table
from emcore.segment.storage import Parts, stored_parts
from emcore.settings.data import Data
from emcore.settings.evaluate import Evaluate
from emcore.volumes import Volume, open_volume

SECTION_BYTES = 72  # measured for each voxel of a section, where sections are looked at whole
PartsOf = Callable[[Path], Parts | None]  # fragments and merges of a labels file; None where it has none
Row = dict[str, Any]  # score, value and convention, and for neurons what was left out
Found = TypeVar("Found")


def row(score: str, value: float, convention: str) -> Row:
    return {"score": score, "value": finite(value), "convention": convention}


def finite(value: float) -> float | None:
    """A plain number; JSON has no other."""
    value = float(value)
    return value if math.isfinite(value) else None


class Case:
    """A volume to score: its truth and what was made of it. Nothing is read before a score looks at it, nor at once."""

    def __init__(self, settings: Evaluate, truth: Volume, labels: Path | None, prediction: Path, data: Data,
                 mask: str | None, parts_of: PartsOf = stored_parts):
        self.settings, self.truth, self.data = settings, truth, data
        self.labels_file, self.prediction_file = labels, prediction
        self.mask_file, self.parts_of = mask, parts_of
        self.truth_path: Path | None = None  # the file that holds the truth, where there is one
        self.notes: list[str] = []
        self.found: dict[str, Any] = {}  # what stands beside the rows in scores.json

    @cached_property
    def labels(self) -> Volume:
        return open_volume(self.labels_file, "labels")

    @cached_property
    def place(self) -> Shared:
        return placed(self.labels, self.truth, self.settings.crop)

    def each(self, ours: Volume, place: Shared, function: Callable[[np.ndarray, np.ndarray], Found],
             whole_sections: bool = False) -> Iterator[Found]:
        """What a function makes of the voxels of the truth and of ours, box by box of the part that both cover."""
        channel, most = self.channel(ours), None
        if whole_sections:
            section = SECTION_BYTES * prod(place.shape[1:])
            check_memory(section, f"a score of sections of {place.shape[1:]} voxels",
                         "score a part with evaluate.crop, or take this score out of evaluate.scores")
            most = max(1, memory_there() // 2 // section)
        for box in boxes(self.truth, ours, shape=place.shape, most_sections=most):
            yield function(self.truth[moved(box, place.truth_start)], ours[(*channel, *moved(box, place.start))])

    def channel(self, ours: Volume) -> tuple[int, ...]:
        """The channel that is scored, where there are channels."""
        channel = self.settings.channel
        if ours.ndim > 3 and not 0 <= channel < ours.shape[0]:
            raise InputError(f"evaluate.channel must be one of the {ours.shape[0]} channels of {ours.name}; "
                             f"got {channel}")
        return (channel,) if ours.ndim > 3 else ()

    # ---- neurons and objects

    def neurons(self, ours: Volume) -> Contingency:
        """The table that neurons are scored by: near borders nothing counts, nor where the convention says so."""
        usable = None if self.mask_file is None else open_volume(self.mask_file)
        place = placed(ours, self.truth, self.settings.crop)
        table = whole_table(ours, self.truth, place, borders(self.settings), usable)
        return table.ignoring(self.ignored)

    @property
    def ignored(self) -> tuple[int, ...]:
        """The ids of the truth that do not count for neurons."""
        every = *ignored_truth(self.settings.convention), *self.data.background, *self.data.ignore
        return tuple(dict.fromkeys(every))

    @cached_property
    def table(self) -> Contingency:
        self.notes += self.place.notes(self.truth)
        table = self.neurons(self.labels)
        self.found["counts"] = {name: int(value) for name, value in square_sums(table)._asdict().items()}
        return table

    @cached_property
    def neuron_rows(self) -> list[Row]:
        """VOI, Rand and what else their convention knows."""
        return [{**row, "border": str(borders(self.settings))}
                for row in scores_by(self.table, self.settings.convention, self.notes)]

    @cached_property
    def objects(self) -> Contingency:
        """The table of objects one by one, which a mask has in its pieces."""
        pieces = Pieces(self.settings.pieces) if self.settings.pieces else None

        def table(theirs: np.ndarray, ours: np.ndarray) -> Contingency:
            inside = true_foreground(theirs, self.data.background)
            objects = pieces.of_run(inside) if pieces else np.where(inside, theirs, 0)
            return contingency(objects, ours, (), (), unknown(theirs, self.data.ignore))

        found = added_up(self.each(self.labels, self.place, table, whole_sections=bool(pieces)))
        return pool([replace(found, truth=pieces.of_whole()[found.truth])]) if pieces else found

    @cached_property
    def synapses(self) -> Contingency:
        """The table of synapses with ids 2n - 1 and 2n, without margins and small ones."""
        margin, sections = self.settings.synapse_margin, self.place.shape[0]
        if margin < 0 or 2 * margin >= sections:
            raise InputError(f"evaluate.synapse_margin must leave some of the {sections} sections; got {margin}")
        table = added_up(self.each(self.labels, self.place.without_ends(margin), contingency)).ignoring(())
        if self.settings.synapse_size <= 1:
            return table
        columns = {name: without_small(getattr(table, name), table.counts, self.settings.synapse_size)
                   for name in ("truth", "labels")}
        return pool([replace(table, **columns)])

    # ---- voxels

    @cached_property
    def scored(self) -> Volume:
        """What the scores of voxels look at: labels where there are any."""
        return self.labels if self.labels_file is not None else open_volume(self.prediction_file)

    @cached_property
    def voxels(self) -> tuple[Part, Part]:
        """(states of the truth, whether it is inside of ours) of every voxel."""
        ours = self.scored
        place, codes, channel = placed(ours, self.truth, self.settings.crop), codes_of(ours), self.channel(ours)
        return (Part(self.truth, place.truth_start, place.shape, self.states, np.dtype(np.uint8)),
                Part(ours, place.start, place.shape,
                     lambda values: above(likely(values), self.settings.threshold, codes), np.dtype(bool), channel))

    def states(self, theirs: np.ndarray) -> np.ndarray:
        return states_of(theirs, self.data.background, self.data.ignore)

    @cached_property
    def confusion(self) -> Confusion:
        states, inside = self.voxels

        def count(box: tuple[slice, ...]) -> Confusion:
            theirs = states[box]
            return confusion(theirs == 1, inside[box], mask=theirs == NOBODY_KNOWS)

        return Confusion(*map(sum, zip(*map(count, boxes(states, inside)))))


def borders(settings: Evaluate) -> Borders:
    return Borders(settings.border_nm or None, settings.border_xy, settings.border_z)


def likely(values: np.ndarray) -> np.ndarray:
    """How likely voxels are inside: as a prediction says, and 1 where there is a label."""
    return (values > 0).astype(np.float32) if values.dtype.kind in "uib" and values.dtype != np.uint8 else values


def codes_of(ours: Volume) -> np.ndarray | None:
    """What its values stand for if they are codes, as `above` takes it."""
    return stored_table(ours) if ours.dtype == np.uint8 or ours.dtype.kind not in "uib" else None


def without_small(ids: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """The ids with 0 in place of the synapses, both sides together, that have less than `size` voxels."""
    places = np.flatnonzero(ids)
    _, place = np.unique((ids[places] - np.uint64(1)) // np.uint64(2), return_inverse=True)
    sizes = np.zeros(len(places), np.int64)
    np.add.at(sizes, place, counts[places])
    out = np.zeros_like(ids)
    keep = sizes[place] >= size
    out[places[keep]] = ids[places[keep]]
    return out
