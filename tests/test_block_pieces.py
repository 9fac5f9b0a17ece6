"""Kinds of decoding whose labels are connected pieces: blocks of any size give the labels of the whole volume."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from emcore.blocks import kinds, work
from emcore.blocks.grid import Grid
from emcore.blocks.kinds import PiecesWork, check
from emcore.decode.labels import components, connected, polarity
from emcore.errors import InputError
from emcore.segment.affinities import LOGIT_TABLE, TABLE_ATTRIBUTE
from emcore.settings.decode import (
    AffinityDecode,
    ComponentsDecode,
    ConnectedDecode,
    ContourDecode,
    Decode,
    MutexDecode,
    PolarityDecode,
)
from emcore.volumes import Volume, create_volume, open_volume

IN_MEMORY = {ConnectedDecode: connected, ComponentsDecode: components, PolarityDecode: polarity}


def stored(folder, values: np.ndarray, **attributes) -> Volume:
    with create_volume(folder / "prediction.h5", values.shape, values.dtype, attributes=attributes) as out:
        out[...] = values
    return open_volume(folder / "prediction.h5")


def random_prediction(folder, random: np.random.Generator, kind: str) -> Volume:
    """Smooth or rough, with ties or without, of every type that a prediction may have."""
    shape = tuple(int(length) for length in random.integers(1, (8, 12, 12)))
    count = {"connected": random.integers(3, 6), "polarity": random.integers(3, 5)}.get(kind, random.integers(1, 4))
    values = random.random((count, *shape))
    if random.random() < 0.5:  # larger pieces, which wind through many blocks
        for axis in (1, 2, 3):
            values = (values + np.roll(values, 1, axis)) / 2
        values = np.clip((values - 0.5) * random.uniform(1, 4) + random.choice([0.3, 0.5, 0.6]), 0, 1)
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
    threshold, size = float(random.choice([0.0, 0.25, 0.3, 0.5, 0.6, 1.0])), int(random.choice([0, 0, 1, 3, 10]))
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
    if settings.connectivity in (4, 8) and random.random() < 0.6:
        least = max(settings.thresholds or (threshold,))
        settings = replace(settings, seed_threshold=max(0.1, float(random.uniform(least, 1))))
    return settings


def in_blocks(folder, prediction: Volume, settings: Decode, block) -> np.ndarray:
    """The labels of all blocks, put together."""
    grid = Grid(prediction.shape[-3:], tuple(int(size) for size in block))
    made = pickle.loads(pickle.dumps(PiecesWork(folder / "blocks", grid, prediction.name, settings, "")))
    work.run_inline(made)
    parts = [made.read("labels", number, "labels")[0] for number in range(grid.blocks())]
    out = np.zeros(grid.shape, parts[0].dtype)
    for number, part in enumerate(parts):
        out[grid.box(number)] = part
        assert part.dtype == out.dtype
    return out


def compare(folder, kind: str, seed: int) -> int:
    random = np.random.default_rng([seed, len(kind)])
    prediction = random_prediction(folder, random, kind)
    settings = random_settings(random, kind, prediction)
    wanted = IN_MEMORY[type(settings)](prediction, settings)
    block = random.integers(1, np.maximum(np.array(prediction.shape[-3:]), 2))
    block = np.where(random.random(3) < 0.3, random.integers(1, 3, 3), block)
    if kinds.needs_sections(settings):
        block[1:] = prediction.shape[-2:]
    if seed % 10 == 0 and np.prod(prediction.shape[-3:]) < 200 and not kinds.needs_sections(settings):
        block = (1, 1, 1)
    found = in_blocks(folder, prediction, settings, block)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted), (seed, settings, block)
    return int(wanted.max(initial=0))


@pytest.mark.parametrize("kind", ["connected", "components", "polarity"])
def test_blocks_give_the_labels_of_the_whole_volume(kind, tmp_path_factory):
    found = [compare(tmp_path_factory.mktemp(kind), kind, seed) for seed in range(14)]
    assert sum(largest > 3 for largest in found) > 5


@pytest.mark.long
@pytest.mark.parametrize("kind", ["connected", "components", "polarity"])
def test_blocks_give_the_labels_of_the_whole_volume_in_hundreds_of_random_volumes(kind, tmp_path_factory):
    found = [compare(tmp_path_factory.mktemp(kind), kind, seed) for seed in range(100, 300)]
    assert sum(largest > 3 for largest in found) > 80
