"""Cleft scores against CREMI's published values, all pairs of voxels, and scipy's distances."""

import math

import numpy as np
import pytest

from emcore import memory, metrics
from emcore.errors import InputError
from tests.oracles.instances import nearest

BACKGROUND, INVALID = 2**64 - 1, 2**64 - 2
CREMI = (40, 4, 4)


def cremi(shape, voxels, invalid=()):
    volume = np.full(shape, BACKGROUND, np.uint64)
    for number, voxel in enumerate(voxels):
        volume[voxel] = number  # also 0: it is a cleft in CREMI's files
    for voxel in invalid:
        volume[voxel] = INVALID
    return volume


# shape, predicted, true, invalid, FP and FN at 200 nm, at 39 nm, ADGT mean and max, ADF mean and max
PUBLISHED = {
    "same voxel": ((3, 4, 5), [(1, 1, 1)], [(1, 1, 1)], [], (0, 0), (0, 0), (0, 0), (0, 0)),
    "shift in x": ((3, 4, 5), [(1, 1, 4)], [(1, 1, 1)], [], (0, 0), (0, 0), (12, 12), (12, 12)),
    "shift in z": ((3, 4, 5), [(2, 1, 1)], [(1, 1, 1)], [], (0, 0), (1, 1), (40, 40), (40, 40)),
    "extra voxel": ((3, 4, 5), [(1, 1, 1), (2, 3, 4)], [(1, 1, 1)], [], (0, 0), (1, 0),
                    (21.26029163, 42.52058325), (0, 0)),
    "missing voxel": ((3, 4, 5), [(1, 1, 1)], [(0, 0, 0), (1, 1, 1)], [], (0, 0), (0, 1),
                      (0, 0), (20.19900988, 40.39801975)),
    "invalid hides a voxel": ((3, 4, 5), [(1, 1, 1), (2, 3, 4)], [(1, 1, 1)], [(2, 3, 4)], (0, 0), (0, 0),
                              (0, 0), (0, 0)),
    "exactly 200 nm": ((6, 1, 2), [(5, 0, 0)], [(0, 0, 0)], [], (0, 0), (1, 1), (200, 200), (200, 200)),
    "just over 200 nm": ((6, 1, 2), [(5, 0, 1)], [(0, 0, 0)], [], (1, 1), (1, 1),
                         (200.039996, 200.039996), (200.039996, 200.039996)),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_values_are_met(case):
    shape, predicted, true, invalid, at_200, at_39, adgt, adf = PUBLISHED[case]
    truth, prediction = cremi(shape, true, invalid), cremi(shape, predicted)
    found = metrics.clefts(truth, prediction, CREMI)
    assert (found.false_positives, found.false_negatives) == at_200
    assert (found.to_truth.mean, found.to_truth.maximum) == pytest.approx(adgt, rel=1e-8)
    assert (found.to_prediction.mean, found.to_prediction.maximum) == pytest.approx(adf, rel=1e-8)
    assert found.score == pytest.approx((adgt[0] + adf[0]) / 2, rel=1e-8)
    near = metrics.clefts(truth, prediction, CREMI, threshold_nm=39)
    assert (near.false_positives, near.false_negatives) == at_39


def test_zeros_are_foreground_where_the_background_is_said_to_be_the_largest_id():
    zeros = np.zeros((1, 1, 4), np.uint64)
    found = metrics.clefts(zeros, zeros, CREMI, background=BACKGROUND)
    assert found.to_truth.count == 4
    assert found.score == 0
    with pytest.raises(InputError, match=r"truth is uint64 and none .* say background=0"):
        metrics.clefts(zeros, zeros, CREMI)


def test_the_boxes_of_the_first_pytorch_connectomics_score_as_recorded():
    truth, prediction = np.zeros((2, 12, 120, 160), np.uint8)
    truth[2:5, 20:60, 30:36] = truth[8:10, 70:75, 20:100] = 7
    prediction[3:6, 22:64, 31:38] = prediction[0:1, 100:110, 100:160] = 1
    found = metrics.clefts(truth, prediction, CREMI)
    assert (found.false_positives, found.false_negatives) == (600, 288)
    assert found.to_truth == pytest.approx((158.2990786, 174.8394547, 423.7924020, 40, 1482), rel=1e-8)
    assert found.to_prediction == pytest.approx((105.6514046, 94.5353828, 298.3957104, 125.3475169, 1520), rel=1e-8)
    assert (found.score, found.f1, found.f1_of_rates) == pytest.approx((131.9752416, 0.6651584, 0.6863328), rel=1e-6)


def test_the_toy_of_pytorch_connectomics_scores_as_recorded():
    truth, prediction = np.zeros((2, 6, 64, 64), bool)
    truth[2:4, 10:20, 10:20] = prediction[2:4, 12:22, 10:20] = True
    prediction[5, 60:64, 60:64] = True
    found = metrics.clefts(truth, prediction, CREMI)
    assert (found.to_truth.mean, found.to_prediction.mean) == pytest.approx((19.8830, 1.2), abs=1e-4)
    assert (found.false_positives, found.false_negatives) == (16, 0)


def test_an_empty_counterpart_is_infinitely_far_and_two_empty_volumes_have_no_score():
    empty, some = cremi((3, 4, 5), []), cremi((3, 4, 5), [(1, 1, 1), (1, 1, 2)])
    nothing = metrics.clefts(some, empty, CREMI)
    assert (nothing.false_positives, nothing.false_negatives) == (0, 2)
    assert nothing.score == nothing.to_prediction.mean == nothing.to_prediction.median == math.inf
    assert math.isnan(nothing.to_truth.mean)
    assert nothing.f1 == nothing.f1_of_rates == 0
    invented = metrics.clefts(empty, some, CREMI)
    assert (invented.false_positives, invented.false_negatives) == (2, 0)
    assert invented.score == invented.to_truth.maximum == math.inf
    for truth in (empty, np.full((3, 4, 5), INVALID, np.uint64)):
        neither = metrics.clefts(truth, empty if truth is empty else some, CREMI, background=BACKGROUND)
        assert math.isnan(neither.score)
        assert neither.f1 == neither.f1_of_rates == 1
        assert neither.to_truth.count == neither.to_prediction.count == 0


def test_scores_equal_distances_between_all_pairs_of_voxels_on_random_tiny_volumes():
    random = np.random.default_rng(3)
    for _ in range(150):
        shape = (*random.integers(0, 8, 2), random.choice([0, 1, 3, 9, 80]))
        resolution = random.integers(1, 9, 3) * random.choice([1.0, 0.1])
        truth, prediction = (random.random(shape) < random.choice([0, 0.05, 0.5, 1]) for _ in range(2))
        found = metrics.clefts(truth, prediction, resolution, threshold_nm=resolution.max())
        for side, wrong, points, targets in ((found.to_truth, found.false_positives, prediction, truth),
                                             (found.to_prediction, found.false_negatives, truth, prediction)):
            distances = nearest(points, targets, resolution)
            assert side.count == len(distances)
            assert wrong == (distances > resolution.max()).sum()
            if len(distances) and targets.any():
                expected = (distances.mean(), distances.std(), distances.max(), np.median(distances))
                assert side[:4] == pytest.approx(expected, rel=1e-12, abs=1e-9)


def sparse(random, shape):
    return np.where(random.random(shape) < 0.002, random.integers(1, 9, shape), 0).astype(np.uint16)


def test_distances_equal_those_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(4)
    truth, prediction = sparse(random, (20, 90, 130)), sparse(random, (20, 90, 130))
    found = metrics.clefts(truth, prediction, CREMI)
    for side, points, targets in ((found.to_truth, prediction, truth), (found.to_prediction, truth, prediction)):
        distances = ndimage.distance_transform_edt(targets == 0, sampling=CREMI)[points != 0]
        assert side == pytest.approx((distances.mean(), distances.std(), distances.max(), np.median(distances),
                                      len(distances)), rel=1e-12)


def test_threads_layouts_types_and_mirrors_change_nothing():
    random = np.random.default_rng(5)
    truth, prediction = sparse(random, (9, 40, 70)), sparse(random, (9, 40, 70))
    expected = metrics.clefts(truth, prediction, CREMI, threads=1)
    for threads in (2, 3, 7):
        assert metrics.clefts(truth, prediction, CREMI, threads=threads) == expected
    truth.flags.writeable = False
    assert metrics.clefts(np.asfortranarray(truth), prediction[::1].astype(">i4"), CREMI) == expected
    marked = np.where(prediction == 0, BACKGROUND, prediction.astype(np.uint64))
    assert metrics.clefts(truth, marked, CREMI) == expected
    wide = np.repeat(truth, 2, axis=2)
    assert metrics.clefts(wide[:, :, ::2], prediction, CREMI) == expected
    mirrored = metrics.clefts(truth[::-1, :, ::-1], prediction[::-1, :, ::-1], CREMI)
    assert mirrored.to_truth == pytest.approx(expected.to_truth, rel=1e-12)
    turned = metrics.clefts(prediction, truth, CREMI)
    assert (turned.to_prediction, turned.false_negatives) == (expected.to_truth, expected.false_positives)


class Blocks:
    """A volume that is no array: it is read by slices and remembers how much was asked for at a time."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, box):
        part = self.array[box]
        self.largest = max(self.largest, part.nbytes)
        return part


@pytest.mark.parametrize("budget", [1 << 10, 1 << 13, 1 << 17])
def test_volumes_read_in_blocks_score_the_same_bits(monkeypatch, budget):
    random = np.random.default_rng(6)
    truth, prediction = sparse(random, (9, 40, 70)), sparse(random, (9, 40, 70))
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", budget)
    blocks = Blocks(truth)
    assert metrics.clefts(blocks, Blocks(prediction), CREMI) == metrics.clefts(truth, prediction, CREMI)
    assert blocks.largest <= budget // 2


@pytest.mark.parametrize("truth, prediction, options, sentence", [
    (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 5), bool), {}, r"\(2, 3, 4\), prediction is \(2, 3, 5\)"),
    (np.zeros((2, 3, 4)), np.zeros((2, 3, 4), bool), {}, "truth must be integer labels; got float64"),
    (np.zeros((2, 3, 4), bool), np.full((2, 3, 4), np.nan), {}, "prediction must be integer labels; got float64"),
    (np.zeros((2, 3, 4), bool), np.full((2, 3, 4), -1), {}, "prediction must not be negative; it holds -1"),
    (np.zeros((2, 3), bool), np.zeros((2, 3), bool), {}, r"shape \(z, y, x\); got \(2, 3\)"),
    (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool), {"resolution": (4, 4)}, "resolution must be three"),
    (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), bool), {"threshold_nm": math.nan}, "threshold_nm must be 0"),
    (np.zeros((2, 3, 4), bool), np.zeros((2, 3, 4), np.uint8), {"background": 255}, "does not fit in truth"),
])
def test_bad_input_is_named(truth, prediction, options, sentence):
    with pytest.raises(InputError, match=sentence):
        metrics.clefts(truth, prediction, **{"resolution": CREMI} | options)


def test_clefts_that_fill_the_memory_are_told_before_they_do(monkeypatch):
    truth, prediction = sparse(np.random.default_rng(8), (9, 40, 70)), np.ones((9, 40, 70), np.uint8)
    for there, sentence in ((20_000, "to order the clefts"), (200_000, r"to measure the distances of 2\d+ voxels")):
        monkeypatch.setattr(memory, "memory_there", lambda there=there: there)
        with pytest.raises(InputError, match=sentence):
            metrics.clefts(truth, prediction, CREMI, background=0)
