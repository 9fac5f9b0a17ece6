"""The faces of segment and metrics given odd input: damaged graphs and trees, natural mistakes, unusual arrays."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from emcore.kernels.region_graph import EdgeTable, add_faces

from emcore import metrics, segment
from emcore.errors import InputError
from emcore.kernels import overlaps as overlaps_kernel
from emcore.segment.graph import MOST_VOXELS
from tests.oracles import agglomeration as oracle

EVERY = ("sizes", "boxes", "histogram", "running_mean")


def volume(seed=0, shape=(6, 7, 8), labels=40):
    random = np.random.default_rng(seed)
    fragments = random.integers(0, labels, shape).astype(np.uint32)
    fragments[0, 0, :2] = 1, labels  # so that the largest label is there
    return fragments, (random.integers(0, 9, (3, *shape)) / 8).astype(np.float32)


# ---- damaged graphs and trees

DAMAGED_GRAPH = {
    "edges must join ids u < v of 1 to 40": lambda graph: {"v": with_value(graph.v, 0, 2**32 - 1)},
    "edges must join ids u < v": lambda graph: {"u": with_value(graph.u, 0, 0)},
    "v has .* entries where": lambda graph: {"v": graph.v[:-1]},
    "key has .* entries where": lambda graph: {"key": graph.key[:3]},
    "max must lie in 0..1": lambda graph: {"max": with_value(graph.max, 1, np.nan)},
    "min must lie in 0..1": lambda graph: {"min": with_value(graph.min, 1, -np.inf)},
    "running_mean must lie in 0..1": lambda graph: {"running_mean": with_value(graph.running_mean, 2, np.inf)},
    "every edge needs a contact": lambda graph: {"count": with_value(graph.count, 0, 0)},
    "a sum of affinities of at most 1 each": lambda graph: {"sum": with_value(graph.sum, 0, 2**60)},
    "fewer than 2\\*\\*38 in all": lambda graph: {"count": with_value(graph.count, 0, 2**62)},
    "sizes must be numbers of voxels": lambda graph: {"sizes": with_value(graph.sizes, 1, -1)},
    "sizes has 3 entries where 41": lambda graph: {"sizes": graph.sizes[:3]},
    "u must be one-dimensional uint32": lambda graph: {"u": graph.u.astype(np.int64)},
    "its edges must rise by": lambda graph: {name: getattr(graph, name)[::-1] for name in ("u", "v")},
    "bin_starts must rise": lambda graph: {"bin_starts": with_value(graph.bin_starts, 1, 2**40)},
    "the bins of an edge must rise below 256": lambda graph: {"bins": with_value(graph.bins, 0, 256)},
    "of its histograms only": lambda graph: {"bins": None},
    "it numbers fragments up to": lambda graph: {"fragments": -1},
    "numbers fragments up to 1099511627776": lambda graph: {"fragments": 2**40},
    "v must be an array": lambda graph: {"v": [[1], [2, 3]]},
}


def with_value(array, place, value):
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize("sentence", DAMAGED_GRAPH)
def test_a_damaged_graph_is_named_before_a_kernel_sees_it(sentence):
    graph = segment.region_graph(*volume(), extras=EVERY)
    damaged = replace(graph, **DAMAGED_GRAPH[sentence](graph))
    calls = [lambda: segment.agglomerate(damaged), lambda: segment.agglomerate(damaged, ties="waterz"),
             lambda: segment.agglomerate(damaged, "aff85_his256_all"), lambda: segment.size_linkage(damaged, 5)]
    if "rise by" not in sentence:
        calls.append(lambda: segment.pool_graphs([graph, damaged]))
    for call in calls:
        with pytest.raises(InputError, match=sentence):
            call()


@pytest.mark.parametrize("change, sentence", [
    ({"a": np.array([1, 2**32 - 1], np.uint32)}, "must name ids 1 to 4; they name 1 to 4294967295"),
    ({"b": np.array([0, 3], np.uint32)}, "must name ids 1 to 4; they name 0 to 3"),
    ({"b": np.array([2], np.uint32)}, "a, b and height must be equally long"),
    ({"height": np.array([0.5, np.nan])}, "heights must be numbers that never fall"),
    ({"height": np.array([0.5, 0.4])}, "heights must be numbers that never fall"),
    ({"a": np.array([1, 2])}, "a, b and height must be uint32, uint32 and float64"),
    ({"fragments": 2**33}, "it numbers fragments up to 8589934592"),
    ({"fragments": -3}, "it numbers fragments up to -3"),
    ({"height": [[0.1], [0.2, 0.3]]}, "height must be an array"),
    ({"key": np.array([1], np.uint64)}, r"its keys must be \(2,\) uint64; they are \(1,\) uint64"),
    ({"key": np.array([1, 2])}, r"its keys must be \(2,\) uint64; they are \(2,\) int64"),
    ({"key": np.array([2, 1], np.uint64), "height": np.array([0.1, 0.1])}, "must come in the order of their keys"),
])
def test_a_damaged_tree_is_named_before_a_kernel_sees_it(change, sentence):
    tree = segment.MergeTree(4, np.array([1, 2], np.uint32), np.array([2, 3], np.uint32), np.array([0.1, 0.2]))
    labels = np.ones((2, 2, 2), np.uint32)
    assert segment.cut(labels, tree, 0.15).max() == 1
    damaged = replace(tree, **change)
    for call in (lambda: segment.cut(labels, damaged, 0.5), lambda: list(segment.sweep(labels, damaged, [0.5])),
                 lambda: damaged.table(0.5)):
        with pytest.raises(InputError, match=sentence):
            call()


# ---- natural mistakes

def test_natural_mistakes_are_answered_with_the_call_that_works():
    fragments, affs = volume()
    graph = segment.region_graph(fragments, affs)
    makes_table = r"takes the table of a truth and its labels, contingency\(truth, labels\); got ndarray"
    makes_graph = r"takes the region graph that region_graph\(fragments, affs\) returns; got ndarray"
    makes_tree = r"takes the merge tree that agglomerate\(region_graph\(fragments, affs\)\) returns; got "
    mistakes = [
        ("agglomerate " + makes_graph, lambda: segment.agglomerate(fragments)),
        ("size_linkage " + makes_graph, lambda: segment.size_linkage(fragments, 5)),
        ("pool_graphs " + makes_graph, lambda: segment.pool_graphs([fragments])),
        ("cut " + makes_tree + "float", lambda: segment.cut(fragments, 0.5, 0.5)),
        ("cut " + makes_tree + "RegionGraph", lambda: segment.cut(fragments, graph, 0.5)),
        ("sweep " + makes_tree + "ndarray", lambda: list(segment.sweep(fragments, affs, [0.5]))),
        ("a curve needs the merge tree that segment.agglomerate returns; got float",
         lambda: metrics.threshold_curve(fragments, 0.5, fragments)),
        ("pool " + makes_table, lambda: metrics.pool([fragments, fragments])),
    ]
    scores = ("voi", "rand", "cremi_score", "foreground_restricted", "overlap_indices", "fold", "match_instances",
              "average_precision", "synapse_f1")
    mistakes += [(f"{name} {makes_table}", lambda name=name: getattr(metrics, name)(fragments, fragments))
                 for name in scores]
    for sentence, call in mistakes:
        with pytest.raises(InputError, match=sentence):
            call()
    assert metrics.voi(table=metrics.contingency(fragments, fragments)).split == 0


# ---- arrays of any layout

def layouts(array):
    yield np.asfortranarray(array)
    yield np.repeat(array, 2, axis=-1)[..., ::2]
    yield array[::-1].copy()[::-1]
    packed = np.zeros(array.shape, [("pad", "u1"), ("value", array.dtype)])
    packed["value"] = array
    yield packed["value"]
    frozen = array.copy()
    frozen.flags.writeable = False
    yield frozen


def test_every_layout_of_affinities_and_labels_gives_the_same_segments():
    fragments, affs = volume()
    offsets = np.array([(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
    mask = np.random.default_rng(1).random(fragments.shape) < 0.8
    for dtype in (np.float32, np.float16, np.uint8):
        given = (affs * 255).astype(dtype) if dtype == np.uint8 else affs.astype(dtype)
        faces = {
            "watershed": lambda a, f, m: segment.watershed(a, mask=m),
            "slice_watershed": lambda a, f, m: segment.slice_watershed(a),
            "hminima": lambda a, f, m: segment.seeded_slices(a, "hminima"),
            "flood": lambda a, f, m: segment.flood(a[0], f, m),
            "region_graph": lambda a, f, m: segment.region_graph(f, a, extras=EVERY).sum,
            "segment": lambda a, f, m: segment.Segmentation(a).labels(dust_size=3),
            "components": lambda a, f, m: segment.affinity_components(a),
            "mutex": lambda a, f, m: segment.mutex_watershed(a, np.asfortranarray(offsets), mask=m, strides=(1, 2, 2)),
            "link": lambda a, f, m: segment.link_sections(f, a, segment.LinkRule(affinity=0.3)),
            "boundary": lambda a, f, m: segment.boundary_threshold(f, a, 0.4),
        }
        for name, face in faces.items():
            wanted = face(given, fragments, mask)
            for odd_affs, odd_fragments, odd_mask in zip(*map(layouts, (given, fragments, mask))):
                np.testing.assert_array_equal(face(odd_affs, odd_fragments, odd_mask), wanted, err_msg=name)


def test_a_mask_of_one_strided_row_is_fine_for_the_mutex_watershed():
    affs = np.random.default_rng(0).random((3, 1, 1, 9), np.float32)
    mask = np.ones((1, 1, 18), bool)[..., ::2]
    offsets = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
    wanted = segment.mutex_watershed(affs, offsets)
    np.testing.assert_array_equal(segment.mutex_watershed(affs, offsets, mask=mask), wanted)


@pytest.mark.parametrize("channels", [0, 1, 2])
def test_the_mutex_watershed_with_a_bias_takes_fewer_than_three_channels(channels):
    affs = np.array([0.1, 0.9, 0.1, 0.9], np.float32).reshape(1, 1, 1, 4)[[0] * channels]
    offsets = np.array([(0, 0, -1), (0, 0, -2)])[:channels]
    labels = segment.mutex_watershed(affs.reshape(channels, 1, 1, 4), offsets, bias=-0.5)
    assert labels.ravel().tolist() == {0: [1, 2, 3, 4], 1: [1, 1, 2, 2], 2: [1, 1, 2, 2]}[channels]


def test_out_may_be_the_fragments_but_nothing_that_overlaps_them_or_cannot_be_written():
    fragments, affs = volume()
    tree = segment.agglomerate(segment.region_graph(fragments, affs))
    wanted = segment.cut(fragments, tree, 0.5)
    frozen = np.zeros_like(fragments)
    frozen.flags.writeable = False
    for out, sentence in ((frozen, "may be written"), (fragments[::-1], "not another view of the same memory"),
                          ([1], "out must be"), (fragments.astype(np.int32), "out must be")):
        with pytest.raises(InputError, match=sentence):
            segment.cut(fragments, tree, 0.5, out=out)
    np.testing.assert_array_equal(segment.cut(fragments, tree, 0.5, out=fragments), wanted)


# ---- the running mean of a block with a halo

def test_running_means_of_a_block_are_those_of_its_own_contacts():
    random = np.random.default_rng(3)
    for seed in range(30):
        fragments, affs = volume(seed, tuple(random.integers(2, 8, 3)), 6)
        halo = [int(random.integers(0, min(3, size))) for size in fragments.shape]
        graph = segment.region_graph(fragments, affs, extras=("running_mean",),
                                     place=segment.Place(halo=halo))
        own = {}
        for z, y, x in np.ndindex(*fragments.shape):
            if any(at < wide for at, wide in zip((z, y, x), halo)):
                continue
            for channel, (dz, dy, dx) in enumerate(oracle.NEAREST):
                there = z + dz, y + dy, x + dx
                pair = tuple(sorted((int(fragments[z, y, x]), int(fragments[there])))) if min(there) >= 0 else (0, 0)
                if pair[0] and pair[0] != pair[1]:
                    mean, count = own.get(pair, (np.float32(0), np.float32(0)))
                    value = affs[channel, z, y, x]
                    own[pair] = (value + mean * count) / (count + np.float32(1)), count + np.float32(1)
        assert list(zip(graph.u.tolist(), graph.v.tolist())) == sorted(own)
        np.testing.assert_array_equal(graph.running_mean, np.array([own[pair][0] for pair in sorted(own)], np.float32))


# ---- numbers of 32 and of 53 bits

def test_volumes_too_large_for_numbers_of_32_bits_are_refused_by_their_shape():
    huge = np.broadcast_to(np.uint32(1), (2**12, 2**12, 2**11 + 1))
    assert huge.size > MOST_VOXELS
    affs = np.broadcast_to(np.float32(0.5), (3, *huge.shape))
    for call in (lambda: segment.region_graph(huge, affs), lambda: segment.segment(affs),
                 lambda: segment.merge_small(huge, affs, 3), lambda: segment.region_graph(huge.view("i4"), affs)):
        with pytest.raises(InputError, match=r"at most 2\*\*35 voxels at once.* cut the volume into blocks"):
            call()
    with pytest.raises(InputError, match="at most 4294967294 voxels at once"):
        segment.mutex_watershed(affs, [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
    section = np.broadcast_to(np.float32(0.5), (3, 1, 2**16, 2**16))
    with pytest.raises(InputError, match=r"a section must have fewer than 2\*\*32 pixels"):
        segment.slice_watershed(np.broadcast_to(np.uint8(1), section.shape))
    small, edges = volume()
    with pytest.raises(InputError, match="keys of contacts are numbers of 64 bits"):
        segment.region_graph(small, edges, place=segment.Place(volume_shape=(2**22, 2**21, 2**20)))


def test_more_edges_than_numbers_are_an_error_and_no_wrap():
    table = EdgeTable()
    table.most = 3
    labels = np.arange(1, 6, dtype=np.uint32).reshape(1, 1, 5)
    affs, along_x = np.full((3, 1, 1, 5), 0.5, np.float32), np.array([[2, 0, 0, 1, 0, 2]])
    none, volume_shape = np.zeros(3, np.int64), np.array(labels.shape)
    with pytest.raises(OverflowError):
        add_faces(table, labels, affs, np.zeros(1, np.float32), along_x, 0, 1, 16, none, none, volume_shape)
    table = EdgeTable()
    table.most = 4
    add_faces(table, labels, affs, np.zeros(1, np.float32), along_x, 0, 1, 16, none, none, volume_shape)
    assert table.size == 4


def test_scores_of_sums_above_53_bits_are_differences_of_whole_numbers():
    count = 2**37  # its sum of affinities in units of 2**-24 takes 61 bits
    total = count * 2**24 - 1
    graph = segment.RegionGraph(2, np.array([1], np.uint32), np.array([2], np.uint32), np.array([count]),
                                np.array([total]), *np.ones((2, 1), np.float32), np.zeros(1, np.uint64))
    assert segment.agglomerate(graph).height.tolist() == [2.0**-61]


def test_rand_along_a_curve_is_that_of_the_table_to_the_last_bit():
    size = 3 * 10**9
    counts = np.array([size, size + 1, 7, 1])
    ids = np.arange(1, 5, dtype=np.uint64)
    table = metrics.Contingency(ids, ids, counts, int(counts.sum()), 0, (0,), ())
    tree = SimpleNamespace(a=np.array([3]), b=np.array([4]), height=np.array([0.5]), fragments=4)
    curve = metrics.fold(table, tree)
    merged = metrics.Contingency(ids, np.array([1, 2, 3, 3], np.uint64), counts, int(counts.sum()), 0, (0,), ())
    for convention in metrics.partitions.CONVENTIONS:
        for state, expected in enumerate((table, merged)):
            np.testing.assert_array_equal([values[state] for values in curve.rand(convention)],
                                          metrics.rand(expected, convention), err_msg=convention)
    assert 0 < curve.rand("funlib").error[1] < 1e-17  # floats said 0


# ---- sums that no order changes

def test_overlaps_are_the_same_bits_in_any_order_of_pixels():
    random = np.random.default_rng(5)
    first, second = random.integers(0, 3, (2, 40, 50)).astype(np.uint32)
    values = (random.random((40, 50)) ** 4).astype(np.float32)
    wanted = overlaps_kernel.overlaps(first, second, values, first.size)
    for _ in range(20):
        order = random.permutation(first.size)
        turned = (array.ravel()[order].reshape(50, 40) for array in (first, second, values))
        np.testing.assert_array_equal(overlaps_kernel.overlaps(*turned, first.size), wanted)
    for row in wanted:
        own = values[(first == row["first"]) & (second == row["second"])]
        assert row["total"] / overlaps_kernel.scale_of(first.size) == pytest.approx(own.sum(dtype=np.float64), abs=1e-9)


def test_affinities_between_faces_outside_of_0_to_1_are_refused():
    ids = np.ones((2, 2), np.uint32)
    for value in (np.nan, -0.1, 1.5):
        with pytest.raises(InputError, match=r"affinities must lie in 0\.\.1"):
            segment.merge_faces(ids, ids, np.full((2, 2), value), affinity=0.5)


# ---- metrics take what numpy can view

def test_metrics_take_tensors_and_lists_and_say_what_they_cannot_view():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(6)
    truth, labels = random.integers(0, 4, (2, 3, 8, 9))
    mask = random.random(truth.shape) < 0.2
    faces = {
        "contingency": lambda t, p, m: metrics.voi(metrics.contingency(t, p, mask=m)),
        "confusion": lambda t, p, m: metrics.confusion(t, p, mask=m),
        "clefts": lambda t, p, m: metrics.clefts(t, p, (40, 4, 4)),
        "neuron_border_mask": lambda t, p, m: metrics.neuron_border_mask(t, (40, 4, 4)),
        "labels_at": lambda t, p, m: metrics.labels_at(t, [[40, 8, 8]], (40, 4, 4)),
        "skeleton_voi": lambda t, p, m: metrics.skeleton_voi(t[0][0], p[0][0]),
    }
    for name, face in faces.items():
        wanted = face(truth, labels, mask)
        for convert in (torch.from_numpy, np.ndarray.tolist):
            assert repr(face(convert(truth), convert(labels), convert(mask))) == repr(wanted), name
    with_gradient = torch.ones(3, 8, 9, requires_grad=True)
    half = torch.ones(3, 8, 9, dtype=torch.bfloat16)
    masked = np.ma.masked_equal(truth, 2)
    for bad, sentence in ((with_gradient, "labels must be an array, .* got Tensor"), (half, "got Tensor"),
                          ([[1], [2, 3]], "labels must be an array, .* got list"), (masked, "mask would be lost")):
        with pytest.raises(InputError, match=sentence):
            metrics.contingency(truth, bad)
