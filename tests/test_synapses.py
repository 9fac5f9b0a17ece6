"""Polarity instances: the golden example, many synapses, every input dtype."""

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.segment import polarity_instances


def golden():
    """Three synapses: 200 voxels a side, 120 pre alone, 60 post next to it."""
    prediction = np.zeros((3, 4, 40, 40), np.float32)
    prediction[0, :, 5:15, 5:10] = 0.9
    prediction[1, :, 5:15, 12:17] = 0.9
    prediction[2, :, 5:15, 5:17] = 0.9
    prediction[[0, 2], 1:3, 25:35, 20:26] = 0.8
    prediction[1:, :, 25:30, 30:33] = 0.9
    return prediction


def counts(labels):
    ids, sizes = np.unique(labels[labels > 0], return_counts=True)
    return dict(zip(ids.tolist(), sizes.tolist()))


@pytest.mark.parametrize("convert", [lambda p: p, lambda p: p.astype(np.float16), lambda p: (p * 255).astype(np.uint8),
                                     lambda p: p * 255, lambda p: p.astype(np.float64)])
def test_the_golden_example_in_every_dtype(convert):
    prediction = convert(golden())
    assert counts(polarity_instances(prediction)) == {1: 200, 2: 200}
    assert counts(polarity_instances(prediction, small=50)) == {1: 200, 2: 200, 3: 120, 4: 60}
    assert counts(polarity_instances(prediction, semantic=True)) == {1: 200, 2: 200}
    assert polarity_instances(prediction, semantic=True).dtype == np.uint8


def test_the_golden_example_of_exclusive_classes():
    prediction = np.zeros((3, 4, 40, 40), np.float32)
    prediction[0] = 0.5
    prediction[1, :, 5:15, 5:10] = 0.9
    prediction[2, :, 5:15, 10:17] = 0.9
    assert counts(polarity_instances(prediction, exclusive=True)) == {1: 200, 2: 280}


def test_exclusive_ties_go_to_the_first_channel():
    values = np.random.default_rng(1).integers(0, 3, (3, 3, 8, 9)).astype(np.uint8)
    found = polarity_instances(values, exclusive=True, semantic=True, small=0)
    np.testing.assert_array_equal(found, values.argmax(0))


def test_equals_the_definition_with_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(2)
    for _ in range(20):
        prediction = rng.random((3, 3, 15, 16)) ** 0.5
        masks = prediction > 0.7
        synapses, _ = ndimage.label(ndimage.binary_dilation(masks[2], np.ones((1, 3, 3))))
        expected = np.zeros(synapses.shape, int)
        for mask, minus in ((masks[0], 1), (masks[1], 0)):
            pieces, number = ndimage.label(mask & masks[2])
            large = np.bincount(pieces.ravel(), minlength=number + 1) >= 3
            large[0] = False
            expected = np.where(large[pieces], np.maximum(expected, synapses * 2 - minus), expected)
        np.testing.assert_array_equal(polarity_instances(prediction, 0.7, 3, dilate_size=3), expected)


def test_more_synapses_than_eight_bits_keep_their_ids():
    prediction = np.zeros((3, 1, 60, 120), np.uint8)
    prediction[:, :, ::3, ::3] = 255  # 800 single voxels
    found = polarity_instances(prediction, small=0, dilate_size=1)
    assert found.dtype == np.uint32
    np.testing.assert_array_equal(found[found > 0], 2 * np.arange(1, 801))


def test_a_half_sized_or_doubled_result_takes_the_nearest_voxel():
    prediction = golden()
    full = polarity_instances(prediction)
    doubled = polarity_instances(prediction, scale_factors=2)
    np.testing.assert_array_equal(doubled, full.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(polarity_instances(prediction, scale_factors=(1, 0.5, 0.5)), full[:, 1::2, 1::2])
    assert polarity_instances(prediction, scale_factors=(0.1, 1, 1)).shape == (0, 40, 40)


def test_any_number_of_threads_and_read_only_views_give_the_same_bits():
    prediction = np.random.default_rng(3).random((3, 5, 30, 31)).astype(np.float32)
    one = polarity_instances(prediction, small=3, threads=1)
    strided = prediction.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0)
    strided.flags.writeable = False
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(polarity_instances(strided, small=3, threads=threads), one)


def test_empty_volumes():
    assert polarity_instances(np.zeros((3, 0, 4, 4), np.float32)).shape == (0, 4, 4)
    assert not polarity_instances(np.zeros((3, 1, 1, 1), np.uint8)).any()


@pytest.mark.parametrize("prediction, settings, sentence", [
    (np.zeros((2, 1, 1, 1), np.float32), {}, r"prediction must be \(3, z, y, x\)"),
    (np.zeros((3, 1, 1), np.float32), {}, "prediction must be"),
    (np.zeros((3, 1, 1, 1), np.int32), {}, "floating point or uint8"),
    (np.full((3, 1, 1, 1), np.nan), {}, "holds NaN"),
    (np.zeros((3, 1, 1, 1), np.uint8), {"threshold": 127}, "threshold must be 0 to 1"),
    (np.zeros((3, 1, 1, 1), np.uint8), {"small": -1}, "small must not"),
    (np.zeros((3, 1, 1, 1), np.uint8), {"scale_factors": (1, 0, 1)}, "scale_factors must be"),
    (np.zeros((3, 1, 1, 1), np.uint8), {"scale_factors": (1, 1)}, "scale_factors must be"),
    (np.zeros((3, 1, 1, 1), np.uint8), {"dilate_size": 4}, "must be odd")])
def test_bad_input_is_named(prediction, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        polarity_instances(prediction, **settings)
