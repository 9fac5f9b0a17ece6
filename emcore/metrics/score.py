"""python -m emcore score PREDICTION TRUTH: VOI, Rand and CREMI scores of two label files, block by block.

With --clefts it scores clefts: see score_clefts.py.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.metrics.borders import box_border_mask, neuron_border_mask
from emcore.metrics.partitions import CONVENTIONS, cremi_score, foreground_restricted, rand, voi
from emcore.metrics.tables import BLOCK_BYTES, Contingency, contingency, pool
from emcore.volumes import Volume, check_labels, open_path, open_volume, split_reference

POOL_EVERY = 16  # blocks: their tables are added up now and then, so that the ids at their faces are not kept twice
# truth ids that a convention ignores unless it is told otherwise; CREMI's files mark voxels by the two largest ids
IGNORED_TRUTH = {"cremi": (0, 2**64 - 2, 2**64 - 1), "gala": ()}
OF_CLEFTS = {"threshold": "--threshold", "distance_nm": "--distance-nm"}
OF_LABELS = {"conventions": "--convention", "border_nm": "--border-nm", "ignore_truth": "--ignore-truth",
             "ignore_labels": "--ignore-labels"}
Start = tuple[int, ...]


def score(prediction: Any, truth: Any, conventions: Sequence[str] = tuple(CONVENTIONS),
          border_nm: float | None = None, ignore_truth: Sequence[int] | None = None,
          ignore_labels: Sequence[int] = (), resolution: Sequence[float] | None = None,
          threads: int | None = None) -> dict[str, Any]:
    """Every score of two label volumes with its convention, JSON-able; undefined scores are None and explained.

    Volumes of different extents are laid on each other by their offsets, and scored where both are. A volume may be
    the only channel of (1, z, y, x).
    """
    for name in conventions:
        if name not in CONVENTIONS:
            raise InputError(f"unknown Rand convention {name!r}; there are {', '.join(CONVENTIONS)}")
    prediction, truth = open_labels(prediction, "prediction"), open_labels(truth, "truth")
    if resolution is not None:
        prediction, truth = (replace(volume, resolution=tuple(resolution)) for volume in (prediction, truth))
    start, truth_start, shape = overlap(prediction, truth)
    table = whole_table(prediction, truth, start, truth_start, shape, border_nm, threads)
    notes = []
    if shape != truth.shape:
        notes.append(f"scored where both volumes are: {shape} voxels from {truth_start} of the truth {truth.shape}")
    scores = []
    for name in conventions:
        ids = IGNORED_TRUTH.get(name, (0,)) if ignore_truth is None else ignore_truth
        scores += scores_by(table.ignoring(ids, ignore_labels), name, notes)
    unlabelled = int(table.counts[table.labels == 0].sum())
    if unlabelled:
        notes.append(f"label 0 of the prediction covers {unlabelled} of the compared voxels: a segment for VOI, "
                     "skimage, dbmim, funlib and gala; background for cremi and snemi3d; single voxels for isbi")
    return {"prediction": described(prediction), "truth": described(truth), "border_nm": border_nm,
            "voxels": {"compared": table.total, "near_borders": table.masked}, "scores": scores, "notes": notes}


def open_labels(reference: Any, side: str) -> Volume:
    """Labels as (z, y, x), which may be the only channel of what is stored."""
    path = isinstance(reference, str | PathLike)
    volume = open_path(*split_reference(reference), "labels") if path else open_volume(reference)
    return check_labels(one_channel(volume, side))


@dataclass(frozen=True)
class OnlyChannel:
    """The voxels of a volume of one channel."""

    volume: Volume

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return self.volume[(0, *box)]


def one_channel(volume: Volume, side: str) -> Volume:
    """The volume as (z, y, x); what has several channels is refused."""
    if volume.ndim == 3:
        return volume
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise InputError(f"the {side} {volume.name} has the shape {volume.shape}; score takes (z, y, x), or one "
                         "channel (1, z, y, x)")
    return replace(volume, shape=volume.shape[1:], chunks=volume.chunks and volume.chunks[1:],
                   connect=partial(OnlyChannel, volume))


def scores_by(table: Contingency, convention: str, notes: list[str]) -> list[dict[str, Any]]:
    """VOI, Rand and what belongs to it under one convention's rule; says in the notes why something is undefined."""
    rule = {"convention": convention, "ignored_truth": list(table.ignore_truth),
            "ignored_labels": list(table.ignore_labels), "voxels": table.voxels}
    found = {"voi_split": voi(table).split, "voi_merge": voi(table).merge}
    found |= {f"rand_{name}": value for name, value in rand(table, convention)._asdict().items()}
    if convention == "cremi":
        found["cremi_score"] = cremi_score(table)
    if convention == "isbi":
        found |= {name: value for name, value in foreground_restricted(table)._asdict().items()
                  if name in ("v_rand", "v_info", "info_merge", "info_split")}
    if table.voxels == 0:
        notes.append(f"{convention}: no voxel is left to score: each is near a border, or its truth is one of the "
                     f"ignored ids {list(table.ignore_truth)}, or its label one of {list(table.ignore_labels)}")
    elif any(math.isnan(value) for value in found.values()):
        undefined = ", ".join(name for name, value in found.items() if math.isnan(value))
        notes.append(f"{convention}: {undefined} undefined, 0/0: no pair of voxels, or no information, to share")
    return [{"score": name, "value": None if math.isnan(value) else value, **rule} for name, value in found.items()]


