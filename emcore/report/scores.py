"""The scores of a run by [evaluate]: each volume, all of them together, and along the stored merge trees."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from emcore import metrics, segment
from emcore.errors import InputError
from emcore.files import csv_text, write_text
from emcore.metrics.foreground import true_foreground, unknown
from emcore.metrics.instances import match_instances
from emcore.metrics.partitions import CONVENTIONS, SquareSums, rand_of_sums, square_sums
from emcore.metrics.placement import box, placed
from emcore.metrics.score import IGNORED_TRUTH, scores_by, whole_table
from emcore.reading import read_text
from emcore.report.voxel_scores import synapse_rows, voxel_rows
from emcore.settings.data import Data
from emcore.settings.evaluate import Evaluate
from emcore.volumes import Volume, open_volume

MOST_SCORES_BYTES = 1 << 28
POINTS = 400  # of a curve that is stored
POOLED = re.compile(r"all \d+ volumes")  # the entry of all volumes of one evaluation together
OF_LABELS = ("voi", "rand", "curve", "instances", "synapses")


def score_volume(settings: Evaluate, truth: str | Path | Volume, labels: Path | None, prediction: Path,
                 data: Data | None = None, mask: str | None = None) -> dict[str, Any]:
    """{"scores": rows with their convention, "notes": what was left out, "curve" and "counts" where asked for}.

    labels: the file that decode wrote; data: whose ids mean background and unknown; mask: 0 where nothing is scored.
    """
    data, truth = data or Data(), open_volume(truth, kind="labels")
    rows, notes, found = [], [], {}
    wanted = set(settings.scores)
    if labels is None and wanted & set(OF_LABELS):
        notes.append(f"{', '.join(name for name in OF_LABELS if name in wanted)} need labels, and there are none: set "
                     "decode.kind and run infer.py")
    if labels is not None and wanted & set(OF_LABELS):
        usable = None if mask is None else open_volume(mask)
        named = [name for name in ("voi", "rand") if name in wanted]
        ours = open_volume(labels, "labels")
        if named:
            table = neuron_table(settings, ours, truth, data, notes, usable)
            rows += [{**row, "border": border_of(settings)} for row in scores_by(table, settings.convention, notes)
                     if row["score"].startswith((*named, "cremi", "v_", "info"))]
            found["counts"] = {name: int(value) for name, value in square_sums(table)._asdict().items()}
        if "curve" in wanted and segment.has_tree(labels):
            found["curve"] = curve(settings, truth, labels, data, usable)
        start, truth_start, shape = placed(ours, truth, settings.crop)
        if "instances" in wanted:
            theirs = truth[box(truth_start, shape)]
            inside = true_foreground(theirs, data.background)
            objects = (segment.connected_components(inside, settings.pieces) if settings.pieces
                       else np.where(inside, theirs, 0))
            matched = match_instances(metrics.contingency(objects, ours[box(start, shape)], (), (),
                                                          unknown(theirs, data.ignore)), settings.instance_iou)
            rule = f"IoU >= {settings.instance_iou:g}, one to one"
            rows += [plain(f"instance_{name}", getattr(matched, name), rule)
                     for name in ("f1", "precision", "recall", "accuracy", "panoptic_quality")]
        if "synapses" in wanted:
            rows += [plain(*row) for row in synapse_rows(settings, truth[box(truth_start, shape)],
                                                         ours[box(start, shape)])]
    for group in ({"membranes"}, {"jaccard", "dice", "clefts"}):
        if group & wanted:
            rows += [plain(*row) for row in voxel_rows(settings, group, truth, labels, prediction, data, notes)]
    notes += [f"{row['score']} is undefined here: nothing to measure, or nothing to measure it to"
              for row in rows if row["value"] is None and row["score"].startswith(("cleft", "instance", "synapse"))]
    return {"scores": rows, "notes": notes, **found}


def neuron_table(settings: Evaluate, ours: Volume, truth: Volume, data: Data, notes: list[str],
                 usable: Volume | None = None):
    """The table that neurons are scored by: near borders nothing counts, nor where the convention ignores the truth."""
    if settings.border_nm and (settings.border_xy or settings.border_z):
        raise InputError("evaluate.border_nm and evaluate.border_xy or border_z are two masks: set one of them to 0")
    start, truth_start, shape = placed(ours, truth, settings.crop)
    if shape != truth.shape:
        notes.append(f"scored where both volumes are: {shape} voxels from {truth_start} of the truth {truth.shape}")
    table = whole_table(ours, truth, start, truth_start, shape, settings.border_nm or None,
                        border_box=(settings.border_xy, settings.border_z), usable=usable)
    ignored = IGNORED_TRUTH.get(settings.convention, (0,))
    return table.ignoring(tuple(dict.fromkeys((*ignored, *data.background, *data.ignore))))


def border_of(settings: Evaluate) -> str:
    if settings.border_nm:
        return f"{settings.border_nm:g} nm"
    return f"{settings.border_xy} x {settings.border_z} voxels" if settings.border_xy or settings.border_z else "none"


def curve(settings: Evaluate, truth: Volume, labels: Path, data: Data, usable: Volume | None) -> dict[str, Any]:
    """VOI and Rand error at every merge (thinned out for storage), the best thresholds, and the one that was used."""
    tree = segment.read_tree(labels)
    whole = metrics.fold(neuron_table(settings, open_volume(labels, "fragments"), truth, data, [], usable), tree)
    states = np.unique(np.linspace(0, len(tree.score), POINTS).astype(int))
    thresholds = np.append(0.0, tree.score)[states]
    chosen = open_volume(labels, "labels").attrs.get("decode")
    best = {name: whole.best(name)._asdict() for name in ("voi", settings.convention)}
    numbers = {"threshold": thresholds, "voi_split": whole.voi.split[states], "voi_merge": whole.voi.merge[states],
               "rand_error": whole.rand(settings.convention).error[states]}
    return {
        **{name: [finite(value) for value in values] for name, values in numbers.items()},
        "convention": settings.convention,
        "chosen": chosen["threshold"] if isinstance(chosen, dict) and "threshold" in chosen else None,
        "best": {name: {key: finite(value) for key, value in entry.items()} for name, entry in best.items()},
    }


def plain(score: str, value: float, convention: str) -> dict[str, Any]:
    return {"score": score, "value": finite(value), "convention": convention}


def finite(value: float) -> float | None:
    """A plain number; JSON has no other."""
    value = float(value)
    return value if math.isfinite(value) else None


# ---- all volumes together


def pooled(settings: Evaluate, found: dict[str, Any]) -> dict[str, Any]:
    """Scores of all volumes: VOI and Rand of their voxels pooled, and the mean over volumes of every score."""
    rows = []
    counted = [scores["counts"] for scores in found.values() if "counts" in scores]
    kept = [({row["score"]: row["value"] for row in scores["scores"]}, scores["counts"]["voxels"])
            for scores in found.values() if "counts" in scores]
    if len(counted) == len(found):
        # objects of different volumes are different objects: sums of squares and entropies add up
        if settings.convention not in ("cremi", "snemi3d", "isbi"):  # label 0 is an object of each volume
            counted = [{**counts, "pairs": counts["pairs"] + counts["background_pairs"], "background_pairs": 0,
                        "labels": counts["labels"] + counts["background"] ** 2, "background": 0} for counts in counted]
        sums = SquareSums(*(sum(counts[name] for counts in counted) for name in SquareSums._fields))
        rule = f"{settings.convention}, voxels of {len(found)} volumes pooled"
        for name in ("voi_split", "voi_merge"):
            if all(scores.get(name) is not None for scores, _ in kept):
                rows.append(plain(name, sum(scores[name] * n for scores, n in kept) / sum(n for _, n in kept), rule))
        if "rand" in settings.scores:
            rand = rand_of_sums(sums, settings.convention)
            rows += [plain(f"rand_{name}", value, rule) for name, value in rand._asdict().items()]
    values: dict[tuple[str, str], list] = {}
    for scores in found.values():
        for row in scores["scores"]:
            values.setdefault((row["score"], row["convention"]), []).append(row["value"])
    for (name, convention), numbers in values.items():
        if len(numbers) == len(found):
            mean = math.nan if None in numbers else sum(numbers) / len(numbers)
            rows.append(plain(name, mean, f"{convention}, mean of {len(found)} volumes"))
    return {"scores": rows, "notes": []}


def write_scores(results: Path, settings: Evaluate, found: dict[str, Any]) -> str:
    """The text of the scores found now; scores.json, .csv and .txt also keep those of other volumes in the folder."""
    every = with_others(results, found)
    write_text(results / "scores.json", json.dumps(every, indent=1, allow_nan=False) + "\n")
    rows = [[name, row["score"], row["value"], row["convention"]] for name, scores in every.items()
            for row in scores["scores"]]
    write_text(results / "scores.csv", csv_text([["volume", "score", "value", "convention"], *rows]))
    write_text(results / "scores.txt", printed(settings, every))
    return printed(settings, found)


def with_others(results: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The scores found now, and after them those of the volumes that were scored in this folder before."""
    others = {name: scores for name, scores in read_scores(results / "scores.json").items()
              if name not in found and not POOLED.fullmatch(name)}
    return {**found, **others}


