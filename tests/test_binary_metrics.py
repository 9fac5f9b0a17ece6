"""Jaccard, Dice and accuracy against published values and plain counting."""

import math

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError
from tests.test_clefts import Blocks


def digits(text):
    return np.array([int(digit) for digit in text])


@pytest.mark.parametrize("prediction, truth, iou, dice, other_iou", [
    ("1100", "1000", 0.5, 2 / 3, 0.5), ("0000", "0000", 1, 1, 0), ("1111", "0000", 0, 0, 0),
    ("0000", "1100", 0, 0, 0), ("10110", "11100", 0.5, 2 / 3, 0.5)])
def test_published_values_are_met_in_both_conventions_of_two_empty_masks(prediction, truth, iou, dice, other_iou):
    prediction, truth = digits(prediction), digits(truth)
    assert metrics.jaccard(truth, prediction) == iou
    assert metrics.dice(truth, prediction) == pytest.approx(dice, abs=1e-12)
    assert metrics.jaccard(truth, prediction, both_empty=0.0) == other_iou


def test_counts_equal_plain_counting_with_and_without_a_mask():
    random = np.random.default_rng(1)
    for _ in range(100):
        shape = tuple(random.integers(0, 5, random.integers(1, 4)))
        truth, prediction = random.integers(0, 3, shape), random.random(shape).round(1)
        mask = random.random(shape) < 0.3
        found = metrics.confusion(truth, prediction, mask=mask)
        true, predicted = (truth > 0)[~mask], (prediction >= 0.5)[~mask]
        assert found == ((true & predicted).sum(), (~true & predicted).sum(), (true & ~predicted).sum(),
                         (~true & ~predicted).sum())
        if true.size:
            assert metrics.accuracy(truth, prediction, mask=mask) == (true == predicted).mean()


def test_exactly_the_threshold_is_foreground_and_labels_are_cut_above_0():
    assert metrics.confusion([1, 1, 0], [0.5, 0.49, 0.5]) == (1, 1, 1, 0)
    assert metrics.confusion([7, 0], np.array([200, 127], np.uint8), threshold=128) == (1, 0, 0, 1)
    assert metrics.confusion([1, 0], [0.0, -0.1], threshold=0) == (1, 0, 0, 1)


def test_where_everything_is_masked_scores_are_nan():
    truth = np.ones((2, 2), np.uint8)
    for score in (metrics.jaccard, metrics.dice, metrics.accuracy):
        assert math.isnan(score(truth, truth, mask=truth > 0))
        assert math.isnan(score(truth[:0], truth[:0]))


def test_volumes_read_in_blocks_count_the_same(monkeypatch):
    random = np.random.default_rng(2)
    truth, prediction = random.integers(0, 2, (7, 20, 30), np.uint8), random.random((7, 20, 30), np.float32)
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", 1 << 11)
    assert metrics.confusion(Blocks(truth), Blocks(prediction)) == metrics.confusion(truth, prediction)


@pytest.mark.parametrize("truth, prediction, options, sentence", [
    ([1, 0], [1, 0, 0], {}, r"truth is \(2,\), prediction is \(3,\)"),
    ([1.0, 0.0], [1, 0], {}, "truth must be integer labels; got float64"),
    ([1, -1], [1, 0], {}, "truth must not be negative; it holds -1"),
    ([1, 0], [np.nan, 0.2], {}, "it holds NaN"),
    ([1, 0], [1, 0], {"threshold": math.nan}, "threshold must be a finite number"),
    ([1, 0], [1j, 0], {}, "prediction must be numbers or a mask; got complex128"),
    ([1, 0], [1, 0], {"mask": [0, 1]}, "mask must be boolean"),
    ([1, 0], [1, 0], {"mask": [True]}, r"mask is \(1,\)"),
])
def test_bad_input_is_named(truth, prediction, options, sentence):
    with pytest.raises(InputError, match=sentence):
        metrics.dice(truth, prediction, **options)