def overlap(prediction: Volume, truth: Volume) -> tuple[Start, Start, Start]:
    """Where the part that both volumes cover starts in either of them, and its shape."""
    resolution = prediction.resolution or truth.resolution
    known = truth.resolution or resolution
    if resolution and not np.allclose(resolution, known, rtol=1e-3):
        raise InputError(f"the prediction {prediction.name} has voxels of {resolution} nm, the truth {truth.name} "
                         f"of {known} nm; resample one of them")
    same_place = prediction.offset == truth.offset
    if same_place and prediction.shape == truth.shape:
        return (0, 0, 0), (0, 0, 0), truth.shape
    if not resolution or (same_place and not any(truth.offset)):
        raise InputError(f"the prediction {prediction.name} has the shape {prediction.shape}, the truth {truth.name} "
                         f"{truth.shape}, and the files do not say how they lie; store resolution and offset (nm, "
                         "z y x), or give volumes of one shape")
    shift = (np.array(prediction.offset) - truth.offset) / resolution
    whole = np.rint(shift).astype(np.int64)
    if np.abs(shift - whole).max() > 0.01:
        raise InputError(f"the prediction {prediction.name} lies {tuple(shift.tolist())} voxels (z, y, x) off the "
                         f"truth {truth.name}, which is not a whole number")
    truth_start = np.maximum(whole, 0)
    shape = np.minimum(whole + prediction.shape, truth.shape) - truth_start
    if (shape <= 0).any():
        raise InputError(f"the volumes do not overlap: the prediction {prediction.name} covers the voxels "
                         f"{tuple(whole.tolist())} to {tuple((whole + prediction.shape).tolist())} (z, y, x) of the "
                         f"truth {truth.name}, which ends at {truth.shape}")
    return tuple(tuple(int(length) for length in triple) for triple in (truth_start - whole, truth_start, shape))


