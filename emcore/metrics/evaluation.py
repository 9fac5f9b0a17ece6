"""The scores of evaluate.py: one table, SCORES, whose functions look at a Case.

A new score is a function, which takes a Case and gives rows, and an entry of SCORES. Its name is then one of
evaluate.scores, and its numbers are in scores.json and in the page.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcore import metrics, segment
from emcore.errors import InputError
from emcore.memory import TooLittleMemory
from emcore.metrics import synapses
from emcore.metrics.case import Case, PartsOf, Row, codes_of, finite, likely, row
from emcore.metrics.floor import floor_notes
from emcore.metrics.foreground import NOBODY_KNOWS
from emcore.metrics.nodes import run_length_rows
from emcore.metrics.partitions import CONVENTIONS, SquareSums, rand_of_sums
from emcore.metrics.placement import overlap, placed, whole_table
from emcore.metrics.score_points import NEURONS, PARTNERS, PLAIN_NEURONS, read_partners
from emcore.metrics.wiring import renamed
from emcore.segment.affinities import above
from emcore.segment.arrays import within
from emcore.segment.storage import stored_parts
from emcore.segment.votes import plain_ids
from emcore.settings.data import Data
from emcore.settings.evaluate import Evaluate
from emcore.volumes import Volume, is_there, list_datasets, open_path, open_volume, split_reference

POINTS = 400  # A stored curve has no more.
MOST_HEIGHT = 1e30  # No threshold is farther from 0, and heights of every type can tell it from infinity.
MEMBRANE_THRESHOLDS = tuple(step / 10 for step in range(11))  # those of ISBI 2012


class Score(NamedTuple):
    """An entry of SCORES."""

    # neurons: labels, by evaluate.convention and without the voxels near borders; labels; voxels: labels where there
    # are any, else the prediction; prediction: labels only where the prediction is gone
    looks_at: str
    rows: Callable[[Case], list[Row]]
    lower: tuple[str, ...] = ()  # its numbers of which lower ones are better
    higher: tuple[str, ...] = ()
    detects: bool = False  # whether it counts what is missed and invented
    # the rows of all volumes together from those of each; without it their means are all there is
    pool: Callable[[Evaluate, Sequence[dict[str, Any]]], list[Row]] | None = None


# ---- scores of neurons


def voi_rows(case: Case) -> list[Row]:
    """VOI; the scores that belong to one convention come with it, unless those of Rand follow. A note says what the
    truth's own pieces have."""
    case.notes += floor_notes(case)
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
    if tree.complete_below < 1:
        case.notes.append(f"the curve over the thresholds ends at {tree.complete_below:g}, up to which merges were "
                          "found (decode.end)")
    states = np.unique(np.linspace(0, len(tree.height), POINTS).astype(int))
    table = case.labels.attrs.get("decode")
    chosen = table.get("threshold") if isinstance(table, dict) else None
    if isinstance(chosen, bool) or not within(chosen, -MOST_HEIGHT, MOST_HEIGHT):
        chosen = None  # A file of others may hold anything there.
    merges = None if chosen is None else whole.merges_below(chosen)
    best = {name: whole.best(name)._asdict() for name in ("voi", convention)}
    numbers = {"threshold": np.append(0.0, tree.height)[states], "voi_split": whole.voi.split[states],
               "voi_merge": whole.voi.merge[states], "rand_error": whole.rand(convention).error[states]}
    case.found["curve"] = {
        **{name: [finite(value) for value in values] for name, values in numbers.items()},
        "convention": convention,
        "chosen": chosen,
        "used": {} if merges is None else {name: finite(whole.criterion(name)[merges]) for name in best},
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
    rows = []
    for name in synapses.CONVENTIONS:
        scores = metrics.synapse_f1(case.synapses, name, case.settings.synapse_iou)
        rule = f"{name}, IoU > {case.settings.synapse_iou:g}"
        start = "synapse_sides" if name == "sides" else "synapse"
        rows += [row(f"{start}_{field}", getattr(scores, field), rule) for field in ("f1", "precision", "recall")]
    return rows


def partner_rows(case: Case) -> list[Row]:
    """CREMI's F1 of synaptic partners, and edges from 1, 2 and 5 synapses on, of labels of two-sided synapses.

    The truth is a file of CREMI with neurons and annotations, or one of synth, which has both as well. The neurons
    under the synapses are those of the truth, and then those of evaluate.neurons as well, whose ids are matched to
    those of the truth by their voxels.
    """
    names = set() if case.truth_path is None else set(list_datasets(case.truth_path).names)
    where = next((name for name in (NEURONS, PLAIN_NEURONS) if {name, PARTNERS} <= names), None)
    if where is None:
        case.notes.append(f"partners needs a truth in a file with {NEURONS} (or {PLAIN_NEURONS}) and {PARTNERS}, as "
                          "CREMI and python -m emcore synth write them")
        return []
    neurons = open_path(case.truth_path, where, "labels")
    true_sites = read_partners(case.truth_path)
    resolution = neurons.resolution or case.truth.resolution or case.data.resolution
    if resolution is None:
        raise InputError(f"places of partners are in nm, but {neurons.name} does not say its resolution; set "
                         "data.resolution")
    if case.settings.crop is not None:
        case.notes.append("partners looks at the whole volume: evaluate.crop does not change it")
    true = metrics.labels_at(neurons, true_sites.reshape(-1, 3), resolution, neurons.offset, "nearest")
    true = plain_ids(true, neurons.name).reshape(-1, 2)
    rows = []
    for reference in (None, *([case.settings.neurons] if case.settings.neurons else [])):
        under = neurons if reference is None else open_volume(reference, kind="labels")
        found = segment.partners(under, case.labels, resolution=resolution)
        whose = f"neurons of {'the truth' if reference is None else reference}"
        scores = metrics.synaptic_partners(true_sites, found.sites, neurons, resolution, neurons.offset,
                                           case.settings.partner_nm)
        rule = f"cremi, {case.settings.partner_nm:g} nm, {whose}"
        rows += [row(f"partners_{name}", getattr(scores, name), rule) for name in ("f1", "precision", "recall")]
        pairs = np.stack([found.pre, found.post], axis=1)[found.resolved]
        if reference is not None:
            table = whole_table(under, neurons, overlap(under, neurons)).ignoring((0, 2**64 - 2, 2**64 - 1), (0,))
            pairs = renamed(pairs, metrics.matched_ids(table))
        for edges in metrics.edge_scores(true, pairs):
            rule = f"from {edges.synapses} synapses on, {whose}"
            rows += [row(f"edges_{name}", getattr(edges, name), rule) for name in ("f1", "precision", "recall")]
    return rows


# ---- scores of voxels


def membrane_rows(case: Case) -> list[Row]:
    """ISBI 2012's V_Rand and V_Info, each at the best of the thresholds 0, 0.1, ... 1, and where that is.

    Values say how likely a voxel is inside of a cell. Objects are 4-connected in their section; predicted ones grow
    evenly until they meet, so that membranes have no width, as the contest thins them (to lines of one pixel, here of
    none).
    """
    if is_there(case.prediction_file) or case.labels_file is None:
        ours = open_volume(case.prediction_file)
    else:
        ours = case.labels
        case.notes.append(f"there is no {case.prediction_file.name}: the scores of membranes are of the labels")
    codes, sections = codes_of(ours), []

    def score(theirs: np.ndarray, values: np.ndarray) -> None:
        for real, section in zip(case.states(theirs) == 1, likely(values)):
            truth = segment.connected_components(real, 4)
            tried = []
            for threshold in MEMBRANE_THRESHOLDS:
                inside = segment.connected_components(above(section, threshold, codes), 4)
                grown = segment.flood(np.zeros(section.shape, np.float32), inside)
                tried.append(metrics.foreground_restricted(metrics.contingency(truth, grown)))
            sections.append(tried)

    for _ in case.each(ours, placed(ours, case.truth, case.settings.crop), score, whole_sections=True):
        pass
    tried = [[float(np.mean([getattr(score, name) for score in along])) for name in ("v_rand", "v_info")]
             for along in zip(*sections)]
    rows = []
    for name, along in zip(("v_rand", "v_info"), np.transpose(tried)):
        best = int(along.argmax())
        rule = "isbi 2012, mean of sections, at its best threshold"
        rows += [row(name, along[best], rule), row(f"{name}_threshold", MEMBRANE_THRESHOLDS[best], rule)]
    return rows


def mask_rows(name: str, case: Case) -> list[Row]:
    """A score of binary.py."""
    rule = ("label > 0 on both sides" if case.labels_file is not None else
            f"label > 0 against prediction > {case.settings.threshold:g}")
    return [row(name, getattr(case.confusion, name)(), rule)]


def cleft_rows(case: Case) -> list[Row]:
    resolution = case.truth.resolution or case.scored.resolution or case.data.resolution or (1.0, 1.0, 1.0)
    found = metrics.clefts(*case.voxels, resolution, case.settings.cleft_nm, invalid=NOBODY_KNOWS)
    return [row(name, value, f"cremi, {case.settings.cleft_nm:g} nm") for name, value in found.named().items()]


# ---- the table

SCORES = {
    "voi": Score("neurons", voi_rows, lower=("voi_split", "voi_merge"), pool=pooled_voi),
    "rand": Score("neurons", rand_rows, lower=("rand_error", "cremi_score"), pool=pooled_rand,
                  higher=("rand_precision", "rand_recall", "v_rand", "v_info", "info_merge", "info_split")),
    "indices": Score("neurons", index_rows, lower=("nvi_split", "nvi_merge", "nid"),
                     higher=("rand_index", "adjusted_rand", "fowlkes_mallows")),
    "curve": Score("neurons", curve),
    "run_length": Score("labels", run_length_rows, higher=("erl", "nerl"),
                        lower=("split_edges", "merged_edges", "omitted_edges")),
    "instances": Score("labels", instance_rows, detects=True,
                       higher=("instance_f1", "instance_precision", "instance_recall", "instance_accuracy",
                               "instance_panoptic_quality")),
    "average_precision": Score("labels", average_precision_rows, detects=True,
                               higher=("average_precision", "average_precision_50", "average_precision_75")),
    "synapses": Score("labels", synapse_rows, detects=True,
                      higher=("synapse_f1", "synapse_precision", "synapse_recall", "synapse_sides_f1",
                              "synapse_sides_precision", "synapse_sides_recall")),
    "partners": Score("labels", partner_rows, higher=(*(f"{what}_{name}" for what in ("partners", "edges")
                                                        for name in ("f1", "precision", "recall")),)),
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
    path = split_reference(truth)[0] if isinstance(truth, str | os.PathLike) else None
    truth, rows = open_volume(truth, kind="labels"), []
    case = Case(settings, truth, labels, prediction, data or Data(), mask, parts_of)
    case.truth_path = path
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
