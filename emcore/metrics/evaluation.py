"""The scores of evaluate.py: one table, SCORES, and the case that its functions look at.

A new score is a function, which takes a Case and gives rows, and an entry of SCORES. Its name is then one of
evaluate.scores, and its numbers are in scores.json and in the page.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcore import metrics, segment
from emcore.errors import InputError
from emcore.memory import TooLittleMemory
from emcore.metrics import synapses
from emcore.metrics.foreground import true_foreground, unknown
from emcore.metrics.partitions import (
    CONVENTIONS,
    SquareSums,
    ignored_truth,
    rand_of_sums,
    scores_by,
    square_sums,
)
from emcore.metrics.placement import Borders, Shared, placed, whole_table
from emcore.metrics.tables import Contingency
from emcore.segment.affinities import above, stored_table
from emcore.segment.storage import Parts, stored_parts
from emcore.settings.data import Data
from emcore.settings.evaluate import Evaluate
from emcore.volumes import Volume, open_volume

POINTS = 400  # of a curve that is stored
MEMBRANE_THRESHOLDS = tuple(step / 10 for step in range(11))  # of ISBI 2012
PartsOf = Callable[[Path], Parts | None]  # fragments and merges of a labels file; None where it has none
Row = dict[str, Any]  # score, value and convention, and for neurons what was left out


class Score(NamedTuple):
    """An entry of SCORES."""

    # neurons: labels, by evaluate.convention and without the voxels near borders; labels; voxels: labels where there
    # are any, else the prediction; prediction: labels only where the prediction is gone
    looks_at: str
    rows: Callable[["Case"], list[Row]]
    lower: tuple[str, ...] = ()  # its numbers of which lower ones are better
    higher: tuple[str, ...] = ()
    detects: bool = False  # whether it counts what is missed and invented
    # the rows of all volumes together from those of each; without it their means are all there is
    pool: Callable[[Evaluate, Sequence[dict[str, Any]]], list[Row]] | None = None


class Case:
    """A volume to score: its truth and what was made of it, each read once and only where a score looks at it."""

    def __init__(self, settings: Evaluate, truth: Volume, labels: Path | None, prediction: Path, data: Data,
                 mask: str | None, parts_of: PartsOf = stored_parts):
        self.settings, self.truth, self.data = settings, truth, data
        self.labels_file, self.prediction_file = labels, prediction
        self.mask_file, self.parts_of = mask, parts_of
        self.notes: list[str] = []
        self.found: dict[str, Any] = {}  # what stands beside the rows in scores.json

    @cached_property
    def labels(self) -> Volume:
        return open_volume(self.labels_file, "labels")

    @cached_property
    def place(self) -> Shared:
        return placed(self.labels, self.truth, self.settings.crop)

    @cached_property
    def true_labels(self) -> np.ndarray:
        return self.truth[self.place.theirs]

    @cached_property
    def our_labels(self) -> np.ndarray:
        return self.labels[self.place.ours]

    def neurons(self, ours: Volume) -> Contingency:
        """The table that neurons are scored by: near borders nothing counts, nor where the convention says so."""
        usable = None if self.mask_file is None else open_volume(self.mask_file)
        place = placed(ours, self.truth, self.settings.crop)
        table = whole_table(ours, self.truth, place, borders(self.settings), usable)
        ignored = *ignored_truth(self.settings.convention), *self.data.background, *self.data.ignore
        return table.ignoring(tuple(dict.fromkeys(ignored)))

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
        inside = true_foreground(self.true_labels, self.data.background)
        objects = (segment.connected_components(inside, self.settings.pieces) if self.settings.pieces
                   else np.where(inside, self.true_labels, 0))
        return metrics.contingency(objects, self.our_labels, (), (), unknown(self.true_labels, self.data.ignore))

    def channel(self, ours: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """(where the truth is, where nobody knows, values, what their codes stand for) of the channel that is scored.

        Labels have the value 1 where there is one.
        """
        place, channel = placed(ours, self.truth, self.settings.crop), self.settings.channel
        if ours.ndim > 3 and not 0 <= channel < ours.shape[0]:
            raise InputError(f"evaluate.channel must be one of the {ours.shape[0]} channels of {ours.name}; "
                             f"got {channel}")
        theirs = self.truth[place.theirs]
        values = ours[place.ours if ours.ndim == 3 else (channel, *place.ours)]
        nobody = unknown(theirs, self.data.ignore)
        real = true_foreground(theirs, self.data.background) & ~nobody
        if values.dtype.kind in "uib" and values.dtype != np.uint8:
            return real, nobody, (values > 0).astype(np.float32), None
        return real, nobody, values, stored_table(ours)

    @cached_property
    def voxels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(truth, ours, where nobody knows) of every voxel, as masks; of labels where there are any."""
        ours = self.labels if self.labels_file is not None else open_volume(self.prediction_file)
        real, nobody, values, codes = self.channel(ours)
        return real, above(values, self.settings.threshold, codes) & ~nobody, nobody


