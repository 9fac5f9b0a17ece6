"""Synapses from predicted pre-synaptic, post-synaptic and cleft probabilities: one odd and one even id each."""

from collections.abc import Sequence

import numpy as np

from emcore.errors import InputError
from emcore.segment.arrays import as_array, as_numbers, within
from emcore.segment.cleanup import remove_small
from emcore.segment.components import connected_components
from emcore.segment.morphology import dilate
from emcore.segment.relabeling import label_dtype
from emcore.threads import run_parallel, slabs, thread_count

DILATE_SIZE = 5  # polarity_instances takes it where it is not told
VECTOR_NM = 100.0  # the unit of vectors from pre to post, in which they are as large as the values of other channels
REACH_NM = 200.0  # partner_instances takes it where it is not told


def polarity_instances(prediction: np.ndarray, threshold: float = 0.5, small: int = 128, *,
                       scale_factors: float | Sequence[float] = 1, semantic: bool = False,
                       dilate_size: int = DILATE_SIZE, exclusive: bool = False,
                       threads: int | None = None) -> np.ndarray:
    """Finds synapses with their two sides in a prediction of pre, post and their union.

    A synapse is a 6-connected piece of the union, grown in y and x. The pieces of pre and of post count inside of the
    union alone, and where both claim a voxel it is post.

    Args:
        prediction: (3, z, y, x), floating point or uint8: pre, post and their union.
        threshold: a channel is set above it (default 0.5); above int(255 * threshold) where any value is above 1.
        small: 6-connected pieces of pre and of post below so many voxels are dropped (default 128).
        scale_factors: resizes the result, one number or z, y, x, to the nearest voxel; sizes are rounded down (default
            1).
        semantic: True gives uint8, 1 on pre and 2 on post, instead of instances. The default is False.
        dilate_size: the odd width in y and x of the window by which the union grows (default 5); 1 does not grow it.
        exclusive: True takes the channels for background, pre and post, of which the largest holds (the first of equal
            ones). The default is False.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32, or uint64 beyond 2**32 - 1: 2n - 1 on the presynaptic side of synapse n, 2n on its
        postsynaptic side; ids may have gaps.

    Raises:
        InputError: the prediction has not three channels, or a number does not fit.

    Cost:
        It takes 26 ns of one core and 24 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> prediction = np.zeros((3, 1, 4, 8), np.float32)
        >>> prediction[0, :, :, 2:4] = prediction[1, :, :, 4:6] = prediction[2, :, :, 2:6] = 1
        >>> segment.polarity_instances(prediction, small=1)[0, 0]
        array([0, 0, 1, 1, 2, 2, 0, 0], dtype=uint32)
    """
    prediction, threads = as_array("prediction", prediction), thread_count(threads)
    _check(prediction)
    if not within(small, 0, np.inf):
        raise InputError(f"small must not be below 0; got {small}")
    factors = as_numbers("scale_factors", scale_factors)
    factors = np.broadcast_to(factors, 3) if factors.shape in ((), (1,), (3,)) else np.zeros(3)
    if not ((factors > 0) & (factors * np.maximum(1, prediction.shape[1:]) < 2**31)).all():
        raise InputError(f"scale_factors must be above 0, one or three (z, y, x); got {scale_factors}")
    pre, post, union = side_masks(prediction, threshold, exclusive, threads=threads)
    if small > 1:
        pre, post = (remove_small(connected_components(side, threads=threads), small, threads=threads) > 0
                     for side in (pre, post))
    if semantic:
        return _nearest(np.maximum(pre.view(np.uint8), post.view(np.uint8) * np.uint8(2)), factors)
    synapses, count = connected_components(dilate(union, (1, dilate_size, dilate_size), threads=threads), count=True,
                                           threads=threads)
    labels = np.zeros(synapses.shape, label_dtype(2 * count))

    def write(start: int, stop: int) -> None:
        part = slice(start, stop)
        twice = synapses[part].astype(labels.dtype) * labels.dtype.type(2)
        np.copyto(labels[part], twice - labels.dtype.type(1), where=pre[part])
        np.copyto(labels[part], twice, where=post[part])

    run_parallel(write, slabs(len(labels), threads * 8), threads)
    return _nearest(labels, factors)


