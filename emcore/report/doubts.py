"""python -m emcore doubts LABELS OUT: a list of what may be wrong with labels and what is at stake, most urgent first.

    python -m emcore doubts outputs/demo/results_step=600/test_im_labels.h5 doubts

It needs no truth. OUT/doubts.csv has a line for each candidate error, doubts.json shows them in Neuroglancer, and
doubts.html asks about one after the other, with the keys alone; it keeps the answers and saves them as edits.csv.
"""

import argparse
import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcore.blocks.explain import threshold_of
from emcore.blocks.tables import parts_of
from emcore.errors import InputError
from emcore.files import csv_text, reported, write_text
from emcore.metrics.points import labels_at
from emcore.png import encode_png
from emcore.record import LABELS, has_labels, is_unchanged, read, refuse_edits
from emcore.report.html import digest, filled, policy
from emcore.report.html import read as text_of
from emcore.report.places import Place, outer_fragments, places_of
from emcore.report.stakes import cable_of, synapses_of
from emcore.report.suspects import suspects_of
from emcore.results import STEP, newest
from emcore.segment import Segmentation
from emcore.segment.doubts import REASONS, Doubts, find_doubts
from emcore.segment.skeleton_files import read_skeletons
from emcore.segment.storage import no_tree
from emcore.settings import Settings
from emcore.volumes import Volume, is_there, open_volume, placement

