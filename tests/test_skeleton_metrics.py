"""Expected run length against published values of em_erl, BANIS and funlib, and against its definition."""

import math

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError
from tests.oracles import run_length as oracle
from tests.test_clefts import Blocks


def lines(*sizes, length=1.0):
    """Skeleton ids, edges and lengths of straight skeletons with these numbers of nodes."""
    skeletons = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    edges = [(node, node + 1) for node in range(len(skeletons) - 1) if skeletons[node] == skeletons[node + 1]]
    return skeletons, edges, np.full(len(edges), length)


TWO = lines(5, 3)
LONG = (np.array([1] * 4 + [2] * 2 + [3] * 2), [(0, 1), (1, 2), (2, 3), (4, 5), (6, 7)], [10, 15, 25, 20, 30])
BRANCHED = (np.ones(6, int), [(0, 1), (1, 2), (2, 3), (2, 4), (3, 5)], np.ones(5))
BIG = 2**40
# geometry, segments; ERL of em_erl at 1 node, of a perfect segmentation, em_erl at 2 and 50, BANIS ignoring 1 and 5;
# split edges; VOI split and merge
PUBLISHED = {
    "perfect": (lines(5), [7] * 5, 4, 4, (4, 4, 4, 4), 0, (0, 0)),
    "split in the middle": (lines(5), [1, 1, 1, 2, 2], 1.25, 4, (1.25,) * 4, 1, (0.9709505945, 0)),
    "split at the end": (lines(5), [1, 1, 1, 1, 2], 2.25, 4, (2.25,) * 4, 1, (0.7219280949, 0)),
    "one node on 0": (lines(5), [7, 7, 0, 7, 7], 1, 4, (1,) * 4, 0, (0.7219280949, 0)),
    "all on 0": (lines(5), [0] * 5, 0, 4, (0,) * 4, 0, (0, 0)),
    "there and back": (lines(5), [1, 1, 2, 1, 1], 1, 4, (1,) * 4, 2, (0.7219280949, 0)),
    "two perfect": (TWO, [5] * 5 + [9] * 3, 10 / 3, 10 / 3, (10 / 3,) * 4, 0, (0, 0)),
    "two merged": (TWO, [5] * 8, 0, 10 / 3, (0, 10 / 3, 0, 10 / 3), 0, (0, 0.9544340029)),
    "partial merger": (TWO, [5, 5] + [6] * 6, 1 / 6, 10 / 3, (1 / 6, 1.5, 1 / 6, 1.5), 1, (0.6068441215, 0.75)),
    "merger of one node": (TWO, [5] * 6 + [9] * 2, 1 / 6, 10 / 3, (17 / 6,) * 4, 1, (0.3443609378, 0.4875168162)),
    "em_erl's own": (LONG, [7, 7, 100, 100, 100, 100, 3, 3], 10, 38, (10, 20.25, 10, 20.25), 1, (0.5, 0.5)),
    "0 is shared": (TWO, [5] * 3 + [0] * 3 + [9] * 2, 5 / 6, 10 / 3, (5 / 6,) * 4, 0, (0.9512050593, 0.3443609378)),
    "a branch split": (BRANCHED, [1, 1, 1, 1, 2, 1], 3.2, 5, (3.2,) * 4, 1, (0.6500224216, 0)),
    "40 nm": (lines(5, length=40.0), [1, 1, 1, 2, 2], 50, 160, (50,) * 4, 1, (0.9709505945, 0)),
    "ids beyond 32 bits": (lines(5), [BIG + 1] * 3 + [BIG + 2] * 2, 1.25, 4, (1.25,) * 4, 1, (0.9709505945, 0)),
    "a lone node merges": (lines(5, 1), [5] * 6, 0, 4, (4,) * 4, 0, (0, 0.6500224216)),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_run_lengths_and_voi_are_met(case):
    (skeletons, edges, lengths), segments, expected, perfect, tolerant, split, voi = PUBLISHED[case]
    found = metrics.run_length(skeletons, segments, edges, lengths)
    assert (found.expected, found.perfect) == pytest.approx((expected, perfect), rel=1e-12)
    assert found.normalized == pytest.approx(expected / perfect, rel=1e-12)
    assert found.split_edges == split
    assert found.correct_edges + split + found.omitted_edges + found.merged_edges == len(edges)
    rules = [(2, "em_erl"), (50, "em_erl"), (2, "banis"), (6, "banis")]
    assert [metrics.run_length(skeletons, segments, edges, lengths, *rule).expected
            for rule in rules] == pytest.approx(tolerant, rel=1e-12)
    assert metrics.skeleton_voi(skeletons, segments) == pytest.approx(voi, abs=1e-9)


def test_em_erl_and_banis_differ_on_a_third_small_contact():
    skeletons, edges, lengths = lines(5, 4, 5)
    segments = [5] * 11 + [8] * 3
    assert metrics.run_length(skeletons, segments, edges, lengths, 3).expected == pytest.approx(4 / 11)
    assert metrics.run_length(skeletons, segments, edges, lengths, 3, "banis").expected == pytest.approx(5 / 11)
    assert metrics.run_length(skeletons, segments, edges, lengths, math.inf, "banis").merging_segments.size == 0


@pytest.mark.parametrize("mask, contact_nodes, expected", [
    ([5] * 3, 0, 2 / 3), ([5] * 3, 2, 2 / 3), ([5] * 3, 3, 10 / 3), ([77], 0, 10 / 3), ([0] * 9, 0, 10 / 3)])
def test_a_no_merge_mask_takes_the_segments_on_it(mask, contact_nodes, expected):
    skeletons, edges, lengths = TWO
    found = metrics.run_length(skeletons, [5] * 5 + [9] * 3, edges, lengths, contact_nodes, no_merge=mask)
    assert found.expected == pytest.approx(expected)
    assert found.skeleton_expected.tolist() == ([0, 2] if expected < 1 else [4, 2])


def test_skeleton_voi_equals_the_recorded_value_and_leaves_out_skeleton_0():
    truth, segments = [1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4], [3, 3, 3, 3, 4, 5, 6, 6, 5, 5, 5]
    expected = (0.6140806820148608, 0.7272727272727271)
    assert metrics.skeleton_voi(truth, segments) == pytest.approx(expected, rel=1e-12)
    assert metrics.skeleton_voi([*truth, 0], [*segments, 9]) == pytest.approx(expected, rel=1e-12)


def test_run_lengths_equal_their_definition_on_random_forests():
    random = np.random.default_rng(1)
    names = np.array([0, 2**53, 2**53 + 1, 2**64 - 1, 7], np.uint64)
    for _ in range(300):
        count = random.integers(0, 12)
        skeletons, segments = names[random.integers(0, 3, count)], names[random.integers(0, 5, count)]
        pairs = random.integers(0, max(count, 1), (random.integers(0, 14), 2)) if count else np.zeros((0, 2), int)
        edges = pairs[skeletons[pairs[:, 0]] == skeletons[pairs[:, 1]]]
        lengths = random.integers(0, 4, len(edges)).astype(float)
        mask = names[random.integers(0, 4, 10)]
        rule = int(random.integers(0, 4)), str(random.choice(["em_erl", "banis"])), mask
        found = metrics.run_length(skeletons, segments, edges, lengths, *rule)
        expected = oracle.run_length(skeletons.tolist(), segments.tolist(), edges.tolist(), lengths.tolist(),
                                     *rule[:2], mask.tolist())
        if expected[0] is None:
            assert math.isnan(found.expected)
            assert math.isnan(found.normalized)
        else:
            assert (found.expected, found.perfect) == pytest.approx(expected, rel=1e-12)


def test_more_tolerance_never_shortens_a_run():
    random = np.random.default_rng(2)
    skeletons, edges, lengths = lines(9, 7, 8, 5)
    for convention in ("em_erl", "banis"):
        segments = random.integers(0, 4, len(skeletons))
        found = [metrics.run_length(skeletons, segments, edges, lengths, nodes, convention).expected
                 for nodes in (1, 2, 3, 5, math.inf)]
        assert found == sorted(found)


def test_labels_under_nodes_are_found_by_either_rounding_and_in_blocks(monkeypatch):
    labels = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    places = np.array([[40, 7.9, 12], [0, 0, 1.9], [79.9, 11.9, 15.9]])
    assert metrics.labels_at(labels, places, (40, 4, 4)).tolist() == [labels[1, 1, 3], labels[0, 0, 0], labels[1, 2, 3]]
    halves = np.array([[20, 2, 6]])
    assert metrics.labels_at(labels, halves, (40, 4, 4), rounding="nearest").tolist() == [labels[1, 1, 2]]
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", 64)
    assert metrics.labels_at(Blocks(labels), np.add(places, (400, 40, 40)), (40, 4, 4), (400, 40, 40)).tolist() == \
        metrics.labels_at(labels, places, (40, 4, 4)).tolist()
    with pytest.raises(InputError, match="check resolution, offset and the order z, y, x"):
        metrics.labels_at(labels, places, (30, 4, 4))
    with pytest.raises(InputError, match='"down" or "nearest"'):
        metrics.labels_at(labels, places, (40, 4, 4), rounding="up")


@pytest.mark.parametrize("change, sentence", [
    ({"segments": [1.0, 2.0, 3.0]}, "segments must be a list of whole numbers; got shape .* float64"),
    ({"segments": [1, 2, -3]}, "segments must not be negative; got -3"),
    ({"segments": [1, 2]}, "one id a node; got 3 and 2"),
    ({"edges": [(0, 3)]}, "nodes from 0 to 3, but there are 3 nodes"),
    ({"edges": [(0, 2)]}, r"\(0, 2\) joins skeletons 1 and 2"),
    ({"edges": [(0.0, 1.0)]}, r"edges must be node numbers of shape \(n, 2\)"),
    ({"lengths": [math.nan]}, "lengths must be one finite number"),
    ({"lengths": [1, 2]}, "for each of the 1 edges"),
    ({"contact_nodes": math.nan}, "contact_nodes must be 0 or more"),
    ({"convention": "funlib"}, "there are em_erl, banis"),
])
def test_bad_skeletons_are_named(change, sentence):
    good = {"skeletons": [1, 1, 2], "segments": [1, 2, 3], "edges": [(0, 1)], "lengths": [1]}
    with pytest.raises(InputError, match=sentence):
        metrics.run_length(**good | change)
