"""Border masks: the published tables, a search of every pixel, and dbMiM's box."""

import numpy as np
import pytest

from emcore import metrics
from emcore.errors import InputError
from tests.oracles import partitions as oracle

IMAGES = {
    "m1": "111111 111111 111222 111222 111222 111222",
    "m2": "5555 5555 5555",
    "m3": "1111111 1111111 1111111 1117111 1111111 1111111 1111111",
    "m4": "12 21",
    "m5": "111000333",
    "m6": "11122222",
    "m7": "1111 1111 1122 1122",
}
MASKS = {  # distance in pixels -> mask; m2 is ours: cremi_python masks a corner of a section of a single label
    "m1": {0: "000000 000111 001111 001100 001100 001100", 0.5: "000000 000111 001111 001100 001100 001100",
           1: "000111 001111 011111 011111 011110 011110", 1.5: "001111 011111 011111 011111 011110 011110",
           2: "001111 011111 111111 111111 111111 111111"},
    "m2": dict.fromkeys((0, 0.5, 1, 1.5, 2), "0000 0000 0000"),
    "m3": {0: "0000000 0000000 0001000 0011100 0001000 0000000 0000000",
           0.5: "0000000 0000000 0001000 0011100 0001000 0000000 0000000",
           1: "0000000 0001000 0011100 0111110 0011100 0001000 0000000",
           1.5: "0000000 0011100 0111110 0111110 0111110 0011100 0000000",
           2: "0001000 0011100 0111110 1111111 0111110 0011100 0001000"},
    "m4": dict.fromkeys((0, 0.5, 1, 1.5, 2), "11 11"),
    "m5": {0: "001101100", 0.5: "001101100", 1: "011111110", 1.5: "011111110", 2: "111111111"},
    "m6": {0: "00110000", 0.5: "00110000", 1: "01111000", 1.5: "01111000", 2: "11111100"},
    "m7": {0: "0000 0011 0111 0110", 0.5: "0000 0011 0111 0110", 1: "0011 0111 1111 1111",
           1.5: "0111 1111 1111 1111", 2: "0111 1111 1111 1111"},
}


def section(text):
    return np.array([[[int(pixel) for pixel in line] for line in text.split()]], np.uint64)


@pytest.mark.parametrize("name", IMAGES)
def test_neuron_border_masks_are_those_of_cremi(name):
    for distance, expected in MASKS[name].items():
        mask = metrics.neuron_border_mask(section(IMAGES[name]), (40, 4, 4), distance * 4)
        assert np.array_equal(mask, section(expected)), distance


def test_masks_equal_a_search_of_every_pixel():
    random = np.random.default_rng(20)
    for _ in range(150):
        truth = random.integers(0, random.integers(1, 4), random.integers(0, 7, 3))
        distance, aspect = random.choice([0, 0.7, 1, 1.5, 2, 2.9, 3, 50]), random.choice([1.0, 2.0, 0.7])
        expected = np.array([oracle.euclidean_mask(labels, distance, aspect) for labels in truth], bool)
        mask = metrics.neuron_border_mask(truth, (30, 5 * aspect, 5), 5 * distance, threads=2)
        assert np.array_equal(mask, expected.reshape(truth.shape))
        xy, z = random.integers(0, 4, 2)
        assert np.array_equal(metrics.box_border_mask(truth, int(xy), int(z)), oracle.box_mask(truth, xy, z))


def test_box_masks_are_those_of_dbmim():
    truth = section(IMAGES["m1"])
    assert np.array_equal(metrics.box_border_mask(truth, 1), section("001111 011111 011111 011111 011110 011110"))
    assert metrics.box_border_mask(truth, 2).all()
    assert not metrics.box_border_mask(truth, 0).any()
    # no distance in the section, but borders in the section are masked, as there
    assert np.array_equal(metrics.box_border_mask(truth, 0, 1), section(MASKS["m1"][0]))


def test_sections_do_not_see_each_other_and_no_distance_masks_nothing():
    truth = np.ones((2, 5, 6), np.uint32)
    truth[1] = 2
    assert not metrics.neuron_border_mask(truth, (4, 4, 4), 100).any()
    assert metrics.box_border_mask(truth, 0, 1).all()
    assert not metrics.neuron_border_mask(section(IMAGES["m1"]), (40, 4, 4), None).any()


def test_masks_do_not_depend_on_threads_types_or_layout():
    truth = np.random.default_rng(21).integers(0, 3, (9, 20, 31)).astype(np.uint8)
    strided = np.asfortranarray(truth.astype(">u8"))
    strided.flags.writeable = False
    for mask in (lambda volume, threads: metrics.neuron_border_mask(volume, (40, 4, 4), 8, threads),
                 lambda volume, threads: metrics.box_border_mask(volume, 2, 1, threads)):
        expected = mask(truth, 1)
        for threads in (2, 3, 7):
            assert np.array_equal(mask(strided, threads), expected)


@pytest.mark.parametrize("call, sentence", [
    (lambda: metrics.neuron_border_mask(np.ones((3, 3), int), (40, 4, 4)), r"of shape \(z, y, x\); got \(3, 3\)"),
    (lambda: metrics.neuron_border_mask(np.ones((3, 3, 3)), (40, 4, 4)), "integer labels; got float64"),
    (lambda: metrics.neuron_border_mask(np.ones((3, 3, 3), int), (4, 4)), "three positive sizes"),
    (lambda: metrics.neuron_border_mask(np.ones((3, 3, 3), int), (40, 0, 4)), "three positive sizes"),
    (lambda: metrics.neuron_border_mask(np.ones((3, 3, 3), int), (40, 4, 4), -1), "distance_nm must be 0 or more"),
    (lambda: metrics.box_border_mask(np.ones((3, 3, 3), int), 1.5), "distance_xy must be a whole number"),
    (lambda: metrics.box_border_mask(np.ones((3, 3, 3), int), 1, -1), "distance_z must be a whole number"),
])
def test_bad_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()