def borders(settings: Evaluate) -> Borders:
    return Borders(settings.border_nm or None, settings.border_xy, settings.border_z)


def row(score: str, value: float, convention: str) -> Row:
    return {"score": score, "value": finite(value), "convention": convention}


def finite(value: float) -> float | None:
    """A plain number; JSON has no other."""
    value = float(value)
    return value if math.isfinite(value) else None


# ---- scores of neurons


def voi_rows(case: Case) -> list[Row]:
    """VOI; the scores that belong to one convention come with it, unless those of Rand follow."""
    alone = "rand" not in case.settings.scores
    return [entry for entry in case.neuron_rows
            if entry["score"].startswith("voi") or (alone and not entry["score"].startswith("rand"))]


def rand_rows(case: Case) -> list[Row]:
    return [entry for entry in case.neuron_rows if not entry["score"].startswith("voi")]


def index_rows(case: Case) -> list[Row]:
    rule = f"of the table of {case.settings.convention}"
    return [row(name, value, rule) for name, value in metrics.overlap_indices(case.table)._asdict().items()]


def curve(case: Case) -> list[Row]:
    """No row: VOI and Rand error at every merge, the best thresholds, and the one that was used, beside the rows."""
    stored = case.parts_of(case.labels_file)
    if stored is None:
        return []
    try:
        convention, tree = case.settings.convention, stored.tree()
        whole = metrics.fold(case.neurons(stored.fragments()), tree)
    except TooLittleMemory as error:
        case.notes.append(f"there is no curve over the thresholds: {error}")
        return []
    states = np.unique(np.linspace(0, len(tree.height), POINTS).astype(int))
    chosen = case.labels.attrs.get("decode")
    best = {name: whole.best(name)._asdict() for name in ("voi", convention)}
    numbers = {"threshold": np.append(0.0, tree.height)[states], "voi_split": whole.voi.split[states],
               "voi_merge": whole.voi.merge[states], "rand_error": whole.rand(convention).error[states]}
    case.found["curve"] = {
        **{name: [finite(value) for value in values] for name, values in numbers.items()},
        "convention": convention,
        "chosen": chosen["threshold"] if isinstance(chosen, dict) and "threshold" in chosen else None,
        "best": {name: {key: finite(value) for key, value in entry.items()} for name, entry in best.items()},
    }
    return []


def pooled_voi(settings: Evaluate, found: Sequence[dict[str, Any]]) -> list[Row]:
    """Entropies of different volumes add up: the mean over all voxels."""
    rows = []
    for name in ("voi_split", "voi_merge"):
        values = [next(entry["value"] for entry in one["scores"] if entry["score"] == name) for one in found]
        voxels = [one["counts"]["voxels"] for one in found]
        if None not in values:
            mean = sum(value * n for value, n in zip(values, voxels)) / sum(voxels)
            rows.append(row(name, mean, pooled_rule(settings, found)))
    return rows


def pooled_rand(settings: Evaluate, found: Sequence[dict[str, Any]]) -> list[Row]:
    """Objects of different volumes are different objects: sums of squares add up."""
    counted = [one["counts"] for one in found]
    if settings.convention not in ("cremi", "snemi3d", "isbi"):  # label 0 is an object of each volume
        counted = [{**counts, "pairs": counts["pairs"] + counts["background_pairs"], "background_pairs": 0,
                    "labels": counts["labels"] + counts["background"] ** 2, "background": 0} for counts in counted]
    sums = SquareSums(*(sum(counts[name] for counts in counted) for name in SquareSums._fields))
    return [row(f"rand_{name}", value, pooled_rule(settings, found))
            for name, value in rand_of_sums(sums, settings.convention)._asdict().items()]


def pooled_rule(settings: Evaluate, found: Sequence[dict[str, Any]]) -> str:
    return f"{settings.convention}, voxels of {len(found)} volumes pooled"


# ---- scores of objects


def instance_rows(case: Case) -> list[Row]:
    matched, rule = metrics.match_instances(case.objects, case.settings.instance_iou), (
        f"IoU >= {case.settings.instance_iou:g}, one to one")
    return [row(f"instance_{name}", getattr(matched, name), rule)
            for name in ("f1", "precision", "recall", "accuracy", "panoptic_quality")]


