"""The curve over all merges equals scoring the cut volume at every one of them; laws and bad input."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError
from emcore.metrics.partitions import CONVENTIONS
from tests.oracles import partitions as oracle


def random_tree(random, fragments, levels):
    """A merge tree with many equal scores, naming any member of the clusters it joins."""
    clusters = [[fragment] for fragment in range(1, fragments + 1)]
    a, b = [], []
    for _ in range(random.integers(0, max(1, fragments))):
        if len(clusters) < 2:
            break
        one, other = random.choice(len(clusters), 2, replace=False)
        a.append(random.choice(clusters[one]))
        b.append(random.choice(clusters[other]))
        clusters[one] += clusters[other]
        del clusters[other]
    score = np.sort(random.integers(0, levels, len(a)) / levels)
    return SimpleNamespace(a=np.array(a, np.uint64), b=np.array(b, np.int64), height=score, fragments=fragments)


def assert_equals_scoring_the_cut(curve, fragments, tree, truth, threshold, mask=None):
    state = curve.merges_below(threshold)
    table = metrics.contingency(truth, oracle.cut(fragments, tree, threshold), mask=mask)
    assert (curve.voi.split[state], curve.voi.merge[state]) == pytest.approx(metrics.voi(table), abs=1e-12, nan_ok=True)
    for convention in CONVENTIONS:
        values = [along[state] for along in curve.rand(convention)]
        assert values == pytest.approx(metrics.rand(table, convention), abs=1e-12, nan_ok=True), convention
    if table.voxels:
        assert curve.criterion("cremi_score")[state] == pytest.approx(metrics.cremi_score(table), abs=1e-12)


def test_the_curve_equals_brute_force_at_every_threshold_of_random_trees():
    random = np.random.default_rng(30)
    for _ in range(150):
        count = int(random.integers(1, 12))
        fragments, truth = random.integers(0, count + 1, (6, 7)), random.integers(0, 4, (6, 7))
        tree = random_tree(random, count, int(random.integers(1, 6)))
        mask = random.random(truth.shape) < 0.2
        curve = metrics.threshold_curve(fragments, tree, truth, mask=mask)
        for threshold in {-1.0, 2.0, *tree.height, *(tree.height + 1e-9)}:
            assert_equals_scoring_the_cut(curve, fragments, tree, truth, threshold, mask)


def test_the_curve_equals_brute_force_where_rows_are_long():
    random = np.random.default_rng(31)
    truth = random.integers(0, 60, (30, 40, 50))
    fragments = np.repeat(random.integers(0, 301, (30, 40, 10)), 5, axis=2)
    clusters = random_tree(random, 300, 299)
    tree = SimpleNamespace(a=clusters.a, b=clusters.b, fragments=300, height=clusters.height)
    curve = metrics.threshold_curve(fragments, tree, truth)
    assert len(tree.a) > 20
    for threshold in np.quantile(tree.height, np.linspace(0, 1, 12)):
        assert_equals_scoring_the_cut(curve, fragments, tree, truth, threshold)
    chain = SimpleNamespace(a=np.arange(1, 300), b=np.arange(2, 301), height=np.arange(299.0), fragments=300)
    curve = metrics.threshold_curve(fragments, chain, truth)
    for threshold in (1, 9, 10, 11, 57, 150, 299):
        assert_equals_scoring_the_cut(curve, fragments, chain, truth, threshold)


def test_rounding_does_not_grow_along_a_hundred_thousand_merges():
    random = np.random.default_rng(32)
    count = 100_000
    fragments = random.permutation(np.repeat(np.arange(1, count + 1), 5))
    truth = np.where(random.random(fragments.size) < 0.05, random.integers(1, 400, fragments.size), fragments % 400 + 1)
    order = np.lexsort((random.random(count), np.arange(1, count + 1) % 400))  # most merges are right ones
    tree = SimpleNamespace(a=order[:-1] + 1, b=order[1:] + 1, height=np.arange(count - 1.0), fragments=count)
    curve = metrics.threshold_curve(fragments, tree, truth)
    for threshold in (1_000, 50_000, count - 401, count):
        start = np.arange(count) > min(threshold, count - 1)
        table = metrics.contingency(truth, np.where(start, np.arange(count) + 2, 1)[np.argsort(order)][fragments - 1])
        state = curve.merges_below(threshold)
        assert (curve.voi.split[state], curve.voi.merge[state]) == pytest.approx(metrics.voi(table), abs=1e-12)
        assert curve.rand("skimage").error[state] == pytest.approx(metrics.rand(table, "skimage").error, abs=1e-12)


def test_squares_beyond_64_bits_are_carried_along_the_curve():
    sizes = [5 * 10**9, 7 * 10**12, 3, 2**40 + 1]
    empty = metrics.contingency(np.zeros(0, int), np.zeros(0, int))
    rows = sorted((truth, label, n) for label, n in enumerate(sizes, 1) for truth, n in ((1, n), (label, n // 3 + 1)))
    merged = {}
    for truth, label, n in rows:
        merged[truth, label] = merged.get((truth, label), 0) + n
    pairs = sorted(merged)

    def table(name):
        joined = {}
        for truth, label in pairs:
            key = truth, name[label]
            joined[key] = joined.get(key, 0) + merged[truth, label]
        keys = sorted(joined)
        return type(empty)(np.array([k[0] for k in keys], np.uint64), np.array([k[1] for k in keys], np.uint64),
                           np.array([joined[k] for k in keys], np.int64), sum(joined.values()), 0, (0,), ())

    tree = SimpleNamespace(a=np.array([1, 3, 4]), b=np.array([2, 4, 2]), height=np.array([0.1, 0.2, 0.3]), fragments=4)
    curve = metrics.fold(table({1: 1, 2: 2, 3: 3, 4: 4}), tree)
    for state, names in enumerate(({1: 1, 2: 2, 3: 3, 4: 4}, {1: 1, 2: 1, 3: 3, 4: 4}, {1: 1, 2: 1, 3: 3, 4: 3},
                                   {1: 1, 2: 1, 3: 1, 4: 1})):
        expected = table(names)
        for convention in CONVENTIONS:
            assert curve.rand(convention).error[state] == pytest.approx(
                metrics.rand(expected, convention).error, abs=1e-12), convention
        assert curve.voi.split[state] == pytest.approx(metrics.voi(expected).split, abs=1e-12)


def test_the_worst_merge_is_the_wrong_one_and_the_best_threshold_stops_before_it():
    fragments = np.repeat([1, 2, 3, 4], 10)
    truth = np.repeat([1, 1, 2, 2], 10)
    tree = SimpleNamespace(a=np.array([1, 3, 2]), b=np.array([2, 4, 3]), height=np.array([0.1, 0.2, 0.6]), fragments=4)
    curve = metrics.threshold_curve(fragments, tree, truth)
    assert list(curve.worst_merges(1)) == [2]
    assert curve.costs() == pytest.approx([-0.5, -0.5, 1.0])
    assert curve.voi.split == pytest.approx([1, 0.5, 0, 0])
    assert curve.voi.merge == pytest.approx([0, 0, 0, 1])
    for criterion in ("voi", "cremi_score", *CONVENTIONS):
        best = curve.best(criterion)
        assert best.merges == 2
        assert 0.2 < best.threshold <= 0.6
        assert best.value == 0


def test_best_offers_no_state_between_equal_scores():
    fragments, truth = np.repeat([1, 2, 3], 10), np.repeat([1, 1, 2], 10)
    tree = SimpleNamespace(a=np.array([1, 2]), b=np.array([2, 3]), height=np.array([0.5, 0.5]), fragments=3)
    curve = metrics.threshold_curve(fragments, tree, truth)
    best = curve.best("voi")
    assert curve.criterion("voi")[1] == 0
    assert best.value > 0
    assert curve.merges_below(best.threshold) == best.merges
    for merges in (0, 2):
        assert curve.merges_below(curve.threshold_of(merges)) == merges
    apart = np.nextafter(0.5, 1)
    tree.height = np.array([0.5, apart])
    curve = metrics.threshold_curve(fragments, tree, truth)
    assert [curve.merges_below(curve.threshold_of(merges)) for merges in (0, 1, 2)] == [0, 1, 2]


def test_the_curve_of_a_merge_tree_of_ours_equals_scoring_its_cuts():
    segment = pytest.importorskip("emcore.segment", reason="needs the compiled kernels")
    random = np.random.default_rng(34)
    affinities = random.integers(0, 9, (3, 6, 14, 15)).astype(np.float32) / 8
    truth = random.integers(0, 5, affinities.shape[1:])
    fragments = segment.watershed(affinities, low=0.1, high=0.9)
    for score in ("mean", "max"):
        tree = segment.agglomerate(segment.region_graph(fragments, affinities), statistic=score)
        curve = metrics.threshold_curve(fragments, tree, truth)
        for threshold in (0.0, 0.125, 0.3, 0.5, 0.77, 1.0):
            table = metrics.contingency(truth, segment.cut(fragments, tree, threshold=threshold))
            state = curve.merges_below(threshold)
            assert (curve.voi.split[state], curve.voi.merge[state]) == pytest.approx(metrics.voi(table), abs=1e-12)
            assert curve.rand("cremi").error[state] == pytest.approx(metrics.rand(table, "cremi").error, abs=1e-12)
        for criterion in ("voi", "skimage"):
            best = curve.best(criterion)
            table = metrics.contingency(truth, segment.cut(fragments, tree, threshold=best.threshold))
            value = sum(metrics.voi(table)) if criterion == "voi" else metrics.rand(table, "skimage").error
            assert best.value == pytest.approx(value, abs=1e-12)


def test_no_state_beyond_the_largest_threshold_is_offered():
    fragments, truth = np.array([1, 2, 3]), np.array([1, 1, 1])
    tree = SimpleNamespace(a=np.array([1, 2]), b=np.array([2, 3]), height=np.array([0.5, 1.0]), fragments=3)
    best = metrics.threshold_curve(fragments, tree, truth).best()
    assert (best.merges, best.threshold) == (1, 0.75)
    tree.height, tree.complete_below = np.array([0.5, 0.5]), 0.6
    best = metrics.threshold_curve(fragments, tree, truth).best()
    assert (best.merges, best.value) == (2, 0)
    assert best.threshold == pytest.approx(0.55)


def test_thresholds_are_rounded_to_the_scores_of_the_tree():
    tree = SimpleNamespace(a=np.array([1]), b=np.array([2]), height=np.array([0.3], np.float32), fragments=2)
    curve = metrics.threshold_curve(np.array([1, 2]), tree, np.array([1, 1]))
    assert np.float64(np.float32(0.3)) > 0.3
    assert curve.merges_below(float(np.float32(0.3))) == 0
    assert curve.merges_below(0.3) == 0
    assert curve.merges_below(0.30000005) == 1


def test_merging_more_never_splits_and_threads_change_nothing():
    random = np.random.default_rng(33)
    fragments, truth = random.integers(0, 50, (2, 20, 60, 70))
    tree = random_tree(random, 50, 10)
    curve = metrics.threshold_curve(fragments, tree, truth, threads=1)
    assert (np.diff(curve.voi.split) <= 1e-15).all()
    assert (np.diff(curve.voi.merge) >= -1e-15).all()
    for threads in (2, 3, 7):
        other = metrics.threshold_curve(fragments, tree, truth, threads=threads)
        assert np.array_equal(other.voi, curve.voi)
        assert np.array_equal(other.rand("cremi"), curve.rand("cremi"))


def test_an_empty_tree_and_nothing_but_ignored_voxels_are_fine():
    none = SimpleNamespace(a=np.zeros(0, int), b=np.zeros(0, int), height=np.zeros(0), fragments=2)
    curve = metrics.threshold_curve(np.array([1, 2]), none, np.array([1, 1]))
    assert curve.best() == (0.0, 1.0, 0)
    one = SimpleNamespace(a=np.array([1]), b=np.array([2]), height=np.array([0.5]), fragments=2)
    curve = metrics.threshold_curve(np.array([1, 2]), one, np.array([0, 0]))
    assert np.isnan(curve.voi).all()
    assert math.isnan(curve.best("cremi").threshold)


@pytest.mark.parametrize("change, sentence", [
    ({"height": np.array([0.5, 0.4])}, "must not decrease"),
    ({"height": np.array([0.5, math.nan])}, "must not decrease"),
    ({"height": np.array([0.5])}, "must be equally long; got 2, 2, 1"),
    ({"a": np.array([0, 1])}, "must name ids 1 to 3; got 0 to 1"),
    ({"b": np.array([2, 4])}, "must name ids 1 to 3; got 2 to 4"),
    ({"fragments": 2}, "must name ids 1 to 2"),
    ({"a": np.array([1, 1]), "b": np.array([2, 2]), "fragments": 2}, "holds id 3"),
])
def test_bad_input_is_refused_in_a_sentence(change, sentence):
    tree = SimpleNamespace(a=np.array([1, 1]), b=np.array([2, 3]), height=np.array([0.1, 0.2]), fragments=3)
    tree.__dict__.update(change)
    with pytest.raises(InputError, match=sentence):
        metrics.threshold_curve(np.array([1, 2, 3]), tree, np.array([1, 1, 2]))
