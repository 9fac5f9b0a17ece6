"""dbMiM's evaluation files: every calibration at every threshold, each stage computed once.

One prediction is read once; each calibration makes its fragments, its region graph and its merge trees once, and
(fragments x truth) is counted once, so that a threshold costs nothing. The columns and their order are dbMiM's; those
that mean nothing here, or that a stored prediction does not tell, are empty. Boundaries, dust and links, which come
after the cut, are no part of this protocol.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import emcore
from emcore import metrics, segment
from emcore.decode.affinities import calibrate, read_affinities, segmentation_of
from emcore.errors import InputError
from emcore.files import csv_text, write_text
from emcore.memory import check_memory
from emcore.metrics.placement import Borders, Shared, box, placed, whole_table
from emcore.metrics.tables import Contingency
from emcore.prediction.begun import speed_file
from emcore.segment.affinities import Affinities, above
from emcore.segment.merge_tree import MergeTree
from emcore.segment.statistics import parse_statistic
from emcore.settings import Settings
from emcore.settings.decode import AffinityDecode
from emcore.volumes import Volume, open_volume

CALIBRATION = ("affinity_variant", "calibration_bias_z", "calibration_bias_y", "calibration_bias_x",
               "calibration_temperature")
KEYS = (*CALIBRATION, "backend", "threshold", "seed_distance", "boundary_threshold", "min_boundary", "score_mode",
        "rag_quantile", "waterz_scoring", "z_threshold", "xy_threshold")
MEASURES = ("affinity_dice", "affinity_iou", "inference_sec", "postprocess_sec", "metrics_sec", "adapted_rand_error",
            "rand_fscore", "rand_precision", "rand_recall", "voi_split", "voi_merge", "voi_sum")
RECORD = ("sample", *KEYS, *MEASURES, "n_pred", "n_gt", "n_voxels")
PERCENTILES = (1, 5, 50, 95, 99)
SWEEP_BYTES = 30  # a voxel that is swept: true affinities, labels, and what decoding takes beside the affinities
Variant = tuple[str, tuple[float, float, float], float]  # name, bias and temperature


def write_sweep(results: Path, settings: Settings, volumes: Sequence[tuple[str, Path, str]]) -> str:
    """What the best rows are; writes cremi_segmentation_records.json, _metrics.csv, _summary.json and the affinities'
    statistics for the volumes (name, prediction, truth)."""
    check_sweep(settings)
    predictions = [open_volume(path) for _, path, _ in volumes]
    checkpoint = checkpoint_of(predictions)
    records, statistics, samples, shapes = [], [], [], []
    for (name, path, truth), prediction in zip(volumes, predictions):
        found = sweep_volume(settings, name, prediction, open_volume(truth, kind="labels"),
                             seconds_of(path, prediction))
        records += found["records"]
        statistics += found["statistics"]
        samples.append(found["sample"])
        shapes.append(found["shape"])
    window = settings.infer.window or settings.data.patch
    summary = {
        "checkpoint": checkpoint, "data_dir": settings.data.folder,
        "requested_crop_size": [0, 0, 0], "crop_size": shapes[0] if shapes else None,
        "window_size": list(window),
        "stride": [round(n * (1 - share)) for n, share in zip(window, settings.infer.overlaps)],
        "num_records": len(records), "num_affinity_records": len(statistics), "affinity_records": statistics,
        "sample_records": samples, "package_probe": {"emcore": emcore.__version__}, "metric_backend": "dbmim",
        "ignore_label": 0, "cremi_boundary_ignore_distance_xy": settings.evaluate.border_xy,
        "cremi_boundary_ignore_distance_z": settings.evaluate.border_z,
        "replicate_affinity_boundary": settings.evaluate.sweep.replicate,
        "learned_postprocess_loaded": False,
        "calibration_biases": [list(bias) for bias in settings.evaluate.sweep.biases],
        "calibration_temperatures": list(settings.evaluate.sweep.temperatures),
        "waterz_scoring": list(merge_scores(settings)), "affinity_channels": list(settings.decode.channels),
        "failures": [], **summarised(records, len(volumes)),
    }
    write_rows(results / "cremi_segmentation_metrics.csv", RECORD, records)
    if statistics:
        write_rows(results / "cremi_affinity_stats.csv", list(statistics[0]), statistics)
    for name, content in (("records", records), ("summary", summary)):
        write_text(results / f"cremi_segmentation_{name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return "\n".join(f"{key}: {told(summary[key])}" for key in ("best_by_voi_sum", "best_by_adapted_rand"))


def checkpoint_of(predictions: Sequence[Volume]) -> str:
    """The checkpoint that made all of the predictions, by their files; empty where they do not say."""
    made = {str(prediction.attrs.get("checkpoint", "")): prediction.name for prediction in predictions}
    if len(made) > 1:
        (one, here), (other, there) = list(made.items())[:2]
        raise InputError(f"evaluate.sweep takes means over predictions of one checkpoint; {here} was made by "
                         f"{one or 'one it does not name'}, {there} by {other or 'one it does not name'}: predict one "
                         "of them again")
    return next(iter(made), "")


def seconds_of(path: Path, prediction: Volume) -> float | str:
    """How long the prediction took, as infer.py has kept it beside the file; empty where it has not."""
    try:
        kept = json.loads(speed_file(path).read_text(encoding="utf-8"))
        made_by = all(kept[name] == prediction.attrs.get(name) for name in ("checkpoint", "step"))
        return float(kept["seconds"]) if made_by else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check_sweep(settings: Settings) -> None:
    if not isinstance(settings.decode, AffinityDecode):
        raise InputError(f"evaluate.sweep agglomerates affinities; decode.kind is {settings.decode.kind}")
    if settings.evaluate.border_nm:
        raise InputError("evaluate.sweep leaves out borders by evaluate.border_xy and border_z, in voxels as dbMiM "
                         f"does; set evaluate.border_nm, which is {settings.evaluate.border_nm:g}, to 0")


def merge_scores(settings: Settings) -> tuple[str, ...]:
    return settings.evaluate.sweep.statistics or (settings.decode.statistic,)


def variants(settings: Settings) -> Iterator[Variant]:
    """The affinities as they are, then every bias with every temperature; of equal names the first."""
    yield "pred", (0.0, 0.0, 0.0), 1.0
    seen = {"pred"}
    for bias in settings.evaluate.sweep.biases:
        for temperature in settings.evaluate.sweep.temperatures:
            parts = [f"{axis}{short(value, '+')}" for axis, value in zip("zyx", bias)]
            name = f"bias_{'_'.join(parts)}_t{short(temperature)}"
            if name not in seen:
                seen.add(name)
                yield name, bias, temperature


def short(value: float, sign: str = "") -> str:
    """Two decimals, and more where they are needed to tell it from others."""
    text = f"{value:{sign}.2f}"
    return text if float(text) == value else f"{value:{sign}}"


def sweep_volume(settings: Settings, name: str, prediction: Volume, truth: Volume,
                 seconds: float | str = "") -> dict[str, Any]:
    """Records and affinity statistics of one volume; equal calibrations share one computation.

    seconds: of its prediction, empty if unknown.
    """
    start, truth_start, shape = placed(prediction, truth, settings.evaluate.crop)
    held = 3 * prediction.dtype.itemsize * math.prod(prediction.shape[-3:]) + SWEEP_BYTES * math.prod(shape)
    check_memory(held, f"evaluate.sweep of {prediction.name}, which it holds whole,",
                 "take a part with evaluate.crop, or take [evaluate.sweep] out of the config")
    plain = read_affinities(prediction, replace(settings.decode, bias=(0.0, 0.0, 0.0), temperature=1.0))
    region = (slice(None), *box(start, shape))
    plain = Affinities(plain.values[region], plain.offsets, table=plain.table)
    labels = truth[box(truth_start, shape)]
    borders = (settings.evaluate.border_xy, settings.evaluate.border_z)
    target = true_affinities(labels, settings.evaluate.sweep.replicate)
    records, statistics, made = [], [], {}
    for variant, bias, temperature in variants(settings):
        key = (bias, temperature)
        if key not in made:
            affs = calibrate(plain, bias, temperature)
            made[key] = agreement(affs, target), affinity_statistics(affs), list(
                scored(settings, affs, truth, truth_start, borders))
        agreed, numbers, rows = made[key]
        common = dict(zip(CALIBRATION, (variant, *bias, temperature))) | agreed | {"inference_sec": seconds}
        statistics.append({"sample": name, **{key: common[key] for key in CALIBRATION}, **numbers, **agreed,
                           "inference_sec": seconds})
        records += [{field: ({"sample": name} | common | row).get(field, "") for field in RECORD} for row in rows]
    whole = np.unique(labels)
    mask = metrics.box_border_mask(labels, *borders)
    sample = {"sample": name, "label_unique": len(whole), "label_zero_fraction": float((labels == 0).mean()),
              "metric_label_unique": len(np.unique(np.where(mask, 0, labels))),
              "boundary_ignore_fraction": float((mask & (labels > 0)).mean())}
    return {"records": records, "statistics": statistics, "sample": sample, "shape": list(shape)}


def scored(settings: Settings, affs: Affinities, truth: Volume, truth_start: Sequence[int],
           borders: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """One row for every merge score and threshold; times are shares of what they have in common."""
    names, thresholds = merge_scores(settings), settings.evaluate.sweep.thresholds
    clock = time.perf_counter()
    demanding = max(names, key=lambda name: parse_statistic(name).every_contact)
    segmentation = segmentation_of(affs, replace(settings.decode, statistic=demanding))
    fragments, graph = segmentation.fragments, segmentation.graph
    shared = (time.perf_counter() - clock) / (len(names) * len(thresholds))
    clock = time.perf_counter()
    place = Shared((0, 0, 0), tuple(truth_start), fragments.shape)
    table = whole_table(open_volume(fragments), truth, place, Borders(None, *borders))
    table = table.ignoring((0, *settings.data.background, *settings.data.ignore))
    counted = (time.perf_counter() - clock) / (len(names) * len(thresholds))
    for name in names:
        clock = time.perf_counter()
        tree = segment.agglomerate(graph, name, ties=settings.decode.ties)
        merged = shared + (time.perf_counter() - clock) / len(thresholds)
        clock = time.perf_counter()
        rows = list(threshold_rows(table, tree, thresholds))
        scoring = counted + (time.perf_counter() - clock) / len(thresholds)
        for row in rows:
            yield {**row, "backend": "waterz", "waterz_scoring": name, "postprocess_sec": merged,
                   "metrics_sec": scoring, "boundary_threshold": seed_boundary(settings.decode)}


def threshold_rows(table: Contingency, tree: MergeTree,
                   thresholds: Sequence[float]) -> Iterator[dict[str, Any]]:
    """dbMiM's scores at each threshold, all read off one curve."""
    curve = metrics.fold(table, tree)
    rand = curve.rand("dbmim")
    for threshold in thresholds:
        at = curve.merges_below(threshold)
        split, merge = float(curve.voi.split[at]), float(curve.voi.merge[at])
        yield {name: finite(value) for name, value in {
            "threshold": threshold, "adapted_rand_error": rand.error[at], "rand_fscore": 1 - rand.error[at],
            "rand_precision": rand.precision[at], "rand_recall": rand.recall[at], "voi_split": split,
            "voi_merge": merge, "voi_sum": split + merge}.items()} | {
            "n_pred": len(np.unique(tree.table(threshold)[table.label_ids.astype(np.int64)])),
            "n_gt": len(table.truth_ids), "n_voxels": table.voxels}


