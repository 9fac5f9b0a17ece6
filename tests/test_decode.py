"""Every kind of [decode] against plain definitions, published numbers and the calls it stands for."""

import re
from collections import deque
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest

from emcore import config, segment
from emcore.decode.affinities import calibrate, read_affinities
from emcore.decode.labels import decode, recut
from emcore.errors import InputError
from emcore.segment.cleanup import merge_dust
from emcore.segment.storage import read_graph, read_tree
from emcore.settings import Settings
from emcore.settings.decode import (
    AffinityDecode,
    ComponentsDecode,
    ConnectedDecode,
    Contour,
    ContourDecode,
    Decode,
    Link,
    MutexDecode,
    NoDecode,
    PolarityDecode,
)
from emcore.volumes import create_volume, open_volume
from tests.test_segment import count_and_hash

NEAREST = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
PLAIN = AffinityDecode(low=0.1, high=0.999)


def stored(folder, values, name="a_prediction.h5", **attributes):
    with create_volume(folder / name, values.shape, values.dtype, (30, 6, 6), (60, 0, 0), attributes) as out:
        out[...] = values
    return open_volume(folder / name)


def labels_of(prediction, settings, folder, name="labels.h5"):
    return open_volume(decode(prediction, settings, folder / name), "labels")[...]


def random_affinities(seed=0, shape=(4, 9, 10), levels=None):
    random = np.random.default_rng(seed)
    if levels:
        return (random.integers(0, levels, (3, *shape)) / (levels - 1)).astype(np.float32)
    return random.random((3, *shape), np.float32)


def same(one, two):
    """Whether two labellings are one partition with one background."""
    pairs = np.unique(np.stack([one.ravel(), two.ravel()]).astype(np.int64), axis=1)
    return all(len(np.unique(row)) == pairs.shape[1] for row in pairs) and ((pairs == 0).sum(0) != 1).all()


# ---- affinities


def test_dust_and_removal_leave_the_golden_segments_of_waterz(tmp_path):
    affs = np.random.RandomState(0).rand(3, 8, 16, 16).astype(np.float32)
    settings = replace(PLAIN, threshold=0.3, dust_size=6, dust_affinity=0.3, remove_size=4)
    prediction = stored(tmp_path, affs, offsets=NEAREST)
    labels = labels_of(prediction, settings, tmp_path)
    assert (labels.max(), (labels == 0).sum()) == (152, 3)
    labels = labels_of(prediction, replace(settings, ties="waterz"), tmp_path)
    assert (count_and_hash(labels), (labels == 0).sum()) == ("152 0312a43f", 3)


