"""The work of a tune: threshold curves of one watershed for several merge scores, or one full decoding."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from emcore import metrics, segment
from emcore.decode.affinities import calibrate, labels_of, read_affinities, segmentation_of
from emcore.decode.tune_space import Thresholds
from emcore.errors import InputError
from emcore.metrics.curves import ThresholdCurve
from emcore.metrics.nodes import RUN_OBJECTIVES, Nodes, nodes_in
from emcore.metrics.partitions import ALONG_CURVES, OBJECTIVES, Agreement, agreement, ignored_truth
from emcore.metrics.placement import Shared, overlap
from emcore.metrics.tables import Contingency
from emcore.segment import Affinities, MergeTree
from emcore.segment.statistics import parse_statistic
from emcore.settings.data import Data
from emcore.settings.decode import AffinityDecode
from emcore.volumes import Volume, open_volume

HASHED_BYTES = 64 << 20  # so much of a volume is hashed at a time
PER_FRAGMENT = "voxels_per_fragment"  # in tune.jsonl and tune.csv
LEFT_OUT = "left_out"  # in tune.jsonl: what a volume takes no part in choosing
NET = ", net "  # between the name of a volume and the number of the net, where there are several
NEAR_BORDERS = "_with_borders"  # names of scores to which voxels near borders count, beside those without them
MOST_KEPT = 64  # volumes whose skeletons are kept

# objective -> threshold, its scores, those of every volume, and how many voxels a fragment has
Found = dict[str, dict[str, Any]]


class Scored(NamedTuple):
    """A volume that is scored: its name, its prediction, its truth, and which of several nets predicted it."""

    name: str
    prediction: str
    truth: str
    net: int = 1


class Runs(NamedTuple):
    """Where the skeletons of a tune by run length come from: a file, or the truth without some of its ids."""

    file: str | None
    data: Data


@dataclass(frozen=True)
class Task:
    """What all stages of a tune share."""

    sources: tuple[Scored, ...]
    convention: str  # the convention of adapted_rand
    border_nm: float
    resolution: tuple[float, float, float] | None  # where the files do not say it
    runs: Runs | None = None  # None where run lengths are not scored

    @property
    def objectives(self) -> tuple[str, ...]:
        return OBJECTIVES if self.runs is None else (*OBJECTIVES, *RUN_OBJECTIVES)


class Truth(NamedTuple):
    """What labels are compared with, where it lies in the prediction, and the voxels that are left out."""

    labels: np.ndarray
    place: Shared
    mask: np.ndarray | None


def curve_stage(task: Task, point: AffinityDecode, statistics: Sequence[str], thresholds: Thresholds) -> list[Found]:
    """What each merge statistic finds at its best thresholds, before anything is done after the cut.

    One watershed and one graph a volume serve all statistics; one tree of each serves every threshold.
    """
    curves: dict[str, list[ThresholdCurve]] = {statistic: [] for statistic in statistics}
    # curves that count voxels near borders
    plain: dict[str, list[ThresholdCurve]] = {statistic: [] for statistic in statistics}
    lost: dict[str, list[dict[str, Any]]] = {statistic: [] for statistic in statistics}
    demanding = max(statistics, key=lambda statistic: parse_statistic(statistic).every_contact)
    counts = []
    for source in task.sources:
        segmentation = segmentation_of(affinities(source, point), replace(point, statistic=demanding))
        counts.append(count(segmentation.fragments))
        fragments, graph = segmentation.fragments, segmentation.graph
        del segmentation
        table = compared(task, source, fragments)
        every = compared(task, source, fragments, near_borders=True) if task.border_nm else None
        under = fragments_under(task, source, fragments)
        for statistic in statistics:
            tree = segment.agglomerate(graph, statistic, ties=point.ties)
            curves[statistic].append(metrics.fold(table, tree))
            plain[statistic] += [metrics.fold(every, tree)] if every is not None else []
            lost[statistic].append(lost_along(task, source, under, tree))
    return [best_thresholds(task, curves[statistic], thresholds, per_fragment(counts), plain[statistic],
                            lost[statistic]) for statistic in statistics]


def decoded_stage(task: Task, point: AffinityDecode) -> list[Found]:
    """The scores of one full decoding, with everything that happens after the cut."""
    volumes, counts = {}, []
    for source in task.sources:
        segmentation = segmentation_of(affinities(source, point), point)
        counts.append(count(segmentation.fragments))
        labels = labels_of(segmentation, point)
        scores = named_scores(agreement(compared(task, source, labels), task.convention))
        scores |= lost_by_labels(task, source, labels)
        volumes[source.name] = {name: float(value) for name, value in scores.items()}
    along = [{name: np.array([value]) for name, value in volumes[source.name].items()} for source in task.sources]
    tried = Tried(np.array([point.threshold]), True, [np.zeros(1, np.int64)] * len(along), along)
    entry = {"threshold": point.threshold, "scores": mean_scores(volumes), "volumes": volumes,
             PER_FRAGMENT: per_fragment(counts)}
    return [{objective: entry | {LEFT_OUT: left_out(task, tried, objective)} for objective in task.objectives}]


class Tried(NamedTuple):
    """Thresholds that are tried, and the scores of every volume at them."""

    thresholds: np.ndarray  # rising
    listed: bool  # whether they are the only ones; else all those above the one before do the same merges
    states: list[np.ndarray]  # one entry a volume: where in its scores each threshold is
    along: list[dict[str, Any]]  # one entry a volume

    def lowest(self, objective: str, volumes: Sequence[int]) -> tuple[int, float, float]:
        """(place, threshold, mean) of the lowest mean of an objective over some volumes, the first of equals."""
        mean = sum(self.along[number][objective][self.states[number]] for number in volumes) / len(volumes)
        best = 0 if np.isnan(mean).all() else int(np.nanargmin(mean))
        threshold = float(self.thresholds[best])
        if best > 0 and not self.listed:
            middle = (float(self.thresholds[best - 1]) + threshold) / 2
            threshold = middle if middle > self.thresholds[best - 1] else threshold
        return best, threshold, float(mean[best])

    def scores(self, number: int, place: int) -> dict[str, float]:
        """The scores of a volume at a place among the thresholds."""
        return {name: float(values[self.states[number][place]]) for name, values in self.along[number].items()}


def best_thresholds(task: Task, curves: list[ThresholdCurve], thresholds: Thresholds, voxels: float,
                    plain: Sequence[ThresholdCurve] = (), lost: Sequence[dict[str, Any]] = ()) -> Found:
    """By objective: of all thresholds the one where its mean over the volumes is lowest, the first of equals.

    voxels: how many a fragment has, which no threshold changes. plain: curves of the same trees to which voxels near
    borders count. lost: the run length that is lost along them, where that is scored.
    """
    tried = np.array(thresholds.listed)
    if not thresholds.listed:  # the state changes just above a score, so that scores and both ends show every state
        ends = np.array([thresholds.low, thresholds.high])
        inner = np.concatenate([curve.height for curve in curves])
        tried = np.unique(np.concatenate([ends, inner[(inner > ends[0]) & (inner < ends[1])]]))
    states = [np.searchsorted(curve.height, tried, side="left") for curve in curves]
    along = [named_scores(curve.agreement(task.convention)) for curve in curves]
    for scores, more in zip(along, lost):
        scores |= more
    every = Tried(tried, bool(thresholds.listed), states, along)
    near = [named_scores(curve.agreement(task.convention)) for curve in plain]
    found = {}
    for objective in task.objectives:
        best, threshold, _ = every.lowest(objective, range(len(curves)))
        volumes = {source.name: every.scores(number, best) for number, source in enumerate(task.sources)}
        found[objective] = {"threshold": threshold, "scores": mean_scores(volumes), "volumes": volumes,
                            PER_FRAGMENT: voxels, LEFT_OUT: left_out(task, every, objective, near)}
    return found


def left_out(task: Task, tried: Tried, objective: str,
             near: Sequence[dict[str, Any]] = ()) -> dict[str, dict[str, Any]]:
    """By volume: the threshold that the net's other volumes choose, their mean there, what it costs on this volume, and
    the lowest value that this volume would have chosen itself.

    near: the scores of every volume where voxels near borders count, too.
    """
    found = {}
    for number, source in enumerate(task.sources):
        others = [place for place, other in enumerate(task.sources)
                  if other.net == source.net and other.truth != source.truth]
        if not others:
            continue
        best, threshold, mean = tried.lowest(objective, others)
        scores = tried.scores(number, best)
        if near:
            state = tried.states[number][best]
            scores |= {f"{name}{NEAR_BORDERS}": float(near[number][name][state]) for name in ("voi", "adapted_rand")}
        found[source.name] = {"threshold": threshold, "others": mean, "scores": scores,
                              "own": tried.lowest(objective, [number])[2]}
    return found


def count(fragments: np.ndarray) -> tuple[int, int]:
    """(voxels in fragments, fragments), which are numbered from 1 on."""
    return int(np.count_nonzero(fragments)), int(fragments.max(initial=0))


def per_fragment(counts: Sequence[tuple[int, int]]) -> float:
    """How many voxels a fragment has in all volumes; what decoding in blocks costs falls with it (docs/blocks.md)."""
    voxels, fragments = np.sum(counts, axis=0).tolist()
    return voxels / max(1, fragments)


def named_scores(found: Agreement) -> dict[str, Any]:
    return {name: score(found) for name, score in ALONG_CURVES.items()}


def mean_scores(volumes: dict[str, dict[str, float]]) -> dict[str, float]:
    names = next(iter(volumes.values()))
    return {name: float(sum(scores[name] for scores in volumes.values()) / len(volumes)) for name in names}


def compared(task: Task, source: Scored, labels: np.ndarray, near_borders: bool = False) -> Contingency:
    """(labels x truth), with the rule of the convention about ids that do not count; near_borders: those count, too."""
    truth = read_truth(task, source)
    table = metrics.contingency(truth.labels, labels[truth.place.ours], ignored_truth(task.convention), (),
                                None if near_borders else truth.mask)
    if table.voxels == 0:
        raise InputError(f"no voxel of the truth {source.truth} counts: all are unlabelled, ignored or near a border")
    return table


# ---- run length


@lru_cache(maxsize=MOST_KEPT)
def nodes_of(task: Task, source: Scored) -> tuple[Nodes, np.ndarray]:
    """The nodes of a volume's skeletons, and their places in voxels of the prediction."""
    truth, prediction = open_volume(source.truth, kind="labels"), open_volume(source.prediction)
    prediction = replace(prediction, shape=prediction.shape[-3:])
    return nodes_in(prediction, truth, overlap(prediction, truth), task.runs.file, task.runs.data)


