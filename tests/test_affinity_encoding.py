"""Checks of affinities, their channels and edge conventions, and the 8-bit encoding."""

import numpy as np
import pytest

from bench.affinities import make_affinities
from emcore import metrics
from emcore.errors import InputError
from emcore.segment import Affinities, decode_affinities, encode_affinities, segment
from emcore.segment.affinities import LOGIT_TABLE, NEAREST


def random_affinities(shape=(3, 4, 5, 6), dtype=np.float32, seed=0):
    return np.random.default_rng(seed).random(shape).astype(dtype)


def logit(values):
    values = np.asarray(values, np.float64)
    return np.log(values / (1 - values))


def test_a_code_is_within_half_a_step_of_at_most_a_quarter_on_the_logit_scale():
    values = random_affinities((3, 8, 20, 30)).astype(np.float64) ** 8
    values = np.clip(np.concatenate([values, 1 - values]), 1e-6, 1 - 1e-6).astype(np.float32)
    codes, table = encode_affinities(values)
    assert codes.dtype == np.uint8
    assert np.array_equal(table, LOGIT_TABLE)
    inside = (codes > 0) & (codes < 255)
    assert np.abs(logit(values) - logit(decode_affinities(codes, table).clip(1e-7, 1 - 1e-7)))[inside].max() < 0.1202


@pytest.mark.parametrize("threshold", [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_decimal_thresholds_divide_codes_as_they_divide_numbers(threshold):
    value = np.float32(threshold)
    around = [value]
    for direction in (np.float32(0), np.float32(1)):
        near = value
        for _ in range(300):
            near = np.nextafter(near, direction)
            around.append(near)
    values = np.concatenate([np.array(around, np.float32), random_affinities((3000,))])
    codes, table = encode_affinities(values)
    if threshold <= 0.5:
        assert np.array_equal(values > value, decode_affinities(codes, table) > value)
    else:
        assert np.array_equal(values >= value, decode_affinities(codes, table) >= value)


def test_encoding_keeps_zero_one_and_the_order_and_returns_to_itself():
    values = np.sort(np.concatenate([[0.0, -0.0, 1.0, 0.5, 1e-30, np.float32(1 - 2**-24)],
                                     random_affinities((2000,))]).astype(np.float32))
    codes, table = encode_affinities(values)
    assert (np.diff(codes.astype(int)) >= 0).all()
    assert codes[0] == 0
    assert codes[-1] == 255
    assert table[0] == 0
    assert table[255] == 1
    assert np.array_equal(encode_affinities(table)[0], np.arange(256))
    assert np.array_equal(encode_affinities(decode_affinities(codes, table))[0], codes)


def test_encoding_keeps_saturated_values_apart_where_plain_bytes_do_not():
    saturated = np.array([0.998, 0.999, 0.9995, 0.9999, 0.99995], np.float32)
    assert len(set(encode_affinities(saturated)[0].tolist())) == 5
    assert len(set(np.round(255 * saturated).astype(int).tolist())) <= 2


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_encoding_is_the_same_for_any_threads_and_strides(threads):
    values = random_affinities((3, 5, 7, 9))
    expected = encode_affinities(values, threads=1)[0]
    assert np.array_equal(encode_affinities(values[:, ::-1, :, ::2], threads=threads)[0], expected[:, ::-1, :, ::2])


@pytest.mark.parametrize("shape", [(0,), (3, 0, 4, 4), (3, 1, 1, 1), ()])
def test_encoding_keeps_the_shape_of_small_and_empty_arrays(shape):
    codes, table = encode_affinities(np.full(shape, 0.25, np.float32))
    assert codes.shape == shape
    assert np.allclose(decode_affinities(codes, table), 0.25, atol=0.02)


def test_plain_bytes_decode_to_code_over_255():
    assert np.array_equal(decode_affinities(np.arange(256, dtype=np.uint8)), (np.arange(256) / 255).astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, -0.001, 1.001, np.inf])
def test_encoding_refuses_numbers_outside_the_unit_interval(value):
    values = random_affinities()
    values[1, 2, 3, 4] = value
    with pytest.raises(InputError, match=r"affs must lie in 0\.\.1 to be encoded; found"):
        encode_affinities(values)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [np.nan, -np.nan, -0.001, 1.001, np.inf, -np.inf])
def test_one_bad_number_anywhere_is_found_and_named(dtype, value):
    for seed in range(5):
        values = random_affinities((4, 5, 6, 7), dtype, seed)
        values[0, 0, 0, 0] = -0.0
        channel, z, y, x = np.random.default_rng(seed).integers(0, (3, 5, 6, 7))
        values[channel, z, y, x] = value
        for given in (values, np.ascontiguousarray(values[..., ::-1])[..., ::-1]):
            with pytest.raises(InputError, match=rf"channel {channel} at voxel \({z}, {y}, {x}\)"):
                Affinities(given).check_values()
        values[channel, z, y, x] = 1
        Affinities(values).check_values()


