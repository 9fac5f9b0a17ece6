"""Dilation, erosion and holes against windows voxel by voxel and against scipy."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import dilate, erode, fill_holes
from tests.oracles import morphology as oracle


def random_labels(rng, dtype, background=0.5):
    labels = rng.integers(1, 4, rng.integers(1, 6, 3))
    labels[rng.random(labels.shape) < background] = 0
    return labels.astype(dtype)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("footprint", ["box", "cross"])
def test_equals_the_windows_one_by_one(dtype, footprint):
    rng = np.random.default_rng([1, np.dtype(dtype).itemsize])
    for _ in range(40):
        labels = random_labels(rng, dtype, background=rng.choice([0.1, 0.5]))
        sizes, iterations = rng.choice([1, 3, 5, 7], 3).tolist(), int(rng.integers(0, 3))
        for ours, slow in ((dilate, oracle.dilate), (erode, oracle.erode)):
            found = ours(labels, sizes, footprint=footprint, iterations=iterations)
            expected = slow(labels, sizes, footprint, iterations)
            assert found.dtype == labels.dtype
            np.testing.assert_array_equal(found, expected)


def test_holes_equal_a_flood_from_the_faces():
    rng = np.random.default_rng(2)
    for _ in range(100):
        mask = rng.random(rng.integers(1, 7, 3)) < 0.7
        np.testing.assert_array_equal(fill_holes(mask), oracle.fill_holes(mask))
        np.testing.assert_array_equal(fill_holes(mask, per_section=True), [oracle.fill_holes(one) for one in mask])


def test_a_hole_in_a_section_that_opens_to_the_next_is_only_filled_by_section():
    mask = np.zeros((3, 5, 5), bool)
    mask[1, 1:4, 1:4] = True
    mask[1, 2, 2] = False
    assert not fill_holes(mask)[1, 2, 2]
    assert fill_holes(mask, per_section=True)[1, 2, 2]


def test_masks_equal_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(3).random((9, 20, 21)) < 0.4
    np.testing.assert_array_equal(dilate(mask, (1, 5, 5)), ndimage.binary_dilation(mask, np.ones((1, 5, 5))))
    np.testing.assert_array_equal(dilate(mask, footprint="cross"), ndimage.binary_dilation(mask))
    np.testing.assert_array_equal(erode(mask, 3), ndimage.binary_erosion(mask, np.ones((3, 3, 3)), border_value=1))
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_eroding_a_mask_is_dilating_the_rest():
    mask = np.random.default_rng(4).random((4, 7, 9)) < 0.5
    for footprint in ("box", "cross"):
        np.testing.assert_array_equal(erode(mask, 5, footprint=footprint), ~dilate(~mask, 5, footprint=footprint))


def test_any_number_of_threads_and_any_strides_give_the_same_bits():
    labels = np.random.default_rng(5).integers(0, 5, (7, 9, 16)).astype(np.uint32)
    turned = labels.T.copy().T[:, :, ::2]
    turned.flags.writeable = False
    one = dilate(labels[:, :, ::2], (3, 5, 1), threads=1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(dilate(turned, (3, 5, 1), threads=threads), one)
        np.testing.assert_array_equal(fill_holes(turned, threads=threads), fill_holes(labels[:, :, ::2], threads=1))


def test_inputs_stay_as_they_are_and_results_are_new():
    labels = np.random.default_rng(6).integers(0, 5, (3, 4, 5)).astype(np.uint16)
    before = labels.copy()
    for size, iterations in ((1, 1), (3, 0), (3, 2)):
        for function in (dilate, erode):
            assert not np.shares_memory(function(labels, size, iterations=iterations), labels)
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 3), (3, 3, 0), (1, 1, 1)])
def test_empty_and_single_voxel_volumes(shape):
    mask = np.ones(shape, bool)
    for found in (dilate(mask, 5), erode(mask, 5), fill_holes(mask), fill_holes(mask, per_section=True),
                  dilate(mask, footprint="cross"), erode(mask.astype(np.uint8), footprint="cross", iterations=2)):
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("arguments, sentence", [
    ((np.zeros((3, 3), bool),), "labels must be"), ((np.zeros((3, 3, 3)),), "labels must be integers"),
    ((np.zeros((3, 3, 3), bool), 4), "size must be odd"), ((np.zeros((3, 3, 3), bool), (3, 3)), "size must be odd"),
    ((np.zeros((3, 3, 3), bool), 0), "size must be odd"), ((np.full((3, 3, 3), -1),), "must not be negative")])
def test_bad_input_is_named(arguments, sentence):
    for function in (dilate, erode):
        with pytest.raises(InputError, match=sentence):
            function(*arguments)


def test_bad_footprints_iterations_and_masks_are_named():
    mask = np.zeros((2, 2, 2), bool)
    with pytest.raises(InputError, match="footprint must be"):
        dilate(mask, footprint="ball")
    with pytest.raises(InputError, match="iterations must not"):
        erode(mask, iterations=-1)
    with pytest.raises(InputError, match="mask must be"):
        fill_holes(mask[0])
