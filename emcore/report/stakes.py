"""What stands on a fragment besides its voxels: cable of skeletons, and synapses of a wiring diagram."""

import csv
import io
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.metrics.nodes import node_table
from emcore.metrics.points import labels_at
from emcore.reading import read_text
from emcore.segment.skeleton_files import read_skeletons
from emcore.volumes import Volume

MOST_BYTES = 1 << 30  # of a table of synapses
SIDES = ("pre", "post")


def cable_of(skeletons: Path, fragments: Volume, count: int) -> np.ndarray:
    """The nm of cable in every fragment from 0 on: each end of an edge of a skeleton has half of its length."""
    nodes = node_table(read_skeletons(skeletons))
    under = labels_at(fragments, nodes.places, sizes_of(fragments), fragments.offset)
    found = np.zeros(count + 1)
    for end in range(2):
        np.add.at(found, under[nodes.edges[:, end]], nodes.lengths / 2)
    return found


def synapses_of(folder: Path, fragments: Volume, count: int) -> np.ndarray:
    """How many sides of synapses lie in every fragment from 0 on, by the table synapses.csv of a wiring diagram."""
    path = folder / "synapses.csv"
    rows = csv.DictReader(io.StringIO(read_text(path, MOST_BYTES), newline=""))
    columns = [[f"{side}_{axis}_nm" for axis in "zyx"] for side in SIDES]
    missing = {name for side in columns for name in side} - set(rows.fieldnames or ())
    if missing:
        raise InputError(f"{path} has no column {sorted(missing)[0]}; python -m emcore connectome writes such a table")
    places = set()
    for row in rows:
        for side in columns:
            if all(row[name] for name in side):  # a synapse without a partner on one side has no place there
                places.add(tuple(float(row[name]) for name in side))
    under = labels_at(fragments, np.array(sorted(places)).reshape(-1, 3), sizes_of(fragments), fragments.offset,
                      "nearest")
    return np.bincount(under.astype(np.int64), minlength=count + 1)


def sizes_of(fragments: Volume) -> tuple[float, float, float]:
    if fragments.resolution is None:
        raise InputError(f"{fragments.name} does not say its resolution, so nothing in nm can be found in it")
    return fragments.resolution
