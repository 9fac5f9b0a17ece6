"""decode.kind = "partners" in blocks of any size gives the labels of the whole volume, wherever vectors point."""

import pickle

import numpy as np
import pytest

from emcore.blocks.choice import Choice
from emcore.blocks.grid import Grid
from emcore.blocks.partner_work import PartnerWork
from emcore.blocks.run import damaged_blocks, decode_in_blocks, work_of
from emcore.decode.labels import decode, partners, sizes_of
from emcore.errors import InputError
from emcore.segment.synapses import VECTOR_NM, _nearest_place
from emcore.settings.blocks import Blocks
from emcore.settings.decode import PartnersDecode
from emcore.volumes import create_volume, open_volume
from tests.test_block_pieces import random_block
from tests.test_blocks import labels_by

RESOLUTION = (30.0, 8.0, 6.0)


def stored(folder, values, resolution=RESOLUTION):
    folder.mkdir(exist_ok=True)
    with create_volume(folder / "prediction.h5", values.shape, values.dtype, resolution) as out:
        out[...] = values
    return open_volume(folder / "prediction.h5")


def random_prediction(folder, random, exclusive=False):
    """Boxes of either side anywhere, and vectors that come from one of the middles, from between two or from afar."""
    shape = tuple(int(length) for length in random.integers((1, 4, 4), (9, 20, 20)))
    sides = np.zeros((2, *shape), bool)
    for side in (*[0] * int(random.integers(1, 6)), *[1] * int(random.integers(1, 6))):
        low = random.integers(0, shape)
        sides[(side, *(slice(at, at + size) for at, size in zip(low, random.integers(1, (4, 8, 8)))))] = True
    values = np.zeros((6, *shape))
    values[:2], values[2] = sides, sides.any(0) != exclusive  # the background where classes are exclusive
    if random.random() < 0.5:  # frayed masks, in pieces of a voxel
        values[:3] *= random.random((3, *shape)) > 0.1
    place = np.stack(np.indices(shape), -1) * RESOLUTION
    middles = random.permutation(np.argwhere(sides[0]) * RESOLUTION)[:4]
    aims = middles[random.integers(0, len(middles), shape)] if len(middles) else place
    values[3:] = np.moveaxis(place - aims, -1, 0) / VECTOR_NM
    values[3:] += random.choice([0, 0, 0.02, 0.5]) * random.normal(0, 1, (3, *shape))
    if random.random() < 0.2:
        values[3, random.random(shape) < 0.05] = 3e4  # no place of any volume
    if random.random() < 0.3:
        values[:3] *= 200  # The sides may be stored as 0 to 255.
    return stored(folder, values.astype(random.choice(["float16", "float32"])))


def in_blocks(folder, prediction, settings, block):
    """The labels of all blocks, put together."""
    grid = Grid(prediction.shape[-3:], block)
    made = pickle.loads(pickle.dumps(PartnerWork(folder / "blocks", grid, prediction.name, settings, "",
                                                 sizes_of(prediction))))
    return labels_by(made)


def compare(folder, seed):
    """How many synapses with a postsynaptic side there are, and how many blocks."""
    random = np.random.default_rng(seed)
    exclusive = bool(random.random() < 0.4)
    prediction = random_prediction(folder, random, exclusive)
    settings = PartnersDecode(channels=(2, 0, 1, 3, 4, 5) if exclusive else (), small=int(random.choice([0, 1, 2, 5])),
                              exclusive=exclusive, reach_nm=float(random.choice([6.0, 30.0, 60.0, 200.0, 1e6])))
    wanted = partners(prediction, settings)
    block = random_block(random, prediction.shape[-3:], settings)
    found = in_blocks(folder, prediction, settings, block)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted), (seed, settings, prediction.shape, block)
    return len(np.unique(wanted[(wanted > 0) & (wanted % 2 == 0)])), Grid(prediction.shape[-3:], block).blocks()


def test_blocks_of_any_size_give_the_labels_of_the_whole_volume(tmp_path):
    found = [compare(tmp_path / str(seed), seed) for seed in range(8)]
    assert sum(synapses >= 2 and blocks > 3 for synapses, blocks in found) >= 2


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_blocks_of_any_size_give_the_labels_of_the_whole_volume_often(tmp_path, seed):
    compare(tmp_path, seed)


def test_a_vector_reaches_a_synapse_of_a_block_far_away(tmp_path):
    values = np.zeros((6, 2, 4, 40), np.float32)
    values[0, :, :, 1:3] = values[1, :, :, 36:38] = 1
    values[2] = values[:2].sum(0)
    away = (np.indices((2, 4, 40)).T - (0.5, 1.5, 1.5)) * RESOLUTION / VECTOR_NM
    values[3:, :, :, 36:38] = away.T[..., 36:38]
    found = in_blocks(tmp_path, stored(tmp_path, values), PartnersDecode(small=0, reach_nm=1.0), (1, 4, 10))
    assert np.array_equal(found, values[0] + 2 * values[1])


