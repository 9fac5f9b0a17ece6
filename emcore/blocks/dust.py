"""Sizes of the segments of a cut, and what becomes of small ones: tables for the whole volume, made from blocks."""

from collections.abc import Iterable, Mapping

import numpy as np

from emcore.blocks.borders import borders_in_order, pool_borders
from emcore.segment.cleanup import number_kept
from emcore.segment.linking import join_pairs
from emcore.segment.merge_tree import link_by_size
from emcore.segment.relabeling import unique
from emcore.settings.decode import AffinityDecode


def sizes_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the numbers of the segments in a block, rising, uint64, their voxels in it, int64)."""
    numbers, voxels = unique(labels, counts=True)
    return numbers[numbers > 0].astype(np.uint64), voxels[numbers > 0]


def pool_sizes(parts: Iterable[tuple[np.ndarray, np.ndarray]], segments: int) -> np.ndarray:
    """The voxels of every segment from 0 (which counts none) to `segments`, int64, of what sizes_of says of blocks."""
    sizes = np.zeros(segments + 1, np.int64)
    for numbers, voxels in parts:
        sizes[numbers.astype(np.int64)] += voxels
    return sizes


def dust_table(parts: Iterable[Mapping[str, np.ndarray]], sizes: np.ndarray, settings: AffinityDecode) -> np.ndarray:
    """The final number of every segment of the cut, as segment.cleanup.merge_dust gives them; uint32 where they fit.

    parts are the border_columns of all blocks, which are looked at where settings.dust_size is above 0; sizes counts
    the voxels of every segment.
    """
    merged = np.arange(len(sizes))
    if settings.dust_size:
        a, b, heights = borders_in_order(pool_borders(parts, settings.statistic), settings.statistic)
        good = 1 - heights > settings.dust_affinity
        pairs = np.stack([a[good], b[good]], axis=1)
        ends, where = np.unique(pairs, return_inverse=True)  # the kernel numbers in 32 bits what has a border
        u, v = where.reshape(pairs.shape).astype(np.uint32).T
        edges = link_by_size(u, v, np.arange(len(pairs)), sizes[ends.astype(np.int64)], settings.dust_size)
        joined = join_pairs(pairs[edges])
        merged[joined.old.astype(np.int64)] = joined.new
    return number_kept(merged, sizes, settings.remove_size)
