"""python -m emcore explain LABELS Z Y X: why a voxel has its label, from what infer.py stored with the labels.

    python -m emcore explain outputs/demo/results_step=600/test_im_labels.h5 12 80 80
    python -m emcore explain labels.h5 12 80 80 --other 14 90 30    # what joins the two, or why nothing does
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emcore.blocks.tables import read_segmentation
from emcore.errors import InputError
from emcore.record import LABELS, has_labels
from emcore.record import read as read_record
from emcore.segment import Explanation
from emcore.volumes import Volume, open_volume

MOST = 2**62  # merges: all of them


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore explain", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path, help="a labels file of infer.py with decode.kind = affinities")
    parser.add_argument("voxel", type=int, nargs=3, metavar=("Z", "Y", "X"))
    parser.add_argument("--other", type=int, nargs=3, metavar=("Z", "Y", "X"), help="a second voxel")
    parser.add_argument("--threshold", type=float, help="by default the one that the labels were made with")
    parser.add_argument("--all", action="store_true", help="print every merge, also of a long chain")
    options = parser.parse_args(arguments)
    segmentation, made_by = read_segmentation(options.labels), threshold_of(options.labels)
    threshold = made_by if options.threshold is None else options.threshold
    if threshold is None:
        raise InputError(f"{options.labels} does not say at which threshold it was cut: name one by --threshold")
    found = segmentation.explain(options.voxel, threshold, options.other)
    print("\n".join([*found.lines(MOST if options.all else 12), *after_the_cut(options.labels, found, made_by)]))
    return 0


def stored_labels(path: Path) -> Volume | None:
    return open_volume(path, LABELS) if has_labels(path) else None


def threshold_of(path: Path) -> float | None:
    """The threshold by which the labels of a file were cut."""
    labels = stored_labels(path)
    settings = None if labels is None else labels.attrs.get("decode")
    threshold = settings.get("threshold") if isinstance(settings, dict) else None
    return float(threshold) if isinstance(threshold, int | float) else None


def after_the_cut(path: Path, found: Explanation, made_by: float | None) -> list[str]:
    """What became of the voxels after the cut: boundaries, dust and links are no merges of the tree."""
    labels = stored_labels(path)
    if labels is None or found.threshold != made_by:
        return []
    lines, names = [], []
    for place in (found.place, found.other):
        if place is None or place.fragment == 0:
            continue
        label = int(np.asarray(labels[tuple(slice(at, at + 1) for at in place.voxel)]).reshape(()))
        names.append(label)
        where = " ".join(map(str, place.voxel))
        if label == 0:
            lines.append(f"in the file voxel {where} is 0: it was cleared as boundary, or its segment was removed as "
                         "dust after the cut")
        else:
            lines.append(f"in the file voxel {where} has the number {label}")
        if label and place is found.place and found.voxels < labels.attrs["decode"].get("dust_size", 0):
            lines.append(f"its segment of {found.voxels} voxels is dust (decode.dust_size is "
                         f"{labels.attrs['decode']['dust_size']}): after the cut it was merged across its best border, "
                         "if that is above decode.dust_affinity")
    if len(names) == 2 and 0 not in names and found.other.label != found.place.label and names[0] == names[1]:
        lines.append("the two have one number in the file: they were joined after the cut, as dust or across sections")
    if edits := (read_record(path, LABELS) or {}).get("edits"):
        lines.append(f"{edits['count']} edits are held in the file; merges are told here as they are without them")
    return lines
