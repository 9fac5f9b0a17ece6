"""CREMI's cleft scores: how far the predicted voxels lie from the true clefts, and the other way round.

Clefts are few voxels, so both volumes are read once and kept as runs along x; exact distances are searched from the
runs of wrong voxels alone, in a tree of boxes. Memory grows with the foreground, never with the volume.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.cache import compiled
from emcore.errors import InputError
from emcore.memory import check_memory
from emcore.metrics.pairs import boxes, check_not_negative, check_shapes, check_types, checked_resolution
from emcore.metrics.tables import as_volume
from emcore.segment.arrays import within
from emcore.threads import run_parallel, slabs, thread_count

CREMI_BACKGROUND = (1 << 64) - 1
CREMI_INVALID = (1 << 64) - 2
TRUTH, PREDICTION = 1, 2  # bits of a run's state: what its voxels are foreground of
LEAF = 4  # runs in a leaf of the tree
PIECE = 32  # voxels that search together, neighbours along x
MORTON_BITS = 20
RUN_BYTES = 64  # a run takes so much while all are put in order
VOXEL_BYTES = 24  # a wrong voxel takes so much while distances are summed
TOO_MUCH = "score a part, or look whether it is clefts that the volumes hold"


class Distances(NamedTuple):
    """Distances in nm from the foreground voxels of one volume to the other's foreground; 0 where they overlap."""

    mean: float
    standard_deviation: float  # the one of the population
    maximum: float
    median: float
    count: int


class Clefts(NamedTuple):
    """CREMI's scores of clefts; the score is (ADGT + ADF) / 2, lower is better."""

    score: float
    false_positives: int  # predicted voxels farther than the threshold from every true one
    false_negatives: int  # true voxels farther than the threshold from every predicted one
    to_truth: Distances  # those of the predicted voxels; the mean is ADGT
    to_prediction: Distances  # those of the true voxels; the mean is ADF
    f1: float  # 2 TP / (2 TP + FP + FN) with TP the predicted voxels that are no false positives
    f1_of_rates: float  # harmonic mean of 1 - FP / predicted and 1 - FN / true

    def named(self) -> dict[str, float]:
        """The numbers by their names in tables of scores."""
        return {"cleft_score": self.score, "cleft_adgt": self.to_truth.mean, "cleft_adf": self.to_prediction.mean,
                "cleft_f1": self.f1, "cleft_f1_of_rates": self.f1_of_rates,
                "cleft_false_positives": self.false_positives, "cleft_false_negatives": self.false_negatives}


def clefts(truth: ArrayLike, prediction: ArrayLike, resolution: Sequence[float], threshold_nm: float = 200.0,
           background: int | None = None, invalid: int | None = CREMI_INVALID,
           threads: int | None = None) -> Clefts:
    """Scores predicted synaptic clefts by their distances to the true ones, after CREMI.

    Every voxel that is not background is cleft, whatever its id. A voxel that lies exactly threshold_nm away is no
    error. cremi_python measures to a phantom voxel where one side is empty. Here an empty counterpart is infinitely
    far: all voxels are errors, and mean, maximum and median are inf. Distances of an empty volume are nan. The score is
    inf when one volume is empty; when both are, it is nan, and both F1 are 1 because there was nothing to find.

    Args:
        truth: integers (z, y, x): an array, or a volume, which is read in blocks.
        prediction: integers of the same shape.
        resolution: the size of a voxel in nm, z, y, x.
        threshold_nm: a voxel farther than this from every voxel of the other side is an error. The default is 200.
        background: the id of background. The default None is 2**64 - 1 in uint64 volumes, which CREMI writes, and 0 in
            all other types.
        invalid: where the truth has this id, both sides count as background; 2**64 - 2 by default.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        A tuple `Clefts`: score (nm, lower is better), false_positives, false_negatives, to_truth and to_prediction
        (mean, standard_deviation, maximum and median in nm, and count), f1 and f1_of_rates.

    Raises:
        InputError: the volumes do not fit, or hold more foreground than memory does.

    Cost:
        It takes 20 ns of one core and 4.8 bytes per voxel. The memory grows with the foreground, here 2 % of the
        voxels, and not with the volume.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> truth, prediction = np.zeros((2, 1, 1, 8), np.uint8)
        >>> truth[0, 0, 2:4] = prediction[0, 0, 3:5] = 1
        >>> found = metrics.clefts(truth, prediction, (40, 8, 8))
        >>> found.score, found.f1
        (4.0, 1.0)
    """
    threads = thread_count(threads)
    truth, prediction = as_volume("truth", truth), as_volume("prediction", prediction)
    resolution = checked_resolution(resolution)
    if not within(threshold_nm, 0, math.inf):
        raise InputError(f"threshold_nm must be 0 or more; got {threshold_nm}")
    check_types(truth=truth, prediction=prediction)
    check_shapes(truth=truth, prediction=prediction)
    if len(truth.shape) != 3:
        raise InputError(f"clefts need volumes of shape (z, y, x); got {tuple(truth.shape)}")
    if max(truth.shape) >= 2**31:
        raise InputError(f"clefts need volumes of fewer than 2**31 voxels along each axis; got {tuple(truth.shape)}")

    runs = _foreground(truth, prediction, background, invalid, threads)
    far_predicted, to_truth = _measured(runs, PREDICTION, TRUTH, resolution, threshold_nm, threads)
    far_true, to_prediction = _measured(runs, TRUTH, PREDICTION, resolution, threshold_nm, threads)
    predicted, true = to_truth.count, to_prediction.count
    if predicted == true == 0:
        return Clefts(math.nan, 0, 0, to_truth, to_prediction, 1.0, 1.0)
    if predicted == 0 or true == 0:
        return Clefts(math.inf, far_predicted, far_true, to_truth, to_prediction, 0.0, 0.0)
    near = predicted - far_predicted
    precision, recall = near / predicted, (true - far_true) / true
    f1 = 2 * near / (2 * near + far_predicted + far_true)
    rates = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Clefts((to_truth.mean + to_prediction.mean) / 2, far_predicted, far_true, to_truth, to_prediction, f1, rates)


