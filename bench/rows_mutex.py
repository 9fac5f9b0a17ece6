"""Mutex watershed on 12 offsets against mwatershed: python -m bench.rows_mutex [--size 128] [--labels FILE]."""

from collections.abc import Iterator

import numpy as np

from bench.compare import Row, compare, rows_command
from emcore.segment import mutex_watershed

NEAREST = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
OFFSETS = [*NEAREST, (-2, 0, 0), (0, -3, 0), (0, 0, -3), (-3, 0, 0), (0, -9, 0), (0, 0, -9), (-4, 0, 0), (0, -27, 0),
           (0, 0, -27)]


def long_range_affinities(labels: np.ndarray, offsets: list[tuple[int, int, int]], seed: int = 0) -> np.ndarray:
    """Affinities (c, z, y, x) float32 as a network would draw them: right mostly, wrong in patches, never certain."""
    affs = np.empty((len(offsets), *labels.shape), np.float32)
    for row, drawn in zip(affs, draw(labels, offsets, seed)):
        row[...] = drawn
    return affs


def draw(labels: np.ndarray, offsets: list[tuple[int, int, int]], seed: int = 0) -> Iterator[np.ndarray]:
    """The same, one channel after the other."""
    rng = np.random.default_rng(seed)
    for offset in offsets:
        other = np.roll(labels, [-step for step in offset], (0, 1, 2))
        patches = rng.standard_normal(labels.shape, np.float32)
        for axis in (0, 1, 2, 0, 1, 2):
            patches = (np.roll(patches, 1, axis) + np.float32(2) * patches + np.roll(patches, -1, axis)) / 4
        patches /= patches.std()
        logit = np.where((labels == other) & (labels > 0), np.float32(4), np.float32(-4)) + np.float32(2) * patches
        yield 1 / (1 + np.exp(-logit - np.float32(0.5) * rng.standard_normal(labels.shape, np.float32)))


def same_partition(ours: np.ndarray, peer: np.ndarray) -> str:
    joint = np.unique(np.stack([ours.ravel().astype(np.uint64), peer.ravel().astype(np.uint64)]), axis=1).shape[1]
    count = len(np.unique(peer))
    return f"same {count} segments" if joint == ours.max() == count else f"{ours.max()} and {count} segments differ"


def rows(size: int, labels: np.ndarray, affs: np.ndarray | None = None, repeats: int = 3) -> Iterator[Row]:
    """Rows with all threads and with one; affs (3, z, y, x), if given, take the place of the nearest neighbours."""
    labels = np.asarray(labels[:size, :size, :size])
    drawn = long_range_affinities(labels, OFFSETS)
    if affs is not None:
        drawn[:3] = affs[:3, :size, :size, :size]
    try:
        import mwatershed
        signed = drawn.copy()
        signed[3:] -= np.float32(1)
        signed = signed.astype(np.float64)  # the only input it takes; made outside the timing

        def peer():
            return mwatershed.agglom(signed, OFFSETS)
    except ImportError:
        peer = None
    for name, threads in (("", None), (", 1 thread", 1)):
        yield compare(f"mutex watershed, 12 offsets, {size}³{name}",
                      lambda threads=threads: mutex_watershed(drawn, OFFSETS, threads=threads),
                      "mwatershed", peer, repeats, ">= 8x" if threads is None else "faster", same_partition)


if __name__ == "__main__":
    rows_command(__doc__, rows)
