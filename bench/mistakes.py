"""Pictures of the largest errors of stored labels, a file a volume: raw, truth and labels beside each other.

    python -m bench.mistakes --cfg configs/tissue/fib25_neurons.toml --params bench/volumes/fib25_three.toml \\
        --results outputs/fib25_neurons_weights=fib25_neurons --out docs/errors

A row is an error: a true object that lies in several segments, or a segment that holds several true objects, most
misplaced voxels first. The truth is cut into its connected pieces, because a decoder cannot know that two of them are
one body. An error is shown where its two largest pieces touch, in the section where they touch most. Only the objects
and segments of that error are coloured, and what a row shows is printed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from emcore import config
from emcore.metrics import contingency
from emcore.metrics.floor import cut_into_pieces
from emcore.metrics.placement import overlap
from emcore.png import overlay, write_png
from emcore.report.mistakes import find
from emcore.settings import Settings
from emcore.settings.data import result_name
from emcore.volumes import open_volume, placement
from emcore.volumes.address import located

SHOWN = 3  # errors of a volume
SIDE = 160  # voxels of a picture's side
GREYS = 16  # so few, because a picture of all 256 is three times as large
GAP, ZOOM = 4, 2
LEAST = 0.01  # share of an object below which a piece of it is not coloured


def seam(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """bool (z, y, x): the voxels of the second piece that touch the first; all of it where they do not touch."""
    near = np.zeros_like(first)
    for axis in range(3):
        one, other = np.moveaxis(near, axis, 0), np.moveaxis(first, axis, 0)
        one[:-1] |= other[1:]
        one[1:] |= other[:-1]
    touching = near & second
    return touching if touching.any() else second


def window(shown: np.ndarray, side: int) -> tuple[slice, slice]:
    """A square of a section, or all of it, around the middle of what is shown."""
    spans = []
    for places, length in zip(np.nonzero(shown), shown.shape):
        start = int(places.mean()) - side // 2
        start = max(0, min(start, length - side))
        spans.append(slice(start, min(length, start + side)))
    return tuple(spans)


def row(raw: np.ndarray, truth: np.ndarray, labels: np.ndarray, error: dict[str, Any], splits: bool) -> np.ndarray:
    """uint8 (y, x, 3): raw, truth and labels of one error side by side."""
    groups, members = (truth, labels) if splits else (labels, truth)
    pieces = [piece for piece, count in error["pieces"] if count >= LEAST * error["voxels"]]
    group = groups == error["id"]
    shown = seam(*(group & (members == piece) for piece, _ in error["pieces"][:2]))
    z = int(np.count_nonzero(shown, axis=(1, 2)).argmax())
    box = window(shown[z], SIDE)
    grey = raw[z][box] // (256 // GREYS) * (255 // (GREYS - 1))
    coloured = np.where(np.isin(members[z][box], pieces), members[z][box], 0)
    whole = overlay(grey, group[z][box].astype(np.uint8))
    parted = overlay(grey, coloured)
    tiles = [np.repeat(grey[..., None], 3, 2), *((whole, parted) if splits else (parted, whole))]
    line = np.concatenate([np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for tile in tiles], 1)
    print(f"    {'a true object in several segments' if splits else 'a segment that holds several true objects'}: "
          f"{error['id']}, {error['voxels']:,} voxels in {error['members']} pieces, {error['misplaced']:,} misplaced; "
          f"section {z}, y {box[0].start}, x {box[1].start}; pieces {error['pieces']}")
    return line.repeat(ZOOM, 0).repeat(ZOOM, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="the recipe")
    parser.add_argument("--params", help="other volumes in its data.test")
    parser.add_argument("--results", required=True, help="the folder of NAME_labels.h5")
    parser.add_argument("--out", required=True, help="the pictures are OUT_NAME.png")
    options, more = parser.parse_known_args()
    settings = config.load(Settings, options.cfg, more, options.params)
    for number, test in enumerate(settings.data.test):
        name = result_name(settings.data, number)
        ours = open_volume(f"{Path(options.results) / name}_labels.h5:labels", kind="labels")
        truth = open_volume(located(settings.data.folder, test.label), kind="labels")
        raw = open_volume(located(settings.data.folder, test.image))
        shared = overlap(ours, truth)
        sections, bodies, labels = raw[placement(truth, raw)][shared.theirs], truth[shared.theirs], ours[shared.ours]
        unknown = np.isin(bodies, (0, *settings.data.background, *settings.data.ignore))
        pieces = np.where(unknown, 0, cut_into_pieces(bodies))
        found = find(contingency(pieces, labels, (0,), (0,)))
        errors = [(error, kind == "split") for kind, listed in found.items() for error in listed]
        errors.sort(key=lambda one: -one[0]["misplaced"])
        print(name)
        rows = [row(sections, pieces, labels, *one) for one in errors[:SHOWN]]
        write_png(f"{options.out}_{name}.png", np.concatenate(rows)[:-GAP * ZOOM, :-GAP * ZOOM])


if __name__ == "__main__":
    main()
