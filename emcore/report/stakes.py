"""What stands on a fragment besides its voxels: cable of skeletons, and synapses of a wiring diagram."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.metrics.nodes import node_table
from emcore.metrics.points import labels_at
from emcore.report.wiring_files import read_synapses
from emcore.segment import Skeleton
from emcore.volumes import Volume


def cable_of(skeletons: Mapping[int, Skeleton], fragments: Volume, count: int) -> np.ndarray:
    """The nm of cable in every fragment from 0 on: each end of an edge of a skeleton has half of its length."""
    nodes = node_table(skeletons)
    under = labels_at(fragments, nodes.places, resolution_of(fragments), fragments.offset)
    found = np.zeros(count + 1)
    for end in range(2):
        np.add.at(found, under[nodes.edges[:, end]], nodes.lengths / 2)
    return found


def synapses_of(folder: Path, fragments: Volume, count: int) -> np.ndarray:
    """How many sides of synapses lie in every fragment from 0 on: two for each line of synapses.csv that has both."""
    table = read_synapses(folder)
    places = np.concatenate([table.pre_place, table.post_place])
    places = places[~np.isnan(places).any(axis=1)]  # A synapse without a partner on one side has no place there.
    under = labels_at(fragments, places, resolution_of(fragments), fragments.offset, "nearest")
    return np.bincount(under.astype(np.int64), minlength=count + 1)


def resolution_of(fragments: Volume) -> tuple[float, float, float]:
    if fragments.resolution is None:
        raise InputError(f"{fragments.name} does not say its resolution, so nothing in nm can be found in it")
    return fragments.resolution
