"""Coarser levels: which axes are halved, and mean and mode against looking at every voxel."""

import itertools
import math

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.volumes.pyramid import Level, by_mode, downsampled, halved, pieces, plan_levels, shrunk
from tests.oracles import pyramid as oracle


def level_of(array, start, resolution):
    return Level(array.shape[-3:], start, (1, 1, 1), resolution)


@pytest.mark.parametrize("dtype,mode", [("uint8", False), ("uint8", True), ("int8", False), ("uint16", False),
                                        ("int32", False), ("uint32", True), ("uint64", True), ("float32", False),
                                        ("float64", False), ("float16", False)])
@pytest.mark.parametrize("resolution", [(40, 4, 4), (8, 8, 8), (4, 40, 4), (4, 4, 40)])
def test_levels_are_those_of_the_oracle_at_any_start_and_in_any_pieces(dtype, mode, resolution):
    random = np.random.default_rng([sum(map(ord, dtype)), *resolution])
    for _ in range(6):
        shape, start = random.integers(1, 9, 3), tuple(random.integers(-3, 4, 3).tolist())
        array = random.integers(0, 4, shape).astype(dtype)
        if dtype == "uint64":
            array += np.uint64(2**64 - 4)
        finer = level_of(array, start, resolution)
        coarse = halved(finer)
        wanted = oracle.coarser(array, start, coarse.factors, mode)
        assert coarse.shape == wanted.shape
        made = np.zeros_like(wanted)
        for box in pieces(tuple(slice(0, length) for length in coarse.shape), (2, 1, 3), 1 << 24):
            made[box] = shrunk(array, finer, coarse, box, mode)
        np.testing.assert_array_equal(made, wanted)


def test_the_mode_is_right_for_every_pattern_of_eight_voxels_of_three_labels():
    patterns = np.array(list(itertools.product((7, 2**64 - 1, 0), repeat=8)), np.uint64)
    block = patterns.reshape(-1, 2, 2, 2).transpose(1, 0, 2, 3).reshape(2, -1, 2)
    made = downsampled(block, (2, 2, 2), True).reshape(-1)
    # the windows lie below each other in y
    wanted = [oracle.most_frequent(block[:, 2 * at:2 * at + 2].reshape(-1).tolist()) for at in range(len(patterns))]
    np.testing.assert_array_equal(made, np.array(wanted, np.uint64))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_the_mean_of_eight_does_not_overflow(dtype):
    for value in (np.iinfo(dtype).min, np.iinfo(dtype).max):
        assert downsampled(np.full((2, 2, 2), value, dtype), (2, 2, 2), False) == value


def test_channels_are_kept_apart():
    array = np.arange(2 * 2 * 4 * 6, dtype=np.float32).reshape(2, 2, 4, 6)
    finer = level_of(array, (0, 0, 0), (1, 1, 1))
    coarse = halved(finer)
    box = (slice(0, 2), *(slice(0, length) for length in coarse.shape))
    for channel in range(2):
        np.testing.assert_array_equal(shrunk(array, finer, coarse, box, False)[channel],
                                      oracle.coarser(array[channel], (0, 0, 0), (2, 2, 2), False))


def test_only_fine_axes_are_halved_until_voxels_are_nearly_cubes():
    levels = plan_levels((100, 4000, 4000), (0, 0, 0), (40, 4, 4), (64, 64, 64))
    assert [level.resolution for level in levels[:6]] == [(40, 4, 4), (40, 8, 8), (40, 16, 16), (40, 32, 32),
                                                          (80, 64, 64), (160, 128, 128)]
    assert max(levels[-1].shape) <= 64 < max(levels[-2].shape)
    assert plan_levels((9, 9, 9), (0, 0, 0), None, (64, 64, 64))[-1].shape == (9, 9, 9)
    assert [level.shape for level in plan_levels((1, 9, 9), (0, 0, 0), (4, 4, 4), (1, 4, 4))] == [
        (1, 9, 9), (1, 5, 5), (1, 3, 3)]


def test_the_number_of_levels_can_be_chosen_as_far_as_there_are_any():
    assert len(plan_levels((8, 8, 8), (0, 0, 0), None, (64, 64, 64), 3)) == 3
    with pytest.raises(InputError, match=r"has 4 levels, the last of \(1, 1, 1\); got 5"):
        plan_levels((8, 8, 8), (0, 0, 0), None, (64, 64, 64), 5)
    with pytest.raises(InputError, match="1 to 40 levels; got 0"):
        plan_levels((8, 8, 8), (0, 0, 0), None, (64, 64, 64), 0)
    for start in itertools.product((-1, 0, 1), repeat=3):  # voxels on both sides of the origin never become one
        assert plan_levels((2, 2, 2), start, None, (1, 1, 1))


def test_labels_have_a_mode_and_images_a_mean():
    assert [by_mode(np.dtype(dtype), layer) for dtype, layer in (
        ("uint8", "image"), ("uint8", "segmentation"), ("uint64", "image"), ("float64", "image"), ("bool", "image"))
    ] == [False, True, True, False, True]


def test_pieces_cover_the_box_once():
    box = (slice(3, 10), slice(0, 9), slice(5, 6))
    count = np.zeros((12, 12, 12), int)
    for piece in pieces(box, (2, 4, 4), 1 << 20):
        count[piece] += 1
    assert (count[box] == 1).all()
    assert count.sum() == math.prod(span.stop - span.start for span in box)
