"""Synaptic partners against a slow oracle, in any blocks, and against the truth of synthetic tissue."""

import numpy as np
import pytest

from emcore import metrics, segment
from emcore.errors import InputError
from emcore.synth import synthesize
from emcore.volumes import create_volume, open_volume
from tests.oracles import partners as oracle

RESOLUTION = (40.0, 4.0, 5.0)
OFFSET = (80.0, 8.0, 0.0)


class Placed:
    """An array with a resolution and an offset, which is no array, so that it is read in blocks."""

    def __init__(self, values, resolution=RESOLUTION, offset=OFFSET, chunks=None):
        self.values, self.resolution, self.offset, self.chunks = values, resolution, offset, chunks
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, box):
        return self.values[box]


def blobs(rng, shape, most, empty, dtype=np.uint64):
    """Random ids in patches, `empty` of them 0."""
    coarse = rng.integers(1, most + 1, [length // 2 + 1 for length in shape])
    coarse[rng.random(coarse.shape) < empty] = 0
    return coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(map(slice, shape))].astype(dtype)


def rows_of(found):
    return list(zip(found.synapse.tolist(), found.place.tolist(), found.size.tolist(), found.pre.tolist(),
                    found.post.tolist(), found.directed.tolist(), found.confidence.tolist(),
                    found.contact_area.tolist(), found.pre_place.tolist(), found.post_place.tolist()))


def same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert [ours[0], *ours[2:6]] == [theirs[0], *theirs[2:6]]
        for place in (1, 6, 7, 8, 9):
            np.testing.assert_allclose(ours[place], theirs[place], rtol=1e-12)


@pytest.mark.parametrize("kind", ["polarity", "clefts", "directed"])
def test_partners_are_those_of_the_oracle_in_any_blocks(kind):
    rng = np.random.default_rng(["polarity", "clefts", "directed"].index(kind))
    way = "clefts" if kind == "directed" else kind
    for number in range(12):
        shape = tuple(int(length) for length in rng.integers(1, 7, 3))
        labels, synapses = blobs(rng, shape, 5, 0.2), blobs(rng, shape, 6, 0.4)
        if number % 3 == 0:
            labels[rng.random(shape) < 0.1] = 2**64 - 1
            synapses[rng.random(shape) < 0.1] = 2**64 - 2
        direction = None
        if kind == "directed":
            direction = rng.random((3, *shape)).astype(np.float32)
            direction = (direction * 4).astype(np.uint8) if number % 2 else direction
        share = float(rng.choice([0.1, 0.25, 0.5, 1.0]))
        expected = oracle.partners(labels, synapses, way, RESOLUTION, OFFSET, share, direction)
        whole = None
        for block in oracle.grids(shape, rng):
            given = None if direction is None else Placed(direction)
            found = segment.partners(Placed(labels), Placed(synapses), way, direction=given, share=share, block=block)
            same(rows_of(found), expected)
            whole = whole or found
            for name, values in vars(found).items():  # to the bit
                assert np.array_equal(values, vars(whole)[name], equal_nan=values.dtype.kind == "f")


def test_a_worked_case_of_one_to_many():
    labels = np.array([[[1, 1, 1, 1, 2, 2, 3, 0]]], np.uint32)
    sides = np.array([[[0, 0, 7, 7, 8, 8, 8, 8]]], np.uint32)
    found = segment.partners(labels, sides, resolution=(2, 3, 5))
    assert found.synapse.tolist() == [4, 4]
    assert (found.pre.tolist(), found.post.tolist(), found.size.tolist()) == ([1, 1], [2, 3], [6, 6])
    assert found.confidence.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert found.contact_area.tolist() == [6, 0]  # 1 and 2 meet in one face across x, of 2 nm x 3 nm
    assert found.pre_place[:, 2].tolist() == [10, 10]  # of two voxels equally far from the middle the first
    assert segment.partners(labels, sides, resolution=(2, 3, 5), share=0.4).post.tolist() == [2]


def test_a_neuron_is_a_partner_from_the_share_of_the_votes_that_the_page_names():
    labels = np.array([[[1] * 3 + [2] * 71 + [3] * 15 + [4] * 14]], np.uint8)
    sides = np.where(labels == 1, 1, 2)
    assert segment.partners(labels, sides, resolution=(1, 1, 1)).post.tolist() == [2, 3]  # 71, 15 and 14 of 100 votes


def test_a_side_without_another_neuron_stays_open():
    labels = np.array([[[1, 1, 1, 0]]], np.uint8)
    for sides, pre in (([0, 1, 2, 2], 1), ([1, 1, 0, 0], 1), ([0, 0, 0, 1], 0), ([0, 0, 0, 2], 0)):
        found = segment.partners(labels, np.array([[sides]], np.uint8), resolution=(1, 1, 1))
        assert (found.pre.tolist(), found.post.tolist(), found.confidence.tolist()) == ([pre], [0], [0])
        assert not found.resolved.any()
        assert found.sites.shape == (0, 2, 3)
    nothing = segment.partners(labels, np.zeros_like(labels), resolution=(1, 1, 1))
    assert len(nothing) == 0
    assert nothing.place.shape == (0, 3)


def test_the_truth_of_synthetic_tissue_is_found(tmp_path):
    tissue = synthesize((16, 96, 96), (30.0, 8.0, 8.0), 3, synapses=12)
    for name, values in (("labels", tissue.neuron_ids), ("polarity", tissue.polarity), ("clefts", tissue.clefts)):
        with create_volume(f"{tmp_path}/a.h5:{name}", values.shape, values.dtype, tissue.resolution,
                           chunks=(8, 32, 32)) as out:
            out[...] = values
    names = {name: f"{tmp_path}/a.h5:{name}" for name in ("labels", "polarity", "clefts")}
    found = segment.partners(names["labels"], names["polarity"])
    true = {synapse.number: synapse for synapse in tissue.synapses}
    assert len(true) > 2
    assert found.synapse.tolist() == sorted(true)
    assert [(true[int(n)].pre, true[int(n)].post) for n in found.synapse] == list(zip(found.pre.tolist(),
                                                                                     found.post.tolist()))
    assert (found.confidence == 1).all()
    assert (found.contact_area > 0).all()
    sites = [(synapse.pre_site, synapse.post_site) for synapse in tissue.synapses]
    assert metrics.synaptic_partners(sites, found.sites, tissue.neuron_ids, tissue.resolution).f1 == 1
    faced = segment.partners(names["labels"], names["clefts"], "clefts")
    assert [{int(a), int(b)} for a, b in zip(faced.pre, faced.post)] == [
        {true[int(n)].pre, true[int(n)].post} for n in faced.synapse]
    assert not faced.directed.any()


@pytest.mark.parametrize("given, sentence", [
    ({"synapses": np.zeros((2, 3, 5), np.uint8)}, "must cover the same voxels: cut the larger one"),
    ({"synapses": np.zeros((2, 3, 4), bool)}, "number its pieces with segment.connected_components"),
    ({"synapses": np.zeros((2, 3, 4))}, "labels are integers"),
    ({"synapses": np.full((2, 3, 4), -1)}, "must not hold negative ids; found -1"),
    ({"kind": "vesicles"}, "kind must be one of polarity, clefts"),
    ({"share": 0}, "share must be above 0"),
    ({"share": "a"}, "share must be above 0"),
    ({"block": (0, 1, 1)}, "block must be three sizes"),
    ({"resolution": (1, 1)}, "resolution must be three sizes"),
    ({"resolution": None}, "neither ndarray nor ndarray says its resolution"),
    ({"direction": np.zeros((2, 2, 3, 4), np.uint8)}, "polarity instances have two sides already"),
    ({"kind": "clefts", "direction": np.zeros((1, 2, 3, 4), np.uint8)}, "channels pre, post"),
    ({"kind": "clefts", "direction": np.full((2, 2, 3, 4), np.nan), "synapses": np.ones((2, 3, 4), int)}, "NaN"),
])
def test_what_does_not_fit_is_said(given, sentence):
    options = {"labels": np.ones((2, 3, 4), np.uint8), "synapses": np.zeros((2, 3, 4), np.uint8),
               "resolution": (1, 1, 1)} | given
    with pytest.raises(InputError, match=sentence):
        segment.partners(**options)


def test_volumes_of_another_place_or_resolution_are_refused():
    labels = Placed(np.ones((2, 3, 4), np.uint8))
    for other, sentence in ((Placed(labels.values, (40, 4, 4)), "resample one of them"),
                            (Placed(labels.values, offset=(0, 8, 0)), "cut both to what they share")):
        with pytest.raises(InputError, match=sentence):
            segment.partners(labels, other)
    assert open_volume(labels).resolution == RESOLUTION


def test_the_grid_is_that_of_the_volume_that_says_one():
    labels, synapses = np.zeros((2, 4, 6), np.uint64), np.zeros((2, 4, 6), np.uint64)
    labels[:, :, :3], labels[:, :, 3:], synapses[0, 1, 2], synapses[0, 1, 3] = 1, 2, 1, 2
    whole = segment.partners(Placed(labels), Placed(synapses))
    assert rows_of(segment.partners(Placed(labels, None, (0.0, 0.0, 0.0)), Placed(synapses))) == rows_of(whole)
    assert whole.place[0].tolist() == [80, 12, 12.5]
    with pytest.raises(InputError, match="cut both to what they share"):
        segment.partners(Placed(labels, offset=(0.0, 8.0, 0.0)), Placed(synapses), resolution=RESOLUTION)
