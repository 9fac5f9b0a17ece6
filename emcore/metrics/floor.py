"""The floor under a score: what the truth itself scores when each of its pieces is a label of its own.

A body that is not connected within a volume is several pieces there. What joins them lies outside of the volume, so a
perfect decoder leaves them apart.
"""

from math import prod

import numpy as np

from emcore.memory import memory_there
from emcore.metrics.case import Case, borders
from emcore.metrics.partitions import rand, voi
from emcore.metrics.placement import Shared, whole_table
from emcore.segment import affinity_components
from emcore.volumes import open_volume

BYTES = 40  # a voxel while pieces are found: truth, affinities, pieces and what the table takes
MOST_BYTES = 2**29  # Scores read a truth box by box, and this note must not take much more than they do.


def floor_notes(case: Case) -> list[str]:
    """One sentence where bodies of the truth consist of several pieces; none where they do not, or where the volume is
    too large to find out."""
    place = case.place
    if BYTES * prod(place.shape) > min(MOST_BYTES, memory_there() // 4):
        return []
    pieces = open_volume(cut_into_pieces(case.truth[place.theirs]))
    usable = None if case.mask_file is None else open_volume(case.mask_file)
    table = whole_table(pieces, case.truth, Shared((0, 0, 0), place.truth_start, place.shape),
                        borders(case.settings), usable).ignoring(case.ignored)
    split = voi(table).split
    if not split > 0:
        return []
    bodies, found = len(table.truth_ids), len(table.label_ids)
    error = rand(table, case.settings.convention).error
    return [f"the truth's own floor: its {bodies} bodies are {found} pieces within the volume, which as labels of "
            f"their own have a VOI of {split:.4g} and a Rand error of {error:.4g}"]


def cut_into_pieces(labels: np.ndarray) -> np.ndarray:
    """The pieces of labels (z, y, x) that hang together through faces of voxels, from 1 on, uint32."""
    joined = np.zeros((3, *labels.shape), np.uint8)
    for axis in range(3):
        here, before = (((slice(None),) * axis + (part,)) for part in (slice(1, None), slice(None, -1)))
        joined[axis][here] = (labels[here] == labels[before]) * np.uint8(255)
    pieces = affinity_components(joined, 0.5)
    single = pieces == 0  # voxels without a neighbour of their label
    pieces[single] = np.arange(1, np.count_nonzero(single) + 1, dtype=np.uint32) + pieces.max(initial=0)
    return pieces
