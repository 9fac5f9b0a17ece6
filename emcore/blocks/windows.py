"""What a task reads of a prediction: the affinities of a window, calibrated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emcore.blocks.grid import Box
from emcore.decode.affinities import read_affinities
from emcore.segment import Affinities
from emcore.settings.decode import AffinityDecode, ConnectedDecode
from emcore.volumes import open_volume


@dataclass(frozen=True)
class Source:
    """A stored prediction by its path; it is small, so tasks carry it along."""

    path: str  # names the dataset, too, where the file has several
    settings: AffinityDecode | ConnectedDecode

    def affinities(self, box: Box) -> Affinities:
        """The three nearest-neighbour channels within a box, as decode.affinities.read_affinities has them."""
        return read_affinities(open_volume(self.path), self.settings, box)


def extent(box: Box) -> tuple[int, int, int]:
    """Voxels of a box along z, y and x."""
    return tuple(span.stop - span.start for span in box)


def corner(box: Box) -> tuple[int, int, int]:
    """The first voxel of a box."""
    return tuple(span.start for span in box)


def meeting(box: Box, window: Box) -> tuple[Box, Box]:
    """What a box and a window share, as a part of the box and as a part of the window."""
    shared = [slice(max(one.start, other.start), min(one.stop, other.stop)) for one, other in zip(box, window)]
    return tuple(tuple(slice(span.start - own.start, span.stop - own.start) for span, own in zip(shared, part))
                 for part in (box, window))


def moved(names: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """names, those in `before` (sorted) replaced by the ones in `after`."""
    if len(before) == 0:
        return names
    at = np.minimum(np.searchsorted(before, names), len(before) - 1)
    return np.where(before[at] == names, after[at], names)


def places_of(names: np.ndarray, among: np.ndarray, dtype: np.dtype | type = np.uint32) -> np.ndarray:
    """Where names stand in a sorted array that holds all of them."""
    return np.searchsorted(among, names).astype(dtype)


def sorted_names(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Every name of several arrays once, sorted, without 0."""
    every = np.concatenate([np.zeros(1, np.uint64), *(np.asarray(part, np.uint64).ravel() for part in parts)])
    every.sort()  # many times faster than np.unique
    return every[1:][every[1:] != every[:-1]]