def whole_table(prediction: Volume, truth: Volume, start: Start, truth_start: Start, shape: Start,
                border_nm: float | None = None, threads: int | None = None, border_box: tuple[int, int] = (0, 0),
                usable: Volume | None = None) -> Contingency:
    """The table of the part that both cover, read in blocks; the border mask sees past each block's edge.

    border_box: in y and x and in z, as box_border_mask takes it; usable: 0 where a voxel of the truth is left out.
    """
    if usable is not None and usable.shape != truth.shape:
        raise InputError(f"the mask {usable.name} must have the shape {truth.shape} of the truth {truth.name}; "
                         f"it has {usable.shape}")
    resolution = truth.resolution or prediction.resolution
    if border_nm is not None and resolution is None:
        raise InputError(f"--border-nm needs the size of a voxel, but neither {truth.name} nor {prediction.name} "
                         "says its resolution; give --resolution Z Y X")
    halo = [0, 0, 0]
    if border_nm and math.isfinite(border_nm):
        halo[1:] = (math.ceil(border_nm / size) + 1 for size in resolution[1:])
    elif any(border_box):
        halo = [border_box[1] + 1, border_box[0] + 1, border_box[0] + 1]
    tables: list[Contingency] = []
    for box in _blocks(shape, prediction, truth):
        labels = prediction[_moved(box, start)]
        low = [max(0, span.start + at - wide) for span, at, wide in zip(box, truth_start, halo)]
        high = [min(end, span.stop + at + wide) for span, at, wide, end in zip(box, truth_start, halo, truth.shape)]
        wider = truth[tuple(slice(a, b) for a, b in zip(low, high))]
        inner = tuple(slice(span.start + at - a, span.stop + at - a) for span, at, a in zip(box, truth_start, low))
        mask = None
        if border_nm is not None:
            mask = neuron_border_mask(wider, resolution, border_nm, threads)[inner]
        elif any(border_box):
            mask = box_border_mask(wider, *border_box, threads)[inner]
        if usable is not None:
            unusable = usable[_moved(box, truth_start)] == 0
            mask = unusable if mask is None else mask | unusable
        tables.append(contingency(wider[inner], labels, (), (), mask, threads))
        if len(tables) == POOL_EVERY:
            tables = [pool(tables)]
    return pool(tables)