@compiled(lambda types: types.int64(types.Array(types.uint8, 2, "C", readonly=True), types.int64, types.int64,
                                    types.int64, types.Array(types.int32, 2, "C")))
def _find_runs(states, z, y_start, x_start, runs):
    """The number of runs of one state other than 0 in this section; fills in (z, y, start, stop, state) if they fit."""
    height, width = states.shape
    found = 0
    for y in range(height):
        x = 0
        while x < width:
            some = np.uint8(0)
            stop = min(x + 64, width)
            for k in range(x, stop):  # no branch inside: sixteen or more voxels an instruction
                some |= states[y, k]
            if some == np.uint8(0):
                x = stop
                continue
            while x < stop:
                state = states[y, x]
                end = x + 1
                while end < width and states[y, end] == state:
                    end += 1
                if state != np.uint8(0):
                    if found < runs.shape[0]:
                        runs[found, 0] = z
                        runs[found, 1] = y_start + y
                        runs[found, 2] = x_start + x
                        runs[found, 3] = x_start + end
                        runs[found, 4] = state
                    found += 1
                x = end
    return found


def _foreground(truth, prediction, background: int | None, invalid: int | None, threads: int) -> NDArray[np.int32]:
    """The runs of all voxels that are foreground of either volume, in C order; each section of a box is a job."""
    values = {name: _background(name, volume, background)
              for name, volume in (("truth", truth), ("prediction", prediction))}
    holds_invalid = invalid is not None and _fits(invalid, truth.dtype)

    def section(labels: NDArray, predicted: NDArray, *start: int) -> tuple[NDArray[np.int32], bool, bool]:
        for name, plane in (("truth", labels), ("prediction", predicted)):
            check_not_negative(name, plane)
        states = np.ascontiguousarray(labels != values["truth"]).view(np.uint8)
        some = np.ascontiguousarray(predicted != values["prediction"]).view(np.uint8)
        backgrounds = not states.all(), not some.all()
        states |= some << np.uint8(1)
        if holds_invalid:
            states[labels == labels.dtype.type(invalid)] = 0
        runs = np.empty((max(64, states.size // 256), 5), np.int32)
        found = _find_runs(states, *start, runs)
        if found > len(runs):
            runs = np.empty((found, 5), np.int32)
            _find_runs(states, *start, runs)
        return runs[:found].copy(), *backgrounds

    parts, backgrounds = [np.empty((0, 5), np.int32)], np.full(2, 0 in truth.shape)
    for box in boxes(truth, prediction):
        labels, predicted = np.asarray(truth[box]), np.asarray(prediction[box])
        z, y, x = (span.start for span in box)
        for runs, *seen in run_parallel(section, [(labels[k], predicted[k], z + k, y, x) for k in range(len(labels))],
                                        threads):
            parts.append(runs)
            backgrounds |= seen
        del labels, predicted  # or the next box is read while this one still takes its memory
        check_memory(RUN_BYTES * sum(map(len, parts)), "to order the clefts that are found so far", TOO_MUCH)
    for (name, value), seen in zip(values.items(), backgrounds):
        if background is None and int(value) == CREMI_BACKGROUND and not seen:
            raise InputError(f"{name} is uint64 and none of its voxels is CREMI's background, 2^64 - 1; "
                             "if its background is 0, say background=0")
    return _in_order(np.concatenate(parts))


def _in_order(runs: NDArray[np.int32]) -> NDArray[np.int32]:
    """The runs of boxes as those of the whole volume: in C order, and joined where a box has cut one."""
    runs = runs[np.lexsort((runs[:, 2], runs[:, 1], runs[:, 0]))]
    begins = np.ones(len(runs), bool)
    begins[1:] = ((runs[1:, [0, 1, 4]] != runs[:-1, [0, 1, 4]]).any(axis=1)) | (runs[1:, 2] != runs[:-1, 3])
    joined = runs[begins]
    joined[:, 3] = runs[np.append(begins[1:], np.ones(min(1, len(runs)), bool)), 3]
    return joined


def _fits(value: int, dtype: np.dtype) -> bool:
    return isinstance(value, int | np.integer) and 0 <= value <= (1 if dtype.kind == "b" else np.iinfo(dtype).max)


def _background(name: str, volume, background: int | None) -> np.generic:
    if background is None:
        background = CREMI_BACKGROUND if volume.dtype == np.uint64 else 0
    if not _fits(background, volume.dtype):
        raise InputError(f"background {background} does not fit in {name}, which is {volume.dtype}; "
                         "say background=0, or leave it out for 2^64 - 1 in uint64 and 0 in other types")
    return volume.dtype.type(background)


def _measured(runs: NDArray[np.int32], side: int, other: int, resolution: NDArray[np.float64], threshold: float,
              threads: int) -> tuple[int, Distances]:
    """How many voxels of this side are farther than the threshold from the other side, and their distances."""
    sizes = (runs[:, 3] - runs[:, 2]).astype(np.int64)
    count, overlapping = int(sizes[(runs[:, 4] & side) != 0].sum()), int(sizes[runs[:, 4] == side | other].sum())
    if count == 0:
        return 0, Distances(math.nan, math.nan, math.nan, math.nan, 0)
    targets = runs[(runs[:, 4] & other) != 0, :4]
    if len(targets) == 0:
        return count, Distances(math.inf, math.nan, math.inf, math.inf, count)
    wrong = runs[:, 4] == side
    offsets = np.concatenate(([0], np.cumsum(sizes[wrong])))
    wrong = np.ascontiguousarray(runs[wrong, :4])
    targets, tree = _tree(targets, resolution)
    check_memory(VOXEL_BYTES * int(offsets[-1]), f"to measure the distances of {offsets[-1]} voxels", TOO_MUCH)
    distances = np.empty(offsets[-1], np.float64)
    run_parallel(_search, [(wrong[a:b], offsets[a:b + 1] - offsets[a], targets, tree, resolution,
                            distances[offsets[a]:offsets[b]]) for a, b in slabs(len(wrong), 8 * threads)], threads)
    mean = float(distances.sum()) / count
    variance = (float(np.square(distances - mean).sum()) + overlapping * mean * mean) / count
    return int(np.count_nonzero(distances > threshold)), Distances(
        mean, math.sqrt(variance), float(distances.max(initial=0.0)), _median(distances, overlapping), count)


def _median(distances: NDArray[np.float64], zeros: int) -> float:
    """The median of the distances and of this many zeros, which are not stored. It orders the distances anew."""
    count = len(distances) + zeros
    middle = [k - zeros for k in ((count - 1) // 2, count // 2)]
    stored = [k for k in middle if k >= 0]
    if stored:
        distances.partition(stored)
    return sum(float(distances[k]) if k >= 0 else 0.0 for k in middle) / 2


def _tree(runs: NDArray[np.int32], resolution: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The runs in Morton order, and the boxes (low z y x, high z y x) of a complete binary tree above LEAF runs each.

    Node i has the children 2i and 2i + 1; the root is 1. High bounds are inclusive; empty leaves are infinitely low.
    """
    middle = np.stack([runs[:, 0], runs[:, 1], (runs[:, 2] + runs[:, 3]) * 0.5], axis=1) * resolution
    low = middle.min(axis=0)
    scale = ((1 << MORTON_BITS) - 1) / max(1e-300, float((middle.max(axis=0) - low).max()))
    code = np.zeros(len(runs), np.uint64)
    for axis in range(3):
        code |= _spread(((middle[:, axis] - low[axis]) * scale).astype(np.uint64)) << np.uint64(axis)
    runs = np.ascontiguousarray(runs[np.argsort(code, kind="stable")])
    first = np.arange(0, len(runs), LEAF)
    leaves = 1 << (len(first) - 1).bit_length()
    tree = np.empty((2 * leaves, 6), np.int32)
    tree[:, :3], tree[:, 3:] = np.iinfo(np.int32).max, 0
    tree[leaves:leaves + len(first), :3] = np.minimum.reduceat(runs[:, :3], first)
    tree[leaves:leaves + len(first), 3:] = np.maximum.reduceat(runs[:, [0, 1, 3]] - [0, 0, 1], first)
    while leaves > 1:
        children = tree[leaves:2 * leaves].reshape(-1, 2, 6)
        leaves //= 2
        tree[leaves:2 * leaves, :3] = children[:, :, :3].min(axis=1)
        tree[leaves:2 * leaves, 3:] = children[:, :, 3:].max(axis=1)
    return runs, tree


def _spread(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The lowest 21 bits, two zero bits between each two of them."""
    for shift, mask in ((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F),
                        (4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)):
        values = (values | (values << np.uint64(shift))) & np.uint64(mask)
    return values


def _signature_of_search(types):
    runs, offsets, floats = (types.Array(kind, rank, "C", readonly=True)
                             for kind, rank in ((types.int32, 2), (types.int64, 1), (types.float64, 1)))
    return types.void(runs, offsets, runs, runs, floats, types.Array(types.float64, 1, "C"))


@compiled(_signature_of_search)
def _search(queries, offsets, targets, tree, resolution, distances):
    """The distance of each voxel of the queries to the nearest target.

    Bounds and distances are rounded by the same operations in the same order, which keep order: a box that is left out
    cannot hold a nearer voxel, so neither the tree nor the cutting into pieces changes a bit.
    """
    rz, ry, rx = resolution[0], resolution[1], resolution[2]
    leaves = tree.shape[0] // 2
    stack_node = np.empty(128, np.int64)
    stack_bound = np.empty(128, np.float64)
    best = np.empty(PIECE, np.float64)
    bounds = np.empty(2, np.float64)
    nearest = 0
    for q in range(queries.shape[0]):
        z, y = np.int64(queries[q, 0]), np.int64(queries[q, 1])
        for x in range(np.int64(queries[q, 2]), np.int64(queries[q, 3]), PIECE):
            size = min(np.int64(queries[q, 3]) - x, PIECE)
            last = x + size - 1
            best[:size] = np.inf
            stack_node[0], stack_bound[0] = 1, 0.0
            stack_node[1], stack_bound[1] = -1, 0.0  # first what was nearest to the piece before: a good bound
            top = 2
            worst = np.inf
            while top > 0:
                top -= 1
                node = stack_node[top]
                if stack_bound[top] >= worst:
                    continue
                if node >= 0 and node < leaves:
                    for side in range(2):
                        child = 2 * node + side
                        dz = max(tree[child, 0] - z, z - tree[child, 3], 0) * rz
                        dy = max(tree[child, 1] - y, y - tree[child, 4], 0) * ry
                        dx = max(tree[child, 2] - last, x - tree[child, 5], 0) * rx
                        bounds[side] = dz * dz + dy * dy + dx * dx
                    nearer = 0 if bounds[0] <= bounds[1] else 1
                    for side in (1 - nearer, nearer):
                        if bounds[side] < worst:
                            stack_node[top] = 2 * node + side
                            stack_bound[top] = bounds[side]
                            top += 1
                    continue
                start = nearest if node < 0 else (node - leaves) * LEAF
                stop = min(start + (1 if node < 0 else LEAF), targets.shape[0])
                for t in range(start, stop):
                    dz = abs(targets[t, 0] - z) * rz
                    dy = abs(targets[t, 1] - y) * ry
                    across = dz * dz + dy * dy
                    if across >= worst:
                        continue
                    low, high = np.int64(targets[t, 2]), np.int64(targets[t, 3]) - 1
                    before = best[size - 1]
                    for k in range(size):
                        dx = max(low - x - k, x + k - high, 0) * rx
                        best[k] = min(best[k], across + dx * dx)
                    if best[size - 1] < before:
                        nearest = t
                worst = best[:size].max()
            start = offsets[q] + x - queries[q, 2]
            for k in range(size):
                distances[start + k] = np.sqrt(best[k])
