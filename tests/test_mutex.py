"""Mutex watershed against Kruskal's algorithm in Python and against mwatershed."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import Affinities, mutex_watershed
from tests.oracles import mutex as oracle

NEAREST = [(-1, 0, 0), (0, -1, 0), (0, 0, -1)]
LONG = [*NEAREST, (-2, 0, 0), (0, -3, 0), (0, 0, -3), (1, -2, 1), (0, 2, 2)]


def random_affinities(rng, dtype=np.float32, levels=None, shape=None):
    shape = rng.integers(1, 6, 3) if shape is None else shape
    affs = rng.random((len(LONG), *shape))
    if levels:
        affs = np.round(affs * levels) / levels
    return np.round(affs * 255).astype(np.uint8) if dtype == np.uint8 else affs.astype(dtype)


def signed(affs, attractive=3):
    values = affs.astype(np.float32) / np.float32(255) if affs.dtype == np.uint8 else affs.astype(np.float32)
    values[attractive:] -= np.float32(1)
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("levels", [None, 4, 1])
def test_equals_sorted_edges_one_by_one(dtype, levels):
    rng = np.random.default_rng([3, levels or 0])
    for _ in range(40):
        affs = random_affinities(rng, dtype, levels)
        np.testing.assert_array_equal(mutex_watershed(affs, LONG), oracle.mutex_watershed(signed(affs), LONG))


def test_equals_the_oracle_with_mask_strides_and_bias():
    rng = np.random.default_rng(4)
    for _ in range(60):
        affs = random_affinities(rng, levels=8)
        mask = rng.random(affs.shape[1:]) < 0.8
        strides = rng.integers(1, 4, (len(LONG), 3))
        bias = rng.choice([-0.75, -0.5, -0.25], len(LONG)).astype(np.float32)
        found = mutex_watershed(affs, LONG, mask=mask, strides=strides, bias=bias)
        expected = oracle.mutex_watershed(affs + bias[:, None, None, None], LONG, strides.tolist(), mask)
        np.testing.assert_array_equal(found, expected)


def test_one_stride_thins_only_repulsive_channels():
    affs = random_affinities(np.random.default_rng(5), shape=(4, 5, 6))
    each = [(1, 1, 1)] * 3 + [(2, 2, 3)] * 5
    np.testing.assert_array_equal(mutex_watershed(affs, LONG, strides=(2, 2, 3)),
                                  mutex_watershed(affs, LONG, strides=each))


def test_attractive_channels_may_be_marked_one_by_one():
    rng = np.random.default_rng(6)
    affs = random_affinities(rng, shape=(3, 4, 5))
    order = rng.permutation(len(LONG))
    marks = order < 3
    np.testing.assert_array_equal(mutex_watershed(affs[order], [LONG[c] for c in order], attractive=marks),
                                  mutex_watershed(affs, LONG))


def test_any_number_of_threads_gives_the_same_bits():
    rng = np.random.default_rng(7)
    affs = random_affinities(rng, levels=16, shape=(9, 14, 13))
    one = mutex_watershed(affs, LONG, threads=1)
    assert one.max() > 10
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(mutex_watershed(affs, LONG, threads=threads), one)


def test_mirroring_mirrors_when_no_two_weights_are_equal():
    rng = np.random.default_rng(8)
    shape = (6, 9, 10)
    affs = ((rng.permutation(len(LONG) * 540) + 1) / (len(LONG) * 540 + 2)).reshape(-1, *shape).astype(np.float32)
    labels = mutex_watershed(affs, LONG)
    flipped = mutex_watershed(affs[:, :, ::-1], [(z, -y, x) for z, y, x in LONG])[:, ::-1]
    assert len(np.unique(np.stack([labels.ravel(), flipped.ravel()]), axis=1).T) == labels.max() == flipped.max()


def test_strong_attraction_everywhere_leaves_one_cluster_and_repulsion_leaves_voxels():
    offsets = [*NEAREST, (0, 0, -2)]
    affs = np.ones((4, 5, 6, 7), np.float32)
    assert mutex_watershed(affs, offsets).max() == 1
    affs[:3], affs[3] = 0, 0
    assert mutex_watershed(affs, offsets).max() == 5 * 6 * 7


def test_a_larger_volume_with_many_batches_equals_mwatershed():
    mwatershed = pytest.importorskip("mwatershed", reason="the peer mwatershed is not installed")
    rng = np.random.default_rng(9)
    shape = (12, 20, 20)
    weights = (rng.permutation(len(LONG) * 4800) + 1).reshape(-1, *shape) / (len(LONG) * 4800 + 2)
    affs = weights.astype(np.float32)
    peer = mwatershed.agglom(signed(affs).astype(np.float64), [list(o) for o in LONG])
    ours = mutex_watershed(affs, LONG)
    joint = np.unique(np.stack([ours.ravel(), peer.ravel().astype(np.int64)]), axis=1).shape[1]
    assert joint == ours.max() == len(np.unique(peer))


def test_reads_strided_read_only_and_empty_arrays_unchanged():
    rng = np.random.default_rng(10)
    for dtype in (np.float32, np.float16, np.uint8):
        affs = random_affinities(rng, dtype, shape=(4, 5, 6))
        wide = np.moveaxis(np.repeat(np.moveaxis(affs, 0, -1), 2, axis=2), -1, 0)[..., ::2]
        wide.flags.writeable = False
        before = wide.copy()
        np.testing.assert_array_equal(mutex_watershed(wide, LONG), mutex_watershed(affs, LONG))
        np.testing.assert_array_equal(wide, before)
    assert mutex_watershed(np.zeros((3, 0, 4, 4), np.float32), NEAREST).shape == (0, 4, 4)


def test_a_table_says_what_codes_mean():
    rng = np.random.default_rng(11)
    codes = rng.integers(0, 256, (len(LONG), 3, 4, 5)).astype(np.uint8)
    table = (np.arange(256) / 255.0) ** 2
    np.testing.assert_array_equal(mutex_watershed(Affinities(codes, LONG, table=table)),
                                  mutex_watershed(table[codes].astype(np.float32), LONG))


@pytest.mark.parametrize("change, sentence", [
    ({"offsets": LONG[:-1]}, "offsets must be one (z, y, x) triple of whole numbers for each of the 8 channels"),
    ({"offsets": [(0, 0, 0), *LONG[1:]]}, "channel 0 has (0, 0, 0)"),
    ({"offsets": [(0.5, 0, 0), *LONG[1:]]}, "(z, y, x) triple of whole numbers"),
    ({"strides": (1, 0, 1)}, "strides must be whole numbers from 1 up"),
    ({"strides": (1.5, 1, 1)}, "strides must be whole numbers from 1 up"),
    ({"attractive": 9}, "attractive must be between 0 and the 8 channels; got 9"),
    ({"bias": [0.5]}, "bias must be one finite number"),
    ({"mask": np.ones((2, 2, 2))}, "mask must have the shape (3, 3, 3)"),
    ({"affs": np.full((8, 3, 3, 3), np.nan, np.float32)}, "found NaN or values outside"),
    ({"affs": np.full((8, 3, 3, 3), 1.5, np.float16)}, "affs must be between 0 and 1"),
    ({"affs": np.ones((8, 3, 3, 3))}, "affs must be float32, float16 or uint8; got float64"),
    ({"affs": np.ones((8, 3, 3), np.float32)}, "affs must be (channels, z, y, x)"),
    ({"affs": Affinities(np.ones((8, 3, 3, 3), np.float32), LONG)}, "offsets belong to a plain array"),
    ({"threads": 0}, "threads must be at least 1"),
])
def test_a_wrong_argument_is_named(change, sentence):
    arguments = {"affs": np.full((8, 3, 3, 3), 0.5, np.float32), "offsets": LONG, **change}
    with pytest.raises(InputError) as caught:
        mutex_watershed(arguments.pop("affs"), arguments.pop("offsets"), **arguments)
    assert sentence in str(caught.value)