def read_scores(path: Path) -> dict[str, Any]:
    """What evaluate.py found for each volume, as far as the page shows it; nothing where it has not run."""
    try:
        found = json.loads(read_text(path, MOST_SCORES_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): run evaluate.py again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): run evaluate.py again") from None
    if not isinstance(found, dict) or not all(is_scored(scores) for scores in found.values()):
        raise InputError(f"{path} does not hold the scores of volumes as evaluate.py writes them: run it again")
    return found


def is_scored(scores: Any) -> bool:
    """Whether the scores, notes and curve of a volume have the form that the page shows."""
    return (isinstance(scores, dict) and isinstance(scores.get("scores"), list)
            and all(isinstance(row, dict) and {"score", "value", "convention"} <= row.keys()
                    and (row["value"] is None or is_number(row["value"])) for row in scores["scores"])
            and all(isinstance(scores.get(name, []), list) for name in ("made", "notes"))
            and all(isinstance(line, str) for line in (*scores.get("made", []), *scores.get("notes", [])))
            and (not scores.get("curve") or is_curve(scores["curve"])))


def is_curve(curve: Any) -> bool:
    return (isinstance(curve, dict) and "threshold" in curve
            and all(isinstance(curve[name], list) and all(map(is_number, curve[name]))
                    for name in ("threshold", "voi_split", "voi_merge", "rand_error") if name in curve)
            and (curve.get("chosen") is None or is_number(curve["chosen"]))
            and isinstance(curve.get("best") or {}, dict)
            and all(not isinstance(best, dict) or best.get("threshold") is None
                    or (is_number(best["threshold"]) and is_number(best.get("value")))
                    for best in (curve.get("best") or {}).values()))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1023


def printed(settings: Evaluate, found: dict[str, Any]) -> str:
    """The scores as text, with what their conventions mean."""
    lines = []
    for name, scores in found.items():
        lines.append(name)
        for row in scores["scores"]:
            value = "undefined" if row["value"] is None else f"{row['value']:.6g}"
            lines.append(f"  {row['score']:<24}{value:>14}  {row['convention']}")
        lines += [f"  note: {note}" for note in scores.get("notes", ())] + [""]
    if {"voi", "rand", "curve"} & set(settings.scores):
        lines += ["VOI in bits. Rand with P, B and A the sums of squares over pairs, predicted and true objects,",
                  "+ leaving out label 0, c its voxels, N the scored and n all voxels:",
                  f"  {settings.convention}: {CONVENTIONS[settings.convention]}",
                  f"Voxels near borders of the truth that do not count: {border_of(settings)}."]
    return "\n".join(lines) + "\n"
