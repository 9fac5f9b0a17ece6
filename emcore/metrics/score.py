"""python -m emcore score PREDICTION TRUTH: VOI, Rand and CREMI scores of two label files, block by block.

With --clefts, --skeletons and --partners it scores those: see score_clefts.py and score_points.py.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from emcore.errors import InputError
from emcore.metrics.label_files import described, open_labels, sides
from emcore.metrics.partitions import CONVENTIONS, check_convention, ignored_truth, scores_by
from emcore.metrics.placement import Borders, overlap, whole_table
from emcore.progress import Working

# options that not everything has -> what does; "" are labels
OPTIONS = {"conventions": ("",), "border_nm": ("",), "ignore_truth": ("",), "ignore_labels": ("",),
           "threshold": ("clefts",), "distance_nm": ("clefts", "partners"), "contact_nodes": ("skeletons",),
           "threads": ("", "clefts")}


def score(prediction: Any, truth: Any, conventions: Sequence[str] = tuple(CONVENTIONS),
          border_nm: float | None = None, ignore_truth: Sequence[int] | None = None,
          ignore_labels: Sequence[int] = (), resolution: Sequence[float] | None = None,
          threads: int | None = None) -> dict[str, Any]:
    """Every score of two label volumes with its convention, JSON-able; undefined scores are None and explained.

    Volumes of different extents are laid on each other by their offsets, and scored where both are. A volume may be
    the only channel of (1, z, y, x).
    """
    for name in conventions:
        check_convention(name)
    prediction, truth = open_labels(prediction, "prediction"), open_labels(truth, "truth")
    if resolution is not None:
        prediction, truth = (replace(volume, resolution=tuple(resolution)) for volume in (prediction, truth))
    place = overlap(prediction, truth)
    table = whole_table(prediction, truth, place, Borders(border_nm), threads=threads)
    notes = place.notes(truth)
    scores = []
    for name in conventions:
        ids = ignored_truth(name) if ignore_truth is None else ignore_truth
        scores += scores_by(table.ignoring(ids, ignore_labels), name, notes)
    unlabelled = int(table.counts[table.labels == 0].sum())
    if unlabelled:
        notes.append(f"label 0 of the prediction covers {unlabelled} of the compared voxels: a segment for VOI, "
                     "skimage, dbmim, funlib and gala; background for cremi and snemi3d; single voxels for isbi")
    return {"prediction": described(prediction), "truth": described(truth), "border_nm": border_nm,
            "voxels": {"compared": table.total, "near_borders": table.masked}, "scores": scores, "notes": notes}


COLUMNS = {"voi_split": "VOI split", "voi_merge": "VOI merge", "rand_error": "Rand error",
           "rand_precision": "precision", "rand_recall": "recall", "cremi_score": "CREMI score", "v_rand": "V_Rand",
           "v_info": "V_Info"}


def printed(result: dict[str, Any]) -> str:
    """The scores as a table, one line a convention, and what each convention means."""
    lines, voxels = sides(result), result["voxels"]
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
        "distances and F1 of synaptic clefts, predicted as probabilities or as labels; with --skeletons the expected "
        "run length of skeletons in labels; with --partners CREMI's F1 of synaptic partners of two of its files."))
    parser.add_argument("prediction", help="file, or file:dataset")
    parser.add_argument("truth", help="file, or file:dataset; skeletons: a file or folder in nm, such as SWC")
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
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--clefts", dest="kind", action="store_const", const="clefts", default="",
                       help="score clefts, wherever the truth has an id; a prediction in floating point or 8 bits (255 "
                            "is 1) holds probabilities, else labels")
    kinds.add_argument("--skeletons", dest="kind", action="store_const", const="skeletons",
                       help="score the labels under the nodes of skeletons")
    kinds.add_argument("--partners", dest="kind", action="store_const", const="partners",
                       help="score pairs of pre- and postsynaptic sites")
    parser.add_argument("--threshold", type=float, help="clefts: above it a probability is cleft; 0.5 by default")
    parser.add_argument("--distance-nm", type=float, metavar="NM",
                        help="clefts: farther than this from all of the other volume a voxel is false, 200 by default; "
                             "partners: farther apart two sites are not the same, 400 by default")
    parser.add_argument("--contact-nodes", type=float, metavar="N",
                        help="skeletons: a segment with so many nodes of two of them merges, 1 by default")
    options = vars(parser.parse_args(arguments))
    as_json, kind = options.pop("json"), options.pop("kind")
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if kind not in OPTIONS.get(name, (kind,)):
            flag = f"--{name.replace('_', '-').replace('conventions', 'convention')}"
            raise InputError(f"{flag} cannot be used " + (f"with --{kind}" if "" in OPTIONS[name] or kind else
                             f"without --{' or --'.join(OPTIONS[name])}"))
    with Working(f"score {given['prediction']}"):
        result, text = _scored(kind, given)
    print(json.dumps(result, indent=1) if as_json else text(result))


def _scored(kind: str, given: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], str]]:
    """The scores, and what makes a text of them."""
    from emcore.metrics.score_clefts import printed_clefts, score_clefts
    from emcore.metrics.score_points import printed_points, score_partners, score_skeletons

    scoring, text = {"": (score, printed), "clefts": (score_clefts, printed_clefts),
                     "skeletons": (score_skeletons, printed_points),
                     "partners": (score_partners, printed_points)}[kind]
    return scoring(**given), text


def _ids(text: str) -> tuple[int, ...]:
    return () if text == "none" else tuple(int(part) for part in text.split(","))