def fragments_under(task: Task, source: Scored, fragments: np.ndarray) -> np.ndarray | None:
    """The fragment under every node."""
    return None if task.runs is None else metrics.labels_at(fragments, nodes_of(task, source)[1], (1, 1, 1))


def lost_along(task: Task, source: Scored, under: np.ndarray | None, tree: MergeTree) -> dict[str, np.ndarray]:
    """By objective 1 - NERL after every merge of a tree."""
    if task.runs is None:
        return {}
    nodes, _ = nodes_of(task, source)
    return {name: 1 - metrics.run_length_curve(nodes.skeletons, under, nodes.edges, nodes.lengths, tree, contact_nodes,
                                               convention).normalized
            for name, (contact_nodes, convention, _) in RUN_OBJECTIVES.items()}


def lost_by_labels(task: Task, source: Scored, labels: np.ndarray) -> dict[str, float]:
    """By objective 1 - NERL of labels."""
    if task.runs is None:
        return {}
    nodes, voxels = nodes_of(task, source)
    under = metrics.labels_at(labels, voxels, (1, 1, 1))
    return {name: 1 - metrics.run_length(nodes.skeletons, under, nodes.edges, nodes.lengths, contact_nodes,
                                         convention).normalized
            for name, (contact_nodes, convention, _) in RUN_OBJECTIVES.items()}


