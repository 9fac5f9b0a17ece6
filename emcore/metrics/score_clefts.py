"""python -m emcore score PREDICTION TRUTH --clefts: CREMI's cleft distances and F1 of two files, read in blocks."""

import math
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.metrics.cleft_distances import clefts
from emcore.metrics.foreground import NOBODY_KNOWS, states_of, true_foreground
from emcore.metrics.label_files import described, listed, one_channel, open_labels
from emcore.metrics.pairs import boxes
from emcore.metrics.placement import Part, Shared, overlap
from emcore.segment.affinities import above, stored_table
from emcore.volumes import Volume, list_datasets, open_volume, split_reference
from emcore.volumes.address import is_address

CLEFTS = "volumes/labels/clefts"  # in files as the challenge gives them out
ROWS = {"cleft_score": "the mean of both average distances, nm", "cleft_adgt": "of predicted voxels to the truth, nm",
        "cleft_adf": "of true voxels to the prediction, nm", "cleft_f1": "2 TP / (2 TP + FP + FN)",
        "cleft_f1_of_rates": "the harmonic mean of precision and recall",
        "cleft_false_positives": "predicted voxels farther away than that",
        "cleft_false_negatives": "true voxels farther away than that"}


def score_clefts(prediction: Any, truth: Any, threshold: float = 0.5, distance_nm: float = 200.0,
                 resolution: Sequence[float] | None = None, threads: int | None = None) -> dict[str, Any]:
    """The cleft scores of two volumes, JSON-able; undefined scores are None and explained.

    prediction: probabilities (floating point, or 8 bits in steps of 1/255) above a threshold, or labels. A truth is
    cleft wherever it is neither 0 nor one of CREMI's two marks; where it is 2^64 - 2 or negative nobody knows.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"the threshold must be between 0 and 1, where probabilities lie; got {threshold}")
    prediction = one_channel(open_volume(prediction), "prediction")
    truth = open_labels(_named(truth), "truth")
    if resolution is not None:
        prediction, truth = (replace(volume, resolution=tuple(resolution)) for volume in (prediction, truth))
    sizes = truth.resolution or prediction.resolution
    if sizes is None:
        raise InputError(f"the distances of clefts need the size of a voxel, but neither {truth.name} nor "
                         f"{prediction.name} says its resolution; give --resolution Z Y X")
    place = overlap(prediction, truth)
    notes = place.notes(truth)
    ours, rule = _of_prediction(prediction, place, threshold)
    real = Part(truth, place.truth_start, place.shape, _states, np.dtype(np.uint8))
    found = clefts(real, ours, sizes, distance_nm, background=0, invalid=NOBODY_KNOWS, threads=threads)
    if found.to_truth.count == 0 or found.to_prediction.count == 0:
        side = "the prediction" if found.to_truth.count == 0 else "the truth"
        both = found.to_truth.count == found.to_prediction.count
        notes.append("there is no cleft in either volume: there was nothing to find, and no distance" if both else
                     f"there is no cleft in {side}: the distances to it are infinite, and those from it undefined")
    convention = f"cremi, {distance_nm:g} nm"
    return {"prediction": described(prediction), "truth": described(truth), "rule": rule,
            "resolution": list(map(float, sizes)), "distance_nm": distance_nm,
            "voxels": {"compared": math.prod(place.shape), "predicted": found.to_truth.count,
                       "true": found.to_prediction.count},
            "scores": [{"score": name, "value": value if math.isfinite(value) else None, "convention": convention}
                       for name, value in found.named().items()], "notes": notes}


def _named(reference: Any) -> Any:
    """The clefts of a file of CREMI, where no dataset is named: others of its labels come first by name."""
    if not isinstance(reference, str | PathLike) or is_address(reference):
        return reference
    path, dataset = split_reference(reference)
    if dataset is None and path.exists() and any(item.name == CLEFTS for item in list_datasets(path)):
        return f"{path}:{CLEFTS}"
    return reference


def _states(truth: np.ndarray) -> np.ndarray:
    """As states_of has them; where a cleft is negative, nobody knows either."""
    states = states_of(truth)
    states[truth < 0] = NOBODY_KNOWS
    return states


def _of_prediction(volume: Volume, place: Shared, threshold: float) -> tuple[Part, str]:
    """Which voxels are predicted to be cleft, and the rule in words."""
    def is_cleft(values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "f" and not ((values >= 0) & (values <= 1)).all():
            raise InputError(f"{volume.name} holds NaN or values outside of 0 and 1, where probabilities lie; "
                             "apply the sigmoid to logits first")
        return above(values, threshold, stored_table(volume))

    probabilities = Part(volume, place.start, place.shape, is_cleft, np.dtype(bool))
    if volume.dtype.kind == "f":
        return probabilities, f"prediction > {threshold:g}"
    if volume.dtype == np.uint8 and max((int(probabilities.values(box).max(initial=0))
                                         for box in boxes(probabilities)), default=0) > 1:
        return probabilities, f"prediction / 255 > {threshold:g}"
    labels = replace(probabilities, make=lambda values: true_foreground(values, ()))
    return labels, "prediction > 0: it holds labels"


def printed_clefts(result: dict[str, Any]) -> str:
    """The scores as a table, and what each is."""
    voxels, sizes = result["voxels"], " x ".join(f"{size:g}" for size in result["resolution"])
    compared = (f"{voxels['compared']} voxels of {sizes} nm; cleft where {result['rule']} "
                f"({voxels['predicted']} voxels) and in the truth ({voxels['true']})")
    rule = (f"CREMI's convention; a voxel is false where the other volume has no cleft within "
            f"{result['distance_nm']:g} nm.")
    return "\n".join(listed(result, compared, ROWS, "", rule))