OPTIONS = [
    {}, {"statistic": "aff85_his256"}, {"statistic": "hist_quantile_false", "dust_size": 8}, {"boundary": 0.4},
    {"dust_size": 9, "dust_affinity": 0.2, "remove_size": 5, "statistic": "aff85_his256"}, {"remove_size": 7},
    {"link": Link(0.3, True, 0.6, 4, 0.1)}, {"fragments": "maxima_distance-0.6", "statistic": "hist_quantile"},
    {"fragments": "grid-3", "dust_size": 5, "boundary": 0.2, "link": Link()}, {"bias": (-0.5, 0.3, 0.0)},
    {"ties": "waterz"}, {"ties": "waterz", "dust_size": 9, "statistic": "aff50_his256"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("levels", [None, 5])
def test_labels_are_those_of_the_calls_one_by_one_and_another_cut_those_of_another_threshold(tmp_path, options, levels):
    affs = random_affinities(1, levels=levels)
    prediction = stored(tmp_path, affs, offsets=NEAREST)
    settings = replace(PLAIN, **options)
    out = decode(prediction, settings, tmp_path / "labels.h5")
    step = read_affinities(prediction, settings)
    if settings.fragments == "watershed":
        fragments = segment.watershed(step, settings.low, settings.high, ties=settings.ties)
    else:
        fragments = segment.seeded_slices(step, settings.fragments)
    graph = segment.region_graph(fragments, step, statistic=settings.statistic,
                                 extras=("running_mean",) if settings.ties == "waterz" else ())
    tree = segment.agglomerate(graph, settings.statistic, ties=settings.ties)
    for threshold in (0.0, 0.2, 0.5, 0.7):
        wanted = segment.cut(fragments, tree, threshold)
        if settings.boundary:
            wanted = segment.boundary_threshold(wanted, step, settings.boundary)
        if settings.dust_size or settings.remove_size:
            run = segment.Agglomeration(graph, settings.statistic, settings.ties)
            run.advance(threshold)
            wanted = merge_dust(wanted, tree.table(threshold), run.remaining(), settings.dust_size,
                                affinity=settings.dust_affinity, remove_size=settings.remove_size)
        if settings.link:
            wanted = segment.link_sections(wanted, step, segment.LinkRule(**asdict(settings.link)))
        if threshold == settings.threshold:
            assert np.array_equal(open_volume(out, "labels")[...], wanted)
        again = open_volume(recut(out, threshold, tmp_path / "cut.h5", tmp_path / "a_prediction.h5"), "labels")
        assert np.array_equal(again[...], wanted)
        assert again.attrs["decode"]["threshold"] == threshold
        assert again.offset == (60, 0, 0)
        if not set(options) - {"statistic", "ties"}:
            whole = segment.segment(affs, threshold, settings.statistic, low=0.1, high=0.999, ties=settings.ties)
            assert np.array_equal(wanted, whole)
    kept = read_graph(out)
    for name in ("u", "v", "count", "sum", "max", "min", "key", "running_mean", "bin_starts", "bins",
                 "bin_counts"):
        if getattr(graph, name) is not None:
            np.testing.assert_array_equal(getattr(kept, name), getattr(graph, name))


def test_linked_sections_are_those_of_link_sections(tmp_path):
    affs = random_affinities(3)
    prediction = stored(tmp_path, affs, offsets=NEAREST)
    slices = replace(PLAIN, fragments="minima", threshold=0.2)
    plain = labels_of(prediction, slices, tmp_path)
    linked = labels_of(prediction, replace(slices, link=Link(0.2, False, 0.7, 3, 0.4, 2)), tmp_path)
    wanted = segment.link_sections(plain, affs, segment.LinkRule(0.2, False, 0.7, 3, 0.4, 2))
    assert np.array_equal(linked, wanted)
    assert not np.array_equal(linked, plain)


def test_codes_other_orders_and_longer_predictions_decode_like_plain_affinities(tmp_path):
    codes = np.random.default_rng(4).integers(0, 256, (3, 4, 8, 9)).astype(np.uint8)
    _, table = segment.encode_affinities(np.zeros(1, np.float32))
    settings = replace(PLAIN, threshold=0.4, dust_size=5, link=Link(), bias=(0.2, -0.1, 0.0), temperature=1.5)
    for name, values in (("plain", np.arange(256, dtype=np.float32) / np.float32(255)), ("table", table)):
        extra = {"affinity_table": table.tolist()} if name == "table" else {}
        floats = labels_of(stored(tmp_path, values[codes], offsets=NEAREST), settings, tmp_path)
        coded = labels_of(stored(tmp_path, codes, offsets=NEAREST, **extra), settings, tmp_path)
        assert np.array_equal(floats, coded)
        longer = np.concatenate([codes[:1] // 2, codes[::-1], codes[:1]])  # (-5, 0, 0), x, y, z and no affinity at all
        moved = labels_of(stored(tmp_path, longer, offsets=[[-5, 0, 0], *NEAREST[::-1]], **extra), settings, tmp_path)
        assert np.array_equal(coded, moved)
        nameless = stored(tmp_path, codes[::-1].copy(), **extra)
        assert np.array_equal(labels_of(nameless, replace(settings, channels=(2, 1, 0)), tmp_path), coded)
        far = stored(tmp_path, codes, offsets=[[-3, 0, 0], [0, -9, 0], [0, 0, -9]], **extra)
        assert np.array_equal(labels_of(far, replace(settings, channels=(0, 1, 2)), tmp_path), coded)
        earlier = np.stack([np.roll(codes[axis], -1, axis) for axis in range(3)])
        for axis in range(3):
            edge = [slice(None)] * 3
            edge[axis] = 0  # an edge that leaves the volume may hold anything, but the boundary map reads it
            codes[(axis, *edge)] = 0
        far = stored(tmp_path, earlier, offsets=[[3, 0, 0], [0, 3, 0], [0, 0, 3]], **extra)
        plainer = replace(settings, link=None)
        assert np.array_equal(labels_of(far, replace(plainer, channels=(0, 1, 2)), tmp_path),
                              labels_of(stored(tmp_path, codes, offsets=NEAREST, **extra), plainer, tmp_path))


def test_calibration_moves_logits(tmp_path):
    affs = random_affinities(5)
    affs[0, 0, 0, :4] = 0, 1, 1e-30, 1 - 2**-24
    given = read_affinities(stored(tmp_path, affs, offsets=NEAREST), AffinityDecode())
    assert calibrate(given, (0, 0, 0), 1).values is given.values
    out = calibrate(given, (0.5, -1.0, 0.0), 2.0).values
    inner = (affs > 1e-6) & (affs < 0.999)
    logits = np.log(affs.astype(np.float64) / np.where(affs < 1, 1 - affs.astype(np.float64), 1) + 1e-300)
    wanted = 1 / (1 + np.exp(-(logits + np.reshape([0.5, -1, 0], (3, 1, 1, 1))) / 2))
    np.testing.assert_allclose(out[inner], wanted[inner], rtol=2e-7)
    assert out[0, 0, 0, 0] == pytest.approx(1 / (1 + np.exp(49.5 / 2)))
    assert out[0, 0, 0, 1] == pytest.approx(1)
    again = calibrate(calibrate(given, (0.5, -1.0, 0.3), 1), (-0.5, 1.0, -0.3), 1).values
    np.testing.assert_allclose(again[inner], affs[inner], rtol=1e-5)
    for bad in ((np.nan, 0, 0), 1.0), ((0, 0, 0), 0.0):
        with pytest.raises(InputError, match="temperature above 0"):
            calibrate(given, *bad)


# ---- the other kinds


def flood_fill(joins, shape):
    """Labels of voxels connected by joins(voxel, axis): the edge to voxel - 1 along the axis."""
    labels, count = np.zeros(shape, int), 0
    for voxel in np.ndindex(shape):
        if labels[voxel]:
            continue
        count += 1
        labels[voxel], queue = count, deque([voxel])
        while queue:
            here = queue.popleft()
            for axis in range(3):
                for step in (-1, 1):
                    other = list(here)
                    other[axis] += step
                    other = tuple(other)
                    if 0 <= other[axis] < shape[axis] and not labels[other] and joins(max(here, other), axis):
                        labels[other] = count
                        queue.append(other)
    return labels


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("thresholds", [(), (0.7, 0.5, 0.8)])
def test_connected_joins_voxels_across_affinities_above_each_axis_own_threshold(tmp_path, dtype, thresholds):
    affs = random_affinities(6)
    affs = np.round(affs * 255).astype(np.uint8) if dtype == "uint8" else affs.astype(dtype)
    settings = ConnectedDecode(threshold=0.61, thresholds=thresholds)
    labels = labels_of(stored(tmp_path, affs, offsets=NEAREST), settings, tmp_path)
    numbers = affs / 255 if dtype == "uint8" else affs
    cuts = thresholds or (0.61,) * 3
    wanted = flood_fill(lambda voxel, axis: numbers[(axis, *voxel)] > cuts[axis], affs.shape[1:])
    sizes = np.bincount(wanted.ravel())
    alone = sizes[wanted] == 1  # a voxel alone is 0, unless its own value, at the volume's edge, joins nothing
    assert same(np.where(alone, 0, wanted), np.where(alone, 0, labels))


def test_the_golden_numbers_of_connected_components(tmp_path):
    from tests.test_slices import dbmim_fixture

    prediction = stored(tmp_path, dbmim_fixture()[1], offsets=NEAREST)
    found = []
    for threshold in (0.3, 0.5, 0.7):
        labels = labels_of(prediction, ConnectedDecode(threshold=threshold), tmp_path)
        found.append(labels.max() + (labels == 0).sum())
    assert found == [723, 1361, 1361]


def test_the_mutex_watershed_takes_every_offset(tmp_path):
    random = np.random.default_rng(7)
    offsets = [[0, 0, -1], [-1, 0, 0], [0, -3, 0], [0, -1, 0], [-1, -2, 2]]
    affs = random.random((6, 4, 8, 8)).astype(np.float32)  # the last channel is no affinity
    labels = labels_of(stored(tmp_path, affs, offsets=offsets), MutexDecode(), tmp_path)
    attractive = [True, True, False, True, False]
    assert np.array_equal(labels, segment.mutex_watershed(affs[:5], offsets, attractive=attractive))
    some = labels_of(stored(tmp_path, affs, offsets=offsets), MutexDecode(channels=(1, 3, 0, 2), strides=(1, 2, 2)),
                     tmp_path)
    wanted = segment.mutex_watershed(affs[[1, 3, 0, 2]], [offsets[c] for c in (1, 3, 0, 2)], strides=(1, 2, 2))
    assert np.array_equal(some, wanted)
    codes, table = segment.encode_affinities(affs)
    prediction = stored(tmp_path, codes, offsets=offsets, affinity_table=table.tolist())
    coded = labels_of(prediction, MutexDecode(), tmp_path)
    assert np.array_equal(coded, segment.mutex_watershed(table[codes[:5]], offsets, attractive=attractive))


@pytest.mark.parametrize("coded", [False, True])
def test_components_take_one_threshold_or_one_for_each_channel(tmp_path, coded):
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(8).random((2, 3, 9, 9)).astype(np.float32)
    extra = {}
    if coded:
        values, table = segment.encode_affinities(values)
        extra = {"affinity_table": table.tolist()}
    prediction = stored(tmp_path, values, **extra)
    numbers = table[values] if coded else values
    for settings, mask in (
        (ComponentsDecode(threshold=0.8, connectivity=6), numbers.max(0) > np.float32(0.8)),
        (ComponentsDecode(thresholds=(0.9, 0.7), connectivity=6),
         (numbers[0] > np.float32(0.9)) | (numbers[1] > np.float32(0.7))),
        (ComponentsDecode(channels=(1,), threshold=0.6, connectivity=6), numbers[1] > np.float32(0.6)),
    ):
        assert np.array_equal(labels_of(prediction, settings, tmp_path), ndimage.label(mask)[0])
    labels = labels_of(prediction, ComponentsDecode(threshold=0.8, connectivity=6, remove_size=3), tmp_path)
    whole = ndimage.label(numbers.max(0) > np.float32(0.8))[0]
    assert np.array_equal(labels, np.where(np.bincount(whole.ravel())[whole] >= 3, whole, 0))


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("seed_threshold", [0.0, 0.8])
def test_pieces_without_a_peak_are_removed(tmp_path, seed_threshold, coded):
    values = np.random.default_rng(4).random((2, 4, 9, 11), np.float32)
    if coded:
        values = np.round(values * 255).astype(np.uint8)
    prediction, numbers = stored(tmp_path, values), values / 255 if coded else values
    plain = ComponentsDecode(threshold=0.8, connectivity=6, seed_threshold=seed_threshold)
    whole = labels_of(prediction, plain, tmp_path)
    wanted = whole.copy()
    for piece in range(1, int(whole.max()) + 1):
        if numbers[:, whole == piece].max() <= 0.95 or (whole == piece).sum() < 2:
            wanted[whole == piece] = 0
    found = labels_of(prediction, replace(plain, peak=0.95, remove_size=2), tmp_path)
    assert np.array_equal(found, wanted)
    assert 3 < len(np.unique(found)) < len(np.unique(segment.remove_small(whole, 2)))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_components_grow_from_seeds_over_the_foreground(tmp_path, dtype):
    ndimage = pytest.importorskip("scipy.ndimage")
    _, y, x = np.indices((3, 9, 21))
    values = np.maximum(np.exp(-((x - 4) ** 2 + (y - 4) ** 2) / 20), np.exp(-((x - 13) ** 2 + (y - 4) ** 2) / 20))
    values = np.maximum(values, 0.7 * ((x == 20) & (y > 6)))  # foreground without a seed
    values = np.round(values * 255).astype(np.uint8) if dtype == "uint8" else values.astype(np.float32)
    numbers = values / 255 if dtype == "uint8" else values
    labels = labels_of(stored(tmp_path, values), ComponentsDecode(threshold=0.3, seed_threshold=0.9), tmp_path)
    assert ndimage.label(numbers > 0.3)[1] == 2
    assert labels.max() == 2
    assert np.array_equal(labels > 0, (numbers > 0.3) & (x < 20))
    assert np.array_equal(labels[:, :, :8] == 1, numbers[:, :, :8] > 0.3)
    assert (labels[:, :, 10:][numbers[:, :, 10:] > 0.3] != 1).all()


def test_sections_are_taken_on_their_own_by_connectivity_4_and_8(tmp_path):
    values = np.full((2, 3, 6), 0.1, np.float32)
    values[:, 1, 1:5] = 0.5
    values[0, 1, 1], values[1, 1, 4] = 0.95, 0.9
    values[1, 0, 5] = 0.5  # touches by a corner
    values = stored(tmp_path, values)
    labels = labels_of(values, ComponentsDecode(threshold=0.3, connectivity=4), tmp_path)
    assert [np.unique(section[section > 0]).tolist() for section in labels] == [[1], [2, 3]]
    labels = labels_of(values, ComponentsDecode(threshold=0.3, connectivity=8), tmp_path)
    assert [np.unique(section[section > 0]).tolist() for section in labels] == [[1], [2]]
    assert labels[1, 0, 5] == 2
    labels = labels_of(values, ComponentsDecode(threshold=0.3, connectivity=4, seed_threshold=0.92), tmp_path)
    assert labels[0, 1].tolist() == [0, 1, 1, 1, 1, 0]
    assert not labels[1].any()  # no seed there, and none comes over from the other section


def test_contours_and_polarity_pass_their_settings_on(tmp_path):
    ndimage = pytest.importorskip("scipy.ndimage")
    values = np.random.default_rng(9).random((3, 6, 20, 20)).astype(np.float32)
    values = ndimage.gaussian_filter(values, (0, 1, 2, 2))
    values = (values - values.min()) / (values.max() - values.min())
    limits = Contour((0.55, 0.4), (0.5, 0.8), (0.5, 0.1), 2)
    labels = labels_of(stored(tmp_path, values), ContourDecode(contour=limits, remove_size=4), tmp_path)
    wanted = segment.contour_instances(values, binary=(0.55, 0.4), contour=(0.5, 0.8), distance=(0.5, 0.1),
                                       remove_size=4, min_seed=2)
    assert wanted.max() > 1
    assert np.array_equal(labels, wanted)
    codes = np.round(values * 255).astype(np.uint8)
    coded = labels_of(stored(tmp_path, codes), ContourDecode(contour=limits, remove_size=4), tmp_path)
    wanted = segment.contour_instances(codes / np.float32(255), binary=(0.55, 0.4), contour=(0.5, 0.8),
                                       distance=(0.5, 0.1), remove_size=4, min_seed=2)
    assert np.array_equal(coded, wanted)
    for exclusive in (False, True):
        settings = PolarityDecode(threshold=0.4, small=5, exclusive=exclusive)
        wanted = segment.polarity_instances(values, 0.4, 5, exclusive=exclusive)
        assert np.array_equal(labels_of(stored(tmp_path, values), settings, tmp_path), wanted)
        mirrored = stored(tmp_path, values[::-1].copy())
        assert np.array_equal(labels_of(mirrored, replace(settings, channels=(2, 1, 0)), tmp_path), wanted)


# ---- mistakes


@pytest.mark.parametrize("settings, attributes, sentence", [
    (NoDecode(), {}, "decode.kind is none: set it to affinities"),
    (AffinityDecode(), {}, "no attribute offsets.*set decode.channels"),
    (MutexDecode(), {}, "no attribute offsets, which a mutex watershed needs"),
    (MutexDecode(), {"offsets": NEAREST}, "of longer steps, which hold apart"),
    (AffinityDecode(channels=(0, 1, 7)), {}, r"of the 3 of .*got \[0, 1, 7\]"),
    (AffinityDecode(channels=(2, 1, 0)), {"offsets": NEAREST}, "channel 2 .* is not along z"),
    (AffinityDecode(), {"offsets": [[-2, 0, 0], [0, -1, 0], [0, 0, -1]]}, "no nearest neighbour along z"),
    (AffinityDecode(), {"offsets": [[-1, 0, 0]] * 4}, "must be one .* triple for each of its 3 channels"),
    (AffinityDecode(), {"offsets": [[-1, 0], [0, -1, 0]]}, "triples"),
    (AffinityDecode(), {"offsets": 5}, "triple for each of its 3 channels; got 5"),
    (AffinityDecode(low=0.9, high=0.1), {"offsets": NEAREST}, "low <= high"),
    (ComponentsDecode(thresholds=(0.5,)), {}, "one for each of the 3 channels"),
    (ComponentsDecode(channels=(3,)), {}, "decode.channels must be among the 3 channels"),
])
def test_what_cannot_be_decoded_is_one_sentence_and_old_labels_stay(tmp_path, settings, attributes, sentence):
    prediction = stored(tmp_path, random_affinities(), **attributes)
    (tmp_path / "labels.h5").write_bytes(b"old")
    with pytest.raises(InputError, match=sentence) as caught:
        decode(prediction, settings, tmp_path / "labels.h5")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "labels.h5").read_bytes() == b"old"


def test_a_cut_that_cannot_be_made_is_one_sentence(tmp_path):
    prediction = stored(tmp_path, random_affinities(), offsets=NEAREST)
    out = decode(prediction, replace(PLAIN, link=Link()), tmp_path / "labels.h5")
    with pytest.raises(InputError, match=r"threshold must be between 0 and 1"):
        recut(out, 1.5, tmp_path / "cut.h5")
    with pytest.raises(InputError, match=r"look at the affinities, but there is no .*gone.h5"):
        recut(out, 0.5, tmp_path / "cut.h5", tmp_path / "gone.h5")
    out = decode(prediction, ConnectedDecode(), tmp_path / "labels.h5")
    with pytest.raises(InputError, match="no merge tree, so it cannot be cut"):
        recut(out, 0.5, tmp_path / "cut.h5")
    assert not (tmp_path / "cut.h5").exists()
    with pytest.raises(InputError, match=r"affinities are \(channels, z, y, x\)"):
        decode(open_volume(random_affinities()[0]), PLAIN, tmp_path / "labels.h5")


@pytest.mark.parametrize("ties", ["canonical", "waterz"])
def test_merges_up_to_an_end_serve_the_cuts_up_to_there_and_refuse_others(tmp_path, ties):
    prediction = stored(tmp_path, random_affinities(), offsets=NEAREST)
    settings = replace(PLAIN, ties=ties, dust_size=4)
    whole = decode(prediction, settings, tmp_path / "whole.h5")
    out = decode(prediction, replace(settings, end=0.7), tmp_path / "labels.h5")
    every, found = read_tree(whole), read_tree(out)
    count = int(np.searchsorted(every.height, 0.7))
    assert 0 < count < len(every.height)
    assert found.complete_below == 0.7
    assert every.complete_below == np.inf
    for name in ("a", "b", "height"):
        np.testing.assert_array_equal(getattr(found, name), getattr(every, name)[:count])
    for threshold in (0.3, 0.7):
        ours, wanted = (open_volume(recut(path, threshold, tmp_path / "cut.h5"), "labels")[...]
                        for path in (out, whole))
        np.testing.assert_array_equal(ours, wanted)
    with pytest.raises(InputError, match=r"merges up to the threshold 0.7 and cannot be cut at 0.71: set decode.end = "
                                         "0.71 and run infer.py again"):
        recut(out, 0.71, tmp_path / "cut.h5")
    with pytest.raises(InputError, match=r"end must be 0, or not below the threshold 0.5; got 0.4"):
        replace(settings, threshold=0.5, end=0.4)


@pytest.mark.parametrize("end", [0.15, -1.0, "0.5", float("nan")])
def test_an_end_that_does_not_fit_the_merges_is_one_sentence(tmp_path, end):
    out = decode(stored(tmp_path, random_affinities(), offsets=NEAREST), PLAIN, tmp_path / "labels.h5")
    said = {"fragments": 20, "merges": 2, "complete_below": end}
    with h5py.File(out, "a") as file:
        del file["merge_keys"]
    with create_volume(f"{out}:merges", (3, 1, 1, 2), np.float64, attributes=said) as target:
        target[...] = np.array([[1, 2], [2, 3], [0.1, 0.2]]).reshape(3, 1, 1, 2)
    with pytest.raises(InputError, match=r"its merges say that they were made up to .*, which does not fit"):
        recut(out, 0.1, tmp_path / "cut.h5")


@pytest.mark.parametrize("dataset, values, attributes, sentence", [
    ("merges", np.array([[1, 2], [2, 99], [0.1, 0.2]]), {"fragments": 20, "merges": 2}, "names fragments that are not"),
    ("merges", np.array([[1, 0], [2, 3], [0.1, 0.2]]), {"fragments": 20, "merges": 2}, "names fragments that are not"),
    ("merges", np.array([[1, 2], [2, 3], [0.2, 0.1]]), {"fragments": 20, "merges": 2}, "heights of its merges fall"),
    ("merges", np.array([[1, 2], [2, 3], [0.1, 0.2]]), {"fragments": 20, "merges": 3}, "not one that was stored"),
    ("merges", np.array([[1, 2], [2, 3], [0.1, 0.2]]), {"fragments": 20}, "not one that was stored"),
    ("merges", np.array([[1], [2], [0.1]]), {"fragments": 2**40, "merges": 1}, "but it has 360 voxels"),
    ("merges", np.zeros((2, 4)), {"fragments": 20, "merges": 2}, "not one that was stored"),
    ("merge_keys", np.array([[3, 4]], np.uint64), {"merges": 2}, "keys of its merges do not fit"),
    ("graph", np.full((7, 2), 2**40, np.uint64), {"fragments": 20, "edges": 2}, "names fragments that are not"),
    ("histograms", np.full((3, 2), 7**9, np.uint64), {"bins": 2}, "histograms fit no graph"),
    ("labels", np.ones((4, 90)), {}, "does not say by which"),
])
def test_a_damaged_store_is_one_sentence(tmp_path, dataset, values, attributes, sentence):
    settings = replace(PLAIN, statistic="hist_quantile_false", dust_size=4)
    out = decode(stored(tmp_path, random_affinities(), offsets=NEAREST), settings, tmp_path / "labels.h5")
    recut(out, 0.5, tmp_path / "cut.h5")
    if dataset == "merges":  # as a file of an older version, which has no keys
        with h5py.File(out, "a") as file:
            del file["merge_keys"]
    shape = (len(values), 1, 1, values.shape[1])
    with create_volume(f"{out}:{dataset}", shape, values.dtype, attributes=attributes) as target:
        target[...] = values.reshape(shape)
    with pytest.raises(InputError, match=sentence):
        recut(out, 0.5, tmp_path / "cut.h5")


def test_a_table_that_is_none_is_one_sentence(tmp_path):
    codes = np.zeros((3, 4, 4, 4), np.uint8)
    for table in ([[1, 2], [3]], "abc", [0.0, 1.0]):
        with pytest.raises(InputError, match="256"):
            decode(stored(tmp_path, codes, offsets=NEAREST, affinity_table=table), PLAIN, tmp_path / "labels.h5")


# ---- what docs/decoding.md says


def test_the_examples_of_the_documentation_run(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parent.parent / "docs" / "decoding.md").read_text()
    stored(tmp_path, random_affinities(), "test_im_prediction.h5", offsets=NEAREST)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], found)
    assert found["labels"].shape == (4, 9, 10)
    learned, sweep = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "run.toml").write_text('name = "x"\n' + learned)
    assert config.load(Settings, tmp_path / "run.toml").decode.learned.file
    (tmp_path / "run.toml").write_text('name = "x"\n' + sweep)
    settings = config.load(Settings, tmp_path / "run.toml")
    assert settings.evaluate.sweep.biases[0] == (-0.5, -1.0, -1.0)
    named = {field.name for table in (*get_args(Decode), Link, Contour) for field in fields(table)}
    for row in re.findall(r"^\| .*\|$", text, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row.split("|")[3] if row.count("|") > 3 else row.split("|")[2]):
            assert name in named | {"maxima_distance"}, name