def _blocks(shape: Start, *volumes: Volume) -> Iterator[tuple[slice, ...]]:
    """Boxes of about BLOCK_BYTES that cover the shape: slabs of whole chunks, or rows of sections too large for it."""
    row = max(1, shape[2]) * sum(volume.dtype.itemsize for volume in volumes)
    chunk = [min(shape[axis], max((volume.chunks or (1, 1, 1))[axis] for volume in volumes)) or 1 for axis in (0, 1)]
    sections = BLOCK_BYTES // (row * max(1, shape[1])) // chunk[0] * chunk[0]
    rows = max(1, shape[1])
    if sections == 0:
        sections, rows = chunk[0], max(1, BLOCK_BYTES // (row * chunk[0]) // chunk[1]) * chunk[1]
    for z in range(0, max(1, shape[0]), sections):
        for y in range(0, max(1, shape[1]), rows):
            yield slice(z, min(z + sections, shape[0])), slice(y, min(y + rows, shape[1])), slice(0, shape[2])


def _moved(box: tuple[slice, ...], start: Start) -> tuple[slice, ...]:
    return tuple(slice(span.start + at, span.stop + at) for span, at in zip(box, start))


def described(volume: Volume) -> dict[str, Any]:
    return {"name": volume.name, "shape": list(volume.shape), "dtype": str(volume.dtype),
            "resolution": volume.resolution, "offset": volume.offset}


COLUMNS = {"voi_split": "VOI split", "voi_merge": "VOI merge", "rand_error": "Rand error",
           "rand_precision": "precision", "rand_recall": "recall", "cremi_score": "CREMI score", "v_rand": "V_Rand",
           "v_info": "V_Info"}


def printed(result: dict[str, Any]) -> str:
    """The scores as a table, one line a convention, and what each convention means."""
    lines = [f"{side:<11}{result[side]['name']}  {tuple(result[side]['shape'])} {result[side]['dtype']}"
             for side in ("prediction", "truth")]
    voxels = result["voxels"]
    border = "" if result["border_nm"] is None else (
        f", {voxels['near_borders']} of them within {result['border_nm']:g} nm of a border and left out")
    lines += [f"compared   {voxels['compared']} voxels{border}", ""]
    conventions = list(dict.fromkeys(entry["convention"] for entry in result["scores"]))
    by_place = {(entry["convention"], entry["score"]): entry for entry in result["scores"]}
    columns = {name: title for name, title in COLUMNS.items() if any((c, name) in by_place for c in conventions)}
    lines.append(f"{'convention':<11}" + "".join(f"{title:>12}" for title in columns.values())
                 + f"{'voxels':>14}  ignored truth ids")
    for convention in conventions:
        cells = []
        for name in columns:
            entry = by_place.get((convention, name), {"value": ""})
            cells.append(entry["value"] if entry["value"] == "" else
                         "undefined" if entry["value"] is None else f"{entry['value']:.6f}")
        entry = by_place[convention, "voi_split"]
        ids = ", ".join(f"2^64 - {2**64 - i}" if i >= 2**63 else str(i) for i in entry["ignored_truth"]) or "none"
        lines.append(f"{convention:<11}" + "".join(f"{cell:>12}" for cell in cells) + f"{entry['voxels']:>14}  {ids}")
    lines += ["", "VOI in bits. Rand precision and recall, with P, B and A the sums of squares over pairs, predicted "
              "and true objects,", "+ leaving out label 0, c its voxels, N the scored and n all voxels:"]
    lines += [f"  {name:<9}{CONVENTIONS[name]}" for name in conventions]
    return "\n".join([*lines, *([""] if result["notes"] else []), *result["notes"]])


def main(arguments: Sequence[str]) -> None:
    """Prints the scores of two files, as text or JSON."""
    parser = argparse.ArgumentParser(prog="python -m emcore score", description=(
        "VOI and Rand scores of a label file against the truth, under every published convention. VOI is in bits; "
        "lower is better for VOI, rand_error and cremi_score, higher for the rest. With --clefts CREMI's average "
        "distances and F1 of synaptic clefts, predicted as probabilities or as labels."))
    parser.add_argument("prediction", help="file, or file:dataset")
    parser.add_argument("truth", help="file, or file:dataset")
    parser.add_argument("--convention", action="append", choices=list(CONVENTIONS), dest="conventions",
                        help="only this one; may be given several times")
    parser.add_argument("--border-nm", type=float, metavar="NM",
                        help="leave out voxels this near to a border of the truth, within the section (CREMI: 25)")
    parser.add_argument("--ignore-truth", metavar="IDS", type=_ids,
                        help='truth ids to ignore, separated by commas, or "none"; without it 0, for cremi also the '
                             "two largest 64-bit ids, for gala none")
    parser.add_argument("--ignore-labels", metavar="IDS", type=_ids, help="predicted ids to ignore")
    parser.add_argument("--resolution", type=float, nargs=3, metavar=("Z", "Y", "X"),
                        help="size of a voxel in nm, in place of what the files say")
    parser.add_argument("--threads", type=int, help="default: the cores allotted to this process")
    parser.add_argument("--json", action="store_true", help="print JSON; undefined scores are null")
    parser.add_argument("--clefts", action="store_true", help="score clefts, wherever the truth has an id; a "
                        "prediction in floating point or 8 bits (255 is 1) holds probabilities, else labels")
    parser.add_argument("--threshold", type=float, help="clefts: above it a probability is cleft; 0.5 by default")
    parser.add_argument("--distance-nm", type=float, metavar="NM",
                        help="clefts: farther than this from all of the other volume a voxel is false; 200 by default")
    options = vars(parser.parse_args(arguments))
    as_json, of_clefts = options.pop("json"), options.pop("clefts")
    given = {name: value for name, value in options.items() if value is not None}
    if strange := [flag for name, flag in (OF_LABELS if of_clefts else OF_CLEFTS).items() if name in given]:
        raise InputError(f"{' and '.join(strange)} cannot be used with --clefts" if of_clefts else
                         f"{' and '.join(strange)} cannot be used without --clefts")
    if of_clefts:
        from emcore.metrics.score_clefts import printed_clefts, score_clefts

        result = score_clefts(**given)
    else:
        result = score(**given)
    print(json.dumps(result, indent=1) if as_json else (printed_clefts if of_clefts else printed)(result))


def _ids(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(part) for part in text.split(","))
