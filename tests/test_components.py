"""Connected components against flood fill, scipy and cc3d."""

import hashlib

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import Affinities, affinity_components, connected_components
from tests.oracles import components as oracle

KINDS = [(3, 6), (3, 18), (3, 26), (2, 4), (2, 8)]


def small_labels(seed, rank, values=3):
    random = np.random.default_rng(seed)
    shape = random.integers(0 if seed % 20 == 0 else 1, 7, rank)
    return random.integers(0, values, shape).astype(random.choice([np.uint8, np.uint16, np.int32, np.uint64, np.int64]))


@pytest.mark.parametrize("rank, connectivity", KINDS)
def test_components_equal_flood_fill_in_raster_order(rank, connectivity):
    for seed in range(120):
        labels = small_labels(seed, rank, 2 + seed % 3)
        expected = oracle.connected_components(labels, connectivity)
        own, count = connected_components(labels, connectivity, count=True, threads=1 + seed % 4)
        assert own.dtype == np.uint32
        assert np.array_equal(own, expected)
        assert count == expected.max(initial=0)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_sections_apart_are_numbered_through(connectivity):
    for seed in range(60):
        labels = small_labels(seed, 3)
        expected, last = np.zeros(labels.shape, int), 0
        for z, section in enumerate(labels):
            own = oracle.connected_components(section, connectivity)
            expected[z] = np.where(own > 0, own.astype(int) + last, 0)
            last += own.max(initial=0)
        own, count = connected_components(labels[:, ::-1][:, ::-1], connectivity, count=True, threads=1 + seed % 4)
        assert own.dtype == np.uint32
        assert np.array_equal(own, expected)
        assert count == last


@pytest.mark.parametrize("rank, connectivity", KINDS)
def test_any_number_of_threads_gives_the_same_bits(rank, connectivity):
    labels = np.random.default_rng(5).integers(0, 3, (23, 17, 19)[:rank])
    expected = connected_components(labels, connectivity, threads=1)
    for threads in (2, 3, 7, 50):
        assert np.array_equal(connected_components(labels, connectivity, threads=threads), expected)


def test_strided_read_only_and_bool_labels_are_taken_as_they_are():
    base = np.random.default_rng(6).integers(0, 3, (9, 10, 11)).astype(np.uint16)
    base.setflags(write=False)
    for view in (base[::-1], base[:, :, ::-2], base.T, base[::2, 1::3, ::-1], base[4], base[:, 3], base > 1):
        for connectivity in (6, 26) if view.ndim == 3 else (4, 8):
            expected = connected_components(view.astype(np.uint32, order="C"), connectivity)
            assert np.array_equal(connected_components(view, connectivity), expected)


def test_a_snake_through_all_slabs_is_one_component():
    labels = np.zeros((21, 3, 9), np.uint8)
    labels[::2, 1, :] = 7
    labels[1::4, 1, -1] = labels[3::4, 1, 0] = 7
    for threads in (1, 2, 5, 21):
        own, count = connected_components(labels, threads=threads, count=True)
        assert count == 1
        assert np.array_equal(own, labels > 0)


def test_mirrored_labels_have_the_mirrored_partition():
    labels = np.random.default_rng(7).integers(0, 3, (8, 9, 10))
    for connectivity in (6, 18, 26):
        own = connected_components(labels, connectivity)
        mirrored = connected_components(labels[::-1, :, ::-1], connectivity)[::-1, :, ::-1]
        pairs = np.unique(np.stack([own.ravel(), mirrored.ravel()]), axis=1)
        assert pairs.shape[1] == own.max() + 1 == mirrored.max() + 1


# edge, threshold -> labels, background voxels
GOLDEN = {("earlier", 0.5): (13, 34), ("earlier", 0.7): (165, 199), ("earlier", 0.9): (292, 820),
          ("later", 0.5): (30, 29), ("later", 0.7): (133, 199), ("later", 0.9): (298, 801)}


@pytest.mark.parametrize("edge, threshold", GOLDEN)
def test_affinity_graph_has_the_golden_components(edge, threshold):
    affs = np.random.RandomState(0).rand(3, 6, 16, 16).astype(np.float32)
    labels = affinity_components(Affinities(affs, edge=edge), threshold)
    assert (labels.max(), (labels == 0).sum()) == GOLDEN[edge, threshold]
    if (edge, threshold) == ("earlier", 0.5):
        assert hashlib.sha1(labels.astype("<u4").tobytes()).hexdigest().startswith("da100bddaf65")