# ---- what is read


def affinities(source: Scored, point: AffinityDecode) -> Affinities:
    """Those of one volume, calibrated; what was read is kept for the next stage."""
    return calibrate(stored_affinities(source.prediction, point.channels), point.bias, point.temperature)


@lru_cache(maxsize=1)
def stored_affinities(prediction: str, channels: tuple[int, ...]) -> Affinities:
    affs = read_affinities(open_volume(prediction), AffinityDecode(channels=channels))
    affs.check_values()
    return affs


@lru_cache(maxsize=1)
def read_truth(task: Task, source: Scored) -> Truth:
    prediction, truth = open_volume(source.prediction), open_volume(source.truth, kind="labels")
    place = overlap(replace(prediction, shape=prediction.shape[-3:]), truth)
    labels, mask = truth[...], None
    if task.border_nm:
        resolution = truth.resolution or prediction.resolution or task.resolution
        if resolution is None:
            raise InputError(f"evaluate.border_nm needs the size of a voxel, but neither {truth.name} nor "
                             f"{prediction.name} says its resolution: set data.resolution")
        mask = metrics.neuron_border_mask(labels, resolution, task.border_nm)[place.theirs]
    return Truth(labels[place.theirs], place, mask)


def identity(volume: Volume) -> str:
    """A digest of all that a volume holds and says, read piece by piece."""
    said = [volume.shape, str(volume.dtype), volume.resolution, volume.offset, volume.attrs]
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16)
    planes = max(1, HASHED_BYTES // (volume.shape[-2] * volume.shape[-1] * volume.dtype.itemsize))
    for channel in np.ndindex(volume.shape[:-3]):
        for start in range(0, volume.shape[-3], planes):
            digest.update(np.ascontiguousarray(volume[(*channel, slice(start, start + planes))]))
    return digest.hexdigest()
