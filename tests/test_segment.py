"""The whole way from affinities to labels, against published and measured results of waterz."""

import hashlib

import numpy as np
import pytest

from emcore import segment
from emcore.errors import InputError

THRESHOLDS = (.05, .1, .2, .3, .4, .5, .6)
GOLDEN = {  # segments and hash at THRESHOLDS, made by PyTC's waterz
    ("R0", "affmean"): "568 292c746a 556 61b8ef15 497 c6ba5ea1 404 ce6a89e8 292 507c7ac6 157 3ff62d32 63 14e8c806",
    ("R0", "aff85_his256"): "565 84533c7c 538 d1b17364 401 0afa0451 192 df48ccb8 68 5c20ffb7 18 9b23b00c 7 eb6af616",
    ("R0", "aff50_his256"): "565 84533c7c 538 d1b17364 411 9d9d4f9e 237 03768937 128 96d4755e 52 c01ed653 19 a45b2fbb",
    ("R0", "aff15_his256"): "565 84533c7c 540 26b1042b 437 0fd8f47d 298 0310835e 190 6dac35b2 109 82183d6a 61 28ffcce4",
    ("P2", "affmean"): "166 63284df4 166 63284df4 134 40036ae9 128 3a947976 87 516fd4b1 78 04845f64 46 51f20ed4",
    ("P2", "aff85_his256"): "166 63284df4 166 63284df4 166 63284df4 63 3e35db8f 63 3e35db8f 9 95d7c8e3 2 6101a72d",
    ("P2", "aff50_his256"): "166 63284df4 166 63284df4 166 63284df4 79 78bdb968 79 78bdb968 21 6c7fb23c 3 44b7883c",
    ("P2", "aff15_his256"): "166 63284df4 166 63284df4 166 63284df4 93 5920c275 93 5920c275 37 7b4cd896 14 8cee22e8",
}


def affinities(name):
    if name == "R0":
        return np.random.RandomState(0).rand(3, 8, 16, 16).astype(np.float32)
    return (np.random.RandomState(2).randint(0, 6, (3, 6, 12, 12)) / 5).astype(np.float32)


def first_appearance(labels):
    """Labels numbered in the order in which they come, 0 apart."""
    ids, first, place = np.unique(labels, return_index=True, return_inverse=True)
    first = np.where(ids == 0, -1, first)
    return (np.argsort(np.argsort(first)) + (0 not in ids)).astype("<u4")[place].reshape(labels.shape)


def count_and_hash(labels):
    return f"{len(np.unique(labels[labels > 0]))} {hashlib.sha1(first_appearance(labels).tobytes()).hexdigest()[:8]}"


def snemi_like():
    """(affinities x y z, truth): twelve cells around random points, as in the golden numbers."""
    shape, random = (12, 48, 48), np.random.RandomState(7)
    seeds = np.stack([random.randint(0, size, 12) for size in shape], axis=1)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)[..., None, :]
    truth = 1 + np.argmin((((grid - seeds) ** 2) * (16, 1, 1)).sum(-1), axis=-1)
    same = np.zeros((3, *shape), np.float32)
    for channel, axis in enumerate((2, 1, 0)):
        inside = [slice(None)] * 3
        inside[axis] = slice(1, None)
        same[(channel, *inside)] = np.diff(truth, axis=axis) == 0
    noise = np.random.RandomState(8).rand(3, *shape).astype(np.float32)
    return np.clip(same * (1 - .35 * noise) + (1 - same) * .35 * noise * 1.4, 0, 1).astype(np.float32), truth


@pytest.mark.parametrize("name, score", GOLDEN)
def test_replaying_waterz_gives_its_golden_segments(name, score):
    affs = affinities(name)
    fragments = segment.watershed(affs, .1, .999, ties="waterz")
    graph = segment.region_graph(fragments, affs, extras=("running_mean",))
    replayed = segment.cut(fragments, segment.agglomerate(graph, score, ties="waterz"), THRESHOLDS)
    assert " ".join(map(count_and_hash, replayed)) == GOLDEN[name, score]
    for threshold, labels in zip(THRESHOLDS[3:], replayed[3:]):
        part = segment.agglomerate(graph, score, ties="waterz", threshold=threshold)
        np.testing.assert_array_equal(segment.cut(fragments, part, threshold), labels)


def test_without_ties_the_canonical_order_gives_the_golden_segments_too():
    affs = affinities("R0")
    for threshold, wanted in zip(THRESHOLDS, zip(*[iter(GOLDEN["R0", "affmean"].split())] * 2)):
        labels = segment.segment(affs, threshold, "affmean", low=.1, high=.999, ties="waterz")
        assert count_and_hash(labels) == " ".join(wanted)


