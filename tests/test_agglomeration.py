import time
from fractions import Fraction

import numpy as np
import pytest

from emcore import segment
from emcore.errors import InputError
from tests.oracles import agglomeration as oracle

# name -> (statistic of the oracle, values an edge starts with, bins)
SCORES = {
    "mean": (oracle.mean_score, "all", 0),
    "max": (oracle.max_score, "all", 0),
    "min": (oracle.min_score, "all", 0),
    "aff85_his256": (oracle.quantile_score(85, 256), "maxima", 256),
    "aff50_his8": (oracle.quantile_score(50, 8), "maxima", 8),
    "aff15": (oracle.quantile_score(15, 0), "maxima", 0),
    "aff100_his4": (oracle.quantile_score(100, 4), "maxima", 4),
    "aff50_his256_all": (oracle.quantile_score(50, 256), "all", 256),
}


def volume(rng, labels=9, levels=4):
    shape = tuple(rng.integers(1, 5, 3))
    fragments = rng.integers(0, labels, shape).astype(np.uint32)
    return fragments, (rng.integers(0, levels + 1, (3, *shape)) / levels).astype(np.float32)


def canonical(labels):
    """Labels numbered by first appearance: equal for equal partitions."""
    ids, first, place = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(np.where(ids == 0, -1, first)))
    return (order + (0 not in ids))[place].reshape(labels.shape)


@pytest.mark.parametrize("name", SCORES)
def test_the_tree_is_that_of_the_best_edge_first_with_ties_by_key(name):
    rng = np.random.default_rng(0)
    score, start, bins = SCORES[name]
    for _ in range(30):
        fragments, affs = volume(rng)
        found = oracle.contacts(fragments, affs)
        events, _ = oracle.agglomerate(oracle.first_edges(found, start, bins), score)
        graph = segment.region_graph(fragments, affs, statistic=name)
        tree = segment.agglomerate(graph, name)
        np.testing.assert_allclose(tree.height, [float(s) for s, _ in events], rtol=0, atol=1e-15)
        assert tree.key.tolist() == [key for _, key in events]
        owner = {key: pair for pair, seen in found.items() for _, key in seen}
        assert list(zip(tree.a.tolist(), tree.b.tolist())) == [owner[key] for _, key in events]
        for threshold in (0, .25, .26, .5, .9, 1):
            wanted = oracle.labels_at(fragments, found, events, Fraction(threshold))
            np.testing.assert_array_equal(segment.cut(fragments, tree, threshold), wanted)


@pytest.mark.parametrize("name", SCORES)
def test_merging_mutually_best_pairs_in_any_order_gives_the_same_tree(name):
    rng = np.random.default_rng(1)
    score, start, bins = SCORES[name]
    for _ in range(20):
        fragments, affs = volume(rng)
        edges = oracle.first_edges(oracle.contacts(fragments, affs), start, bins)
        shuffled, _ = oracle.agglomerate(edges, score, rng)
        graph = segment.region_graph(fragments, affs, statistic=name)
        tree = segment.agglomerate(graph, name)
        np.testing.assert_allclose(tree.height, [float(s) for s, _ in shuffled], rtol=0, atol=1e-15)
        assert oracle.agglomerate(edges, score)[0] == shuffled