def average_precision_rows(case: Case) -> list[Row]:
    found, rule = metrics.average_precision(case.objects), "the larger predicted object first"
    return [row("average_precision", found.mean, f"mean over IoU 0.5 to 0.95, {rule}"),
            row("average_precision_50", found.at_50, f"IoU >= 0.5, {rule}"),
            row("average_precision_75", found.at_75, f"IoU >= 0.75, {rule}")]


def synapse_rows(case: Case) -> list[Row]:
    """F1, precision and recall of synapses with ids 2n - 1 and 2n, by both conventions."""
    margin, sections = case.settings.synapse_margin, len(case.true_labels)
    if margin < 0 or 2 * margin >= sections:
        raise InputError(f"evaluate.synapse_margin must leave some of the {sections} sections; got {margin}")
    sides = [without_small(side[margin:sections - margin], case.settings.synapse_size)
             for side in (case.true_labels, case.our_labels)]
    table = metrics.contingency(*sides, ignore_truth=())
    rows = []
    for name in synapses.CONVENTIONS:
        scores = metrics.synapse_f1(table, name, case.settings.synapse_iou)
        rule = f"{name}, IoU > {case.settings.synapse_iou:g}"
        start = "synapse_sides" if name == "sides" else "synapse"
        rows += [row(f"{start}_{field}", getattr(scores, field), rule) for field in ("f1", "precision", "recall")]
    return rows


