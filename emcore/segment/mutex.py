"""Mutex watershed: a segmentation from long-range affinities without seeds and thresholds (Wolf et al. 2018)."""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from emcore.errors import InputError
from emcore.kernels.mutex import MutexForest
from emcore.kernels.voxel_edges import BINS, VoxelEdges
from emcore.segment.affinities import Affinities
from emcore.segment.arrays import as_array, as_numbers
from emcore.threads import run_parallel, slabs, thread_count

INFINITE_KEY = 0x7F800000  # bits of the float32 infinity: above every weight
BIN_WIDTH = 2**31 // BINS  # keys that share a bin of the histogram of weights
MOST_VOXELS = 2**32 - 2


def mutex_watershed(affs: np.ndarray | Affinities, offsets: Sequence[Sequence[int]] | None = None, *,
                    attractive: int | Sequence[bool] | None = None, strides: Sequence | None = None,
                    mask: np.ndarray | None = None, bias: Sequence[float] | float | None = None,
                    threads: int | None = None) -> np.ndarray:
    """Segments affinities by attractive and repulsive edges, without a threshold.

    Edges act strongest first: an attractive one merges two clusters unless they are held apart, and a repulsive one
    holds them apart for good. Of equal weights the lower channel comes first, then the earlier voxel in raster order.
    Edges of weight 0 say nothing.

    Args:
        affs: affinities (c, z, y, x), float32, float16 or uint8, 0 to 1, or `Affinities`, which bring their offsets.
        offsets: one (z, y, x) triple for each channel; channel c joins v and v + offsets[c]. Arrays need
            them, `Affinities` have their own by default.
        attractive: the number of attractive channels, which come first, or one bool for each channel. The default is 3.
            They attract with the weight a, the others repel with the weight 1 - a. Leave it out with a bias.
        strides: one (z, y, x) triple, or one for each channel; only edges at multiples of them are kept. A single
            triple thins the channels that repel. By default every edge is kept.
        mask: bool or uint8 (z, y, x); voxels where it is 0 get label 0. By default all voxels count.
        bias: one number, or one for each channel. Each edge then weighs |a + bias| and attracts where a + bias > 0. The
            default None weighs edges by their channels.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32, numbered from 1 in the order of first voxels; 0 only outside of the mask.

    Raises:
        InputError: a shape, dtype or number does not fit, or a value lies outside of 0 to 1 or is not a number.

    Cost:
        It takes 340 ns of one core and 96 bytes per voxel. Six channels were measured; both grow with the number of
        channels.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> offsets = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, -3)]
        >>> affs = np.full((4, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> affs[3] = 0.1           # voxels that are three apart along x are different
        >>> segment.mutex_watershed(affs, offsets)[0, 0]
        array([1, 1, 1, 2, 2, 2], dtype=uint32)
    """
    affs, table, offsets = edge_values(affs, offsets)
    if attractive is None:
        attractive = 3 if bias is None else min(3, len(affs))
    attracts = _attractive(attractive, len(affs))
    strides = strides_of(strides, attracts)
    limits = (0.0, 1.0) if bias is None else (-1e30, 1e30)
    bias = np.where(attracts, 0, -1).astype(np.float32) if bias is None else _bias(bias, len(affs))
    if mask is not None:
        mask = as_array("mask", mask)
        if mask.shape != affs.shape[1:]:
            raise InputError(f"mask must have the shape {affs.shape[1:]} of the volume; got {mask.shape}")
        mask = mask.view(np.uint8) if mask.dtype == bool else (mask != 0).view(np.uint8)
    labels = np.empty(affs.shape[1:], np.uint32)
    if labels.size == 0:
        return labels

    threads = thread_count(threads)
    edges = VoxelEdges(affs, weights_of(table, bias), mask, offsets, strides, bias)
    rows = slabs(affs.shape[1] * affs.shape[2], threads)
    parent = np.empty(labels.size, np.uint32)
    check_values(all(run_parallel(edges.point, [(parent, *slab, *limits) for slab in rows], threads)), limits)
    forest = MutexForest(parent)
    counts = np.zeros((len(rows), BINS), np.int64)
    run_parallel(edges.histogram, [(parent, *slab, count) for slab, count in zip(rows, counts)], threads)

    def gather(*job) -> np.ndarray:
        found = edges.gather(parent, *job)
        return found[:forest.live(found)].copy()

    def gathered(low: int, high: int) -> list[np.ndarray]:
        return run_parallel(gather, [(c, *slab, low, high) for c in range(len(affs)) for slab in rows], threads)

    process(forest, counts.sum(0), labels.size // 4, gathered)
    forest.labels(None if mask is None else np.ascontiguousarray(mask.reshape(-1)), labels.reshape(-1))
    return labels


def process(forest: MutexForest, counts: np.ndarray, target: int,
            gathered: Callable[[int, int], list[np.ndarray]]) -> None:
    """Takes a forest through all edges, strongest first, in batches of about `target` that are still alive.

    counts: how many edges have a weight of each bin of the histogram; gathered(low, high): the edges with
    low <= bits of |weight| < high, of equal weights in their order.
    """
    bins, survival, high = np.flatnonzero(counts)[::-1], 1.0, INFINITE_KEY
    while len(bins):
        # later batches reach further down: most of their edges no longer act, as the last batch showed
        held = np.cumsum(counts[bins])
        taken = max(1, int(np.searchsorted(held, max(1, target) / survival, "right")))
        low = max(1, int(bins[taken - 1]) * BIN_WIDTH)
        parts = gathered(low, high)
        survival = max(sum(map(len, parts)) / held[taken - 1], survival / 8, 1e-6)
        forest.process(parts, low, high)
        bins, high = bins[taken:], low


def check_values(fine: bool, limits: tuple[float, float] = (0.0, 1.0)) -> None:
    if not fine:
        raise InputError("affs must be between {:g} and {:g}; found NaN or values outside, apply the sigmoid "
                         "or repair them first".format(*limits))


def weights_of(table: np.ndarray | None, bias: np.ndarray) -> np.ndarray | None:
    """The weight of every code in every channel."""
    with np.errstate(invalid="ignore"):  # the codes of float16 include NaN
        return None if table is None else np.ascontiguousarray(table[None] + bias[:, None], np.float32)


def edge_values(affs: np.ndarray | Affinities,
                offsets: Sequence[Sequence[int]] | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """affs as float32, uint8 or the bits of float16, for the last two the affinity of each code, and the offsets."""
    if isinstance(affs, Affinities) and offsets is not None:
        raise InputError("offsets belong to a plain array; the Affinities that were given have offsets of their own")
    given = affs if isinstance(affs, Affinities) else Affinities(affs, [] if offsets is None else offsets)
    values, triples = given.values, np.array(given.offsets, np.int64).reshape(-1, 3)
    if len(triples) != len(values):
        raise InputError(f"mutex_watershed needs one offset for each of the {len(values)} channels; got {len(triples)}")
    if len(triples) and not triples.any(axis=1).all():
        channel = int(np.argmin(triples.any(axis=1)))
        raise InputError(f"offsets must lead to another voxel; channel {channel} has (0, 0, 0)")
    if (voxels := prod(given.shape)) > MOST_VOXELS:
        raise InputError(f"mutex_watershed takes at most {MOST_VOXELS} voxels at once; got {voxels}, "
                         "cut the volume into blocks")
    if values.dtype == np.float16:
        return values.view(np.uint16), np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32), triples
    return values, given.table, triples


def _attractive(attractive: int | Sequence[bool], channels: int) -> np.ndarray:
    if isinstance(attractive, (int, np.integer)) and not isinstance(attractive, bool):
        if not 0 <= attractive <= channels:
            raise InputError(f"attractive must be between 0 and the {channels} channels; got {attractive}")
        return np.arange(channels) < attractive
    marks = as_array("attractive", attractive)
    if marks.shape != (channels,) or marks.dtype != bool:
        raise InputError(f"attractive must be a count or one True/False for each of the {channels} channels; "
                         f"got {attractive}")
    return marks


def strides_of(strides: Sequence | None, attracts: np.ndarray) -> np.ndarray:
    if strides is None:
        return np.ones((len(attracts), 3), np.int64)
    steps = as_array("strides", strides)
    if steps.shape not in ((3,), (len(attracts), 3)) or steps.dtype.kind not in "iu" or steps.min(initial=1) < 1:
        raise InputError("strides must be whole numbers from 1 up, one (z, y, x) triple or one for each of the "
                         f"{len(attracts)} channels; got {strides}")
    steps = np.minimum(steps.astype(np.uint64), np.uint64(2**31))  # strides beyond the volume leave voxel 0 alone
    if steps.ndim == 1:
        steps = np.where(attracts[:, None], 1, steps)
    return np.ascontiguousarray(steps, np.int64)


def _bias(bias: Sequence[float] | float, channels: int) -> np.ndarray:
    values = as_numbers("bias", bias)
    if values.shape not in ((), (channels,)) or not (np.abs(values) <= 1e29).all():
        raise InputError(f"bias must be one finite number up to 1e29, or one for each of the {channels} channels; "
                         f"got {bias}")
    return np.ascontiguousarray(np.broadcast_to(values, (channels,)), np.float32)