FIELD = 64  # voxels of a picture, along the axis of the smallest voxels
NECK = 0.1  # A merge is called a neck where its faces are fewer than this times the smaller side's voxels ** (2 / 3).
# A wrong yes costs more than many right ones bring, so a yes is asked again, of somebody else or on another day.
WRONG, SURE, MOST_ASKED = 0.1, 99, 4
COLUMNS = ("rank", "edit", "z", "y", "x", "to_z", "to_y", "to_x", "at_z_nm", "at_y_nm", "at_x_nm", "reason", "object",
           "to_object", "statistic", "value", "faces", "um3", "to_um3", "chance", "stake_bits", "urgency", "like")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore doubts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, metavar="LABELS",
                        help="labels of infer.py with decode.kind = affinities, or the folder of a run that has some")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the files")
    parser.add_argument("--image", metavar="I", help="the micrographs; by default those that were predicted")
    parser.add_argument("--most", type=int, default=200, metavar="N", help="list so many doubts (default %(default)s)")
    parser.add_argument("--skeletons", type=Path, metavar="S",
                        help="skeletons of the labels: for crossings, ends that face each other, and cable at stake")
    parser.add_argument("--connectome", type=Path, metavar="C",
                        help="a folder of python -m emcore connectome, for the synapses at stake")
    parser.add_argument("--once", action="store_true",
                        help="the page asks once; without it a yes counts when it was given as often as it takes to be "
                             "sure")
    options = parser.parse_args(arguments)
    if options.most < 1:
        raise InputError(f"--most takes a number of 1 or more; got {options.most}")
    labels = labels_in(options.labels)
    image = image_of(labels, options.image)
    listed = list_doubts(labels, options.most, options.skeletons, options.connectome)
    files = {"doubts.csv": csv_text([listed.columns, *listed.rows]),
             "doubts.json": json.dumps(viewer_state(listed), indent=1),
             "doubts.html": doubts_page(listed, image, labels.name, not options.once)}
    with reported(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(options.out / name, text)
    splits = sum(row[1] == "split" for row in listed.rows)
    print(f"{len(listed.rows)} of {listed.total} doubts: {splits} objects that may be two, "
          f"{len(listed.rows) - splits} pairs that may be one\n{options.out / 'doubts.html'}")
    return 0


class Listed(NamedTuple):
    """The most urgent doubts of a labels file, as lines of doubts.csv and with their places."""

    columns: list[str]
    rows: list[list[Any]]
    places: list[Place]
    fragments: Volume
    total: int  # doubts that there are; among those that are not listed dust and links may have settled some


def list_doubts(labels: Path, most: int, skeletons: Path | None = None, connectome: Path | None = None) -> Listed:
    """The most urgent doubts of a labels file, in blocks or not."""
    if has_labels(labels):
        refuse_edits(labels, "name the labels without edits")
    parts, threshold = parts_of(labels), threshold_of(labels)
    if parts is None or threshold is None:
        raise no_tree(labels)
    fragments, stored, segmentation = parts.fragments(), open_volume(labels, LABELS), Segmentation.of_parts(parts)
    if fragments.resolution is None:
        raise InputError(f"{labels} does not say its resolution, and doubts are measured in micrometres")
    voxel = float(np.prod(fragments.resolution)) / 1e9
    traced = {} if skeletons is None else read_skeletons(skeletons)
    found, parted = find_doubts(segmentation, threshold, voxel, bool(stored.attrs["decode"].get("learned")),
                                suspects_of(stored, fragments, traced))
    count = parted.graph.fragments
    field = [max(2, round(FIELD * min(fragments.resolution) / size)) for size in fragments.resolution]
    kept, settled, places = [], 0, []
    for start in range(0, len(found), most):
        rows = np.arange(start, min(start + most, len(found)))
        there = list(places_of(found.rows(rows), parted, fragments, field))
        names = labels_under(stored, there)
        # what dust and links did after the cut may have joined a pair already, or left no object there
        still = names.all(axis=1) & ((names[:, 0] == names[:, 1]) == (found.merge[rows] >= 0))
        kept, settled = [*kept, *rows[still].tolist()], settled + int((~still).sum())
        places += [there[row] for row in np.flatnonzero(still)]
        if len(kept) >= most:
            break
    total, places = len(found) - settled, places[:most]
    found, names = found.rows(np.array(kept[:most], np.int64)), labels_under(stored, places)
    weights = {}
    if skeletons is not None:
        weights["cable_um"] = cable_of(traced, fragments, count) / 1000
    if connectome is not None:
        weights["synapses"] = synapses_of(connectome, fragments, count)
    more = [parted.weigh(found.merge, found.contact, values) for values in weights.values()]
    inside = parted.weigh(found.merge, found.contact, outer_fragments(fragments, count).astype(np.int64)) == 0
    rows = table_rows(found, places, inside, names, segmentation.statistic, fragments)
    for number, (row, like) in enumerate(zip(rows, parted.alike(found).tolist())):
        row.append("" if like < 0 else like + 1)
        row += [value for values in more for value in values[number].tolist()]
    return Listed([*COLUMNS, *(side + name for name in weights for side in ("", "to_"))], rows, places, fragments,
                  total)


def labels_under(stored: Volume, places: Sequence[Place]) -> np.ndarray:
    """(n, 2): the labels in the file under the voxels of either side."""
    voxels = np.array([[place.one, place.two] for place in places]).reshape(-1, 3) + 0.5
    return labels_at(stored, voxels, (1, 1, 1)).reshape(-1, 2)


def labels_in(path: Path) -> Path:
    """The labels file that is meant: itself, or the only one in a folder, of a run in its newest results."""
    if not path.is_dir():
        if not has_labels(path):
            raise InputError(f"{path} is no labels file that infer.py wrote with decode.kind = affinities")
        return path
    if any(path.glob(f"{STEP}*")):
        path = newest(Settings(name=path.name, outputs=str(path.parent)))
    found = sorted(path.glob("*_labels.h5"))
    if len(found) != 1:
        raise InputError(f"{path} has {len(found)} files *_labels.h5, and doubts are of one: name it")
    return found[0]


def image_of(labels: Path, named: str | None) -> tuple[Volume, tuple[slice, ...]]:
    """The micrographs, and where the labels lie in them."""
    if named is None:
        made_by = read(labels, LABELS)
        volume = (made_by or {}).get("prediction", {}).get("volume") or {}
        named = volume.get("image")
        if named is None or not is_there(named):
            raise InputError(f"{labels} does not say which image it is of, or that is gone: name it by --image")
        if not is_unchanged(volume):
            raise InputError(f"{named} is not the image any more that {labels} was made of: name that one by --image")
    image = open_volume(named, kind="image")
    if image.ndim != 3:
        raise InputError(f"--image takes (z, y, x); {image.name} has the shape {image.shape}")
    return image, placement(open_volume(labels, LABELS), image)


def table_rows(found: Doubts, places: Sequence[Place], inside: np.ndarray, names: np.ndarray, statistic: str,
               fragments: Volume) -> list[list[Any]]:
    """The lines of doubts.csv; names: the labels of either side."""
    volumes, urgency = found.voxels * (np.prod(fragments.resolution) / 1e9), found.urgency
    smaller, rows = found.voxels.argmin(axis=1), []
    for number, (place, small) in enumerate(zip(places, smaller.tolist())):
        merged = bool(found.merge[number] >= 0)
        if merged:
            narrow = found.faces[number] < NECK * found.voxels[number, small] ** (2 / 3)
            reason = "neck" if narrow else "weak merge"
        else:
            reason = "orphan" if inside[number, small] else "touching"
        at = (np.array(place.middle) * fragments.resolution + fragments.offset).tolist()
        reason = REASONS[found.shape[number]] or reason
        rounded = [float(f"{value:.6g}") for value in (1 - found.height[number], *volumes[number], found.chance[number],
                                                       found.stake[number], urgency[number])]
        rows.append([number + 1, "split" if merged else "join", *place.one, *place.two, *at, reason,
                     *names[number].tolist(), statistic, rounded[0], int(found.faces[number]), *rounded[1:]])
    return rows


def viewer_state(listed: Listed) -> dict[str, Any]:
    """A state of Neuroglancer with a line for every doubt, from side to side; its layer can be added to any other."""
    sizes = listed.fragments.resolution
    start = (np.array(listed.fragments.offset) / sizes).tolist()
    lines = []
    for row in listed.rows:
        named = dict(zip(listed.columns, row))
        one, two = ([named[side + axis] + at + 0.5 for axis, at in zip("xyz", start[::-1])] for side in ("", "to_"))
        lines.append({"type": "line", "id": str(named["rank"]), "pointA": one, "pointB": two,
                      "description": f"{named['edit']}? {named['reason']}, chance {named['chance']:.2f}"})
    return {"dimensions": {axis: [size * 1e-9, "m"] for axis, size in zip("xyz", sizes[::-1])},
            "layers": [{"type": "annotation", "name": "doubts", "source": "local://annotations",
                        "annotationColor": "#ff8c00", "annotations": lines}]}


def times_asked(chance: float) -> int:
    """How often a yes must be given before it counts: until chance and answers say yes with odds of SURE to 1.

    One answer in WRONG is taken to be wrong. A no counts at once.
    """
    odds = np.log(chance / (1 - chance)) if 0 < chance < 1 else np.inf * (chance - 0.5)
    return int(np.clip(np.ceil((np.log(SURE) - odds) / np.log(1 / WRONG - 1)), 1, MOST_ASKED))


def doubts_page(listed: Listed, image: tuple[Volume, tuple[slice, ...]], name: str, again: bool = True) -> str:
    """One HTML file that needs no network and asks about one doubt after the other, and about each yes again."""
    volume, start = image
    items = []
    for row, place in zip(listed.rows, listed.places):
        box = tuple(slice(span.start + at.start, span.stop + at.start) for span, at in zip(place.box, start))
        named = dict(zip(listed.columns, row))
        items.append({**named, "asked": times_asked(named["chance"]) if again else 1, "shape": place.sides.shape,
                      "middle": [at - span.start for at, span in zip(place.middle, place.box)],
                      "start": [span.start for span in place.box],
                      "raw": flat(grey(volume[box])), "sides": flat(place.sides)})
    style, script = text_of("page.css") + text_of("doubts.css"), text_of("doubts.js")
    data = json.dumps({"resolution": listed.fragments.resolution, "total": listed.total, "doubts": items,
                       "twice": again, "key": digest(csv_text([listed.columns, *listed.rows]))}, allow_nan=False)
    return filled("doubts.html", {"policy": policy(style, script), "style": style, "script": script, "title": "Doubts",
                                  "asked": " when it was given as often as the page asks for it" if again else "",
                                  "subtitle": escape(name), "data": data.replace("<", "\\u003c")})


def grey(values: np.ndarray) -> np.ndarray:
    """8 bits whose range is that of all but the darkest and the brightest voxels."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.5, 99.5)) if len(finite) else (0.0, 0.0)
    known = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    scaled = (known - low) * (255 / (high - low or 1))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def flat(values: np.ndarray) -> str:
    """A box (z, y, x) of uint8 as the base64 of one picture, its sections below each other."""
    return base64.b64encode(encode_png(values.reshape(-1, values.shape[2]))).decode()