def test_the_labels_file_of_blocks_reads_as_the_one_of_the_whole_volume(tmp_path):
    prediction = random_prediction(tmp_path, np.random.default_rng(9))
    settings, record = PartnersDecode(small=2), {"prediction": {"digest": "of the prediction"}}
    whole = open_volume(decode(prediction, settings, tmp_path / "whole.h5", record), "labels")
    choice = Choice(Grid(prediction.shape[-3:], (4, 9, 11)), 1, "")
    joined = open_volume(decode_in_blocks(tmp_path / "prediction.h5", settings, tmp_path / "joined.h5", choice,
                                          Blocks(), record), "labels")
    assert np.array_equal(joined[...], whole[...])
    assert joined[...].max() > 1
    assert {name: joined.attrs[name] for name in whole.attrs} == whole.attrs
    again = work_of(tmp_path / "joined.h5")
    assert isinstance(again, PartnerWork)
    assert all(again.is_done(stage, number) for stage in again.stages() for number in range(stage.count))


def test_stages_of_another_resolution_are_not_taken(tmp_path):
    """A prediction without a record has the digest of its voxels, whatever is said of their size."""
    values = np.zeros((6, 2, 4, 40), np.float32)
    values[0, :, :, 1:3] = values[1, :, :, 8:10] = 1
    values[2] = values[:2].sum(0)
    settings, record = PartnersDecode(small=0, reach_nm=60.0), {"prediction": {"digest": "of the voxels"}}

    def in_blocks_of(resolution):
        """The vectors are 0, so that a voxel belongs to a synapse within reach of itself."""
        prediction = stored(tmp_path, values, resolution)
        choice = Choice(Grid(prediction.shape[-3:], (2, 4, 16)), 1, "")
        out = decode_in_blocks(tmp_path / "prediction.h5", settings, tmp_path / "labels.h5", choice, Blocks(), record)
        assert np.array_equal(open_volume(out, "labels")[...], partners(prediction, settings))
        again = work_of(out)
        assert all(again.is_done(stage, number) for stage in again.stages() for number in range(stage.count))
        return np.unique(open_volume(out, "labels")[...]).tolist()

    assert in_blocks_of((30.0, 8.0, 6.0)) == [0, 1, 2]
    assert in_blocks_of((30.0, 8.0, 60.0)) == [0, 1]
    (tmp_path / "prediction.h5").unlink()  # Labels are whole without it.
    assert damaged_blocks(tmp_path / "labels.h5") == []


def test_what_cannot_be_decoded_is_said_as_for_the_whole_volume(tmp_path):
    values = np.zeros((6, 3, 6, 8), np.float32)
    values[:3, 1, 2:4, 2:6] = 1
    for change, sentence in (((3, 1, 2, 3), "prediction holds vectors that are not finite"),
                             ((0, 0, 0, 0), "prediction holds NaN")):
        bad = values.copy()
        bad[change] = np.nan
        for decoded in (partners, lambda *given: in_blocks(tmp_path, *given, (2, 3, 4))):
            with pytest.raises(InputError, match=sentence):
                decoded(stored(tmp_path, bad), PartnersDecode(small=0))
    with pytest.raises(InputError, match=r"measures in nm, but .* has no resolution"):
        in_blocks(tmp_path / "a", stored(tmp_path, values, None), PartnersDecode(exclusive=True), (2, 3, 4))
    with pytest.raises(InputError, match=r"prediction must be \(6, z, y, x\), floating point"):
        in_blocks(tmp_path / "b", stored(tmp_path, values[:5]), PartnersDecode(exclusive=True), (2, 3, 4))


def test_places_find_the_same_synapse_among_few_as_among_all():
    random = np.random.default_rng(1)
    known = random.integers(0, 60, (300, 3)) * 10.0  # distances of exactly the reach, and ties
    places = random.integers(0, 60, (500, 3)) * 10.0
    for reach in (0.1, 10.0, 30.0, 1e4):
        whole = _nearest_place(places, known, reach)
        away = ((places[:, None] - known) ** 2).sum(2)
        slow = np.where(away.min(1) <= reach * reach, away.argmin(1), -1)
        assert np.array_equal(whole, slow)
        for part in np.array_split(np.argsort(places[:, 0]), 7):
            assert np.array_equal(_nearest_place(places[part], known, reach), slow[part])
