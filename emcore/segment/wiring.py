"""Synaptic partners: which neurons each synapse joins, read from two volumes block by block in whole numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.segment.arrays import within
from emcore.segment.votes import Reader, Votes, Voxels, pooled, ranked, runs_of
from emcore.volumes import Volume, open_volume
from emcore.volumes.convert import blocks, boxes

KINDS = ("polarity", "clefts")
BLOCK_VOXELS = 1 << 22  # A block has no more unless a chunk has: a voxel of a synapse takes up to 300 bytes.
SHARE = 0.15  # docs/connectome.md has the figures by which it was chosen


@dataclass(frozen=True, eq=False)
class Partners:
    """Holds a row for each pair of a synapse and a neuron on its postsynaptic side, by synapse, then by falling votes.

    Attributes:
        synapse: (n,) uint64, the number of the synapse.
        place: (n, 3) float64, its middle in nm, z, y, x; the first voxel lies at the offset.
        size: (n,) int64, its voxels, those of both sides.
        pre: (n,) uint64, the presynaptic neuron; 0 where there is none.
        post: (n,) uint64, the postsynaptic neuron; 0 where there is none.
        directed: (n,) bool, whether it is known which one is presynaptic; else pre is the smaller id.
        confidence: (n,) float64, 0 to 1.
        contact_area: (n,) float64, nm² of the faces between both neurons at the synapse.
        pre_place: (n, 3) float64, a voxel of the neuron at the synapse in nm; nan where there is none.
        post_place: (n, 3) float64, the same of the postsynaptic neuron.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> labels = np.array([[[7, 7, 7, 9, 9, 9]]])
        >>> found = segment.partners(labels, np.array([[[0, 0, 1, 2, 0, 0]]]), resolution=(40, 8, 8))
        >>> found.resolved, found.sites.shape
        (array([ True]), (1, 2, 3))
    """

    synapse: np.ndarray
    place: np.ndarray
    size: np.ndarray
    pre: np.ndarray
    post: np.ndarray
    directed: np.ndarray
    confidence: np.ndarray
    contact_area: np.ndarray
    pre_place: np.ndarray
    post_place: np.ndarray

    def __len__(self) -> int:
        return len(self.synapse)

    @property
    def resolved(self) -> np.ndarray:
        """Whether a row names two neurons."""
        return (self.pre != 0) & (self.post != 0)

    @property
    def sites(self) -> np.ndarray:
        """(m, 2, 3): pre- and postsynaptic sites of the resolved rows, as metrics.synaptic_partners takes them."""
        return np.stack([self.pre_place, self.post_place], axis=1)[self.resolved]


def partners(labels: Any, synapses: Any, kind: str = "polarity", *, direction: Any = None,
             resolution: Sequence[float] | None = None, share: float = SHARE,
             block: Sequence[int] | None = None) -> Partners:
    """Finds the neurons that synapses join, from labels of neurons and of synapses on one grid.

    Each voxel of a synapse votes for the neuron under it; label 0 has no vote. The ids 2**64 - 1 and 2**64 - 2, by
    which CREMI marks background and unknown, count as 0.

    With kind "polarity", synapse n has the ids 2n - 1, presynaptic, and 2n, postsynaptic. The presynaptic neuron has
    most votes of the presynaptic side (of equals the one with fewer votes of the other side, then the smaller id). The
    postsynaptic ones are those of the other neurons on the postsynaptic side that have the most votes (of equals the
    smaller id) or at least `share` of the votes there that are not for the presynaptic neuron. A row whose side has no
    such neuron has 0 in its place. The confidence is the share of pre in the votes of its side, times that of post.

    With kind "clefts" every id is a cleft. Each of its voxels votes for the neurons under it and under its six
    neighbours, and the two with most votes face each other. The confidence is (2 a)(2 b) of their shares a and b.

    Args:
        labels: the neurons (z, y, x): a path, a volume or an array.
        synapses: the synapses on the same grid.
        kind: "polarity" (the default) or "clefts".
        direction: a volume (2 or more, z, y, x) of pre and post for clefts: the neuron where votes have the larger mean
            of pre - post is presynaptic. Floating point is rounded to 2**-16 for it. The default None leaves it
            unknown.
        resolution: the size of a voxel in nm, z, y, x; by default what the volumes say.
        share: the least share of the votes of a postsynaptic neuron, above 0 and up to 1 (default 0.15).
        block: the voxels z, y, x that are read at once; chosen by itself by default. The result does not depend on it.

    Returns:
        The `Partners`.

    Raises:
        InputError: the volumes do not fit, or nothing says the resolution.

    Cost:
        It takes 35 ns of one core and 17 bytes per voxel. Volumes on disk are read block by block, so that memory does
        not grow with them.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> labels = np.array([[[7, 7, 7, 9, 9, 9]]])
        >>> synapses = np.array([[[0, 0, 1, 2, 0, 0]]])  # synapse 1: voxels 1 are presynaptic, voxels 2 postsynaptic
        >>> found = segment.partners(labels, synapses, resolution=(40, 8, 8))
        >>> found.pre, found.post, found.confidence
        (array([7], dtype=uint64), array([9], dtype=uint64), array([1.]))
    """
    reader = make_reader(labels, synapses, kind, direction, resolution)
    if not within(share, 0, 1) or share == 0:
        raise InputError(f"share must be above 0 and at most 1; got {share}")
    plan = list(cut(reader, block))
    held: list[Votes] = []
    busy = []
    for box in plan:
        votes = reader.votes(box)
        if len(votes.synapses):
            busy.append(box)
            held.append(votes)
            if sum(map(len, held[1:])) > max(1 << 16, len(held[0])):
                held = [pooled(held)]
    return resolve(pooled(held), reader, busy, share)


def make_reader(labels: Any, synapses: Any, kind: str, direction: Any,
                resolution: Sequence[float] | None) -> Reader:
    """What reads blocks of these volumes, if they lie on one grid."""
    if kind not in KINDS:
        raise InputError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if direction is not None and kind == "polarity":
        raise InputError("direction belongs to kind 'clefts'; polarity instances have two sides already")
    labels, synapses = open_volume(labels, kind="labels"), open_volume(synapses, kind="labels")
    labels = on_grid_of(labels, synapses)
    if synapses.dtype == bool:
        raise InputError(f"{synapses.name} is a mask, but every synapse needs an id of its own: number its pieces with "
                         "segment.connected_components")
    sizes = _same_grid(labels, synapses, "the synapses", resolution)
    if direction is not None:
        direction = open_volume(direction)
        if direction.ndim != 4 or direction.shape[0] < 2 or (
                direction.dtype.kind != "f" and direction.dtype != np.uint8):
            raise InputError(f"the direction must be a prediction of the channels pre, post (and more), floating point "
                             f"or uint8; {direction.name} is {direction.shape} {direction.dtype}")
        _same_grid(labels, direction, "the direction", resolution)
    return Reader(labels, synapses, kind, direction, np.array(sizes, np.float64))


def on_grid_of(labels: Volume, other: Volume) -> Volume:
    """The labels with resolution and offset of another volume of the same voxels, where they say none themselves."""
    if labels.resolution is not None:
        return labels
    return replace(labels, resolution=other.resolution, offset=other.offset)


def _same_grid(labels: Volume, other: Volume, what: str, resolution: Sequence[float] | None) -> Sequence[float]:
    """The resolution of two volumes that cover the same voxels."""
    if other.shape[-3:] != labels.shape:
        raise InputError(f"the labels {labels.name} have the shape {labels.shape} and {what} {other.name} "
                         f"{other.shape[-3:]}; they must cover the same voxels: cut the larger one, or resample one")
    known = [volume.resolution for volume in (labels, other) if volume.resolution]
    if resolution is not None:
        if len(resolution) != 3 or not all(within(size, 1e-6, 1e12) for size in resolution):
            raise InputError(f"resolution must be three sizes above 0 in nm, z y x; got {resolution}")
        known = [tuple(resolution)]
    if not known:
        raise InputError(f"places in nm need the size of a voxel, but neither {labels.name} nor {other.name} says its "
                         "resolution; give it in nm, z y x (--resolution Z Y X)")
    if not np.allclose(known[0], known[-1], rtol=1e-3):
        raise InputError(f"the labels {labels.name} have voxels of {known[0]} nm and {what} {other.name} of {known[1]} "
                         "nm; resample one of them")
    if labels.resolution and other.resolution and not np.allclose(labels.offset, other.offset, rtol=0,
                                                                   atol=0.01 * min(known[0])):
        raise InputError(f"the labels {labels.name} begin at {labels.offset} nm and {what} {other.name} at "
                         f"{other.offset} nm; they must cover the same voxels: cut both to what they share")
    return known[0]


def cut(reader: Reader, block: Sequence[int] | None) -> Iterator[tuple[slice, ...]]:
    """The boxes of a volume: of that many voxels, or of whole chunks."""
    if block is None:
        chunks = [None if volume.chunks is None else volume.chunks[-3:] for volume in (reader.labels, reader.synapses)]
        return blocks(reader.labels.shape, *chunks, BLOCK_VOXELS)
    if len(block) != 3 or min(block) < 1:
        raise InputError(f"block must be three sizes of at least one voxel, z y x; got {block}")
    return boxes(reader.labels.shape, block)


# ---- from votes to rows


def resolve(votes: Votes, reader: Reader, busy: Sequence[tuple[slice, ...]], share: float) -> Partners:
    """The rows that the votes of a whole volume decide; the blocks that hold synapses are read again for the sites."""
    choose = _by_sides if reader.kind == "polarity" else _by_faces
    place_of, pre, post, pre_row, post_row, directed, confidence = choose(votes, share)
    at = votes.synapses["number"][place_of]
    wanted = np.unique(np.concatenate([pre_row, post_row]))
    wanted = wanted[wanted >= 0]
    sites = np.full((len(votes.votes) + 1, 3), np.nan)  # the last one is that of row -1
    if len(wanted):
        sites[wanted] = _nearest(reader, votes.votes[wanted], busy)
    sums = np.stack([votes.synapses[name][place_of] for name in "zyx"], 1).reshape(-1, 3)
    size = votes.synapses["voxels"][place_of]
    middle = sums / np.maximum(size, 1)[:, None]
    order = np.lexsort((np.where(post_row >= 0, -votes.votes["votes"][post_row], 1) if len(votes.votes) else post, at))
    offset = np.array(reader.labels.offset)
    found = Partners(at, middle * reader.resolution + offset, size, pre, post, directed, confidence,
                     _areas(votes, at, pre, post, reader.resolution), sites[pre_row] * reader.resolution + offset,
                     sites[post_row] * reader.resolution + offset)
    return Partners(*(values[order] for values in vars(found).values()))


def _by_sides(table: Votes, share: float) -> tuple[np.ndarray, ...]:
    """What the votes of two sides decide: for every row the place of its synapse, pre, post, their places among the
    votes, and the rest."""
    votes = table.votes
    synapse = np.searchsorted(table.synapses["number"], votes["number"])
    count = len(table.synapses)
    is_pre, is_post = (votes["side"] == side for side in (0, 1))
    totals = [np.bincount(synapse[side], votes["votes"][side], count) for side in (is_pre, is_post)]
    other = np.zeros(len(votes), np.int64)  # votes of the postsynaptic side for the neuron of a presynaptic row
    first, second = np.flatnonzero(is_pre), np.flatnonzero(is_post)
    same = ranked(votes[["number", "label"]], first, second)
    other[first[same >= 0]] = votes["votes"][second[same[same >= 0]]]
    pre_row = np.full(count, -1)
    order = first[np.lexsort((votes["label"][first], other[first], -votes["votes"][first], synapse[first]))]
    best = order[runs_of(synapse[order])]
    pre_row[synapse[best]] = best
    pre = np.where(pre_row >= 0, votes["label"][pre_row], np.uint64(0)) if len(votes) else np.zeros(count, np.uint64)
    rest = second[votes["label"][second] != pre[synapse[second]]]
    order = rest[np.lexsort((votes["label"][rest], -votes["votes"][rest], synapse[rest]))]
    without_pre = np.bincount(synapse[order], votes["votes"][order], count)
    leads = np.zeros(len(order), bool)
    leads[runs_of(synapse[order])] = True
    post_row = order[leads | (votes["votes"][order] >= share * without_pre[synapse[order]])]
    alone = np.setdiff1d(np.arange(count), synapse[post_row])  # synapses without anybody on their postsynaptic side
    place_of = np.concatenate([synapse[post_row], alone])
    post_row = np.concatenate([post_row, np.full(len(alone), -1)])
    pre_row = pre_row[place_of]
    post = np.where(post_row >= 0, votes["label"][post_row], np.uint64(0)) if len(votes) else np.zeros(count, np.uint64)
    confidence = np.ones(len(place_of))
    for rows, total in zip((pre_row, post_row), totals):
        there = rows >= 0
        confidence[~there] = 0
        confidence[there] *= votes["votes"][rows[there]] / total[place_of[there]]
    return place_of, pre[place_of], post, pre_row, post_row, np.ones(len(place_of), bool), confidence


def _by_faces(table: Votes, share: float) -> tuple[np.ndarray, ...]:
    """What the votes of clefts decide, in the same columns: the two neurons with most votes."""
    votes, count = table.votes, len(table.synapses)
    synapse = np.searchsorted(table.synapses["number"], votes["number"])
    total = np.bincount(synapse, votes["votes"], count)
    order = np.lexsort((votes["label"], -votes["votes"], synapse))
    starts = runs_of(synapse[order])
    rows = np.full((2, count), -1)
    rows[0, synapse[order[starts]]] = order[starts]
    second = starts + 1
    second = second[(second < len(order)) & (synapse[order[np.minimum(second, len(order) - 1)]]
                                             == synapse[order[starts]])] if len(order) else starts
    rows[1, synapse[order[second]]] = order[second]
    padded = np.append(votes, np.zeros(1, votes.dtype))  # row -1 is that of nobody
    number, lead, label = (padded[name][rows] for name in ("votes", "lead", "label"))
    mean = lead / np.maximum(number, 1)
    both = (rows >= 0).all(0)
    directed = both & (mean[0] != mean[1]) & table.directed
    swap = np.where(directed, mean[1] > mean[0], both & (label[1] < label[0]))
    rows[:, swap] = rows[::-1, swap]
    shares = number / np.maximum(total, 1)
    return (np.arange(count), *padded["label"][rows], *rows, directed, 4 * shares[0] * shares[1])


def _areas(table: Votes, at: np.ndarray, pre: np.ndarray, post: np.ndarray, resolution: np.ndarray) -> np.ndarray:
    """nm2 of the faces between pre and post of every row."""
    wanted = np.zeros(len(at), [("number", "u8"), ("low", "u8"), ("high", "u8")])
    wanted["number"], wanted["low"], wanted["high"] = at, np.minimum(pre, post), np.maximum(pre, post)
    together = np.concatenate([table.faces[["number", "low", "high"]].astype(wanted.dtype), wanted])
    known = len(table.faces)
    place = ranked(together, np.arange(known, len(together)), np.arange(known))
    faces = np.stack([table.faces[name] for name in "zyx"], 1).reshape(-1, 3)
    areas = np.append(faces @ (resolution.prod() / resolution), 0.0)  # the last is that of a pair that does not touch
    return areas[place]


def _nearest(reader: Reader, wanted: np.ndarray, busy: Sequence[tuple[slice, ...]]) -> np.ndarray:
    """For each row of votes the voxel among them that is nearest to their mean (of equals the first), z y x."""
    mean = np.stack([wanted[name] for name in "zyx"], 1) / wanted["votes"][:, None]
    best = np.full((len(wanted), 4), np.inf)  # squared distance, z, y, x
    for box in busy:
        found: Voxels = reader.voxels(box)
        here = np.flatnonzero(np.isin(wanted["number"], np.unique(found.keys["number"])))  # rows of synapses in the box
        keys = np.concatenate([wanted[here][["number", "side", "label"]].astype(found.keys.dtype), found.keys])
        row = ranked(keys, np.arange(len(here), len(keys)), np.arange(len(here)))
        kept = row >= 0
        row, places = row[kept], found.places[kept]
        away = (((places - mean[here][row]) * reader.resolution) ** 2).sum(1)
        entries = np.concatenate([best[here], np.column_stack([away, places])])
        rows = np.concatenate([np.arange(len(here)), row])
        order = np.lexsort((*entries.T[::-1], rows))
        best[here] = entries[order[runs_of(rows[order])]]
    return best[:, 1:]