def random_graph(rng, nodes, edges, levels=6):
    """A graph without a volume: hubs, many ties."""
    hubs = rng.integers(1, 1 + max(1, nodes // 50), edges)
    ends = np.where(rng.random(edges) < .4, hubs, rng.integers(1, nodes + 1, edges)), rng.integers(1, nodes + 1, edges)
    pairs = np.unique(np.sort(np.array(ends), axis=0), axis=1)
    u, v = pairs[:, pairs[0] < pairs[1]].astype(np.uint32)
    count = rng.integers(1, 5, len(u)).astype(np.int64)
    most = (rng.integers(0, levels + 1, len(u)) / levels).astype(np.float32)
    return segment.RegionGraph(nodes, u, v, count, (most * 2.0**24).astype(np.int64) * count, most, most,
                               rng.permutation(len(u)).astype(np.uint64), np.ones(nodes + 1, np.int64))


@pytest.mark.parametrize("name", ["mean", "max", "min", "aff85_his256", "aff15"])
def test_graphs_with_hubs_agree_with_the_oracle(name):
    rng = np.random.default_rng(2)
    graph = random_graph(rng, 150, 600)
    values = [[float(m)] * int(n) for m, n in zip(graph.max, graph.count)]
    score, start, bins = SCORES[name]
    if start == "maxima":
        values = [[min(int(v[0] * bins), bins - 1) if bins else v[0]] for v in values]
    edges = {(int(u), int(v)): oracle.Pooled(tuple(x), int(k))
             for u, v, x, k in zip(graph.u, graph.v, values, graph.key)}
    events, _ = oracle.agglomerate(edges, score)
    tree = segment.agglomerate(graph, name)
    np.testing.assert_allclose(tree.height, [float(s) for s, _ in events], rtol=0, atol=1e-15)
    owner = {int(k): (int(u), int(v)) for u, v, k in zip(graph.u, graph.v, graph.key)}
    assert list(zip(tree.a.tolist(), tree.b.tolist())) == [owner[key] for _, key in events]


@pytest.mark.parametrize("name", SCORES)
def test_the_tree_is_the_same_bits_for_any_number_of_threads(name):
    rng = np.random.default_rng(10)
    fragments = (np.arange(12 * 15 * 17).reshape(12, 15, 17) // 3 + rng.integers(1, 9, (12, 15, 17))).astype(np.uint32)
    affs = (rng.integers(0, 9, (3, 12, 15, 17)) / 8).astype(np.float32)
    graph = segment.region_graph(fragments, affs, statistic=name)
    for threshold in (None, .4):
        one = segment.agglomerate(graph, name, threshold=threshold, threads=1)
        for threads in (2, 3, 7, 50):
            many = segment.agglomerate(graph, name, threshold=threshold, threads=threads)
            for field in ("a", "b", "height", "key"):
                np.testing.assert_array_equal(getattr(many, field), getattr(one, field))


def test_raising_the_threshold_only_merges():
    rng = np.random.default_rng(3)
    fragments = rng.integers(0, 300, (12, 13, 14)).astype(np.uint32)
    affs = rng.random((3, 12, 13, 14)).astype(np.float32)
    for name in SCORES:
        tree = segment.agglomerate(segment.region_graph(fragments, affs, statistic=name), name)
        assert (np.diff(tree.height) >= 0).all()
        before = fragments
        for labels in segment.cut(fragments, tree, np.linspace(0, 1, 9)):
            pairs = np.unique(np.stack([before.ravel(), labels.ravel()]), axis=1)
            assert len(pairs[0]) == len(np.unique(before))  # each old segment lies in one new one
            before = labels


def test_a_tree_up_to_a_threshold_is_the_beginning_of_the_whole_tree():
    rng = np.random.default_rng(4)
    graph = random_graph(rng, 300, 2000, levels=40)
    for name in ("mean", "max", "min", "aff85_his256"):
        whole, part = segment.agglomerate(graph, name), segment.agglomerate(graph, name, threshold=.4)
        below = whole.height < .4
        for field in ("a", "b", "height"):
            np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[below])
        np.testing.assert_array_equal(part.table(.4), whole.table(.4))
        with pytest.raises(InputError, match=r"computed up to 0.4; it cannot be cut at 0.5"):
            part.table(.5)


def test_mirroring_the_volume_mirrors_the_labels_where_nothing_ties():
    rng = np.random.default_rng(5)
    fragments = rng.integers(1, 200, (8, 9, 10)).astype(np.uint32)
    affs = rng.random((3, 8, 9, 10)).astype(np.float32)
    tree = segment.agglomerate(segment.region_graph(fragments, affs))
    mirrored = fragments[::-1, :, ::-1]
    # seen in the mirror, the value towards smaller z lies at the other voxel of its pair
    turned = segment.Affinities(affs[:, ::-1, :, ::-1], ((1, 0, 0), (0, -1, 0), (0, 0, 1)))
    graph = segment.region_graph(mirrored, turned)
    np.testing.assert_array_equal(segment.cut(mirrored, segment.agglomerate(graph), .5),
                                  segment.cut(fragments, tree, .5)[::-1, :, ::-1])


def test_a_star_and_two_hubs_sharing_all_neighbours_take_no_quadratic_time():
    leaves = 100_000
    rng = np.random.default_rng(6)
    ids = np.arange(3, leaves + 3, dtype=np.uint32)
    u = np.concatenate([np.full(leaves, 1), np.full(leaves, 2)]).astype(np.uint32)
    v = np.concatenate([ids, ids])
    most = rng.random(2 * leaves).astype(np.float32)
    ones = np.ones(2 * leaves, np.int64)
    graph = segment.RegionGraph(leaves + 2, u, v, ones, (most * 2.0**24).astype(np.int64), most, most,
                                np.arange(2 * leaves, dtype=np.uint64))
    star = segment.RegionGraph(leaves + 2, u[leaves:], v[leaves:], ones[leaves:], graph.sum[leaves:], most[leaves:],
                               most[leaves:], graph.key[leaves:])
    for name in ("mean", "max", "min", "aff85_his256"):
        start = time.perf_counter()
        assert len(segment.agglomerate(star, name).height) == leaves
        assert len(segment.agglomerate(graph, name).height) == leaves + 1
        assert time.perf_counter() - start < 5  # a second at the very most; quadratic would be minutes


def test_cut_takes_out_strided_and_read_only_arrays():
    rng = np.random.default_rng(7)
    fragments, affs = rng.integers(0, 60, (5, 6, 8)).astype(np.uint32), rng.random((3, 5, 6, 8)).astype(np.float32)
    tree = segment.agglomerate(segment.region_graph(fragments, affs))
    wanted = segment.cut(fragments, tree, .5)
    assert wanted.dtype == np.uint32
    assert set(np.unique(wanted)) == set(range(wanted.max() + 1))
    strided = np.repeat(fragments, 2, axis=2)[:, :, ::2].astype(np.int64)
    strided.flags.writeable = False
    for threads in (1, 2, 3, 7):
        np.testing.assert_array_equal(segment.cut(strided, tree, .5, threads=threads), wanted)
    out = fragments.copy()
    assert segment.cut(out, tree, .5, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(tree.table(.5)[fragments], wanted)


def test_a_sweep_gives_the_cuts_one_after_the_other_in_one_array():
    rng = np.random.default_rng(11)
    fragments, affs = rng.integers(0, 300, (9, 8, 7)).astype(np.uint32), rng.random((3, 9, 8, 7)).astype(np.float32)
    tree = segment.agglomerate(segment.region_graph(fragments, affs))
    thresholds = [0, .1, .5, .5, .9, 1]
    kept = fragments.copy()
    for out in (None, np.empty_like(fragments), kept):
        source = fragments if out is not kept else kept
        for threshold, labels in segment.sweep(source, tree, thresholds, out=out):
            np.testing.assert_array_equal(labels, segment.cut(fragments, tree, threshold))
            assert out is None or labels is out
    with pytest.raises(InputError, match=r"thresholds must rise; got \[0.5, 0.3\]"):
        next(segment.sweep(fragments, tree, [.5, .3]))


def test_graphs_without_edges_leave_everything_apart():
    for shape in ((0, 3, 3), (1, 1, 1), (2, 1, 3)):
        fragments, affs = np.full(shape, 1, np.uint32), np.ones((3, *shape), np.float32)
        for name in SCORES:
            tree = segment.agglomerate(segment.region_graph(fragments, affs, statistic=name), name)
            assert len(tree.height) == 0
            np.testing.assert_array_equal(segment.cut(fragments, tree, .5), fragments)


def test_size_linkage_joins_small_regions_along_their_largest_affinities():
    rng = np.random.default_rng(8)
    for _ in range(30):
        fragments, affs = volume(rng, labels=12)
        graph = segment.region_graph(fragments, affs)
        size, affinity = int(rng.integers(0, 12)), float(rng.choice([0, .25, .5]))
        tree = segment.size_linkage(graph, size, affinity)
        wanted = np.array(oracle.size_linkage(oracle.contacts(fragments, affs), graph.sizes, size, affinity))
        np.testing.assert_array_equal(canonical(tree.table(1 - affinity)[fragments]), canonical(wanted[fragments]))
        assert (np.diff(tree.height) >= 0).all()


def test_bad_input_is_answered_with_a_sentence():
    rng = np.random.default_rng(9)
    fragments, affs = volume(rng)
    graph = segment.region_graph(fragments, affs, extras=())
    tree = segment.agglomerate(graph)
    for message, call in {
        "ties must be 'canonical' or 'waterz'; got 'heap'": lambda: segment.agglomerate(graph, ties="heap"),
        "threshold must be 0 to 1; got 2": lambda: segment.agglomerate(graph, threshold=2),
        "threshold must be 0 to 1; got -0.1": lambda: segment.cut(fragments, tree, -.1),
        "threshold must be 0 to 1; got nan": lambda: tree.table(float("nan")),
        "needs the histograms of the graph": lambda: segment.agglomerate(graph, "hist_quantile_false"),
        "needs the means as waterz adds them up": lambda: segment.agglomerate(graph, ties="waterz"),
        "is for mean, max, min and quantiles of maxima":
            lambda: segment.agglomerate(graph, "hist_quantile_false", ties="waterz"),
        "needs the sizes of fragments": lambda: segment.size_linkage(graph, 5),
        "fragments hold labels above": lambda: segment.cut(fragments + 20, tree, .5),
        "fragments must be whole-number labels": lambda: segment.cut(fragments + .5, tree, .5),
        "out must be": lambda: segment.cut(fragments, tree, .5, out=np.empty(fragments.shape)),
        "out takes one threshold": lambda: segment.cut(fragments, tree, [.5], out=np.empty(fragments.shape, np.uint32)),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
