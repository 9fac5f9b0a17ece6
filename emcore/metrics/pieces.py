"""The pieces of a mask that is seen in runs of sections, one after the other, numbered as those of the whole mask."""

import numpy as np
from numpy.typing import NDArray

from emcore.kernels.overlaps import unite
from emcore.metrics.tables import contingency
from emcore.segment import connected_components


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
            unite(np.ascontiguousarray(np.concatenate(self.one_piece, axis=1).astype(np.int64).T), parent)
        is_first = parent == np.arange(self.count + 1)
        return (np.cumsum(is_first) - 1)[parent].astype(np.uint64)
