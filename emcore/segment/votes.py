"""What the voxels of synapses say about neurons: tables of one block, which add up exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.volumes import Volume

CREMI_MARKS = 2  # the two largest ids of 64 bits mark background and unknown
LEAD = 1 << 16  # steps of 1 in which pre - post is counted where it is floating point
LARGEST_LEAD = 1 << 10  # Beyond it the sums of a prediction could leave 64 bits.
SYNAPSES = np.dtype([("number", "u8"), ("voxels", "i8"), ("z", "i8"), ("y", "i8"), ("x", "i8")])
VOTES = np.dtype([("number", "u8"), ("side", "u8"), ("label", "u8"), ("votes", "i8"), ("z", "i8"), ("y", "i8"),
                  ("x", "i8"), ("lead", "i8")])
FACES = np.dtype([("number", "u8"), ("low", "u8"), ("high", "u8"), ("z", "i8"), ("y", "i8"), ("x", "i8")])
KEYS = np.dtype([("number", "u8"), ("side", "u8"), ("label", "u8")])
Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Votes:
    """What some voxels say: synapses with their voxels and the sums of their coordinates, votes with theirs, and faces.

    All are sorted by their ids and are sums of whole numbers, so that those of blocks add up to those of the volume.
    """

    synapses: np.ndarray  # SYNAPSES
    votes: np.ndarray  # VOTES: side 0 is presynaptic, 1 postsynaptic; clefts have side 0 alone
    faces: np.ndarray  # FACES: across z, y and x between two neurons, at the synapse
    directed: bool

    def __len__(self) -> int:
        return len(self.synapses) + len(self.votes) + len(self.faces)


class Voxels(NamedTuple):
    """Every vote of a block by itself."""

    keys: np.ndarray  # KEYS
    places: np.ndarray  # (n, 3) int64: the voxel that the vote is for, in the volume
    lead: np.ndarray  # (n,) int64


def pooled(tables: Sequence[Votes]) -> Votes:
    """The table of all voxels of these tables."""
    parts = [(table.synapses, table.votes, table.faces) for table in tables]
    empty = [np.zeros(0, dtype) for dtype in (SYNAPSES, VOTES, FACES)]
    columns = [np.concatenate([none, *given]) for none, given in zip(empty, zip(*parts) if parts else ((), (), ()))]
    return Votes(*(added(rows, keys) for rows, keys in zip(columns, (1, 3, 3))),
                 any(table.directed for table in tables))


def added(rows: np.ndarray, keys: int) -> np.ndarray:
    """The rows sorted by their first columns, those with equal ones added up."""
    names = rows.dtype.names
    rows = rows[np.lexsort([rows[name] for name in names[:keys]][::-1])]
    starts = runs_of(*(rows[name] for name in names[:keys]))
    out = rows[starts]
    if len(rows):
        for name in names[keys:]:
            out[name] = np.add.reduceat(rows[name], starts)
    return out


def runs_of(*columns: np.ndarray) -> np.ndarray:
    """Where runs of equal rows begin."""
    first = np.zeros(len(columns[0]), bool)
    first[:1] = True
    for column in columns:
        first[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(first)


def ranked(rows: np.ndarray, asked: np.ndarray, known: np.ndarray) -> np.ndarray:
    """For each asked row the place among the known ones of the row that equals it, -1 where none does."""
    names = rows.dtype.names
    together = np.concatenate([known, asked])
    order = np.lexsort([rows[name][together] for name in names][::-1])  # stable, so that known ones come first
    starts = runs_of(*(rows[name][together[order]] for name in names))
    run = np.zeros(len(order), np.int64)
    run[starts] = 1
    leader = order[starts[np.cumsum(run) - 1]] if len(order) else order
    found = np.full(len(together), -1)
    found[order] = np.where(leader < len(known), leader, -1)
    return found[len(known):]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads blocks of labels and synapses, each with the voxels around it."""

    labels: Volume
    synapses: Volume
    kind: str
    direction: Volume | None
    resolution: np.ndarray  # nm, z y x

    def votes(self, box: Box) -> Votes:
        """The table of the synapses' voxels in a box."""
        box = self.within(box)
        if box is None:
            return pooled([])
        labels, synapses, at = self.read(box)
        number, _ = self.sides(synapses.flat[at])
        places = self.places(at, labels.shape, box)
        own = np.zeros(len(at), SYNAPSES)
        own["number"], own["voxels"] = number, 1
        own["z"], own["y"], own["x"] = places.T
        voxels = self.cast(labels, synapses, at, box)
        votes = np.zeros(len(voxels.lead), VOTES)
        for name in KEYS.names:
            votes[name] = voxels.keys[name]
        votes["votes"], votes["lead"] = 1, voxels.lead
        votes["z"], votes["y"], votes["x"] = voxels.places.T
        faces = self.faces(labels, synapses, at, number)
        return Votes(added(own, 1), added(votes, 3), added(faces, 3), self.direction is not None)

    def voxels(self, box: Box) -> Voxels:
        """The single votes of a box that holds synapses."""
        box = self.within(box)
        labels, synapses, at = self.read(box)
        return self.cast(labels, synapses, at, box)

    def within(self, box: Box) -> Box | None:
        """The smallest box around the synapses' voxels in a box, so that little else is read; None without any."""
        there = plain_ids(self.synapses[box], self.synapses.name) != 0
        small = []
        for axis, span in enumerate(box):
            filled = np.flatnonzero(there.any(tuple(other for other in range(3) if other != axis)))
            if not len(filled):
                return None
            small.append(slice(span.start + int(filled[0]), span.start + int(filled[-1]) + 1))
        return tuple(small)

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels and synapses with one voxel around, 0 beyond the volume; where the synapses' own voxels are."""
        labels, synapses = (plain_ids(self.around(volume, box), volume.name)
                            for volume in (self.labels, self.synapses))
        inner = np.zeros(synapses.shape, bool)
        inside = (slice(1, -1),) * 3
        inner[inside] = synapses[inside] != 0
        return labels, synapses, np.flatnonzero(inner)

    def around(self, volume: Volume, box: Box, channels: tuple = ()) -> np.ndarray:
        """The voxels of a box and one around it; what lies beyond the volume is 0."""
        shape = self.labels.shape
        wide = tuple(slice(max(0, span.start - 1), min(end, span.stop + 1)) for span, end in zip(box, shape))
        beyond = [(int(span.start == 0), int(span.stop == end)) for span, end in zip(box, shape)]
        return np.pad(volume[(*channels, *wide)], [*[(0, 0)] * len(channels), *beyond])

    def sides(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of synapses, and 0 on presynaptic and 1 on postsynaptic sides."""
        if self.kind == "clefts":
            return ids, np.zeros(len(ids), np.uint64)
        before = ids - np.uint64(1)
        return (before >> np.uint64(1)) + np.uint64(1), before & np.uint64(1)

    def places(self, at: np.ndarray, shape: tuple[int, ...], box: Box) -> np.ndarray:
        return np.stack(np.unravel_index(at, shape), 1) + [span.start - 1 for span in box]

    def cast(self, labels: np.ndarray, synapses: np.ndarray, at: np.ndarray, box: Box) -> Voxels:
        """Every voxel votes for the neuron under it; those of clefts also for those under its six neighbours."""
        number, side = self.sides(synapses.flat[at])
        targets = [at]
        if self.kind == "clefts":
            targets += [at + sign * step for step in steps(labels.shape) for sign in (-1, 1)]
        target = np.concatenate(targets)
        label = labels.flat[target]
        kept = label != 0
        keys = np.zeros(np.count_nonzero(kept), KEYS)
        keys["number"], keys["side"] = (np.tile(column, len(targets))[kept] for column in (number, side))
        keys["label"] = label[kept]
        target = target[kept]
        lead = np.zeros(len(target), np.int64)
        if self.direction is not None and len(target):
            lead = as_lead(self.around(self.direction, box, (slice(0, 2),)), self.direction.name).flat[target]
        return Voxels(keys, self.places(target, labels.shape, box), lead)

    def faces(self, labels: np.ndarray, synapses: np.ndarray, at: np.ndarray, number: np.ndarray) -> np.ndarray:
        """The faces of the synapses' voxels between two neurons; one within a synapse counts from its first voxel."""
        found = []
        own = labels.flat[at]
        for axis, step in zip("zyx", steps(labels.shape)):
            for sign in (1, -1):
                other = labels.flat[at + sign * step]
                meet = (own != other) & (own != 0) & (other != 0)
                if sign < 0:  # the face belongs to the earlier voxel, if that is of this synapse, too
                    beside = synapses.flat[at + sign * step]
                    meet &= (beside == 0) | (self.sides(beside)[0] != number)
                rows = np.zeros(np.count_nonzero(meet), FACES)
                rows["number"], rows[axis] = number[meet], 1
                rows["low"], rows["high"] = np.minimum(own, other)[meet], np.maximum(own, other)[meet]
                found.append(rows)
        return np.concatenate(found)


def steps(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """How far apart neighbours along z, y and x lie in a flat array."""
    return shape[1] * shape[2], shape[2], 1


def plain_ids(values: np.ndarray, name: str) -> np.ndarray:
    """Ids as uint64, CREMI's marks as 0."""
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise InputError(f"{name} must not hold negative ids; found {values.min()}; set such voxels to 0 first")
    ids = values.astype(np.uint64)
    if values.dtype == np.uint64:
        ids[ids >= np.uint64(2**64 - CREMI_MARKS)] = 0
    return ids


def as_lead(channels: np.ndarray, name: str) -> np.ndarray:
    """pre - post in whole numbers."""
    if channels.dtype.kind == "f":
        if not (np.abs(channels) <= LARGEST_LEAD).all():  # NaN is not
            raise InputError(f"{name} holds NaN or values beyond {LARGEST_LEAD}; a direction is made of probabilities")
        channels = np.rint(channels.astype(np.float64) * LEAD)
    return channels[0].astype(np.int64) - channels[1].astype(np.int64)
