"""decode.kind = mutex in blocks: blocks of any size give the labels of the whole volume, ids included."""

import pickle

import numpy as np
import pytest
from emcore.kernels.mutex import WindowForest

from emcore.blocks import choice, mutex_work
from emcore.blocks.choice import WORKER, Task, check_kind
from emcore.blocks.grid import Grid
from emcore.blocks.mutex_work import MutexWork
from emcore.blocks.run import work_for
from emcore.decode.labels import mutex
from emcore.errors import InputError
from emcore.segment.affinities import LOGIT_TABLE, TABLE_ATTRIBUTE
from emcore.settings.blocks import Blocks
from emcore.settings.decode import MutexDecode
from emcore.volumes import Volume, create_volume, open_volume
from tests.oracles.mutex import certain_clusters
from tests.test_blocks import labels_by

NEAREST = np.eye(3, dtype=int).tolist()


@pytest.fixture(autouse=True)
def no_wait_for_disks(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


def random_prediction(folder, random: np.random.Generator) -> Volume:
    """Few distinct weights or many, rough or smooth, with offsets of either sign that may be longer than a block."""
    shape = tuple(int(length) for length in random.integers(1, (8, 12, 12)))
    steps = [[int(random.choice([-1, 1])) * step for step in NEAREST[axis]]
             for axis in random.permutation(3)[:random.integers(1, 4)]]
    steps.append([0, 2, -1])
    while len(steps) < random.integers(4, 9):
        step = [0, 0, int(random.integers(2, 12))]
        if random.random() < 0.9:
            step = (random.integers(-4, 5, 3) * (random.random(3) < 0.5)).tolist()
        steps += [step] * (sum(map(abs, step)) > 1)
    steps = [steps[at] for at in random.permutation(len(steps))]
    levels = int(random.choice([2, 3, 5, 255]))
    values = random.random((len(steps), *shape))
    if random.random() < 0.5:
        for axis in (1, 2, 3):
            values = (values + np.roll(values, 1, axis)) / 2
        values = np.clip((values - 0.5) * random.uniform(1, 4) + random.choice([0.4, 0.6, 0.8]), 0, 1)
    for channel, step in enumerate(steps):
        if sum(map(abs, step)) > 1 and random.random() < 0.6:  # holds apart less
            values[channel] = 1 - (1 - values[channel]) * random.random() * random.random()
    values, attributes = np.round(values * levels) / levels, {"offsets": steps}
    dtype = random.choice(["uint8", "table", "float16", "float32"])
    if dtype in ("uint8", "table"):
        values, attributes[TABLE_ATTRIBUTE] = np.round(values * 255), LOGIT_TABLE.tolist()
        if dtype == "uint8":
            del attributes[TABLE_ATTRIBUTE]
    values = values.astype("uint8" if dtype == "table" else dtype)
    with create_volume(folder / "prediction.h5", values.shape, values.dtype, attributes=attributes) as out:
        out[...] = values
    return open_volume(folder / "prediction.h5")


def random_block(random: np.random.Generator, shape: tuple[int, ...], most: int) -> tuple[int, ...]:
    while True:
        block = np.where(random.random(3) < 0.3, random.integers(1, 4, 3), random.integers(1, np.array(shape) + 1))
        block = tuple(int(size) for size in np.minimum(block, shape))
        if Grid(shape, block).blocks() <= most:
            return block


def random_settings(random: np.random.Generator) -> MutexDecode:
    strides = random.choice([1, 1, 2, 3], 3) if random.random() < 0.5 else (1, 1, 1)
    return MutexDecode(strides=tuple(map(int, strides)), remove_size=int(random.choice([0, 0, 3])))


def check(folder, seed: int, most: int) -> None:
    random = np.random.default_rng(seed)
    prediction, settings = random_prediction(folder, random), random_settings(random)
    shape = prediction.shape[1:]
    made = work_for(folder / "blocks", Grid(shape, random_block(random, shape, most)), prediction.name, settings,
                    {"content": ""})
    made = pickle.loads(pickle.dumps(made))
    assert np.array_equal(labels_by(made), mutex(prediction, settings)), (seed, shape, made.grid.block)


@pytest.mark.parametrize("seed", range(40))
def test_blocks_give_the_labels_of_the_whole_volume(tmp_path, seed):
    check(tmp_path, seed, most=8)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1160))
