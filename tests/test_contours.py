"""Instances from foreground, contour and distance against the definition with scipy and the slow flood."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import contour_instances
from tests.oracles.flood import flood


def two_balls(dtype=np.float32):
    """Two touching balls: foreground, contour at their waist, signed distance."""
    z, y, x = np.mgrid[:12, :12, :22]
    inside = np.maximum(*(5 - np.sqrt((z - 6) ** 2 + (y - 6) ** 2 + (x - centre) ** 2) for centre in (6, 15)))
    contour = (np.abs(x - 10.5) < 1) & (inside > -1)
    return np.stack([inside > 0, contour, np.tanh(inside / 3)]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_two_touching_balls_are_two_instances_that_share_all_foreground(dtype):
    prediction = two_balls(dtype)
    found = contour_instances(prediction)
    assert found.dtype == np.uint32
    assert found.max() == 2
    np.testing.assert_array_equal(found > 0, prediction[0] > 0)
    assert found[6, 6, 6] == 1
    assert found[6, 6, 15] == 2


def test_equals_the_definition_step_by_step():
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(1)
    for _ in range(40):
        prediction = rng.integers(0, 9, (3, *rng.integers(1, 7, 3))) / 8
        prediction[2] = prediction[2] * 2 - 1
        binary, contour, distance = (0.7, 0.3), (0.6, 0.95), (0.1, -0.6)
        fits = [(prediction[0] > binary[i]) & (prediction[1] < contour[i]) & (prediction[2] > distance[i])
                for i in (0, 1)]
        seeds, number = ndimage.label(fits[0], np.ones((3, 3, 3)))
        seeds[np.bincount(seeds.ravel(), minlength=number + 1)[seeds] < 2] = 0
        expected = flood(-np.maximum(prediction[2], 0), seeds, fits[1])
        expected[np.bincount(expected.ravel())[expected] < 4] = 0
        ids, first = np.unique(expected, return_index=True)
        order = [one for one in ids[np.argsort(first)] if one]
        expected = sum(((expected == one) * (i + 1) for i, one in enumerate(order)), np.zeros_like(expected))
        found = contour_instances(prediction, binary=binary, contour=contour, distance=distance, remove_size=4,
                                  min_seed=2)
        np.testing.assert_array_equal(found, expected)


def test_small_instances_and_small_seeds_are_dropped():
    prediction = two_balls()
    whole = (contour_instances(prediction) == 1).sum()
    assert contour_instances(prediction, remove_size=int(whole) + 1).max() <= 1
    assert contour_instances(prediction, min_seed=10**6).max() == 0


def test_nan_where_there_is_no_foreground_does_no_harm():
    prediction = two_balls()
    expected = contour_instances(prediction)
    prediction[2][prediction[0] == 0] = np.nan
    np.testing.assert_array_equal(contour_instances(prediction), expected)


def test_any_number_of_threads_and_read_only_views_give_the_same_bits():
    prediction = two_balls()
    turned = prediction.T.copy().T
    turned.flags.writeable = False
    for threads in (1, 2, 3, 7):
        np.testing.assert_array_equal(contour_instances(turned, threads=threads), contour_instances(prediction))


def test_empty_volumes():
    assert contour_instances(np.zeros((3, 4, 0, 4), np.float32)).shape == (4, 0, 4)


@pytest.mark.parametrize("prediction, settings, sentence", [
    (np.zeros((2, 2, 2, 2)), {}, r"prediction must be \(3, z, y, x\)"),
    (np.zeros((3, 2, 2, 2), np.uint8), {}, "floating point"),
    (np.zeros((3, 2, 2, 2)), {"contour": 0.5}, "contour must be two thresholds"),
    (np.zeros((3, 2, 2, 2)), {"distance": (np.nan, 0)}, "distance must be two thresholds"),
    (np.zeros((3, 2, 2, 2)), {"min_seed": -1}, "remove_size and min_seed must not")])
def test_bad_input_is_named(prediction, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        contour_instances(prediction, **settings)
