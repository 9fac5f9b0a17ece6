"""What is said about the thresholds of a watershed before a decoding in blocks, against counts of whole volumes."""

import re

import numpy as np
import pytest

from bench.affinities import make_affinities
from emcore.blocks import density
from emcore.blocks.grid import Grid
from emcore.blocks.windows import Source
from emcore.segment import region_graph, watershed
from emcore.settings.decode import AffinityDecode, ComponentsDecode
from emcore.volumes import create_volume, open_volume

OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
DOCUMENTED = AffinityDecode(low=0.1, high=0.999)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """The look ends after as many boxes as there should be, however busy this machine is."""
    monkeypatch.setattr(density, "SECONDS", 600)


def stored(path, affs):
    with create_volume(path, affs.shape, affs.dtype, attributes={"offsets": OFFSETS}) as out:
        out[...] = affs
    return path


def cells(shape, side, within, across, side_of_all=None):
    """Affinities of cubes of a side: within one, across to another; 0 between cubes of side_of_all, where given."""
    affs = np.full((3, *shape), within, np.float32)
    for axis in range(3):
        along = np.moveaxis(affs[axis], axis, 0)
        along[::side] = across
        if side_of_all:
            along[::side_of_all] = 0
    return affs


def boxes_of(path):
    shape = open_volume(path).shape[1:]
    return list(density.boxes_of(Source(str(path), AffinityDecode()), Grid(shape, (density.SIDE,) * 3)))


def voxels_of(boxes):
    return sum(np.prod([span.stop - span.start for span in core]) for _, core in boxes)


def test_fragments_are_counted_by_the_part_that_lies_in_a_box(tmp_path):
    boxes = boxes_of(stored(tmp_path / "a.h5", cells((96, 102, 120), 3, 0.99995, 0.9995, 6)))
    assert len(boxes) == density.BOXES
    fine, coarse = density.sample(boxes, 1e-4, 0.9999), density.sample(boxes, 0.1, 0.999)
    assert fine.inside == coarse.inside == voxels_of(boxes)
    assert fine.inside / fine.fragments == pytest.approx(27)
    assert coarse.inside / coarse.fragments == pytest.approx(216)
    assert fine.edges / fine.fragments == pytest.approx(3, rel=0.1)  # three for a cell, but for those at the ends
    assert coarse.edges / coarse.fragments == pytest.approx(3, rel=0.15)


def test_a_volume_of_one_box_is_counted_whole(tmp_path):
    affs = np.random.default_rng(0).random((20, 31, 40), np.float32)[None].repeat(3, 0)
    found = density.sample(boxes_of(stored(tmp_path / "a.h5", affs)), 0.3, 0.9)
    labels = watershed(affs, 0.3, 0.9)
    assert found.fragments == pytest.approx(labels.max())
    assert found.edges == pytest.approx(len(region_graph(labels, affs).u))
    assert found.inside == np.count_nonzero(labels) < labels.size


def test_boxes_tell_the_density_of_a_volume_of_tissue(tmp_path):
    places = np.moveaxis(np.indices((24,) * 3), 0, -1)[..., None, :]
    nearest = ((places - np.random.default_rng(1).integers(0, 24, (40, 3))) ** 2).sum(-1).argmin(-1) + 1
    affs = make_affinities(nearest.repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.uint32))
    boxes = boxes_of(stored(tmp_path / "a.h5", affs))
    for low, high in ((1e-4, 0.9999), (0.1, 0.999)):
        whole = watershed(affs, low, high)
        found, voxels = density.sample(boxes, low, high), voxels_of(boxes)
        assert found.fragments / voxels == pytest.approx(whole.max() / whole.size, rel=0.2)
        assert found.edges / voxels == pytest.approx(len(region_graph(whole, affs).u) / whole.size, rel=0.2)


def test_thresholds_that_cost_less_are_named(tmp_path):
    path = stored(tmp_path / "a.h5", cells((96, 96, 96), 3, 0.99995, 0.9995, 6))
    told = density.advice(path, AffinityDecode())
    assert re.fullmatch(r"one fragment for every 27 voxels with decode\.low = 0\.0001 and decode\.high = 0\.9999, by 5 "
                        r"boxes of 48³: graph and merges take about 1\d\.\d MB of disk; decode\.low = 0\.1 and "
                        r"decode\.high = 0\.999 would make one for every 216 voxels and take about 1\.\d MB", told)
    assert density.advice(path, DOCUMENTED) == ""


def test_where_other_thresholds_do_not_help_it_says_only_what_it_is(tmp_path):
    path = stored(tmp_path / "a.h5", cells((96, 96, 96), 3, 0.99995, 0.0))
    for settings in (AffinityDecode(), DOCUMENTED):
        assert re.fullmatch(rf"one fragment for every 27 voxels with decode\.low = {settings.low:g} and decode\.high = "
                            rf"{settings.high:g}, by 5 boxes of 48³: graph and merges take about 1\d\.\d MB of disk",
                            density.advice(path, settings))


def test_thresholds_that_lose_voxels_are_not_named_without_that(tmp_path):
    affs = cells((96, 96, 96), 3, 0.99995, 0.9995, 6)
    affs[:, :, :, ::12] = affs[:, :, :, 1::12] = 0.05  # planes that hang together below the low threshold only
    affs[1, :, :, 2::12] = 0.05
    told = density.advice(stored(tmp_path / "a.h5", affs), AffinityDecode())
    lost = int(re.search(r", but leave (\d+)% of these voxels without a fragment$", told)[1])
    assert lost == pytest.approx(100 / 12, abs=2)
    affs[:, :, :48] = np.where(affs[:, :, :48] == 0.05, 0.05, affs[:, :, :48] * np.float32(0.05))
    for number, weak in enumerate((affs, cells((96, 96, 96), 3, 0.05, 0.01))):  # half or nothing would be left
        told = density.advice(stored(tmp_path / f"weak{number}.h5", weak), AffinityDecode())
        assert told.startswith("one fragment for every ")
        assert "would" not in told


def test_what_lies_outside_of_the_tissue_does_not_count(tmp_path):
    affs = cells((192, 192, 192), 3, 0.99995, 0.9995, 6)
    affs[:, :96] = affs[:, :, :96] = 0  # only a quarter of it is tissue
    path = stored(tmp_path / "a.h5", affs)
    boxes = boxes_of(path)
    assert len(boxes) > density.BOXES
    assert sum(bool(affs.values.any()) for affs, _ in boxes) == density.BOXES
    assert density.advice(path, AffinityDecode()).startswith("one fragment for every 27 voxels")
    assert density.advice(stored(tmp_path / "none.h5", np.zeros_like(affs)), AffinityDecode()) == ""


def test_nothing_is_said_of_other_decodings(tmp_path):
    path = stored(tmp_path / "a.h5", cells((96, 96, 96), 3, 0.99995, 0.9995, 6))
    for settings in (AffinityDecode(fragments="minima"), ComponentsDecode()):
        assert density.advice(path, settings) == ""


def test_it_takes_little_time(tmp_path, monkeypatch):
    path = stored(tmp_path / "a.h5", cells((96, 96, 96), 3, 0.99995, 0.9995, 6))
    monkeypatch.setattr(density, "SECONDS", 0)  # each box is over it
    assert ", by one box of 48³:" in density.advice(path, AffinityDecode())