@pytest.mark.parametrize("threshold, labels, background", [(0.5, 1, 203), (0.7, 1, 521), (0.9, 2, 1088)])
def test_affinity_voxels_have_the_golden_components(threshold, labels, background):
    affs = np.random.RandomState(0).rand(3, 6, 16, 16).astype(np.float32)
    own = affinity_components(affs, threshold, method="voxels")
    assert (own.max(), (own == 0).sum()) == (labels, background)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_affinity_graph_equals_flood_fill_over_edges(dtype):
    for seed in range(80):
        random = np.random.default_rng(seed)
        shape = (3, *random.integers(0 if seed % 20 == 0 else 1, 6, 3))
        levels = np.array([0, 51, 102, 153, 204, 255])
        codes = random.choice(levels, shape)
        affs = codes.astype(np.uint8) if dtype == np.uint8 else (codes / 255).astype(dtype)
        affs.setflags(write=False)
        threshold, edge = random.choice([0, 0.2, 0.5, 0.8, 1]), random.choice(["later", "earlier"])
        decoded = (codes / 255).astype(np.float32) if dtype == np.uint8 else affs
        expected = oracle.affinity_graph(decoded.astype(np.float64), threshold, edge)
        for threads in (1, 3):
            found = affinity_components(Affinities(affs, edge=edge), threshold, threads=threads)
            assert np.array_equal(found, expected)


def test_affinity_components_find_their_channels_by_offsets_and_take_strided_arrays():
    affs = np.random.default_rng(3).random((4, 9, 8, 7)).astype(np.float32)
    expected = affinity_components(affs[:3], 0.7)
    offsets = [(0, 0, -9), (0, 0, -1), (0, -1, 0), (-1, 0, 0)]
    shuffled = np.asfortranarray(affs[[3, 2, 1, 0]])
    for threads in (1, 2, 7):
        assert np.array_equal(affinity_components(Affinities(shuffled, offsets), 0.7, threads=threads), expected)


def test_raising_the_threshold_only_splits():
    affs = np.random.default_rng(4).random((3, 9, 8, 7)).astype(np.float32)
    coarse = affinity_components(affs, 0.5)
    for threshold in (0.6, 0.7, 0.9):
        fine = affinity_components(affs, threshold)
        inside = fine > 0
        pairs = np.unique(np.stack([fine[inside], coarse[inside]]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1]
        coarse = fine


def test_labels_near_the_largest_integers_stay_apart():
    labels = np.array([[[2**64 - 1, 2**64 - 1, 2**64 - 2, 0, 2**53, 2**53 + 1]]], np.uint64)
    assert connected_components(labels).ravel().tolist() == [1, 1, 2, 0, 3, 4]


@pytest.mark.parametrize("call, sentence", [
    (lambda: connected_components(np.zeros((2, 2, 2), np.float32)), "labels must be integers or bool; got float32"),
    (lambda: connected_components(np.full((2, 2, 2), -3)), "labels must not be negative; found -3"),
    (lambda: connected_components(np.zeros(5, int)), "labels must be (z, y, x) or (y, x); got shape (5,)"),
    (lambda: connected_components(np.zeros((5, 5), int), 6), "connectivity must be 4, 8 for 2D labels; got 6"),
    (lambda: connected_components(np.zeros((5, 5, 5), int), 7), "connectivity must be 4, 8, 6, 18, 26 for 3D"),
    (lambda: affinity_components(np.zeros((3, 2, 2, 2), np.float32), 1.5), "threshold must lie in 0..1; got 1.5"),
    (lambda: affinity_components(np.zeros((3, 2, 2, 2), np.float32), method="six"), "method must be 'graph' or 'vox"),
    (lambda: affinity_components(np.full((3, 2, 2, 2), np.nan, np.float32)), "affs must lie in 0..1; found nan"),
    (lambda: connected_components(np.broadcast_to(np.uint8(1), (1, 2**16, 2**16))),
     "one section must have fewer than 2147"),
])
def test_bad_input_is_named_in_one_sentence(call, sentence):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        call()
    assert sentence in str(error.value)


@pytest.mark.bench
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_components_of_masks_equal_scipy(connectivity):
    ndimage = pytest.importorskip("scipy.ndimage", reason="the peer scipy is not installed")
    mask = np.random.default_rng(8).random((30, 31, 33)) < 0.3
    structure = ndimage.generate_binary_structure(3, {6: 1, 18: 2, 26: 3}[connectivity])
    expected, count = ndimage.label(mask, structure)
    own, own_count = connected_components(mask, connectivity, count=True)
    assert own_count == count
    assert np.array_equal(own, expected)


@pytest.mark.bench
@pytest.mark.parametrize("connectivity", [6, 18, 26])
def test_components_of_labels_equal_cc3d(connectivity):
    cc3d = pytest.importorskip("cc3d", reason="the peer cc3d is not installed")
    labels = np.repeat(np.random.default_rng(9).integers(0, 4, (20, 21, 11)), 3, axis=2).astype(np.uint32)
    assert np.array_equal(connected_components(labels, connectivity),
                          cc3d.connected_components(labels, connectivity=connectivity))