def partner_instances(prediction: np.ndarray, resolution: Sequence[float], threshold: float = 0.5, small: int = 128, *,
                      exclusive: bool = False, reach_nm: float = REACH_NM, threads: int | None = None) -> np.ndarray:
    """Finds synapses with many partners in a prediction of their sides and of vectors from one side to the other.

    A 6-connected piece of pre is a synapse. A voxel of post, which goes over pre, belongs to the synapse whose middle
    is nearest to where its vector comes from; of equals to the one of the smaller number. So one synapse may have many
    partners, and synapses that touch stay apart.

    Args:
        prediction: (6, z, y, x), floating point: the three channels of `polarity_instances`, and three that say along
            z, y and x where a voxel lies as seen from the middle of its presynaptic side, in units of 100 nm.
        resolution: the size of a voxel in nm, z, y, x.
        threshold: a channel is set above it (default 0.5).
        small: 6-connected pieces of either side below so many voxels are dropped (default 128).
        exclusive: True takes the first three channels for background, pre and post, of which the largest holds. The
            default is False.
        reach_nm: a voxel of post belongs to no synapse whose middle is farther than this from where its vector comes
            from (default 200).
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        Labels (z, y, x), uint32, or uint64 beyond 2**32 - 1: 2n - 1 on the presynaptic side of synapse n, 2n on every
        voxel that is reached from there.

    Raises:
        InputError: the prediction has not six channels or holds vectors that are not finite, or a number does not fit.

    Cost:
        It takes 140 ns of one core and 20 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> prediction = np.zeros((6, 1, 4, 8), np.float32)
        >>> prediction[0, :, :, 2:4] = prediction[1, :, :, 4:6] = prediction[2, :, :, 2:6] = 1
        >>> prediction[5, :, :, 4:6] = 0.2  # the postsynaptic side lies 20 nm behind the middle of the other
        >>> segment.partner_instances(prediction, (40, 8, 8), small=1)[0, 0]
        array([0, 0, 1, 1, 2, 2, 0, 0], dtype=uint32)
    """
    prediction, threads = as_array("prediction", prediction), thread_count(threads)
    sizes = as_numbers("resolution", resolution)
    if sizes.shape != (3,) or not ((sizes > 0) & (sizes < 1e12)).all():
        raise InputError(f"resolution must be three sizes above 0 in nm, z y x; got {resolution}")
    for name, value, least in (("small", small, 0), ("reach_nm", reach_nm, 1e-6)):
        if not within(value, least, 1e12):
            raise InputError(f"{name} must be from {least:g} to 1e12; got {value}")
    pre, post = partner_masks(prediction, threshold, exclusive, threads=threads)
    synapses, count = connected_components(pre, count=True, threads=threads)
    if small > 1:
        synapses = remove_small(synapses, small, threads=threads)
    kept, middles = _middles(synapses, count)
    number = np.zeros(count + 1, label_dtype(2 * len(kept)))
    number[kept] = 2 * np.arange(1, len(kept) + 1) - 1
    labels = reached(prediction, post, middles, sizes, reach_nm).astype(number.dtype)
    if small > 1:
        labels[remove_small(connected_components(labels, threads=threads), small, threads=threads) == 0] = 0
    return np.where(synapses > 0, number[synapses], labels)