def test_dust_merging_on_what_waterz_leaves_gives_the_golden_segments():
    whole = segment.Segmentation(affinities("R0"), statistic="affmean", low=.1, high=.999, ties="waterz")
    labels = whole.labels(.3, dust_size=6, dust_affinity=.3, remove_size=4)
    assert count_and_hash(labels) == "152 0312a43f"
    assert (labels == 0).sum() == 3


@pytest.mark.parametrize("options, threshold, after, wanted", [
    ({}, .2, {}, "452334f3"), ({}, .2, {"dust_size": 200, "remove_size": 50}, "44 1b6b9e0a"),
    ({"low": .3, "high": .9}, .2, {}, "1310 72377d8e"), ({}, 1e-4, {}, "7546 2f89bdf7"),
])
def test_a_volume_like_snemi_gives_the_golden_segments(options, threshold, after, wanted):
    affs, _ = snemi_like()
    np.testing.assert_allclose(affs.mean((1, 2, 3)), (.78833, .789672, .69656), atol=1e-5)
    affs = segment.Affinities(affs, ((0, 0, -1), (0, -1, 0), (-1, 0, 0)))
    whole = segment.Segmentation(affs, statistic="affmean", ties="waterz", **{"low": .1, "high": .999, **options})
    labels = whole.labels(threshold, **after)
    assert count_and_hash(labels).endswith(wanted)


@pytest.mark.parametrize("options", [{}, {"dust_size": 100, "dust_affinity": .3, "remove_size": 50}, {"boundary": .1}])
@pytest.mark.parametrize("ties", ["canonical", "waterz"])
def test_clean_cells_come_out_whole(options, ties):
    affs, truth = snemi_like()
    labels = segment.Segmentation(affs[::-1], statistic="aff85_his256", low=.1, high=.999, ties=ties).labels(
        .5, **options)
    inside = labels > 0
    assert inside.mean() > (.95 if options.get("boundary") else .999)
    np.testing.assert_array_equal(first_appearance(labels)[inside], first_appearance(truth)[inside])


def test_one_call_equals_its_steps_for_any_number_of_threads():
    affs, _ = snemi_like()
    fragments = segment.watershed(affs[::-1], .1, .999)
    steps = segment.cut(fragments, segment.agglomerate(segment.region_graph(fragments, affs[::-1])), .3)
    kept = affs.copy()
    for threads in (1, 2, 3, 7):
        np.testing.assert_array_equal(segment.segment(affs[::-1], .3, low=.1, high=.999, threads=threads), steps)
    np.testing.assert_array_equal(affs, kept)


def test_long_range_channels_take_no_part():
    affs, _ = snemi_like()
    more = np.concatenate([affs, np.zeros_like(affs[:1])])
    offsets = ((0, 0, -1), (0, -1, 0), (-1, 0, 0), (-3, 0, 0))
    np.testing.assert_array_equal(segment.segment(segment.Affinities(more, offsets), .3, low=.1, high=.999),
                                  segment.segment(affs[::-1], .3, low=.1, high=.999))


def test_bad_input_is_answered_with_a_sentence():
    affs = affinities("P2")
    for message, call in {
        "threshold must be 0 to 1; got 1.5": lambda: segment.segment(affs, 1.5),
        "unknown statistic 'median'": lambda: segment.segment(affs, statistic="median"),
        "affs must be .channels, z, y, x.": lambda: segment.segment(affs[0]),
        "affs must lie in 0..1": lambda: segment.segment(affs * 2),
        "low <= high": lambda: segment.segment(affs, low=.9, high=.1),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.bench
@pytest.mark.parametrize("score, type_name", [
    ("mean", "OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>"),
    ("aff85_his256", "OneMinus<HistogramQuantileAffinity<RegionGraphType, 85, ScoreValue, 256>>"),
    ("aff15_his256", "OneMinus<HistogramQuantileAffinity<RegionGraphType, 15, ScoreValue, 256>>"),
])
def test_waterz_itself_agrees(score, type_name):
    waterz = pytest.importorskip("waterz", reason="waterz is not installed")
    rng = np.random.default_rng(0)
    for i in range(12):
        ties = i % 2
        shape = tuple(rng.integers(2, 14, 3))
        affs = (rng.integers(0, 8, (3, *shape)) / 7 if ties else rng.random((3, *shape))).astype(np.float32)
        theirs = [labels.copy() for labels in waterz.agglomerate(affs, list(THRESHOLDS), aff_threshold_low=.1,
                                                                 aff_threshold_high=.999, scoring_function=type_name)]
        fragments = segment.watershed(affs, .1, .999, ties="waterz")
        graph = segment.region_graph(fragments, affs, extras=("running_mean",))
        for rule in ("waterz",) if ties or score != "mean" else ("waterz", "canonical"):
            ours = segment.cut(fragments, segment.agglomerate(graph, score, ties=rule), THRESHOLDS)
            for a, b in zip(ours, theirs):
                np.testing.assert_array_equal(first_appearance(a), first_appearance(b))
