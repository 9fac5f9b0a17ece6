"""The scores of one volume, by [evaluate]: of labels against truth, and along the stored merge tree."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from emcore import metrics, segment
from emcore.metrics.score import overlap, score
from emcore.settings.evaluate import Evaluate
from emcore.volumes import open_volume

POINTS = 400  # of a curve that is stored


def score_volume(settings: Evaluate, truth: str, labels: Path | None, prediction: Path) -> dict[str, Any]:
    """{"scores": rows with their convention, "notes": what was left out, "curve": by threshold if asked for}."""
    rows, notes, found = [], [], {}
    if labels is not None and {"voi", "rand"} & set(settings.scores):
        done = score(f"{labels}:labels", truth, [settings.convention], settings.border_nm or None)
        wanted = [name for name in ("voi", "rand") if name in settings.scores] + ["cremi", "v_"]
        rows += [row for row in done["scores"] if row["score"].startswith(tuple(wanted))]
        notes += done["notes"]
    if labels is not None and "curve" in settings.scores and segment.has_tree(labels):
        found["curve"] = curve(settings, truth, labels)
    if labels is not None and "instances" in settings.scores:
        ours, theirs = _pair(f"{labels}:labels", truth)
        matched = metrics.match_instances(metrics.contingency(theirs, ours, ignore_truth=()))
        rows.append({"score": "instance_f1", "value": float(matched.f1), "convention": "IoU >= 0.5, one to one"})
    if labels is not None and "synapses" in settings.scores:
        ours, theirs = _pair(f"{labels}:labels", truth)
        table = metrics.contingency(theirs, ours, ignore_truth=())
        rows += [{"score": score, "value": float(metrics.synapse_f1(table, convention).f1), "convention": told}
                 for score, convention, told in (("synapse_f1", "em_r50", "EM-R50: both sides as one, IoU > 0.2"),
                                                 ("synapse_sides_f1", "sides", "one to one, either side IoU > 0.2"))]
    if {"jaccard", "clefts"} & set(settings.scores):
        values, theirs = _pair(str(prediction), truth)
        values = values[0] if values.ndim == 4 else values
        ours = values > settings.threshold * (255 if values.dtype == np.uint8 else 1)
        real = (theirs > 0) & (theirs < np.uint64(2**64 - 2) if theirs.dtype == np.uint64 else True)
        if "jaccard" in settings.scores:
            rows.append({"score": "jaccard", "value": float(metrics.jaccard(real, ours)), "convention": "label > 0"})
        if "clefts" in settings.scores:
            resolution = open_volume(truth).resolution or open_volume(prediction).resolution or (1.0, 1.0, 1.0)
            rows += [{"score": name, "value": float(value), "convention": f"cremi, {settings.cleft_nm:g} nm"}
                     for name, value in cleft_rows(real, ours, resolution, settings.cleft_nm)]
    return {"scores": rows, "notes": notes, **found}


def curve(settings: Evaluate, truth: str, labels: Path) -> dict[str, Any]:
    """VOI and Rand error at every merge (thinned out for storage), the best thresholds, and the one that was used."""
    tree = segment.read_tree(labels)
    fragments, theirs = _pair(f"{labels}:fragments", truth)
    whole = metrics.threshold_curve(fragments, tree, theirs)
    states = np.unique(np.linspace(0, len(tree.score), POINTS).astype(int))
    thresholds = np.append(0.0, tree.score)[states]
    return {
        "threshold": thresholds.tolist(),
        "voi_split": whole.voi.split[states].tolist(),
        "voi_merge": whole.voi.merge[states].tolist(),
        "rand_error": whole.rand(settings.convention).error[states].tolist(),
        "convention": settings.convention,
        "chosen": float(open_volume(labels, "labels").attrs["decode"]["threshold"]),
        "best": {name: whole.best(name)._asdict() for name in ("voi", settings.convention)},
    }


def cleft_rows(truth: np.ndarray, prediction: np.ndarray, resolution, distance: float) -> list[tuple[str, float]]:
    scores = metrics.clefts(truth.astype(np.uint8), prediction.astype(np.uint8), resolution, distance)
    return [("cleft_score", scores.score), ("cleft_adgt", scores.to_truth.mean),
            ("cleft_adf", scores.to_prediction.mean),
            ("cleft_f1", scores.f1), ("cleft_false_positives", scores.false_positives),
            ("cleft_false_negatives", scores.false_negatives)]


def _pair(ours: str, truth: str) -> tuple[np.ndarray, np.ndarray]:
    """Two volumes where both are, laid on each other by their offsets; ours may have channels."""
    ours, truth = open_volume(ours), open_volume(truth, kind="labels")
    first, second, shape = overlap(replace(ours, shape=ours.shape[-3:]), truth)
    return tuple(volume[(..., *(slice(s, s + n) for s, n in zip(start, shape)))]
                 for volume, start in ((ours, first), (truth, second)))

