"""The run length after every merge equals that of the labels at that merge, to the last digits but few."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError


def scene(rng, fragments, merges):
    """Random skeletons, fragments under their nodes, and a tree, some of whose merges join what is joined."""
    nodes = int(rng.integers(0, 40))
    skeletons = rng.integers(1, 6, nodes)
    under = rng.integers(0, fragments + 1, nodes)
    pairs = rng.integers(0, max(nodes, 1), (60, 2)) if nodes else np.zeros((0, 2), int)
    edges = pairs[skeletons[pairs[:, 0]] == skeletons[pairs[:, 1]]]
    lengths = rng.random(len(edges)) * 100
    height = np.sort(rng.random(merges).round(1)) if merges else np.zeros(0)
    tree = SimpleNamespace(fragments=fragments, a=rng.integers(1, fragments + 1, merges),
                           b=rng.integers(1, fragments + 1, merges), height=height)
    return skeletons, under, edges, lengths, tree


def labels_after(under, tree, merges):
    """Fragments under other names, merge by merge."""
    name = list(range(tree.fragments + 1))
    for a, b in zip(tree.a[:merges].tolist(), tree.b[:merges].tolist()):
        name = [name[a] if one == name[b] else one for one in name]
    return np.array(name)[under]


@pytest.mark.parametrize("convention", ["em_erl", "banis"])
def test_every_state_of_the_curve_is_the_run_length_there(convention):
    rng = np.random.default_rng(0)
    for _ in range(60):
        fragments = int(rng.integers(1, 15))
        skeletons, under, edges, lengths, tree = scene(rng, fragments, int(rng.integers(0, 25)))
        nodes = float(rng.choice([0, 1, 2, 3, 5, math.inf]))
        curve = metrics.run_length_curve(skeletons, under, edges, lengths, tree, nodes, convention)
        assert len(curve.expected) == len(tree.a) + 1
        for merges in range(len(tree.a) + 1):
            slow = metrics.run_length(skeletons, labels_after(under, tree, merges), edges, lengths, nodes, convention)
            if math.isnan(slow.expected):
                assert math.isnan(curve.expected[merges])
                continue
            assert curve.expected[merges] == pytest.approx(slow.expected, rel=1e-12, abs=1e-12 * slow.perfect)
            assert curve.perfect == pytest.approx(slow.perfect, rel=1e-12)
            assert curve.normalized[merges] == pytest.approx(slow.normalized, rel=1e-12, abs=1e-12)


def test_the_best_threshold_is_one_that_can_be_reached():
    skeletons, edges, lengths = [1, 1, 1, 2, 2], [(0, 1), (1, 2), (3, 4)], [1.0, 1.0, 1.0]
    tree = SimpleNamespace(fragments=5, a=np.array([1, 2, 4, 1]), b=np.array([2, 3, 5, 4]),
                           height=np.array([0.1, 0.3, 0.3, 0.6]))
    curve = metrics.run_length_curve(skeletons, [1, 2, 3, 4, 5], edges, lengths, tree)
    assert curve.expected.tolist() == pytest.approx([0, 1 / 3, 4 / 3, 5 / 3, 0])
    assert (curve.best().merges, curve.best().value) == (3, pytest.approx(1))
    assert 0.3 < curve.best().threshold <= 0.6
    assert curve.merges_below(curve.best().threshold) == 3
    empty = metrics.run_length_curve([], [], [], [], tree)
    assert math.isnan(empty.best().value)
    assert np.isnan(empty.expected).all()


def test_a_tree_of_other_fragments_is_refused():
    tree = SimpleNamespace(fragments=2, a=np.array([1]), b=np.array([2]), height=np.array([0.1]))
    with pytest.raises(InputError, match="of 2 fragments, but a node lies on fragment 3"):
        metrics.run_length_curve([1], [3], [], [], tree)
    with pytest.raises(InputError, match="unknown run length convention"):
        metrics.run_length_curve([1], [1], [], [], tree, 1, "x")
    with pytest.raises(InputError, match="contact_nodes must be 0 or more"):
        metrics.run_length_curve([1], [1], [], [], tree, -1)
