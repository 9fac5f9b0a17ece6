"""Kinds of decoding whose labels are connected pieces: blocks of any size give the labels of the whole volume."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from emcore.blocks import work
from emcore.blocks.choice import Choice, Task, check_kind, needs_sections
from emcore.blocks.grid import Grid
from emcore.blocks.kinds import PieceWork
from emcore.blocks.run import decode_in_blocks, work_of
from emcore.decode.labels import components, connected, decode, polarity
from emcore.errors import InputError
from emcore.segment.affinities import LOGIT_TABLE, TABLE_ATTRIBUTE
from emcore.settings.blocks import Blocks
from emcore.settings.decode import (
    AffinityDecode,
    ComponentsDecode,
    ConnectedDecode,
    ContourDecode,
    Decode,
    PartnersDecode,
    PolarityDecode,
)
from emcore.volumes import Volume, create_volume, open_volume
from tests.test_blocks import labels_by

IN_MEMORY = {ConnectedDecode: connected, ComponentsDecode: components, PolarityDecode: polarity}


def stored(folder, values: np.ndarray, **attributes) -> Volume:
    with create_volume(folder / "prediction.h5", values.shape, values.dtype, attributes=attributes) as out:
        out[...] = values
    return open_volume(folder / "prediction.h5")


def random_prediction(folder, random: np.random.Generator, kind: str) -> Volume:
    """Smooth or rough, with ties or without, of every type that a prediction may have."""
    shape = random.integers(1, (6, 40, 40) if kind == "polarity" else (8, 12, 12))
    count = {"connected": random.integers(3, 6), "polarity": random.integers(3, 5)}.get(kind, random.integers(1, 4))
    values = random.random((count, *shape))
    if random.random() < 0.5:  # larger pieces, which wind through many blocks
        for axis in (1, 2, 3):
            values = (values + np.roll(values, 1, axis)) / 2
        values = np.clip((values - 0.5) * random.uniform(1, 4) + random.choice([0.3, 0.5, 0.6]), 0, 1)
    if kind == "polarity":  # synapses are few
        near = random.random(shape) < 0.01
        for axis in range(3):
            near |= np.roll(near, 1, axis)
        values *= near
    if random.random() < 0.5:
        values = np.round(values * 4) / 4
    attributes = {}
    if kind == "connected":
        offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [0, -2, 0], [-3, 0, 0]][:count]
        attributes["offsets"] = [[random.choice([-1, 1]) * step for step in offset] for offset in offsets]
        order = random.permutation(count)
        attributes["offsets"] = [[int(step) for step in attributes["offsets"][at]] for at in order]
    dtype = random.choice(["uint8", "table", "float16", "float32"])
    if dtype in ("uint8", "table"):
        values = np.round(values * 255).astype(np.uint8)
        if dtype == "table":
            attributes[TABLE_ATTRIBUTE] = LOGIT_TABLE.tolist()
    elif kind == "polarity" and random.random() < 0.4:  # of 0 to 255, which one voxel may say alone
        values = values.astype(dtype)
        values[tuple(random.integers(0, values.shape))] = 200
        values *= random.choice([1, 100])
    return stored(folder, values.astype(dtype if dtype in ("float16", "float32") else np.uint8), **attributes)


def random_settings(random: np.random.Generator, kind: str, prediction: Volume) -> Decode:
    threshold, size = float(random.choice([0.0, 0.25, 0.3, 0.5, 0.6, 0.75])), int(random.choice([0, 0, 1, 3, 6]))
    three = tuple(float(value) for value in random.choice([0.2, 0.25, 0.5, 0.7], 3))
    channels = len(prediction)
    if kind == "connected":
        moved = random.random() < 0.3
        return ConnectedDecode(threshold=threshold, thresholds=three if random.random() < 0.4 else (), remove_size=size,
                               bias=(0.5, -0.3, 0.0) if moved else (0.0, 0.0, 0.0), temperature=2.0 if moved else 1.0)
    picked = tuple(int(channel) for channel in random.permutation(channels)[:random.integers(0, channels + 1)])
    if kind == "polarity":
        return PolarityDecode(threshold=threshold, small=int(random.choice([0, 1, 2, 5])), remove_size=size,
                              channels=tuple(int(channel) for channel in random.permutation(channels)[:3]),
                              exclusive=bool(random.random() < 0.4))
    thresholds = tuple(float(value) for value in random.choice([0.2, 0.5, 0.7], len(picked) or channels))
    settings = ComponentsDecode(threshold=threshold, thresholds=thresholds if random.random() < 0.4 else (),
                                channels=picked, connectivity=int(random.choice([4, 8, 6, 18, 26])), remove_size=size)
    if random.random() < 0.5:
        settings = replace(settings, peak=float(random.uniform(max(settings.thresholds or (threshold,)), 1)))
    if settings.connectivity in (4, 8) and random.random() < 0.6:
        least = max(settings.thresholds or (threshold,))
        settings = replace(settings, seed_threshold=max(0.1, float(random.uniform(least, 1))))
    return settings


def random_block(random: np.random.Generator, shape: tuple[int, ...], settings: Decode) -> tuple[int, ...]:
    """A block of one voxel where that makes few blocks, of whole sections where it must."""
    most = 40
    while True:
        block = random.integers(1, np.array(shape) + 1)
        block = np.where(random.random(3) < 0.4, 1, block)
        if needs_sections(settings):
            block[1:] = shape[1:]
        if Grid(shape, tuple(block)).blocks() <= most:
            return tuple(int(size) for size in block)
        most += 1


def in_blocks(folder, prediction: Volume, settings: Decode, block: tuple[int, int, int]) -> np.ndarray:
    """The labels of all blocks, put together."""
    grid = Grid(prediction.shape[-3:], block)
    made = pickle.loads(pickle.dumps(PieceWork(folder / "blocks", grid, prediction.name, settings, "")))
    return labels_by(made)


def compare(folder, kind: str, seed: int) -> int:
    random = np.random.default_rng([seed, len(kind)])
    prediction = random_prediction(folder, random, kind)
    for _ in range(6):  # of these settings the first that leave some labels
        settings = random_settings(random, kind, prediction)
        wanted = IN_MEMORY[type(settings)](prediction, settings)
        if wanted.max(initial=0) > 3:
            break
    found = in_blocks(folder, prediction, settings, random_block(random, prediction.shape[-3:], settings))
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted), (seed, settings)
    return int(wanted.max(initial=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["connected", "components", "polarity"])
def test_blocks_give_the_labels_of_the_whole_volume(kind, tmp_path_factory):
    found = [compare(tmp_path_factory.mktemp(kind), kind, seed) for seed in range(13)]
    assert sum(largest > 3 for largest in found) > 6


@pytest.mark.long
@pytest.mark.parametrize("kind", ["connected", "components", "polarity"])
def test_blocks_give_the_labels_of_the_whole_volume_in_hundreds_of_random_volumes(kind, tmp_path_factory):
    found = [compare(tmp_path_factory.mktemp(kind), kind, seed) for seed in range(100, 200)]
    assert sum(largest > 3 for largest in found) > 60


def test_a_piece_that_winds_through_every_block_is_one_and_the_order_of_first_voxels_numbers_all(tmp_path):
    """Blocks in raster order are not voxels in raster order: the first voxel of a later block may come before."""
    mask = np.zeros((2, 4, 6), np.float32)
    mask[0, 0, 5] = mask[0, 1, 0] = mask[1, 3, 2] = 1  # the first one lies in the second block
    prediction = stored(tmp_path, mask)
    found = in_blocks(tmp_path, prediction, ComponentsDecode(connectivity=6), (2, 4, 3))
    assert [found[0, 0, 5], found[0, 1, 0], found[1, 3, 2]] == [1, 2, 3]
    snake = np.zeros((1, 7, 7), np.float32)
    snake[0, ::2] = 1
    snake[0, 1, 6] = snake[0, 3, 0] = snake[0, 5, 6] = 1
    found = in_blocks(tmp_path, stored(tmp_path, snake), ComponentsDecode(connectivity=4), (1, 1, 1))
    assert np.array_equal(found, snake > 0)


def test_a_peak_anywhere_keeps_the_whole_piece(tmp_path):
    row = np.array([0.6, 0.6, 0.6, 0.6, 0.95, 0, 0.7, 0.7, 0.7, 0.7, 0, 0.92], np.float32)  # one of three has no peak
    found = in_blocks(tmp_path, stored(tmp_path, row[None, None]), ComponentsDecode(peak=0.9), (1, 1, 2))
    assert found.ravel().tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 3]


@pytest.mark.parametrize("connectivity", [8, 18, 26])
def test_voxels_that_meet_at_an_edge_or_a_corner_of_blocks_are_one_piece(connectivity, tmp_path):
    mask = (np.random.default_rng(connectivity).random((4, 6, 10)) < 0.12).astype(np.uint8) * 255
    prediction, settings = stored(tmp_path, mask), ComponentsDecode(connectivity=connectivity)
    wanted = components(prediction, settings)
    assert wanted.max() < components(prediction, replace(settings, connectivity=6)).max()
    assert np.array_equal(in_blocks(tmp_path, prediction, settings, (2, 2, 2)), wanted)


def test_what_grows_from_seeds_is_numbered_by_the_first_voxels_of_the_seeds(tmp_path):
    values = np.zeros((5, 3, 9), np.float32)
    values[:, :, 0] = values[:, 0] = 0.6
    values[:, 0, 8] = values[:, 1, 4] = values[:, 2, 0] = 0.9  # the last one grows to the first voxel
    values[:, 1, 4] += np.float32(0.01)
    prediction, settings = stored(tmp_path, values), ComponentsDecode(connectivity=4, seed_threshold=0.8, remove_size=2)
    found = in_blocks(tmp_path, prediction, settings, (2, 3, 9))
    assert [found[4, 0, 8], found[4, 1, 4], found[4, 0, 0]] == [13, 14, 15]
    assert np.array_equal(found, components(prediction, settings))


def test_a_synapse_is_one_where_its_parts_meet_only_when_they_are_grown_across_a_face(tmp_path):
    values = np.zeros((3, 1, 12, 14), np.float32)
    values[0, 0, 3, 5] = values[2, 0, 3, 5] = 1  # pre, grown to 3 to 7 along x
    values[1, 0, 7, 10] = values[2, 0, 7, 10] = 1  # post, grown to 8 to 12: blocks meet between 7 and 8
    for turn, block in enumerate([(1, 12, 8), (1, 6, 14), (1, 4, 4)]):
        for name, prediction in (("x", values), ("y", values.swapaxes(2, 3))):
            found = in_blocks(tmp_path / f"{turn}{name}", stored(tmp_path, prediction), PolarityDecode(small=0),
                              block if name == "x" else (1, block[2], block[1]))
            assert np.array_equal(found[0], values[0, 0] + 2 * values[1, 0] if name == "x" else
                                  values[0, 0].T + 2 * values[1, 0].T)


def test_one_voxel_of_a_polarity_prediction_says_what_all_of_it_means(tmp_path):
    values = np.zeros((3, 2, 6, 20), np.float32)
    values[:, 0, 1, 1] = 0.9  # above 0.5, but not above int(255 * 0.5)
    settings = PolarityDecode(small=0)
    assert in_blocks(tmp_path / "a", stored(tmp_path, values), settings, (1, 3, 5)).max() == 2
    values[0, 1, 5, 19] = 200
    assert in_blocks(tmp_path / "b", stored(tmp_path, values), settings, (1, 3, 5)).max() == 0


REFUSED = [
    (ContourDecode(), "^decode.kind = contour works .* or set decode.kind = components without seeds$"),
    (ComponentsDecode(seed_threshold=0.7), "^decode.seed_threshold with decode.connectivity = 26 works .* or set "
                                           "decode.connectivity = 4 or 8, which floods every section by itself, or "),
    (ComponentsDecode(seed_threshold=0.7, connectivity=6), "decode.connectivity = 6 works"),
    (AffinityDecode(ties="waterz"), "^decode.ties = waterz works .* or set decode.ties = canonical$"),
]


@pytest.mark.parametrize("settings, sentence", REFUSED)
def test_what_is_not_local_is_refused_with_what_would_work(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        check_kind(settings)


@pytest.mark.parametrize("settings", [ConnectedDecode(), PolarityDecode(), PartnersDecode(), AffinityDecode(),
                                      ComponentsDecode(),
                                      ComponentsDecode(seed_threshold=0.7, connectivity=8)])
def test_what_is_local_is_not_refused(settings):
    check_kind(settings)


def test_seeds_ask_for_whole_sections(tmp_path):
    settings = ComponentsDecode(seed_threshold=0.7, connectivity=4)
    assert needs_sections(settings)
    assert not needs_sections(replace(settings, seed_threshold=0.0))
    with pytest.raises(InputError, match=r"needs blocks of whole sections, \(8, 9\) voxels along y and x; got blocks "
                                         r"of \(1, 8, 8\)"):
        PieceWork(tmp_path, Grid((4, 8, 9), (1, 8, 8)), "prediction.h5", settings, "")


def test_a_value_that_is_none_is_named_where_it_lies_in_the_volume(tmp_path):
    values = np.random.default_rng(0).random((3, 6, 8, 10)).astype(np.float32)
    values[1, 4, 5, 7] = np.nan
    prediction = stored(tmp_path, values, offsets=[[-1, 0, 0], [0, -1, 0], [0, 0, -1]])
    for settings in (ConnectedDecode(), ConnectedDecode(bias=(1.0, 0.0, 0.0)),
                     ConnectedDecode(thresholds=(0.5, 0.5, 0.5))):
        with pytest.raises(InputError, match=r"found nan in channel 1 at voxel \(4, 5, 7\)"):
            in_blocks(tmp_path, prediction, settings, (2, 3, 4))
    for exclusive in (False, True):
        with pytest.raises(InputError, match="prediction holds NaN"):
            in_blocks(tmp_path, prediction, PolarityDecode(exclusive=exclusive), (2, 3, 4))


@pytest.mark.parametrize("kind", ["connected", "components", "polarity"])
def test_the_labels_file_of_blocks_reads_as_the_one_of_the_whole_volume(kind, tmp_path):
    prediction = random_prediction(tmp_path, np.random.default_rng([5, len(kind)]), kind)
    settings = {"connected": ConnectedDecode(remove_size=2),
                "components": ComponentsDecode(threshold=0.6, connectivity=4),
                "polarity": PolarityDecode(small=2, channels=(2, 0, 1))}[kind]
    choice = Choice(Grid(prediction.shape[-3:], (3, 5, 6)), 1, "")
    record = {"prediction": {"digest": "of the prediction"}}
    path = tmp_path / "prediction.h5"
    whole = open_volume(decode(prediction, settings, tmp_path / "whole.h5", record), "labels")
    joined = open_volume(decode_in_blocks(path, settings, tmp_path / "joined.h5", choice, Blocks(), record), "labels")
    assert np.array_equal(joined[...], whole[...])
    assert joined[...].max() > 2
    assert joined.dtype == whole.dtype
    assert {name: joined.attrs[name] for name in whole.attrs} == whole.attrs
    work_again = work_of(tmp_path / "joined.h5")
    assert isinstance(work_again, PieceWork)
    assert all(work_again.is_done(stage, number) for stage in work_again.stages() for number in range(stage.count))


def test_a_worker_is_given_room_for_every_channel_that_it_reads():
    few, many = (Task((64, 64, 64), channels, 4, ComponentsDecode()) for channels in (3, 12))
    assert many.in_block - few.in_block == 9 * 4
    assert few.in_block == Task((64, 64, 64), 12, 4, ComponentsDecode(channels=(1, 2))).in_block
    assert few.in_block == Task((64, 64, 64), 12, 4, ConnectedDecode()).in_block


def test_damaged_and_missing_files_are_made_again(tmp_path):
    random = np.random.default_rng(4)
    values = (random.random((3, 4, 20, 24)) * (random.random((1, 4, 20, 24)) < 0.2)).astype(np.float32)
    grid, settings = Grid((4, 20, 24), (2, 9, 9)), PolarityDecode(small=2, remove_size=2)
    made = PieceWork(tmp_path / "blocks", grid, stored(tmp_path, values).name, settings, "")
    work.run_inline(made)
    files = {path: path.read_bytes() for path in sorted((tmp_path / "blocks").rglob("*.columns"))}
    assert len(files) == sum(stage.count for stage in made.stages()[:-1])
    for path in random.choice(list(files), 12, replace=False):
        if random.random() < 0.5:
            path.unlink()
        else:
            damaged = bytearray(files[path])
            damaged[random.integers(len(damaged))] ^= 1
            path.write_bytes(damaged)
    work.run_task(made, made.stages()[-1], 0)
    work.run_inline(made)
    assert {path: path.read_bytes() for path in files} == files


def test_another_setting_makes_only_what_it_changes(tmp_path):
    prediction = random_prediction(tmp_path, np.random.default_rng(5), "components")
    made = PieceWork(tmp_path, Grid(prediction.shape[-3:], (2, 4, 4)), prediction.name, ComponentsDecode(), "a")

    def changed(**other) -> set[str]:
        after = replace(made, **other)
        return {stage.name for stage, before in zip(after.stages(), made.stages()) if stage.folder != before.folder}

    assert changed(settings=ComponentsDecode(remove_size=5)) == {"numbers", "labels"}
    assert changed(settings=ComponentsDecode(peak=0.7)) == {"pieces", "joints", "numbers", "labels"}
    assert changed(settings=ComponentsDecode(threshold=0.7)) == {"pieces", "joints", "numbers", "labels"}
    assert changed(content="b") == {"pieces", "joints", "numbers", "labels"}
