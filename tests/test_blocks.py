"""Decoding in blocks gives what decoding the whole volume gives, to the bit, for every grid."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emcore import files
from emcore.blocks import store
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.joined import LabelWork
from emcore.blocks.windows import Source
from emcore.blocks.work import run_inline
from emcore.decode.affinities import labels_of, read_affinities, segmentation_of
from emcore.segment import MergeTree
from emcore.segment.affinities import LOGIT_TABLE, TABLE_ATTRIBUTE
from emcore.settings.decode import AffinityDecode, Link
from emcore.volumes import create_volume, open_volume
from emcore.volumes.blocks import read_block


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """These tests write thousands of tiny files, and no machine fails under them."""
    monkeypatch.setattr(files, "flush_to_disk", lambda path: None)


STATISTICS = ("mean", "max", "min", "aff85_his256", "aff50_his256", "aff85", "aff85_his256_all")


def make_prediction(path: Path, rng: np.random.Generator, shape: tuple[int, int, int]) -> Path:
    """Affinities with many equal values, of any type and either convention."""
    levels = int(rng.choice([2, 3, 5, 200]))
    codes = np.sort(rng.choice(256, levels, replace=False)).astype(np.uint8)[rng.integers(0, levels, (3, *shape))]
    kind = str(rng.choice(["uint8", "table", "float16", "float32"]))
    attributes: dict = {"offsets": (np.eye(3, dtype=int) * rng.choice([-1, 1])).tolist()}
    if kind == "table":
        attributes[TABLE_ATTRIBUTE] = LOGIT_TABLE.tolist()
    values = codes if kind in ("uint8", "table") else (codes / np.float32(255)).astype(kind)
    with create_volume(f"{path}:prediction", values.shape, values.dtype, (30, 8, 8), (60, 0, 16), attributes) as out:
        out[...] = values
    return path


def random_grid(rng: np.random.Generator, shape: tuple[int, int, int], sections: bool, most: int) -> Grid:
    """Blocks down to one voxel along an axis, but at most so many of them."""
    while True:
        block = [int(rng.integers(1, length + 2) if rng.random() < 0.3 else rng.integers(3, 9)) for length in shape]
        grid = Grid(shape, (block[0], *shape[1:]) if sections else tuple(block))
        if grid.blocks() <= most:
            return grid


def random_settings(rng: np.random.Generator, statistic: str, floods: bool) -> AffinityDecode:
    low, high = sorted(rng.choice([0.0, 0.2, 0.5, 0.9, 1.0], 2, replace=False).tolist())
    how = str(rng.choice(["maxima_distance", "minima", "hminima", "grid-3"])) if floods else "watershed"
    after = {}
    if rng.random() < 0.6:
        link = Link(iou=float(rng.choice([0, 0.1, 0.4])), best_buddy=bool(rng.integers(2)),
                    one_sided=float(rng.choice([0, 0.3, 0.7])), one_sided_size=int(rng.integers(0, 6)),
                    affinity=float(rng.choice([0, 0.1])), min_size=int(rng.integers(0, 4)))
        after = {"boundary": float(rng.choice([0, 0.2, 0.5])), "dust_size": int(rng.choice([0, 5, 40])),
                 "dust_affinity": float(rng.choice([0, 0.3])), "remove_size": int(rng.choice([0, 4])),
                 "link": link if rng.random() < 0.7 else None}
    threshold = float(rng.choice([0.1, 0.35, 0.5, 0.8]))
    if not floods and rng.random() < 0.4:
        how = str(rng.choice(["faces", "faces-1", "faces-3"]))
    return AffinityDecode(statistic=statistic, low=low, high=high, threshold=threshold,
                          end=float(rng.choice([1.0, max(threshold, 0.7)])), fragments=how,
                          bias=(0.5, 0.0, 0.0) if rng.random() < 0.2 else (0.0, 0.0, 0.0), **after)


def labels_by(work: LabelWork) -> np.ndarray:
    """The labels of all blocks, put together."""
    run_inline(work)
    out, stage = np.zeros(work.grid.shape, work.label_type), work.stages()[-1]
    for number in range(stage.count):
        box = work.grid.box(number)
        out[box] = read_block(work.path(stage, number), tuple(span.stop - span.start for span in box), work.label_type)
    return out


def events_by(work: AffinityWork) -> list[tuple]:
    """(height, key) of every merge of all blocks, in order."""
    found = []
    for partition in range(len(work.grid.partitions)):
        stage = work.merge_stage(partition)
        for number in range(stage.count):
            height, key = store.read(work.path(stage, number), "height", "key")
            found += zip(height.tolist(), key.tolist())
    return sorted(found)


def events_of(tree: MergeTree, end: float) -> list[tuple]:
    """(height, key) of every merge of a whole volume below the end."""
    return [(height, key) for height, key in zip(tree.height.tolist(), tree.key.tolist()) if height < end]


def check_volume(folder: Path, seed: int, statistic: str, floods: bool = False, most: int = 24,
                 grids: Sequence[Grid] = ()) -> None:
    """Two random grids of a random volume, or those that are given."""
    rng = np.random.default_rng(seed)
    shape = grids[0].shape if grids else tuple(int(length) for length in rng.integers(4, 17, 3))
    path = make_prediction(folder / f"{seed}_prediction.h5", rng, shape)
    settings = random_settings(rng, statistic, floods)
    whole = replace(settings, end=0.0)  # all merges
    segmentation = segmentation_of(read_affinities(open_volume(path), settings), whole)
    labels, tree = labels_of(segmentation, settings), segmentation.tree
    for turn, grid in enumerate(grids or [random_grid(rng, shape, floods, most) for _ in range(2)]):
        # a test begins with a seed that is divisible by 100, so one of its volumes is merged to the end
        asked = replace(settings, end=0.0) if turn and (seed % 3 == 0 or seed % 100 == 0) else settings
        work = AffinityWork(folder / f"{seed}-{turn}.blocks", grid, Source(str(path), asked), "content")
        told = f"seed {seed}, {asked}, {grid}"
        assert np.array_equal(labels_by(work), labels), told
        assert events_by(work) == events_of(tree, asked.end or asked.threshold), told


@pytest.mark.parametrize("statistic", STATISTICS)
def test_blocks_equal_the_whole(tmp_path, statistic):
    for seed in range(2):
        check_volume(tmp_path, seed + 100 * STATISTICS.index(statistic), statistic)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_blocks_of_whole_sections_equal_the_whole(tmp_path, statistic):
    for seed in range(2):
        check_volume(tmp_path, seed + 100 * STATISTICS.index(statistic), statistic, floods=True)


@pytest.mark.long
@pytest.mark.parametrize("floods", [False, True])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_further_blocks_equal_the_whole(tmp_path, statistic, floods):
    for seed in range(2, 5):
        check_volume(tmp_path, seed + 100 * STATISTICS.index(statistic), statistic, floods)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1000, 1300, 30))
@pytest.mark.parametrize("statistic", STATISTICS)
def test_three_hundred_volumes_equal_the_whole(tmp_path, statistic, first):
    for seed in range(first, first + 30):
        check_volume(tmp_path, seed + 1000 * STATISTICS.index(statistic), statistic, seed % 5 == 0, most=16)
