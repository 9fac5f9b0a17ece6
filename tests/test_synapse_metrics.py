"""EM-R50's synapse F1 and CREMI's synaptic partners against published values and hand-worked cases."""

import math

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError
from tests.test_clefts import Blocks

NEURONS = np.ones((1, 2, 40), np.uint64)
NEURONS[0, 0, 20:], NEURONS[0, 1] = 2, 3
SIZE = (40, 40, 40)


def partners(*sites):
    """Sites (y, x of the presynaptic, y, x of the postsynaptic one) in nm."""
    return np.array([[[0, pre_y, pre_x], [0, post_y, post_x]] for pre_y, pre_x, post_y, post_x in sites], float)


ONE = [(0, 200, 40, 200)]
# predicted, true, threshold, F, P, R, FP, FN, matches with costs
PUBLISHED = {
    "identical": (ONE, ONE, 400, (1, 1, 1, 0, 0), [(0, 0, 0)]),
    "exactly 400 nm": ([(0, 600, 40, 200)], ONE, 400, (1, 1, 1, 0, 0), [(0, 0, 200)]),
    "440 nm": ([(0, 640, 40, 200)], ONE, 400, (0, 0, 0, 1, 1), []),
    "swapped": ([(40, 200, 0, 200)], ONE, 400, (0, 0, 0, 1, 1), []),
    "wrong neuron": ([(0, 1000, 40, 200)], ONE, 4000, (0, 0, 0, 1, 1), []),
    "two predicted": ([*ONE, (0, 240, 40, 240)], ONE, 400, (2 / 3, 0.5, 1, 1, 0), [(0, 0, 0)]),
    "two true": (ONE, [*ONE, (0, 1000, 40, 1000)], 400, (2 / 3, 1, 0.5, 0, 1), [(0, 0, 0)]),
    "optimal": ([*ONE, (0, 320, 40, 320)], [(0, 280, 40, 280), (0, 560, 40, 560)], 400, (1, 1, 1, 0, 0),
                [(0, 0, 80), (1, 1, 240)]),
    "none predicted": ([], ONE, 400, (0, 0, 0, 0, 1), []),
    "no match": ([(0, 1000, 40, 200)], ONE, 400, (0, 0, 0, 1, 1), []),
    "one of two": ([*ONE, (0, 1200, 40, 1200)], [(0, 240, 40, 240), (0, 80, 40, 1200)], 400, (0.5, 0.5, 0.5, 1, 1),
                   [(0, 0, 40)]),
    "halves round away from zero": ([(20, 200, 40, 200)], ONE, 400, (0, 0, 0, 1, 1), []),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_partner_scores_are_met(case):
    predicted, true, threshold, expected, matches = PUBLISHED[case]
    found = metrics.synaptic_partners(partners(*true), partners(*predicted), NEURONS, SIZE, threshold_nm=threshold)
    assert found[:5] == pytest.approx(expected)
    assert [(*pair, cost) for pair, cost in zip(found.matches.tolist(), found.distances)] == matches


def test_two_empty_lists_of_partners_have_no_score():
    found = metrics.synaptic_partners([], [], NEURONS, SIZE)
    assert found[3:5] == (0, 0)
    assert all(math.isnan(score) for score in found[:3])


def test_an_offset_moves_the_sites_and_volumes_are_read_in_blocks(monkeypatch):
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", 1)
    moved = np.add(partners(*ONE), (400, 80, 120))
    assert metrics.synaptic_partners(moved, moved, Blocks(NEURONS), SIZE, (400, 80, 120)).f1 == 1
    with pytest.raises(InputError, match=r"2 of 2 locations lie outside the labels of shape \(1, 2, 40\)"):
        metrics.synaptic_partners(moved, moved, NEURONS, SIZE)


@pytest.mark.parametrize("sites, options, sentence", [
    (np.zeros((3, 2)), {}, r"truth must be pre- and postsynaptic sites of shape \(n, 2, 3\)"),
    (np.full((1, 2, 3), np.nan), {}, "truth must be finite numbers"),
    (np.zeros((1, 2, 3)), {"resolution": (40, 4)}, "resolution must be three"),
    (np.zeros((1, 2, 3)), {"threshold_nm": 0}, "threshold_nm must be a number above 0"),
    (np.zeros((1, 2, 3)), {"labels": NEURONS.astype(float)}, "labels must be integer labels; got float64"),
])
def test_bad_partners_are_named(sites, options, sentence):
    with pytest.raises(InputError, match=sentence):
        metrics.synaptic_partners(sites, sites, **{"labels": NEURONS, "resolution": SIZE} | options)


def labels(text):
    return np.array([int(digit) for digit in text], np.uint64)


# truth, prediction (odd presynaptic, even postsynaptic) -> EM-R50's and the side-aware F1
SYNAPSES = {
    "perfect under other names": ("1122003344", "7788001122", 1, 1),
    "sides swapped": ("1122", "2211", 1, 0),
    "one side alone": ("1122", "1111", 1, 0),
    "neither has the other side": ("1100", "3300", 1, 1),
    "exactly a fifth is not enough": ("1222200000", "1000000000", 0, 0),
    "one prediction over two": ("11223344", "11222222", 1, 2 / 3),
    "one prediction on all sides of two": ("11223344", "11221122", 1, 2 / 3),
    "a half on either side": ("1122", "1020", 1, 1),
    "missed and invented": ("1122000000", "0000001122", 0, 0),
    "found and missed": ("1122003344", "1122000000", 2 / 3, 2 / 3),
}


@pytest.mark.parametrize("case", SYNAPSES)
def test_synapses_are_found_by_either_convention(case):
    truth, prediction, published, sided = SYNAPSES[case]
    table = metrics.contingency(labels(truth), labels(prediction))
    assert metrics.synapse_f1(table).f1 == pytest.approx(published)
    assert metrics.synapse_f1(table, "sides").f1 == pytest.approx(sided)


def test_em_r50_counts_true_and_predicted_synapses_apart():
    table = metrics.contingency(labels("112233445566"), labels("111111111144"))
    found = metrics.synapse_f1(table)
    assert (found.found_true, found.missed, found.found_predicted, found.invented) == (3, 0, 2, 0)
    assert metrics.synapse_f1(table, threshold=0.45).found_true == 1
    assert metrics.synapse_f1(table, "sides").invented == 2


def test_without_any_synapse_the_score_is_nan_and_0_where_one_side_has_some():
    none, some = labels("0000"), labels("1122")
    for convention in ("em_r50", "sides"):
        assert math.isnan(metrics.synapse_f1(metrics.contingency(none, none), convention).f1)
        assert metrics.synapse_f1(metrics.contingency(some, none), convention)[:3] == (0, 0, 0)
        assert metrics.synapse_f1(metrics.contingency(none, some), convention)[:3] == (0, 0, 0)


def test_an_unknown_synapse_convention_is_named():
    with pytest.raises(InputError, match="there are em_r50, sides"):
        metrics.synapse_f1(metrics.contingency(labels("1"), labels("1")), "lin")