def test_many_blocks_give_the_labels_of_the_whole_volume(tmp_path, seed):
    check(tmp_path, seed, most=40)


@pytest.mark.parametrize("sweeps", [1, 3])
def test_sweeps_change_what_is_certain_and_no_label(tmp_path, monkeypatch, sweeps):
    random = np.random.default_rng(7)
    prediction = random_prediction(tmp_path, random)
    made = MutexWork(tmp_path / "blocks", Grid(prediction.shape[1:], (4, 5, 5)), prediction.name, MutexDecode(), "")
    monkeypatch.setattr(mutex_work, "SWEEPS", sweeps)
    assert np.array_equal(labels_by(made), mutex(prediction, MutexDecode()))


def test_nothing_is_refused_and_wrong_values_are_named(tmp_path):
    check_kind(MutexDecode())
    values = np.full((4, 4, 6, 6), 0.5, np.float32)
    values[1, 2, 3, 3] = np.nan
    with create_volume(tmp_path / "wrong.h5", values.shape, values.dtype,
                       attributes={"offsets": [*NEAREST, [0, 3, 0]]}) as out:
        out[...] = values
    made = MutexWork(tmp_path / "blocks", Grid((4, 6, 6), (2, 3, 3)), str(tmp_path / "wrong.h5"), MutexDecode(), "")
    with pytest.raises(InputError, match="affs must be between 0 and 1; found NaN"):
        labels_by(made)


def test_memory_is_told_by_the_window_of_a_block(monkeypatch):
    task = Task((512, 512, 512), 12, 1, MutexDecode(), (4, 27, 27))
    near = task._replace(reach=(0, 0, 0))
    ratio = (task.worker((128,) * 3) - WORKER) / (near.worker((128,) * 3) - WORKER)
    assert ratio == pytest.approx(136 * 182 * 182 / 128**3)
    assert task.worker((512,) * 3) == near.worker((512,) * 3)  # nothing lies around the volume
    monkeypatch.setattr(choice, "memory_there", lambda: int(4e9))
    chosen = choice.choose(task, Blocks(workers=1))
    assert chosen.grid is not None
    assert task.worker(chosen.grid.block) < 3.4e9
    assert "for the last merges" in chosen.told or task.worker(chosen.grid.block) > WORKER + task.top


@pytest.mark.parametrize("seed", range(60))
def test_what_a_window_knows_is_certain_by_the_book(seed):
    random = np.random.default_rng(seed)
    nodes, count = int(random.integers(2, 9)), int(random.integers(1, 20))
    incomplete = random.random(nodes) < 0.4
    edges = np.zeros((count, 3), np.uint32)
    edges[:, 0] = np.sort(random.integers(1, 5, count).astype(np.float32) / 4)[::-1].view(np.uint32)
    edges[:, 1:] = random.integers(0, nodes, (count, 2))
    edges[:, 0] |= np.where(random.random(count) < 0.5, np.uint32(2**31), np.uint32(0))
    parent = np.arange(nodes, dtype=np.uint32)
    forest = WindowForest(parent, incomplete.view(np.uint8))
    forest.process([edges.copy()], 1, 0x7F800000)
    together, apart = certain_clusters(nodes, edges.view(np.float32)[:, 0], edges[:, 1:], incomplete)
    assert [set(np.flatnonzero(parent == root)) for root in parent] == [together[node] for node in range(nodes)]
    u, v = (ends.ravel().astype(np.uint32) for ends in np.indices((nodes, nodes)))
    held = np.zeros(len(u), np.uint8)
    forest.held(parent[u], parent[v], held)
    assert set(zip(u[held > 0].tolist(), v[held > 0].tolist())) == apart
