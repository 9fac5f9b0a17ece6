"""Scores of predictions voxel by voxel, of clefts, and of synapses with two sides: rows (score, value, convention)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emcore import metrics, segment
from emcore.errors import InputError
from emcore.metrics.foreground import true_foreground, unknown
from emcore.metrics.placement import box, placed
from emcore.metrics.synapses import CONVENTIONS
from emcore.segment.affinities import above, stored_table
from emcore.settings.data import Data
from emcore.settings.evaluate import Evaluate
from emcore.volumes import Volume, open_volume

THRESHOLDS = tuple(step / 10 for step in range(11))  # of ISBI 2012
Row = tuple[str, float, str]


def voxel_rows(settings: Evaluate, group: set[str], truth: Volume, labels: Path | None, prediction: Path, data: Data,
               notes: list[str]) -> list[Row]:
    """The scores of a group: membranes are of the prediction, the others of labels where there are any."""
    if labels is None or ("membranes" in group and prediction.exists()):
        ours = open_volume(prediction)
    else:
        ours = open_volume(labels, "labels")
        if "membranes" in group:
            notes.append(f"there is no {prediction.name}: the scores of membranes are of the labels")
    start, truth_start, shape = placed(ours, truth, settings.crop)
    theirs = truth[box(truth_start, shape)]
    (values, codes), nobody = predicted_channel(ours, box(start, shape), settings), unknown(theirs, data.ignore)
    real = true_foreground(theirs, data.background) & ~nobody
    if "membranes" in group:
        return membrane_rows(real, values, codes)
    inside = foreground(values, codes, settings) & ~nobody
    rows = overlap_rows(settings, real, inside, nobody, labels is not None)
    if "clefts" in settings.scores:
        resolution = truth.resolution or ours.resolution or data.resolution or (1.0, 1.0, 1.0)
        rows += cleft_rows(real, inside, resolution, settings.cleft_nm)
    return rows


def predicted_channel(prediction: Volume, region: tuple[slice, ...],
                      settings: Evaluate) -> tuple[np.ndarray, np.ndarray | None]:
    """(values, what their codes stand for) of the channel that is scored; of labels 1 where there is one."""
    if prediction.ndim == 3:
        values = prediction[region]
    elif not 0 <= settings.channel < prediction.shape[0]:
        raise InputError(f"evaluate.channel must be one of the {prediction.shape[0]} channels of {prediction.name}; "
                         f"got {settings.channel}")
    else:
        values = prediction[(settings.channel, *region)]
    if values.dtype.kind in "uib" and values.dtype != np.uint8:
        return (values > 0).astype(np.float32), None
    return values, stored_table(prediction)


def foreground(values: np.ndarray, table: np.ndarray | None, settings: Evaluate) -> np.ndarray:
    if not 0 <= settings.threshold <= 1:
        raise InputError(f"evaluate.threshold must be between 0 and 1, where predictions lie; got {settings.threshold}")
    return above(values, settings.threshold, table)


def overlap_rows(settings: Evaluate, truth: np.ndarray, ours: np.ndarray, left_out: np.ndarray,
                 of_labels: bool) -> list[Row]:
    rows = []
    rule = "label > 0 on both sides" if of_labels else f"label > 0 against prediction > {settings.threshold:g}"
    for name, score in (("jaccard", metrics.jaccard), ("dice", metrics.dice)):
        if name in settings.scores:
            rows.append((name, score(truth, ours, mask=left_out), rule))
    return rows


def membrane_rows(real: np.ndarray, values: np.ndarray, table: np.ndarray | None) -> list[Row]:
    """ISBI 2012's V_Rand and V_Info, each at the best of the thresholds 0, 0.1, ... 1, and where that is.

    values: how likely a voxel is inside of a cell. Objects are 4-connected in their section; predicted ones grow evenly
    until they meet, so that membranes have no width, as the contest thins them (to lines of one pixel, here of none).
    """
    sections = [segment.connected_components(section, 4)[None] for section in real]
    tried = []
    for threshold in THRESHOLDS:
        inside = above(values, threshold, table)
        grown = [segment.flood(np.zeros(section.shape, np.float32), segment.connected_components(section, 4))[None]
                 for section in inside]
        scores = [metrics.foreground_restricted(metrics.contingency(truth, labels))
                  for truth, labels in zip(sections, grown)]
        tried.append([float(np.mean([getattr(score, name) for score in scores])) for name in ("v_rand", "v_info")])
    rows = []
    for name, along in zip(("v_rand", "v_info"), np.transpose(tried)):
        best = int(along.argmax())
        rule = "isbi 2012, mean of sections, at its best threshold"
        rows += [(name, along[best], rule), (f"{name}_threshold", THRESHOLDS[best], rule)]
    return rows


def cleft_rows(truth: np.ndarray, ours: np.ndarray, resolution: Sequence[float], distance: float) -> list[Row]:
    scores = metrics.clefts(truth.astype(np.uint8), ours.astype(np.uint8), resolution, distance)
    rule = f"cremi, {distance:g} nm"
    return [("cleft_score", scores.score, rule), ("cleft_adgt", scores.to_truth.mean, rule),
            ("cleft_adf", scores.to_prediction.mean, rule), ("cleft_f1", scores.f1, rule),
            ("cleft_f1_of_rates", scores.f1_of_rates, rule),
            ("cleft_false_positives", scores.false_positives, rule),
            ("cleft_false_negatives", scores.false_negatives, rule)]


def synapse_rows(settings: Evaluate, truth: np.ndarray, labels: np.ndarray) -> list[Row]:
    """F1, precision and recall of synapses with ids 2n - 1 and 2n, by both conventions."""
    margin = settings.synapse_margin
    if margin < 0 or 2 * margin >= len(truth):
        raise InputError(f"evaluate.synapse_margin must leave some of the {len(truth)} sections; got {margin}")
    truth, labels = (without_small(side[margin:len(side) - margin], settings.synapse_size) for side in (truth, labels))
    table = metrics.contingency(truth, labels, ignore_truth=())
    rows = []
    for name in CONVENTIONS:
        scores = metrics.synapse_f1(table, name, settings.synapse_iou)
        rule = f"{name}, IoU > {settings.synapse_iou:g}"
        start = "synapse_sides" if name == "sides" else "synapse"
        rows += [(f"{start}_{field}", getattr(scores, field), rule) for field in ("f1", "precision", "recall")]
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
