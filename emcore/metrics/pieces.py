"""The pieces of a mask that is seen in runs of sections, one after the other, numbered as those of the whole mask."""

import numpy as np
from numba import types
from numpy.typing import NDArray

from emcore.cache import compiled
from emcore.metrics.tables import contingency
from emcore.segment import connected_components

_numbers = types.Array(types.int64, 1, "C")
_numbers_in = types.Array(types.int64, 1, "C", readonly=True)


@compiled(types.void(_numbers_in, _numbers_in, _numbers))
def _unite(first, second, parent):
    """Joins the pieces of each pair in the forest `parent`, whose roots are the smallest numbers of their trees."""
    for pair in range(len(first)):
        one, other = first[pair], second[pair]
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        while parent[other] != other:
            parent[other] = parent[parent[other]]
            other = parent[other]
        parent[max(one, other)] = min(one, other)


class Pieces:
    """Gives each run of sections the pieces in it, and at the end says which of them are one."""

    def __init__(self, connectivity: int):
        self.connectivity, self.count = connectivity, 0
        self.last: NDArray[np.uint64] | None = None  # the section before the next run
        self.one_piece: list[NDArray[np.uint64]] = []  # (2, n): numbers of one piece, from before and after a seam

    def of_run(self, inside: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """The numbers of the pieces of the next run; 0 outside. A piece has a number in every run that it touches.

        The section before is looked at again, so that whatever is a neighbour of it is seen in one run with it.
        """
        seam = self.last if self.connectivity not in (4, 8) else None
        seen = inside if seam is None else np.concatenate([(seam > 0)[None], inside])
        pieces, found = connected_components(seen, self.connectivity, count=True)
        numbers = pieces.astype(np.uint64)
        np.add(numbers, np.uint64(self.count), out=numbers, where=numbers > 0)
        if seam is not None:
            pairs = contingency(seam, numbers[0])
            self.one_piece.append(np.stack([pairs.truth[pairs.kept], pairs.labels[pairs.kept]]))
            numbers = numbers[1:]
        self.last = numbers[-1].copy()
        self.count += found
        return numbers

    def of_whole(self) -> NDArray[np.uint64]:
        """The number in the whole mask, in raster order of first voxels, of each number that was given to a run."""
        parent = np.arange(self.count + 1)
        if self.one_piece:
            _unite(*np.concatenate(self.one_piece, axis=1).astype(np.int64), parent)
        while (parent != parent[parent]).any():
            parent = parent[parent]
        is_first = parent == np.arange(self.count + 1)
        return (np.cumsum(is_first) - 1)[parent].astype(np.uint64)
