"""Fragments: against slow oracles, the golden numbers of waterz, and laws that any watershed must keep."""

import hashlib

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import Affinities, decode_affinities, encode_affinities, watershed
from emcore.segment.affinities import LOGIT_TABLE, NEAREST
from emcore.segment.fragments import find_fragments
from tests.oracles.watershed import canonical_watershed, waterz_watershed

ORACLES = {"canonical": canonical_watershed, "waterz": waterz_watershed}
RANDOM = np.random.RandomState(0).rand(3, 8, 16, 16).astype(np.float32)
PLATEAUS = (np.random.RandomState(2).randint(0, 6, (3, 6, 12, 12)) / 5).astype(np.float32)


def tied_volume(seed, largest=6):
    """Affinities with two to six values, so that plateaus and tied exits are everywhere, and thresholds for them."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, largest, 3))
    levels = rng.integers(2, 7)
    affs = (rng.integers(0, levels, (3, *shape)) / (levels - 1)).astype(np.float32)
    low = float(rng.choice([0, 1e-4, 0.2, 0.4]))
    return affs, low, float(rng.choice([0.6, 0.8, 0.9999, 1.0])), rng


def smooth_volume(shape, seed=0):
    """Affinities without ties below 1, correlated so that fragments have tens of voxels."""
    affs = np.random.default_rng(seed).random((3, *shape))
    for axis in (1, 2, 3):
        affs = (affs + np.roll(affs, 1, axis) + np.roll(affs, -1, axis)) / 3
    return np.clip((affs - affs.min()) / np.ptp(affs) * 1.2, 0, 1).astype(np.float32)


def in_order(labels):
    """The same partition, numbered in raster order of first voxels."""
    values, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.zeros(len(values), np.uint32)
    nonzero = np.flatnonzero(values)
    rank[nonzero[np.argsort(first[nonzero])]] = np.arange(1, len(nonzero) + 1)
    return rank[inverse.reshape(labels.shape)]


def digest(labels):
    return hashlib.sha1(in_order(labels).astype("<u4").tobytes()).hexdigest()


@pytest.mark.parametrize("ties", ["canonical", "waterz"])
@pytest.mark.parametrize("batch", range(5))
def test_fragments_equal_the_slow_definition_on_volumes_full_of_ties(ties, batch):
    for seed in range(80 * batch, 80 * batch + 80):
        affs, low, high, rng = tied_volume(seed)
        mask = rng.random(affs.shape[1:]) < 0.8 if seed % 3 == 0 else None
        expected = ORACLES[ties](affs, np.float32(low), np.float32(high), mask)
        for parts in (1, 3):
            labels, count = find_fragments(affs, low, high, mask=mask, ties=ties, parts=parts, threads=1)
            assert np.array_equal(labels, expected), (seed, parts)
            assert count == expected.max()


@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 9, 1), (1, 1, 9), (1, 7, 17), (9, 7, 1), (3, 5, 33)])
def test_flat_and_odd_shapes_equal_the_slow_definition(shape):
    rng = np.random.default_rng(3)
    affs = (rng.integers(0, 4, (3, *shape)) / 3).astype(np.float32)
    for ties, oracle in ORACLES.items():
        expected = oracle(affs, np.float32(0.1), np.float32(0.9))
        assert np.array_equal(watershed(affs, 0.1, 0.9, ties=ties, threads=2), expected)


@pytest.mark.parametrize("affs, count, background, start", [(RANDOM, 570, 1, "3b7ff86791f0"),
                                                            (PLATEAUS, 166, 0, "63284df4868f")])
def test_fragments_with_the_waterz_rule_have_the_golden_digests(affs, count, background, start):
    labels = watershed(affs, 0.1, 0.999, ties="waterz")
    assert labels.max() == count
    assert (labels == 0).sum() == background
    assert digest(labels).startswith(start)


@pytest.mark.bench
def test_fragments_with_the_waterz_rule_are_those_of_compiled_waterz_voxel_for_voxel():
    waterz = pytest.importorskip("waterz", reason="waterz (extra peers) is not installed")
    volumes = [tied_volume(seed, 14)[0] for seed in range(30)] + [smooth_volume((20, 40, 50))]
    for affs in volumes:
        theirs = next(waterz.agglomerate(affs.copy(), [0], aff_threshold_low=0.1, aff_threshold_high=0.999))
        assert np.array_equal(watershed(affs, 0.1, 0.999, ties="waterz"), in_order(theirs))


@pytest.mark.parametrize("ties", ["canonical", "waterz"])
def test_threads_and_slab_cuts_change_nothing(ties):
    volumes = [smooth_volume((13, 11, 17)), tied_volume(1, 20)[0], tied_volume(2, 20)[0]]
    for affs in volumes:
        expected = watershed(affs, 0.1, 0.9, ties=ties, threads=1)
        for threads in (2, 3, 7):
            assert np.array_equal(watershed(affs, 0.1, 0.9, ties=ties, threads=threads), expected)
        for parts in (2, 5, 11, 100):
            labels, _ = find_fragments(affs, 0.1, 0.9, ties=ties, parts=parts, threads=2)
            assert np.array_equal(labels, expected)


@pytest.mark.parametrize("shape", [(0, 4, 5), (4, 0, 5), (4, 5, 0), (0, 0, 0)])
def test_an_empty_volume_has_empty_labels(shape):
    labels = watershed(np.zeros((3, *shape), np.float32))
    assert labels.shape == shape
    assert labels.dtype == np.uint32


def test_a_single_voxel_is_background_whatever_its_values():
    assert watershed(np.ones((3, 1, 1, 1), np.float32)).tolist() == [[[0]]]


def test_all_below_low_is_background_and_all_at_one_is_one_fragment():
    assert not watershed(np.full((3, 4, 5, 6), 0.3, np.float32), 0.3, 0.9).any()
    assert not watershed(np.full((3, 4, 5, 6), 255, np.uint8), 1, 1).any()
    assert (watershed(np.full((3, 4, 5, 6), 0.3, np.float32), 0.2, 0.9) == 1).all()


def test_float16_equals_float32_of_the_same_numbers():
    for seed in range(40):
        affs = np.random.default_rng(seed).random((3, 4, 5, 6)).astype(np.float16)
        affs[affs < 0.1] = -0.0
        low, high = np.random.default_rng(seed).uniform(0, 0.5), np.random.default_rng(seed).uniform(0.5, 1)
        if seed % 2:  # thresholds on a value itself
            low, high = float(np.float32(affs.flat[3])), 1.0
        assert np.array_equal(watershed(affs, low, high), watershed(affs.astype(np.float32), low, high))


@pytest.mark.parametrize("table", [None, LOGIT_TABLE])
def test_uint8_equals_float32_of_the_decoded_numbers(table):
    for seed in range(40):
        codes = np.random.default_rng(seed).integers(0, 256, (3, 4, 5, 6), dtype=np.uint8)
        decoded = decode_affinities(codes, table)
        low, high = np.random.default_rng(seed).uniform(0, 0.5), np.random.default_rng(seed).uniform(0.5, 1)
        if seed % 2:
            low, high = float(decoded.min()), float(decoded.max())
        assert np.array_equal(watershed(Affinities(codes, table=table), low, high), watershed(decoded, low, high))


def test_the_encoding_keeps_nearly_all_fragments_of_saturated_affinities():
    affs = 1 / (1 + np.exp(-20 * (smooth_volume((16, 24, 24), 5) - 0.3)))
    codes, table = encode_affinities(affs)
    ours = watershed(Affinities(codes, table=table), 0.1, 0.999).max()
    exact = watershed(affs.astype(np.float32), 0.1, 0.999).max()
    plain = watershed(np.round(255 * affs).astype(np.uint8), 0.1, 0.999).max()
    assert abs(int(ours) - int(exact)) < 0.1 * exact
    assert plain < 0.9 * ours


def test_edges_stored_at_the_earlier_voxel_give_the_same_fragments():
    affs, low, high, _ = tied_volume(7, 12)
    earlier = np.full_like(affs, 1)
    for axis in range(3):
        ours, theirs = np.moveaxis(earlier[axis], axis, 0), np.moveaxis(affs[axis], axis, 0)
        ours[:-1] = theirs[1:]
    expected = watershed(affs, low, high)
    assert np.array_equal(watershed(Affinities(earlier, edge="earlier"), low, high), expected)
    assert np.array_equal(watershed(Affinities(earlier, -np.array(NEAREST)), low, high), expected)


def test_channels_are_found_by_their_offsets():
    affs, low, high, rng = tied_volume(8, 12)
    expected = watershed(affs, low, high)
    far = rng.random(affs.shape[1:], np.float32)
    mixed = np.stack([affs[2], far, affs[0], affs[1]])
    offsets = [(0, 0, -1), (-4, 0, 0), (-1, 0, 0), (0, -1, 0)]
    assert np.array_equal(watershed(Affinities(mixed, offsets), low, high), expected)


def test_strided_reversed_and_read_only_arrays_are_taken_as_they_are():
    for dtype in (np.float32, np.float16, np.uint8):
        wide = np.random.default_rng(4).integers(0, 2, (2, 7, 8, 18, 4)).astype(dtype)
        affs = wide.transpose(4, 1, 2, 3, 0)[:, ::-1, :, ::2, 1]
        affs.flags.writeable = False
        expected = watershed(np.ascontiguousarray(affs), 0, 1)
        assert np.array_equal(watershed(affs, 0, 1), expected)


def test_a_mask_is_as_good_as_zeroing_its_edges_and_its_voxels_are_background():
    affs, low, high, rng = tied_volume(9, 12)
    mask = rng.random(affs.shape[1:]) < 0.7
    zeroed = affs.copy()
    for axis in range(3):
        edges, inside = np.moveaxis(zeroed[axis], axis, 0), np.moveaxis(mask, axis, 0)
        edges[~inside] = 0
        edges[1:][~inside[:-1]] = 0
    labels = watershed(affs, low, high, mask=mask[:, ::-1][:, ::-1])
    assert np.array_equal(labels, watershed(zeroed, low, high))
    assert not labels[~mask].any()


def mirrored(affs, axis):
    """The affinities of the volume seen in a mirror: the edge of voxels v - 1, v moves to the later of their images."""
    flipped = np.flip(affs, axis + 1).copy()
    flipped[axis] = np.roll(flipped[axis], 1, axis)
    return flipped


@pytest.mark.parametrize("axis", range(3))
def test_mirroring_mirrors_the_partition_where_no_two_exits_are_tied(axis):
    affs = np.random.default_rng(axis).permutation(3 * 6 * 9 * 10).reshape(3, 6, 9, 10).astype(np.float32) / 1620
    for ties in ORACLES:
        labels = np.flip(watershed(mirrored(affs, axis), 0.3, 0.9, ties=ties), axis)
        assert np.array_equal(in_order(labels), watershed(affs, 0.3, 0.9, ties=ties))


@pytest.mark.parametrize("axis", range(3))
def test_mirroring_keeps_background_count_and_maxima_whatever_the_ties(axis):
    for seed in range(60):
        affs, low, high, _ = tied_volume(seed, 9)
        one, two = watershed(affs, low, high), np.flip(watershed(mirrored(affs, axis), low, high), axis)
        assert np.array_equal(one == 0, two == 0)
        assert one.max() == two.max()


def test_a_smaller_high_only_merges_and_a_larger_low_only_removes():
    for seed in range(60):
        affs, low, high, _ = tied_volume(seed, 9)
        for ties in ORACLES:
            labels = watershed(affs, low, high, ties=ties)
            merged = watershed(affs, low, 0.5, ties=ties)
            assert len(set(zip(labels.flat, merged.flat))) == len(set(labels.flat))
            fewer = watershed(affs, 0.45, high, ties=ties)
            assert np.array_equal(fewer, in_order(np.where(fewer > 0, labels, 0)))


def test_labels_beyond_32_bits_are_uint64():
    affs, low, high, _ = tied_volume(11, 12)
    expected = watershed(affs, low, high)
    for first_label in (2**32 - 1 - int(expected.max()), 2**32 - 3, 2**40 + 5):
        labels, count = find_fragments(affs, low, high, parts=3, first_label=first_label)
        assert count == expected.max()
        assert labels.dtype == (np.uint64 if first_label + count > 2**32 else np.uint32)
        assert np.array_equal(labels, np.where(expected > 0, expected + np.uint64(first_label - 1), 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_bad_number_on_an_edge_in_use_is_found_and_others_are_ignored(dtype):
    affs = np.full((3, 4, 5, 6), 0.5, dtype)
    affs[0, 0], affs[1, :, 0], affs[2, :, :, 0] = np.nan, 7, -1  # edges that leave the volume
    assert (watershed(affs) == 1).all()
    rng = np.random.default_rng(0)
    for value in (np.nan, np.inf, -0.5, 1.5, -np.inf):
        for _ in range(6):
            channel = rng.integers(3)
            voxel = tuple(rng.integers(1, (4, 5, 6)))
            bad = affs.copy()
            bad[0, 0], bad[1, :, 0], bad[2, :, :, 0] = 0, 0, 0
            bad[(channel, *voxel)] = value
            with pytest.raises(InputError, match=rf"affs must lie in 0\.\.1; found .* in channel {channel}"):
                watershed(bad, threads=2)
            mask = np.ones(affs.shape[1:], bool)
            mask[voxel] = False
            watershed(bad, mask=mask)


@pytest.mark.parametrize("arguments, sentence", [
    ({"low": 0.5, "high": 0.4}, "low=0.5, high=0.4"),
    ({"low": -0.1}, "0 <= low <= high <= 1; got low=-0.1"),
    ({"high": 1.5}, "high=1.5"),
    ({"low": float("nan")}, "low=nan"),
    ({"ties": "abiss"}, "ties must be 'canonical' or 'waterz'; got 'abiss'"),
    ({"mask": np.ones((4, 5, 5), bool)}, r"mask must be \(4, 5, 6\) of bool or uint8, nonzero inside; got \(4, 5, 5\)"),
    ({"mask": np.ones((4, 5, 6))}, "got .* float64"),
    ({"threads": 0}, "threads must be at least 1; got 0"),
])
def test_wrong_arguments_are_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        watershed(np.zeros((3, 4, 5, 6), np.float32), **arguments)


def test_the_input_is_left_alone():
    affs, low, high, _ = tied_volume(12, 9)
    before = affs.copy()
    watershed(affs, low, high)
    assert np.array_equal(affs, before)
