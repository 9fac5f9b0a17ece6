"""Instance matching and average precision against published values and all matchings."""

import math
from fractions import Fraction

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError
from emcore.metrics.assignment import best_matching
from tests.oracles import instances as oracle

H = 2**32


def digits(text):
    return np.array([int(digit) for digit in text if digit != "/"], np.uint64)


def scored(found):
    return (found.true_positives, found.false_positives, found.false_negatives,
            *np.round([found.f1, found.accuracy, found.panoptic_quality], 6))


NONE = {side: (0, *wrong, 0, 0, 0) for side, wrong in {"1/1": (1, 1), "1/2": (1, 2), "2/1": (2, 1), "2/2": (2, 2),
                                                       "3/2": (3, 2)}.items()}
PERFECT = (2, 0, 0, 1, 1, 1)
# truth, prediction, then TP FP FN F1 accuracy PQ at IoU 0.25, 0.5, 0.75
PUBLISHED = {
    "perfect": ("110/220", "550/990", PERFECT, PERFECT, PERFECT),
    "a third": ("1100", "0110", (1, 0, 0, 1, 1, 0.333333), NONE["1/1"], NONE["1/1"]),
    "exactly a half": ("1100", "1000", (1, 0, 0, 1, 1, 0.5), (1, 0, 0, 1, 1, 0.5), NONE["1/1"]),
    "merge": ("1122", "7777", *[(1, 0, 1, 0.666667, 0.5, 0.333333)] * 2, NONE["1/2"]),
    "split": ("1111", "3344", *[(1, 1, 0, 0.666667, 0.5, 0.333333)] * 2, NONE["2/1"]),
    "missed": ("1122", "1100", *[(1, 0, 1, 0.666667, 0.5, 0.666667)] * 3),
    "empty prediction": ("1122", "0000", *[(0, 0, 2, 0, 0, 0)] * 3),
    "empty truth": ("0000", "1122", *[(0, 2, 0, 0, 0, 0)] * 3),
    "optimal": ("111112222220", "778888899999", (2, 1, 0, 0.8, 0.666667, 0.4), (1, 2, 1, 0.4, 0.25, 0.228571),
                NONE["3/2"]),
    "greedy finds one": ("111111111122222222200", "777777888877777000088", (2, 0, 0, 1, 1, 0.333333), NONE["2/2"],
                         NONE["2/2"]),
    "mixed": ("111122233004", "111222203354", (4, 1, 0, 0.888889, 0.8, 0.62963),
              *[(3, 2, 1, 0.666667, 0.5, 0.555556)] * 2),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_matchings_are_met(case):
    truth, prediction, *expected = PUBLISHED[case]
    table = metrics.contingency(digits(truth), digits(prediction))
    assert [scored(metrics.match_instances(table, t)) for t in (0.25, 0.5, 0.75)] == expected


def test_ids_beyond_32_bits_match():
    truth = np.array([H + 1, H + 1, 0, 3], np.uint64)
    table = metrics.contingency(truth, np.array([1 << 40, 1 << 40, 0, 4], np.uint64))
    found = metrics.match_instances(table)
    assert scored(found) == PERFECT
    assert found.truth_ids.tolist() == [3, H + 1]
    assert found.label_ids.tolist() == [4, 1 << 40]


def test_without_any_object_scores_are_nan_not_0():
    for size in (0, 2):
        found = metrics.match_instances(metrics.contingency(np.zeros(size, int), np.zeros(size, int)))
        assert found[:3] == (0, 0, 0)
        assert all(math.isnan(score) for score in found[3:10])


def test_matchings_equal_the_best_of_all_on_random_tiny_volumes():
    random = np.random.default_rng(1)
    for _ in range(300):
        truth, labels = random.integers(0, 4, (2, random.integers(0, 14)))
        threshold = Fraction(*sorted(random.integers(1, 7, 2).tolist()))
        found = metrics.match_instances(metrics.contingency(truth, labels), float(threshold))
        pairs, total = oracle.best_matching(truth, labels, threshold)
        assert found.true_positives == pairs
        assert found.overlaps.sum() == pytest.approx(float(total), abs=1e-12)
        assert found.true_positives + found.false_negatives == np.count_nonzero(np.unique(truth))
        every = oracle.overlaps(truth, labels)
        for t, s, overlap in zip(found.truth_ids, found.label_ids, found.overlaps):
            assert overlap == float(every[int(t), int(s)])


def test_the_sparse_assignment_is_the_heaviest_of_all():
    random = np.random.default_rng(2)
    for _ in range(300):
        pairs = np.unique(random.integers(0, 4, (random.integers(0, 9), 2)), axis=0)
        weights = random.integers(1, 5, len(pairs)).astype(float)
        chosen = best_matching(pairs[:, 0], pairs[:, 1], weights)
        assert len(np.unique(pairs[chosen, 0])) == len(np.unique(pairs[chosen, 1])) == len(chosen)
        assert weights[chosen].sum() == oracle.heaviest_matching(*pairs.T.tolist(), weights)


def test_the_sparse_assignment_equals_that_of_scipy_on_one_large_component():
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(3)
    weights = random.random((60, 50)) * (random.random((60, 50)) < 0.2)
    rows, columns = np.nonzero(weights)
    chosen = best_matching(rows, columns, weights[rows, columns])
    expected = weights[optimize.linear_sum_assignment(weights, maximize=True)].sum()
    assert weights[rows[chosen], columns[chosen]].sum() == pytest.approx(expected, rel=1e-12)


def test_renaming_and_order_of_voxels_change_no_score():
    random = np.random.default_rng(4)
    truth, labels = random.integers(0, 9, (2, 400))
    renamed = random.permutation(2**40 + np.arange(9))
    renamed[0] = 0
    order = random.permutation(400)
    for threshold in (0.05, 0.1, 0.5):
        one = metrics.match_instances(metrics.contingency(truth, labels), threshold)
        other = metrics.match_instances(metrics.contingency(renamed[truth][order], labels[order]), threshold)
        assert one[:10] == pytest.approx(other[:10], rel=1e-12)


def test_a_float_just_above_a_fraction_means_the_fraction():
    table = metrics.contingency(digits("1111111111"), digits("1111110000"))
    assert np.arange(0.5, 1, 0.05)[2] > 0.6
    assert metrics.match_instances(table, np.arange(0.5, 1, 0.05)[2]).true_positives == 1
    assert metrics.match_instances(table, 0.601).true_positives == 0
    third = metrics.contingency(digits("111"), digits("100"))
    assert metrics.match_instances(third, 1 / 3).true_positives == 1


def test_overlap_may_be_counted_over_either_side_alone():
    table = metrics.contingency(digits("11110"), digits("20033"))
    assert metrics.match_instances(table, 0.5, "iop").overlaps.tolist() == [1.0]
    assert metrics.match_instances(table, 0.25, "iot").overlaps.tolist() == [0.25]
    many = metrics.contingency(digits("123"), digits("777"))
    assert metrics.match_instances(many, 0.9, "iot").true_positives == 1


def test_other_ignored_ids_are_dropped_before_areas_are_taken():
    truth, labels = digits("11119"), digits("22222")
    table = metrics.contingency(truth, labels, ignore_truth=(0, 9))
    assert metrics.match_instances(table, 1.0).true_positives == 1
    assert metrics.match_instances(table.ignoring((0,)), 1.0).true_positives == 0


def spelled(*pieces):
    return np.repeat([label for label, _ in pieces], [size for _, size in pieces])


AVERAGE_PRECISION = {
    "perfect": (spelled((1, 8), (0, 2), (2, 5), (0, 5)), spelled((1, 8), (0, 2), (2, 5), (0, 5)), None, (1, 1, 1)),
    "false first": (spelled((1, 8), (0, 22)), spelled((1, 8), (0, 4), (2, 8), (0, 10)), {1: 0.2, 2: 0.9},
                    (0.5, 0.5, 0.5)),
    "false last": (spelled((1, 8), (0, 22)), spelled((1, 8), (0, 4), (2, 8), (0, 10)), {1: 0.9, 2: 0.2}, (1, 1, 1)),
    "missed": (spelled((1, 8), (0, 4), (2, 8), (0, 10)), spelled((1, 8), (0, 22)), None,
               (0.5049505, 0.5049505, 0.5049505)),
    "0.6": (spelled((1, 10), (0, 10)), spelled((0, 4), (1, 6), (0, 10)), None, (0.3, 1, 0)),
    "two halves": (spelled((1, 10), (0, 10)), spelled((1, 5), (2, 5), (0, 10)), None, (0.1, 1, 0)),
    "0.8 and 0.75": (spelled((1, 10), (0, 10), (2, 4), (0, 16)), spelled((1, 8), (0, 12), (2, 3), (0, 17)), None,
                     (0.65049505, 1, 1)),
    "true false true": (spelled((1, 10), (0, 8), (2, 10), (0, 12), (3, 10), (0, 10)),
                        spelled((1, 10), (0, 21), (2, 8), (0, 1), (3, 10), (0, 10)), {1: 0.9, 2: 0.8, 3: 0.7},
                        (0.55445545,) * 3),
}


@pytest.mark.parametrize("case", AVERAGE_PRECISION)
def test_published_average_precisions_are_met(case):
    truth, prediction, scores, expected = AVERAGE_PRECISION[case]
    found = metrics.average_precision(metrics.contingency(truth, prediction), scores)
    assert found[:3] == pytest.approx(expected, abs=1e-8)
    assert found.mean == pytest.approx(np.mean(found.by_threshold))


def test_average_precision_of_empty_sides():
    some, none = digits("1122"), digits("0000")
    assert metrics.average_precision(metrics.contingency(some, none))[:3] == (0, 0, 0)
    assert math.isnan(metrics.average_precision(metrics.contingency(none, some)).mean)


def test_a_true_object_counts_once_at_exactly_one_half():
    found = metrics.average_precision(metrics.contingency(digits("11112222"), digits("33445555")))
    assert found.at_50 == 1  # 5, then 3 or 4; the other half comes after full recall
    worse = metrics.average_precision(metrics.contingency(digits("11112222"), digits("33445555")),
                                      {3: 0.9, 4: 0.8, 5: 0.7})
    assert worse.at_50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_sizes_leave_out_true_objects_and_strangers_of_other_sizes():
    truth, prediction = spelled((1, 10), (2, 3), (0, 30)), spelled((1, 10), (0, 3), (7, 20), (8, 2), (0, 8))
    table = metrics.contingency(truth, prediction)
    assert metrics.average_precision(table).mean < 0.5
    assert metrics.average_precision(table, sizes=(5, 15)).mean == 1
    assert metrics.average_precision(table, sizes=(0, 5)).mean == 0
    assert math.isnan(metrics.average_precision(table, sizes=(40, 50)).mean)


def test_bad_input_is_named():
    table = metrics.contingency(digits("1122"), digits("3344"))
    for threshold in (0, -0.5, 1.5, math.nan, math.inf):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            metrics.match_instances(table, threshold)
    with pytest.raises(InputError, match="there are iou, iot, iop"):
        metrics.match_instances(table, 0.5, "dice")
    with pytest.raises(InputError, match="1 are missing, as 4"):
        metrics.average_precision(table, {3: 0.5})
    with pytest.raises(InputError, match="that of object 4 is NaN"):
        metrics.average_precision(table, {3: 0.5, 4: math.nan})
