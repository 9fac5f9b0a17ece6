"""The face forest: against a slow oracle, and on the affinities of a truth, where it must give the truth back."""

import numpy as np
import pytest

from emcore.blocks import leaves
from emcore.blocks.grid import Grid
from emcore.errors import InputError
from emcore.segment import Affinities, Segmentation, decode_affinities, encode_affinities, face_forest
from emcore.segment.faces import face_orders
from tests.oracles import face_forest as oracle
from tests.test_watershed import tied_volume


def test_the_face_forest_equals_the_slow_definition_on_volumes_full_of_ties():
    several = 0
    for seed in range(250):
        affs, _, _, rng = tied_volume(seed)
        if seed % 2:  # few equal numbers, on both sides of one half
            affs = rng.random(affs.shape, np.float32)
        smooth, mask = seed % 4, rng.random(affs.shape[1:]) < 0.8 if seed % 3 == 0 else None
        expected = oracle.face_forest(affs, smooth, mask)
        assert np.array_equal(face_forest(affs, smooth, mask=mask, threads=1 + seed % 3), expected), seed
        several += expected.max() > 1
    assert several > 150


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 1), (1, 9, 1), (1, 1, 9), (1, 7, 17), (9, 7, 1), (30, 3, 4)])
def test_flat_and_deep_shapes_have_the_orders_of_the_slow_definition(shape, monkeypatch):
    monkeypatch.setattr("emcore.segment.faces._SLAB", 16)  # slabs of few sections
    affs = np.random.default_rng(3).random((3, *shape), np.float32)
    for smooth in (0, 1, 2):
        found = face_orders(Affinities(affs), smooth, threads=2).values * 2**20
        for axis in range(3):
            inner = (axis, *(slice(int(axis == other), None) for other in range(3)))
            assert np.array_equal(found[inner], oracle.face_orders(affs, smooth)[inner])


def test_every_type_of_affinities_gives_the_fragments_of_the_numbers_it_stands_for():
    affs = np.random.default_rng(5).random((3, 9, 10, 11), np.float32)
    half = affs.astype(np.float16)
    assert np.array_equal(face_forest(half), face_forest(half.astype(np.float32)))
    codes, table = encode_affinities(affs)
    assert np.array_equal(face_forest(Affinities(codes, table=table), 1),
                          face_forest(decode_affinities(codes, table), 1))
    earlier = np.stack([np.roll(values, -1, axis) for axis, values in enumerate(affs)])
    stored = Affinities(earlier, [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    assert np.array_equal(face_forest(stored, 1), face_forest(affs, 1))


def test_fragments_of_a_segmentation_are_named_faces_with_the_passes_of_smoothing():
    affs = np.random.default_rng(6).random((3, 6, 7, 8), np.float32)
    mask = np.arange(6 * 7 * 8).reshape(6, 7, 8) % 5 > 0
    for name, smooth in (("faces", 0), ("faces-0", 0), ("faces-3", 3)):
        found = Segmentation(affs, fragments=name, mask=mask, low=0.4, high=0.5).fragments
        assert np.array_equal(found, face_forest(affs, smooth, mask=mask))


def test_what_the_face_forest_refuses():
    affs = np.full((3, 2, 3, 4), 0.5, np.float32)
    for smooth in (-1, 1.5, True, 9):
        with pytest.raises(InputError, match="whole number of passes"):
            face_forest(affs, smooth)
    with pytest.raises(InputError, match="affs must lie in"):
        face_forest(affs * 3)
    for name in ("faces-", "faces--1", "faces-9", "faces-1.5", "faces-\u00b2"):
        with pytest.raises(InputError, match="whole number of passes"):
            Segmentation(affs, fragments=name)
    with pytest.raises(InputError, match="there are watershed, faces, "):
        Segmentation(affs, fragments="facets")
    assert face_forest(np.zeros((3, 0, 3, 4), np.float32)).shape == (0, 3, 4)
    assert not face_forest(np.zeros((3, 2, 3, 4), np.float32)).any()


class OneVolume:
    """What a block reads of a prediction, from an array."""

    def __init__(self, affs):
        self.affs = affs

    def affinities(self, box):
        return Affinities(self.affs.values[(slice(None), *box)], self.affs.offsets)


def different_blocks(smooth, earlier):
    """How many blocks of random grids have other orders than the whole volume has there."""
    rng, different = np.random.default_rng(smooth), 0
    for _ in range(6):
        shape = tuple(int(length) for length in rng.integers(5, 24, 3))
        offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1)] if earlier else None
        affs = Affinities(rng.random((3, *shape), np.float32), offsets)
        grid, whole = Grid(shape, tuple(int(size) for size in rng.integers(3, 9, 3))), face_orders(affs, smooth).values
        for number in range(grid.blocks()):
            window, _ = grid.grown(number, leaves.CONTEXT, leaves.CONTEXT)
            found = leaves.orders_of(OneVolume(affs), grid, number, smooth).values
            inner = tuple((axis, *(slice(int(axis == other), None) for other in range(3))) for axis in range(3))
            different += any(not np.array_equal(found[part], whole[(slice(None), *window)][part]) for part in inner)
    return different


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("smooth", [0, 1, 4])
def test_the_orders_of_faces_in_blocks_are_those_of_the_volume_by_their_margin_alone(smooth, earlier, monkeypatch):
    assert different_blocks(smooth, earlier) == 0
    monkeypatch.setattr(leaves, "MARGIN", 0)
    assert different_blocks(smooth, earlier) > 0
