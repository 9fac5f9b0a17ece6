"""Flood and section watershed against heapq and definitions, golden numbers of dbMiM with mahotas, and skimage."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.kernels import sections
from emcore.segment import Affinities, seeded_slices, slice_watershed
from emcore.segment.slices import flood
from tests.oracles import flood as oracle

NAMES = [("maxima_distance", 0.5), ("minima", np.inf), ("minima", 0.4), ("hminima", 0.25), ("grid", 2)]


def heights(rng, shape, levels):
    return (rng.integers(0, levels, shape) / levels).astype(np.float32)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_flood_equals_a_heap_in_python(dimensions):
    rng = np.random.default_rng(dimensions)
    for trial in range(150):
        shape = tuple(rng.integers(1, 7, dimensions))
        height = heights(rng, shape, rng.choice([2, 4, 1000])) - 0.5
        seeds = rng.integers(1, 2**40, shape) * (rng.random(shape) < 0.2)
        mask = None if trial % 2 else rng.random(shape) < 0.7
        np.testing.assert_array_equal(flood(height, seeds, mask), oracle.flood(height, seeds, mask))


def test_flood_mirrors_when_no_two_heights_are_equal():
    rng = np.random.default_rng(5)
    height = rng.permutation(9 * 10 * 11).reshape(9, 10, 11)
    seeds = rng.integers(1, 9, height.shape) * (rng.random(height.shape) < 0.05)
    np.testing.assert_array_equal(flood(height[:, ::-1], seeds[:, ::-1]), flood(height, seeds)[:, ::-1])


def test_flood_equals_skimage_when_no_two_heights_are_equal():
    segmentation = pytest.importorskip("skimage.segmentation", reason="the peer scikit-image is not installed")
    rng = np.random.default_rng(6)
    for shape in ((40, 50), (12, 20, 20)):
        height = rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
        seeds = np.arange(1, height.size + 1).reshape(shape).astype(np.int32) * (rng.random(shape) < 0.02)
        np.testing.assert_array_equal(flood(height, seeds), segmentation.watershed(height, seeds))


def test_flood_keeps_dtype_and_inputs():
    rng = np.random.default_rng(7)
    height = heights(rng, (6, 8, 10), 5)
    height.flags.writeable = False
    for dtype in (np.uint8, np.int32, np.uint32, np.int64, np.uint64):
        seeds = (rng.integers(1, 100, height.shape) * (rng.random(height.shape) < 0.1)).astype(dtype)
        seeds.flags.writeable = False
        before = seeds.copy()
        labels = flood(height[::-1, :, ::2], seeds[::-1, :, ::2])
        assert labels.dtype == dtype
        np.testing.assert_array_equal(labels, oracle.flood(height[::-1, :, ::2], seeds[::-1, :, ::2]))
        np.testing.assert_array_equal(seeds, before)


def test_filled_minima_equal_their_definition():
    rng = np.random.default_rng(8)
    for _ in range(150):
        height = heights(rng, tuple(rng.integers(1, 10, 2)), 8)
        filled = np.empty_like(height)
        sections.fill_shallow(height, 0.25, filled)
        np.testing.assert_array_equal(filled, oracle.fill_shallow(height, 0.25))


@pytest.mark.parametrize("name, value", NAMES)
def test_section_watershed_equals_seeds_and_flood_by_definition(name, value):
    rng = np.random.default_rng(9)
    for _ in range(60):
        shape = (3, *rng.integers(1, 4, 1), *rng.integers(1, 9, 2))
        affs = heights(rng, shape, rng.choice([3, 16]))
        spelled = f"{name}-{value}" if np.isfinite(value) else name
        np.testing.assert_array_equal(seeded_slices(affs, spelled), oracle.slices(affs, name, value))


def dbmim_fixture():
    z, y, x = np.meshgrid(np.arange(6), np.arange(48), np.arange(60), indexing="ij")
    truth = 1 + y // 16 + 10 * ((x + 2 * (z // 3)) // 20)
    border = np.zeros(truth.shape, bool)
    for axis in (1, 2):
        differs = np.diff(truth, axis=axis) != 0
        border |= np.insert(differs, 0, False, axis) | np.insert(differs, differs.shape[axis], False, axis)
    wave = [0.1 * np.sin(0.7 * x + 0.3 * y + 0.5 * z + k) for k in range(3)]
    low, high = (0.3, 0.15, 0.15), (0.8, 0.85, 0.85)
    affs = [np.where(border, low[k], high[k]) + wave[k] for k in range(3)]
    return truth, np.stack(affs).astype(np.float32)


def test_golden_numbers_of_mahotas_fragments():
    truth, affs = dbmim_fixture()
    labels = slice_watershed(affs)
    assert [len(np.unique(section)) for section in labels] == [9, 9, 9, 12, 12, 12]
    assert labels.max() == 63
    assert labels.sum() == 515423

    def entropy(*arrays):
        counts = np.unique(np.stack([a.ravel().astype(np.int64) for a in arrays]), axis=1, return_counts=True)[1]
        return -(counts / counts.sum() * np.log2(counts / counts.sum())).sum()

    joint = entropy(truth, labels)
    assert joint - entropy(truth) == pytest.approx(2.60107, abs=6e-6)
    assert joint - entropy(labels) == pytest.approx(0.03504, abs=6e-6)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_section_all_inside_or_all_boundary_is_one_fragment(level):
    labels = slice_watershed(np.full((3, 2, 5, 6), level, np.float32))
    assert (labels[0] == 1).all()
    assert (labels[1] == 2).all()


def test_any_number_of_threads_gives_the_same_bits():
    affs = heights(np.random.default_rng(10), (3, 11, 30, 31), 50)
    for name, _ in NAMES:
        one = seeded_slices(affs, name, threads=1)
        for threads in (2, 3, 7):
            np.testing.assert_array_equal(seeded_slices(affs, name, threads=threads), one)


def test_storage_channel_order_and_codes_change_nothing():
    rng = np.random.default_rng(11)
    codes = rng.integers(0, 256, (3, 3, 9, 10)).astype(np.uint8)
    codes[1, :, 0], codes[2, :, :, 0] = 0, 0  # no edge to the left of the first pixel
    table = (np.arange(256) / 255.0).astype(np.float32)
    expected = slice_watershed(table[codes])
    np.testing.assert_array_equal(slice_watershed(codes), expected)
    np.testing.assert_array_equal(
        slice_watershed(Affinities(table[codes][::-1], [(0, 0, -1), (0, -1, 0), (-1, 0, 0)])), expected)
    earlier = np.stack([np.roll(codes[axis], -1, axis) for axis in range(3)])
    np.testing.assert_array_equal(slice_watershed(Affinities(earlier, edge="earlier")), expected)
    assert slice_watershed(np.zeros((3, 0, 4, 4), np.float32)).shape == (0, 4, 4)


@pytest.mark.parametrize("seeds", ["peaks", "grid-0", "grid-1.5", "minima-x", "hminima-nan"])
def test_unknown_seeds_are_named(seeds):
    with pytest.raises(InputError) as caught:
        seeded_slices(np.ones((3, 1, 2, 2), np.float32), seeds)
    assert f"got '{seeds}'" in str(caught.value)


@pytest.mark.parametrize("change, sentence", [
    ({"height": np.full((3, 3), np.nan)}, "height holds NaN"),
    ({"height": np.ones(3)}, "height must be (y, x) or (z, y, x)"),
    ({"seeds": np.ones((3, 4), int)}, "seeds must be whole numbers of shape (3, 3); got (3, 4)"),
    ({"seeds": np.ones((3, 3))}, "seeds must be whole numbers"),
    ({"mask": np.ones((3, 4))}, "mask must have the shape (3, 3)"),
])
def test_a_wrong_argument_of_flood_is_named(change, sentence):
    with pytest.raises(InputError) as caught:
        flood(**{"height": np.ones((3, 3)), "seeds": np.ones((3, 3), int), **change})
    assert sentence in str(caught.value)
