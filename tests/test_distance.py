"""Distance transforms against all pairs of voxels, scipy and edt."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import distance_transform, signed_distance
from tests.oracles import distance as oracle

BOUND = 3e-7  # the stated relative error


def small_labels(random, rank):
    shape = random.integers(1, [40, 9, 5][:rank] if rank == 2 else 8, rank)
    labels = random.integers(0, 3, shape)
    for _ in range(2):  # thick pieces
        labels = np.where(random.random(shape) < 0.5, np.roll(labels, 1, random.integers(rank)), labels)
    return labels.astype(random.choice([np.uint8, np.uint16, np.uint32, np.int64]))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("black_border", [False, True])
def test_distances_equal_all_pairs_of_voxels(rank, black_border):
    random = np.random.default_rng(rank)
    for number in range(120):
        labels = small_labels(random, rank)
        if number % 3 == 0:
            labels = np.minimum(labels, 1)
        if number % 5 == 0:
            labels = (random.random(labels.shape) < 0.95).astype(np.uint8)
        resolution = [(1,) * rank, (30, 6, 6)[:rank], (0.7, 13.1, 2.9)[:rank]][number % 3]
        own = distance_transform(labels, resolution, black_border=black_border, threads=1 + number % 3)
        expected = oracle.distance_transform(labels, resolution, black_border)
        assert own.dtype == np.float32
        assert np.array_equal(np.isinf(own), np.isinf(expected))
        finite = np.isfinite(expected)
        assert (np.abs(own[finite] - expected[finite]) <= BOUND * expected[finite]).all()
        squared = distance_transform(labels, resolution, black_border=black_border, squared=True)
        if resolution[0] != 0.7:
            assert np.array_equal(squared[finite], np.rint(expected[finite] ** 2))
            assert np.array_equal(own, np.sqrt(squared))


@pytest.mark.parametrize("resolution", [(1, 1, 1), (30, 6, 6), (3.3, 0.11, 7e3)])
def test_far_voxels_have_the_distance_to_the_only_other_label(resolution):
    """Columns of hundreds of voxels with one border, so that the envelope does the work."""
    for shape, place in (((3, 5, 700), (1, 2, 650)), ((300, 40, 3), (299, 0, 1)), ((4, 300, 65), (2, 150, 0)),
                         ((200, 200, 1), (60, 110, 0))):
        labels = np.full(shape, 9, np.uint16)
        labels[place] = 4
        steps = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - place
        expected = np.sqrt(((steps * np.asarray(resolution)) ** 2).sum(-1))
        expected[place] = min(size for size, length in zip(resolution, shape) if length > 1)
        own = distance_transform(labels, resolution)
        assert (np.abs(own - expected) <= BOUND * expected).all()


@pytest.mark.parametrize("shape, resolution", [((300, 4, 40), (0.02, 1, 1)), ((3, 300, 40), (1, 0.02, 1)),
                                               ((300, 40), (0.02, 1)), ((100, 100, 3), (0.03, 0.05, 1)),
                                               pytest.param((250, 250, 3), (0.03, 0.05, 1), marks=pytest.mark.long)])
def test_columns_of_many_parabolas_equal_the_distance_to_the_nearest_hole(shape, resolution):
    """Fine steps along one axis, so that a search would go far and the envelope does the work."""
    random = np.random.default_rng(9)
    for share in (0.0005, 0.003, 0.02):
        mask = random.random(shape) > share
        mask[tuple(size // 3 for size in shape)] = False
        sizes = np.asarray(resolution)
        voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * sizes
        expected = np.full(shape, np.inf)
        for hole in np.argwhere(~mask) * sizes:
            expected = np.minimum(expected, ((voxels - hole) ** 2).sum(-1))
        own = distance_transform(mask, resolution)
        assert (np.abs(own - np.sqrt(expected)) <= BOUND * np.sqrt(expected)).all()


def test_any_number_of_threads_and_any_strides_give_the_same_bits():
    labels = np.random.default_rng(3).integers(0, 2, (6, 7, 8)).repeat(5, 0).repeat(4, 1).repeat(9, 2)
    labels.setflags(write=False)
    expected = distance_transform(labels, (3.3, 1.7, 1.1), threads=1)
    for threads in (2, 3, 7):
        assert np.array_equal(distance_transform(labels, (3.3, 1.7, 1.1), threads=threads), expected)
    assert np.array_equal(distance_transform(labels[::-1, :, ::-1], (3.3, 1.7, 1.1)), expected[::-1, :, ::-1])
    view = np.asfortranarray(labels)[::2, ::3, ::2]
    assert np.array_equal(distance_transform(view), distance_transform(view.astype(np.uint8, order="C")))
    image = labels[:, 3].T
    assert np.array_equal(distance_transform(image, threads=3), distance_transform(image.copy(), threads=1))


def test_sizes_zero_and_one_and_a_volume_of_one_label():
    assert distance_transform(np.zeros((0, 4, 4), np.uint8)).shape == (0, 4, 4)
    assert distance_transform(np.ones((1, 1, 1), np.uint8)).tolist() == [[[np.inf]]]
    assert distance_transform(np.zeros((1, 1), np.uint8)).tolist() == [[0]]
    assert np.isinf(distance_transform(np.full((3, 70, 70), 5))).all()
    assert distance_transform(np.ones((1, 1), bool), (3, 2), black_border=True).tolist() == [[2]]
    assert distance_transform(np.ones((1, 1, 1), bool), (1, 3, 2), black_border=True).tolist() == [[[1]]]


def test_signed_distance_is_positive_inside_and_negative_outside():
    random = np.random.default_rng(4)
    for _ in range(30):
        mask = random.random(random.integers(1, 7, 3)) < 0.6
        own = signed_distance(mask, (30, 6, 6))
        inside = oracle.distance_transform(mask.astype(int), (30, 6, 6))
        outside = oracle.distance_transform((~mask).astype(int), (30, 6, 6))
        assert np.allclose(own, np.where(mask, inside, -outside), rtol=BOUND)
        assert np.array_equal(signed_distance(mask.astype(np.int32) * 7, (30, 6, 6)), own)
    assert (signed_distance(np.ones((2, 2), bool)) == np.inf).all()
    assert (signed_distance(np.zeros((2, 2, 2), bool)) == -np.inf).all()


@pytest.mark.parametrize("call, sentence", [
    (lambda: distance_transform(np.zeros((2, 2, 2))), "labels must be integers or bool; got float64"),
    (lambda: distance_transform(np.zeros(4, int)), "labels must be (z, y, x) or (y, x); got shape (4,)"),
    (lambda: distance_transform(np.full((2, 2), -1)), "labels must not be negative; found -1"),
    (lambda: distance_transform(np.zeros((2, 2), int), (1, 1, 1)), "resolution must be 2 positive sizes"),
    (lambda: distance_transform(np.zeros((2, 2), int), (1, 0)), "resolution must be 2 positive sizes"),
    (lambda: distance_transform(np.zeros((2, 2), int), (1, np.nan)), "resolution must be 2 positive sizes"),
    (lambda: distance_transform(np.zeros((2, 2), int), (1, np.inf)), "resolution must be 2 positive sizes"),
    (lambda: signed_distance(np.zeros((2, 2))), "mask must be integers or bool; got float64"),
])
def test_bad_input_is_named_in_one_sentence(call, sentence):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        call()
    assert sentence in str(error.value)


@pytest.mark.bench
@pytest.mark.parametrize("black_border", [False, True])
def test_distances_of_labels_equal_edt(black_border):
    edt = pytest.importorskip("edt", reason="the peer edt is not installed")
    labels = np.random.default_rng(5).integers(0, 4, (5, 6, 7)).repeat(6, 0).repeat(7, 1).repeat(8, 2).astype(np.uint32)
    own = distance_transform(labels, (30, 6, 6), black_border=black_border)
    assert np.array_equal(own, edt.edt(labels, anisotropy=(30, 6, 6), black_border=black_border))


@pytest.mark.bench
def test_distances_of_masks_equal_scipy():
    ndimage = pytest.importorskip("scipy.ndimage", reason="the peer scipy is not installed")
    mask = np.random.default_rng(6).random((20, 40, 70)) < 0.995
    expected = ndimage.distance_transform_edt(mask, sampling=(4.5, 1.5, 2))
    assert np.allclose(distance_transform(mask, (4.5, 1.5, 2)), expected, rtol=BOUND)