def without_small(labels: np.ndarray, size: int) -> np.ndarray:
    """labels without the synapses, both sides together, below `size` voxels."""
    if size <= 1:
        return labels
    places = np.flatnonzero(labels)
    ids = labels.reshape(-1)[places]
    _, place, counts = np.unique((ids - 1) // 2, return_inverse=True, return_counts=True)
    out = np.zeros(labels.size, labels.dtype)
    keep = counts[place] >= size
    out[places[keep]] = ids[keep]
    return out.reshape(labels.shape)


# ---- scores of voxels


def membrane_rows(case: Case) -> list[Row]:
    """ISBI 2012's V_Rand and V_Info, each at the best of the thresholds 0, 0.1, ... 1, and where that is.

    Values say how likely a voxel is inside of a cell. Objects are 4-connected in their section; predicted ones grow
    evenly until they meet, so that membranes have no width, as the contest thins them (to lines of one pixel, here of
    none).
    """
    if case.prediction_file.exists() or case.labels_file is None:
        ours = open_volume(case.prediction_file)
    else:
        ours = case.labels
        case.notes.append(f"there is no {case.prediction_file.name}: the scores of membranes are of the labels")
    real, _, values, codes = case.channel(ours)
    sections = [segment.connected_components(section, 4)[None] for section in real]
    tried = []
    for threshold in MEMBRANE_THRESHOLDS:
        inside = above(values, threshold, codes)
        grown = [segment.flood(np.zeros(section.shape, np.float32), segment.connected_components(section, 4))[None]
                 for section in inside]
        scores = [metrics.foreground_restricted(metrics.contingency(truth, labels))
                  for truth, labels in zip(sections, grown)]
        tried.append([float(np.mean([getattr(score, name) for score in scores])) for name in ("v_rand", "v_info")])
    rows = []
    for name, along in zip(("v_rand", "v_info"), np.transpose(tried)):
        best = int(along.argmax())
        rule = "isbi 2012, mean of sections, at its best threshold"
        rows += [row(name, along[best], rule), row(f"{name}_threshold", MEMBRANE_THRESHOLDS[best], rule)]
    return rows


def mask_rows(name: str, case: Case) -> list[Row]:
    """A score of binary.py."""
    real, inside, nobody = case.voxels
    rule = ("label > 0 on both sides" if case.labels_file is not None else
            f"label > 0 against prediction > {case.settings.threshold:g}")
    return [row(name, getattr(metrics, name)(real, inside, mask=nobody), rule)]


def cleft_rows(case: Case) -> list[Row]:
    real, inside, _ = case.voxels
    ours = case.labels if case.labels_file is not None else open_volume(case.prediction_file)
    resolution = case.truth.resolution or ours.resolution or case.data.resolution or (1.0, 1.0, 1.0)
    found = metrics.clefts(real.view(np.uint8), inside.view(np.uint8), resolution, case.settings.cleft_nm)
    return [row(name, value, f"cremi, {case.settings.cleft_nm:g} nm") for name, value in found.named().items()]


# ---- the table

SCORES = {
    "voi": Score("neurons", voi_rows, lower=("voi_split", "voi_merge"), pool=pooled_voi),
    "rand": Score("neurons", rand_rows, lower=("rand_error", "cremi_score"), pool=pooled_rand,
                  higher=("rand_precision", "rand_recall", "v_rand", "v_info", "info_merge", "info_split")),
    "indices": Score("neurons", index_rows, lower=("nvi_split", "nvi_merge", "nid"),
                     higher=("rand_index", "adjusted_rand", "fowlkes_mallows")),
    "curve": Score("neurons", curve),
    "instances": Score("labels", instance_rows, detects=True,
                       higher=("instance_f1", "instance_precision", "instance_recall", "instance_accuracy",
                               "instance_panoptic_quality")),
    "average_precision": Score("labels", average_precision_rows, detects=True,
                               higher=("average_precision", "average_precision_50", "average_precision_75")),
    "synapses": Score("labels", synapse_rows, detects=True,
                      higher=("synapse_f1", "synapse_precision", "synapse_recall", "synapse_sides_f1",
                              "synapse_sides_precision", "synapse_sides_recall")),
    "membranes": Score("prediction", membrane_rows, higher=("v_rand", "v_info")),
    "jaccard": Score("voxels", partial(mask_rows, "jaccard"), higher=("jaccard",), detects=True),
    "dice": Score("voxels", partial(mask_rows, "dice"), higher=("dice",), detects=True),
    "accuracy": Score("voxels", partial(mask_rows, "accuracy"), higher=("accuracy",), detects=True),
    "clefts": Score("voxels", cleft_rows, detects=True, higher=("cleft_f1", "cleft_f1_of_rates"),
                    lower=("cleft_score", "cleft_adgt", "cleft_adf", "cleft_false_positives",
                           "cleft_false_negatives")),
}
BETTER = ({number: "lower" for score in SCORES.values() for number in score.lower}
          | {number: "higher" for score in SCORES.values() for number in score.higher})


def check_evaluate(settings: Evaluate) -> None:
    """Refuses names that are in no table of scores, before any work."""
    if strange := [name for name in settings.scores if name not in SCORES]:
        raise InputError(f"evaluate.scores must be names of {', '.join(SCORES)}; got {strange[0]!r}")
    if settings.convention not in CONVENTIONS:
        raise InputError(f"evaluate.convention must be one of {', '.join(CONVENTIONS)}; got {settings.convention!r}")


def score_volume(settings: Evaluate, truth: str | Path | Volume, labels: Path | None, prediction: Path,
                 data: Data | None = None, mask: str | None = None,
                 parts_of: PartsOf = stored_parts) -> dict[str, Any]:
    """{"scores": rows with their convention, "notes": what was left out, "curve" and "counts" where asked for}.

    labels: the file that decode wrote; data: whose ids mean background and unknown; mask: 0 where nothing is scored;
    parts_of: what finds the fragments and merges of labels.
    """
    check_evaluate(settings)
    truth, rows = open_volume(truth, kind="labels"), []
    case = Case(settings, truth, labels, prediction, data or Data(), mask, parts_of)
    wanted = {name: score for name, score in SCORES.items() if name in settings.scores}
    lacking = [name for name, score in wanted.items() if labels is None and score.looks_at in ("neurons", "labels")]
    if lacking:
        case.notes.append(f"{', '.join(lacking)} need labels, and there are none: set decode.kind and run infer.py")
    undefined = []
    for name, score in wanted.items():
        if name not in lacking:
            found = score.rows(case)
            rows += found
            undefined += [entry["score"] for entry in found if entry["value"] is None and score.looks_at != "neurons"]
    case.notes += [f"{name} is undefined here: nothing to measure, or nothing to measure it to" for name in undefined]
    return {"scores": rows, "notes": case.notes, **case.found}


def pooled(settings: Evaluate, found: dict[str, Any]) -> dict[str, Any]:
    """Scores of all volumes together: of their voxels where a score can, and the mean over volumes of every one."""
    rows, volumes = [], list(found.values())
    values: dict[tuple[str, str], list] = {}
    for volume in volumes:
        for entry in volume["scores"]:
            values.setdefault((entry["score"], entry["convention"]), []).append(entry["value"])
    for name, score in SCORES.items():
        if score.pool and name in settings.scores and all("counts" in volume for volume in volumes):
            rows += score.pool(settings, volumes)
    for (name, convention), numbers in values.items():
        if len(numbers) == len(found):
            mean = math.nan if None in numbers else sum(numbers) / len(numbers)
            rows.append(row(name, mean, f"{convention}, mean of {len(found)} volumes"))
    return {"scores": rows, "notes": []}