def seed_boundary(decode: AffinityDecode) -> float | str:
    """The boundary threshold of dbMiM's seeds, where it is they that make the fragments."""
    name, _, value = decode.fragments.partition("-")
    return float(value or 0.5) if name == "maxima_distance" else ""


def true_affinities(labels: np.ndarray, replicate: bool = False) -> np.ndarray:
    """Whether each voxel and the one before it along z, y and x are of one object.

    Where there is none before it is False, or with `replicate` whether the voxel is of an object.
    """
    out = np.zeros((3, *labels.shape), bool)
    for axis in range(3):
        later, earlier = (tuple(part if a == axis else slice(None) for a in range(3))
                          for part in (slice(1, None), slice(None, -1)))
        out[(axis, *later)] = (labels[later] == labels[earlier]) & (labels[later] > 0)
        if replicate:
            first = tuple(0 if a == axis else slice(None) for a in range(3))
            out[(axis, *first)] = labels[first] > 0
    return out


def at_later_voxel(affs: Affinities, axis: int) -> np.ndarray:
    """The channel of an axis with every edge at its later voxel, as codes or numbers."""
    values = affs.values[axis]
    if sum(affs.offsets[axis]) < 0:
        return values
    moved = np.zeros_like(values)
    later, earlier = (tuple(part if a == axis else slice(None) for a in range(3))
                      for part in (slice(1, None), slice(None, -1)))
    moved[later] = values[earlier]
    return moved


