"""python -m emcore doubts LABELS OUT: where labels may be wrong and what is at stake there, most urgent first.

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
from typing import Any

import numpy as np

from emcore.blocks.explain import threshold_of
from emcore.blocks.tables import parts_of
from emcore.errors import InputError
from emcore.files import csv_text, reported, write_text
from emcore.png import encode_png
from emcore.record import LABELS, has_labels, read
from emcore.report.html import digest, filled, policy
from emcore.report.html import read as text_of
from emcore.report.places import Place, outer_fragments, places_of
from emcore.report.stakes import cable_of, synapses_of
from emcore.segment import Segmentation
from emcore.segment.doubts import Doubts, Parted, find_doubts
from emcore.segment.storage import no_tree
from emcore.volumes import Volume, is_there, open_volume, placement

FIELD = 64  # voxels of a picture, along the axis of the smallest voxels
NECK = 0.1  # A merge is called a neck where its faces are fewer than this times the smaller side's voxels ** (2 / 3).
COLUMNS = ("rank", "edit", "z", "y", "x", "to_z", "to_y", "to_x", "at_z_nm", "at_y_nm", "at_x_nm", "reason", "object",
           "to_object", "statistic", "value", "faces", "um3", "to_um3", "chance", "stake_bits", "urgency")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore doubts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, metavar="LABELS",
                        help="a labels file of infer.py with decode.kind = affinities, or a folder with one such file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the files")
    parser.add_argument("--image", metavar="I", help="the micrographs; by default those that were predicted")
    parser.add_argument("--most", type=int, default=200, metavar="N", help="list so many doubts (default %(default)s)")
    parser.add_argument("--skeletons", type=Path, metavar="S", help="skeletons of the labels, for the cable at stake")
    parser.add_argument("--connectome", type=Path, metavar="C",
                        help="a folder of python -m emcore connectome, for the synapses at stake")
    options = parser.parse_args(arguments)
    if options.most < 1:
        raise InputError(f"--most takes a number of 1 or more; got {options.most}")
    labels = labels_in(options.labels)
    parts, threshold = parts_of(labels), threshold_of(labels)
    if parts is None or threshold is None:
        raise no_tree(labels)
    fragments = parts.fragments()
    if fragments.resolution is None:
        raise InputError(f"{labels} does not say its resolution, and doubts are measured in micrometres")
    image = image_of(labels, options.image)
    segmentation = Segmentation.of_parts(parts)
    stored = open_volume(labels, LABELS)
    voxel = float(np.prod(fragments.resolution)) / 1e9
    found, parted = find_doubts(segmentation, threshold, voxel, bool(stored.attrs["decode"].get("learned")))
    total = len(found)
    found = found.rows(np.arange(min(total, options.most)))
    outer = outer_fragments(fragments, parted.graph.fragments)
    field = [max(1, round(FIELD * min(fragments.resolution) / size)) for size in fragments.resolution]
    places = list(places_of(found, parted, fragments, field))
    more = {}
    if options.skeletons is not None:
        more["cable_um"] = cable_of(options.skeletons, fragments, parted.graph.fragments) / 1000
    if options.connectome is not None:
        more["synapses"] = synapses_of(options.connectome, fragments, parted.graph.fragments)
    weights = {name: parted.weigh(found.merge, found.contact, values) for name, values in more.items()}
    inside = parted.weigh(found.merge, found.contact, outer.astype(np.int64)) == 0
    rows = [list(row) for row in table_rows(found, parted, places, inside, str(segmentation.statistic), fragments)]
    for name, values in weights.items():
        rows = [[*row, *pair] for row, pair in zip(rows, values.tolist())]
    columns = [*COLUMNS, *(side + name for name in weights for side in ("", "to_"))]
    with reported(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "doubts.csv", csv_text([columns, *rows]))
    write_text(options.out / "doubts.json", json.dumps(viewer_state(columns, rows, fragments), indent=1))
    page = options.out / "doubts.html"
    write_text(page, doubts_page(columns, rows, places, fragments, image, labels.name, total))
    merges = int((found.merge >= 0).sum())
    print(f"{len(found)} of {total} doubts: {merges} objects that may be two, {len(found) - merges} pairs that may be "
          f"one\n{page}")
    return 0


def labels_in(path: Path) -> Path:
    """The labels file that is meant: itself, or the only one in a folder."""
    if not path.is_dir():
        if not has_labels(path):
            raise InputError(f"{path} is no labels file that infer.py wrote with decode.kind = affinities")
        return path
    found = sorted(path.glob("*_labels.h5"))
    if len(found) != 1:
        raise InputError(f"{path} has {len(found)} files *_labels.h5, and doubts are of one: name it")
    return found[0]


def image_of(labels: Path, named: str | None) -> tuple[Volume, tuple[slice, ...]]:
    """The micrographs, and where the labels lie in them."""
    if named is None:
        made_by = read(labels, LABELS)
        named = ((made_by or {}).get("prediction", {}).get("volume") or {}).get("image")
        if named is None or not is_there(named):
            raise InputError(f"{labels} does not say which image it is of, or that is gone: name it by --image")
    image = open_volume(named, kind="image")
    if image.ndim != 3:
        raise InputError(f"--image takes (z, y, x); {image.name} has the shape {image.shape}")
    return image, placement(open_volume(labels, LABELS), image)


def table_rows(found: Doubts, parted: Parted, places: Sequence[Place], inside: np.ndarray, statistic: str,
               fragments: Volume) -> Any:
    """The lines of doubts.csv."""
    voxel = np.prod(fragments.resolution) / 1e9
    ends = parted.table[np.stack([parted.graph.u[found.contact], parted.graph.v[found.contact]], axis=1)]
    volumes, urgency, smaller = found.voxels * voxel, found.urgency, found.voxels.min(axis=1)
    alone = np.where(found.voxels[:, 0] <= found.voxels[:, 1], inside[:, 0], inside[:, 1])
    for row, place in enumerate(places):
        merged = found.merge[row] >= 0
        if merged:
            reason = "neck" if found.faces[row] < NECK * smaller[row] ** (2 / 3) else "weak merge"
        else:
            reason = "orphan" if alone[row] else "touching"
        at = (np.array(place.middle) * fragments.resolution + fragments.offset).tolist()
        yield (row + 1, "split" if merged else "join", *place.one, *place.two, *at, reason, *ends[row].tolist(),
               statistic, round(1 - float(found.height[row]), 6), int(found.faces[row]),
               *(float(f"{volume:.6g}") for volume in volumes[row]),
               *(float(f"{value:.4g}") for value in (found.chance[row], found.stake[row], urgency[row])))


def viewer_state(columns: Sequence[str], rows: Sequence[Sequence[Any]], fragments: Volume) -> dict[str, Any]:
    """A state of Neuroglancer with a line for every doubt, from side to side; its layer can be added to any other."""
    start = np.array(fragments.offset) / fragments.resolution
    lines = []
    for row in rows:
        named = dict(zip(columns, row))
        one, two = ([float(named[before + axis] + at + 0.5) for axis, at in zip("xyz", start[::-1])]
                    for before in ("", "to_"))
        lines.append({"type": "line", "id": str(named["rank"]), "pointA": one, "pointB": two,
                      "description": f"{named['edit']}? {named['reason']}, chance {named['chance']:.2f}"})
    return {"dimensions": {axis: [size * 1e-9, "m"] for axis, size in zip("xyz", fragments.resolution[::-1])},
            "layers": [{"type": "annotation", "name": "doubts", "source": "local://annotations",
                        "annotationColor": "#ff8c00", "annotations": lines}]}


def doubts_page(columns: Sequence[str], rows: Sequence[Sequence[Any]], places: Sequence[Place], fragments: Volume,
                image: tuple[Volume, tuple[slice, ...]], name: str, total: int) -> str:
    """One HTML file that needs no network and asks about one doubt after the other."""
    volume, start = image
    items = []
    for row, place in zip(rows, places):
        box = tuple(slice(span.start + at.start, span.stop + at.start) for span, at in zip(place.box, start))
        items.append({**dict(zip(columns, row)), "shape": place.sides.shape,
                      "middle": [at - span.start for at, span in zip(place.middle, place.box)],
                      "start": [span.start for span in place.box],
                      "raw": flat(grey(volume[box])), "sides": flat(place.sides)})
    style, script = text_of("page.css") + text_of("doubts.css"), text_of("doubts.js")
    data = json.dumps({"resolution": fragments.resolution, "total": total, "doubts": items,
                       "key": digest(csv_text([columns, *rows]))}, allow_nan=False).replace("<", "\\u003c")
    return filled("doubts.html", {"policy": policy(style, script), "style": style, "script": script, "data": data,
                                  "title": "Doubts", "subtitle": escape(name)})


def grey(values: np.ndarray) -> np.ndarray:
    """8 bits whose range is that of all but the darkest and the brightest voxels."""
    low, high = np.nanpercentile(values, (0.5, 99.5))
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) * (255 / (high - low or 1))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)


def flat(values: np.ndarray) -> str:
    """A box (z, y, x) of uint8 as the base64 of one picture, its sections below each other."""
    return base64.b64encode(encode_png(values.reshape(-1, values.shape[2]))).decode()