def test_values_of_other_channels_are_not_looked_at():
    values = random_affinities((4, 3, 3, 3))
    values[3] = np.nan
    Affinities(values).check_values()


def test_nearest_channels_are_found_in_any_order_and_sign():
    def found(channels, *convention):
        affs = Affinities(np.zeros((channels, 1, 1, 1), np.float32), *convention)
        return affs.channels, affs.shifts

    assert found(3) == ((0, 1, 2), (0, 0, 0))
    assert found(5, None, "earlier") == ((0, 1, 2), (1, 1, 1))
    offsets = [(0, 0, -9), (0, 0, 1), (0, -1, 0), (-1, 0, 0)]
    assert found(4, offsets) == ((3, 2, 1), (0, 0, 1))
    assert found(4, offsets, "earlier") == ((3, 2, 1), (1, 1, 0))


@pytest.mark.parametrize("affs, keywords, sentence", [
    (np.zeros((3, 4, 5), np.float32), {}, r"affs must be \(channels, z, y, x\); got shape \(3, 4, 5\)"),
    (np.zeros((2, 4, 5, 6), np.float32), {}, r"at least the 3 channels z, y, x; got shape \(2, 4, 5, 6\)"),
    (np.zeros((3, 4, 5, 6)), {}, "must be float32, float16 or uint8; got float64"),
    (np.zeros((3, 4, 5, 6), ">f4"), {}, "must be float32, float16 or uint8; got >f4"),
    (np.zeros((3, 4, 5, 6), np.float32), {"edge": "source"}, "edge must be 'later' or 'earlier'; got 'source'"),
    (np.zeros((3, 4, 5, 6), np.float32), {"offsets": NEAREST[:2]}, "for each of the 3 channels"),
    (np.zeros((3, 4, 5, 6), np.float32), {"offsets": [*NEAREST[:2], (0, 0, -2)]}, "no nearest neighbour along x"),
    (np.zeros((3, 4, 5, 6), np.float32), {"table": LOGIT_TABLE}, "leave table out"),
    (np.zeros((3, 4, 5, 6), np.uint8), {"table": LOGIT_TABLE[:200]}, "must be 256 values that rise from 0 to 1"),
    (np.zeros((3, 4, 5, 6), np.uint8), {"table": LOGIT_TABLE[::-1]}, "must be 256 values that rise from 0 to 1"),
])
def test_wrong_affinities_are_refused_in_one_sentence(affs, keywords, sentence):
    with pytest.raises(InputError, match=sentence):
        Affinities(affs, **keywords).check_values()


def test_codes_of_another_type_are_refused():
    with pytest.raises(InputError, match="codes must be uint8; got int64"):
        decode_affinities(np.zeros(3, np.int64))
    with pytest.raises(InputError, match="must be floating point to be encoded; got uint8"):
        encode_affinities(np.zeros(3, np.uint8))


@pytest.mark.long
def test_segments_from_the_encoding_are_within_a_hundredth_of_a_bit_of_those_from_float32():
    rng = np.random.default_rng(0)
    shape = (64, 128, 128)
    nearest, labels = np.full(shape, np.inf, np.float32), np.zeros(shape, np.uint32)
    for number, seed in enumerate(rng.uniform(0, shape, (150, 3)), 1):
        distance = sum((axis - x) ** 2 for axis, x in zip(np.ogrid[:64, :128, :128], seed))
        labels[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    affs = make_affinities(labels)
    codes, table = encode_affinities(affs)

    def voi(volume):
        found = segment(volume, 0.5, "mean", low=0.1, high=0.999)
        return np.array(metrics.voi(metrics.contingency(labels, found, ignore_truth=(0,))))

    exact = voi(affs)
    assert np.abs(voi(Affinities(codes, table=table)) - exact).max() < 0.01


def test_a_pinhole_in_a_membrane_joins_two_cells_in_plain_bytes_but_not_in_the_encoding():
    affs = np.full((3, 6, 12, 12), 0.9999, np.float32)
    affs[1, :, 6] = 0.01
    affs[1, 3, 6, 5] = 0.9985  # saturated, yet below high
    codes, table = encode_affinities(affs)
    assert segment(affs, 0.5, "mean", low=0.1, high=0.999).max() == 2
    assert segment(Affinities(codes, table=table), 0.5, "mean", low=0.1, high=0.999).max() == 2
    assert segment(np.round(255 * affs).astype(np.uint8), 0.5, "mean", low=0.1, high=0.999).max() == 1