def agreement(affs: Affinities, target: np.ndarray) -> dict[str, float | None]:
    """Dice and IoU of the affinities above one half with the true ones, the three channels together."""
    both = either = total = 0
    for axis in range(3):
        ours = above(at_later_voxel(affs, axis), 0.5, affs.table)
        both += int((ours & target[axis]).sum())
        either += int((ours | target[axis]).sum())
        total += int(ours.sum()) + int(target[axis].sum())
    return {"affinity_dice": 2 * both / total if total else None, "affinity_iou": both / either if either else None}


def affinity_statistics(affs: Affinities) -> dict[str, float]:
    """Mean, deviation and percentiles of each channel."""
    found = {}
    for axis, values in zip("zyx", affs.values):
        if values.dtype == np.uint8:
            values = affs.table[values]
        found[f"{axis}_mean"], found[f"{axis}_std"] = (float(value) for value in (
            values.mean(dtype=np.float64), values.std(dtype=np.float64)))
        for percent, value in zip(PERCENTILES, np.percentile(values, PERCENTILES)):
            found[f"{axis}_p{percent:02d}"] = float(value)
    return found


# ---- summaries


def summarised(records: list[dict[str, Any]], volumes: int) -> dict[str, Any]:
    """per_threshold, per_backend_threshold and the best of its rows that have every volume."""
    groups = mean_rows(records, KEYS)
    complete = [row for row in groups if row["n"] == volumes]
    best = {f"best_by_{name}": min((row for row in complete if row[field] is not None), key=lambda row: row[field],
                                   default=None)
            for name, field in (("adapted_rand", "adapted_rand_error"), ("voi_sum", "voi_sum"))}
    return {"per_threshold": mean_rows(records, ("threshold",)), "per_backend_threshold": groups, **best}


def mean_rows(records: list[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """One row for all records that agree in the keys: the keys, their number and the mean of each measure."""
    groups: dict[tuple, list] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    rows = []
    for values, members in groups.items():
        row = dict(zip(keys, values)) | {"n": len(members)}
        for name in MEASURES:
            numbers = [member[name] for member in members]
            known = all(isinstance(number, float | int) for number in numbers)
            row[name] = sum(numbers) / len(numbers) if known else None
        rows.append(row)
    return rows


def told(row: dict[str, Any] | None) -> str:
    if row is None:
        return "nothing could be scored on every volume"
    variant = row.get("affinity_variant") or row.get("variant")
    return (f"VOI {row['voi_sum']:.6f}, adapted Rand error {row['adapted_rand_error']:.6f} at threshold "
            f"{row['threshold']:g} of {variant}, {row['waterz_scoring']}, mean over {row['n']} volumes")


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_rows(path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    write_text(path, csv_text([columns, *([row.get(column, "") for column in columns] for row in rows)]))