def partner_masks(prediction: np.ndarray, threshold: float, exclusive: bool, largest: float | None = None,
                  threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Where pre and post hold in a prediction with vectors, never both; `largest` as `side_masks` takes it."""
    if prediction.ndim != 4 or prediction.shape[0] != 6 or prediction.dtype.kind != "f":
        raise InputError("prediction must be (6, z, y, x), floating point: the channels of polarity and a vector along "
                         f"z, y, x; got {prediction.shape} {prediction.dtype}")
    pre, post, _ = side_masks(prediction[:3], threshold, exclusive, largest, threads)
    return pre & ~post, post


def reached(prediction: np.ndarray, post: np.ndarray, middles: np.ndarray, sizes: np.ndarray, reach_nm: float,
            start: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """2n on every voxel of post whose vector comes from synapse n, whose middle is number n - 1 of the volume's, in
    voxels; else 0. start: where in the volume the prediction begins, which changes no bit of what it says."""
    at = np.argwhere(post)
    vectors = prediction[(slice(3, 6), *at.T)].T.astype(np.float64)
    if not np.isfinite(vectors).all():
        raise InputError("prediction holds vectors that are not finite; replace them, for example by numpy.nan_to_num")
    places = (at + np.array(start)) * sizes - vectors * VECTOR_NM
    labels = np.zeros(post.shape, label_dtype(2 * len(middles)))
    labels[tuple(at.T)] = 2 * (_nearest_place(places, middles * sizes, reach_nm) + 1)
    return labels


def _middles(pieces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The pieces that have voxels, and the mean place of each, in voxels."""
    at = np.argwhere(pieces)
    ids = pieces[tuple(at.T)]
    voxels = np.bincount(ids, minlength=count + 1)
    kept = np.flatnonzero(voxels)
    sums = np.stack([np.bincount(ids, at[:, axis], count + 1) for axis in range(3)], 1)
    return kept, sums[kept] / voxels[kept, None]


def _nearest_place(places: np.ndarray, known: np.ndarray, reach: float) -> np.ndarray:
    """For each place the number of the nearest known one (of equals the smaller), -1 where none is within reach."""
    best, found = np.full(len(places), reach * reach), np.full(len(places), -1)
    if not len(known) or not len(places):
        return found
    # Cells are wider than the reach, so that rounding hides none within it and the result is the same for any grid.
    cell = max(reach, 1e-6) * (1 + 1e-6)
    # A place that is far from all known ones would stretch the grid until its numbers of cells overflow.
    near = ((places >= known.min(0) - cell) & (places <= known.max(0) + cell)).all(1)
    if not near.all():
        found[near] = _nearest_place(places[near], known, reach)
        return found
    close = np.flatnonzero(((known >= places.min(0) - cell) & (known <= places.max(0) + cell)).all(1))
    if len(close) < len(known):  # a block of a volume meets few of its synapses
        among = _nearest_place(places, known[close], reach)
        return np.append(close, -1)[among]
    low = np.minimum(places.min(0), known.min(0)) - 2 * cell
    own, cells = (np.floor((points - low) / cell).astype(np.int64) for points in (places, known))
    extent = np.maximum(own.max(0), cells.max(0)) + 2
    steps = np.array([extent[1] * extent[2], extent[2], 1])
    keys = cells @ steps
    order = np.argsort(keys, kind="stable")
    for shift in np.ndindex(3, 3, 3):
        wanted = (own + np.array(shift) - 1) @ steps
        first, last = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
        for step in range(int((last - first).max())):
            rows = np.flatnonzero(first + step < last)
            candidate = order[first[rows] + step]
            away = ((places[rows] - known[candidate]) ** 2).sum(1)
            better = (away < best[rows]) | ((away == best[rows]) & ((found[rows] < 0) | (candidate < found[rows])))
            best[rows[better]], found[rows[better]] = away[better], candidate[better]
    return found


def side_masks(prediction: np.ndarray, threshold: float, exclusive: bool, largest: float | None = None,
               threads: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where pre, post and their union hold; of a part of a volume, `largest` is the largest value of all of it."""
    _check(prediction)
    threads = thread_count(threads)
    pre, post, union = masks = np.empty(prediction.shape, bool)
    pieces = slabs(prediction.shape[1], threads * 8)
    found = largest_value(prediction, threads)
    if not exclusive and not within(threshold, 0, 1):
        raise InputError(f"threshold must be 0 to 1; got {threshold}")
    largest = found if largest is None else largest
    cut = threshold if prediction.dtype.kind == "f" and largest <= 1 else int(255 * threshold)

    def decide(start: int, stop: int) -> None:
        part = slice(start, stop)
        first, second, third = prediction[:, part]
        if exclusive:
            np.logical_and(second > first, second >= third, out=pre[part])
            np.logical_and(third > first, third > second, out=post[part])
            np.logical_or(pre[part], post[part], out=union[part])
            return
        np.greater(prediction[:, part], cut, out=masks[:, part])
        masks[:2, part] &= union[part]

    run_parallel(decide, pieces, threads)
    return pre, post, union


def largest_value(prediction: np.ndarray, threads: int | None = None) -> float:
    """The largest value of a prediction, 0 where none is above; one with NaN is refused."""
    threads = thread_count(threads)
    parts = run_parallel(lambda start, stop: float(np.max(prediction[:, start:stop], initial=0)),
                         slabs(prediction.shape[1], threads * 8), threads)
    if np.isnan(parts).any():
        raise InputError("prediction holds NaN; replace it, for example with numpy.nan_to_num")
    return max(parts, default=0.0)


def _check(prediction: np.ndarray) -> None:
    if prediction.ndim != 4 or prediction.shape[0] != 3 or (
            prediction.dtype.kind != "f" and prediction.dtype != np.uint8):
        raise InputError("prediction must be (3, z, y, x), floating point or uint8; "
                         f"got {prediction.shape} {prediction.dtype}")


def _nearest(labels: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """labels resized: voxel i along an axis of n becomes what stands at the middle of voxel i, (i + 1/2) / m of n."""
    for axis, factor in enumerate(factors):
        old = labels.shape[axis]
        new = int(old * factor)
        if new != old:
            labels = labels.take((2 * np.arange(new) + 1) * old // (2 * max(new, 1)), axis)
    return labels
