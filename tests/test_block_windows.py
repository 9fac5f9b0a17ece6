"""Windows that lie half a window off: what each is told, against a look at all of them; and merges in odd grids."""

from itertools import product

import numpy as np
import pytest

from emcore import files
from emcore.blocks import merges, store
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.leaves import boxes_of
from emcore.blocks.windows import Source
from emcore.segment.graph import measure
from tests.test_blocks import STATISTICS, check_volume, make_prediction, random_grid, random_settings


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(files, "flush_to_disk", lambda path: None)


def test_every_partition_holds_every_voxel_once():
    rng = np.random.default_rng(1)
    for _ in range(60):
        shape = tuple(int(length) for length in rng.integers(1, 14, 3))
        grid = random_grid(rng, shape, bool(rng.integers(2)), 60)
        for at, windows in enumerate(grid.partitions):
            holders = np.full(shape, -1)
            for number in range(windows.blocks()):
                assert (holders[windows.box(number)] == -1).all()
                holders[windows.box(number)] = number
            assert np.array_equal(windows.numbers_at(np.indices(shape)), holders)
            for number in range(windows.blocks()):
                box = windows.box(number)
                assert windows.overlapping(box) == [number]
                for later in grid.partitions[at + 1:at + 2]:
                    held = np.unique(later.numbers_at(np.indices(shape))[box])
                    assert later.overlapping(box) == held.tolist()
        assert grid.partitions[0] == grid
        assert grid.partitions[-1].blocks() == 1
    assert Grid((9, 9, 9), (9, 9, 9)).partitions == [Grid((9, 9, 9), (9, 9, 9))]
    assert [windows.counts(0) for windows in Grid((12, 8, 3), (4, 4, 4)).partitions] == [
        (3, 2, 1), (4, 3, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1)]


def test_the_box_of_a_fragment_holds_the_later_voxels_of_its_contacts():
    rng, clipped = np.random.default_rng(2), 0
    for _ in range(200):
        shape = rng.integers(2, 12, 3)
        start = np.array([rng.integers(0, length) for length in shape])
        stop = np.array([rng.integers(first, length) + 1 for first, length in zip(start, shape)])
        halo = (start > 0).astype(int)
        slab = rng.integers(0, 9, stop - start + halo).astype(np.uint32)
        slab[np.sum([halo[axis] * (place == 0) for axis, place in enumerate(np.indices(slab.shape))], axis=0) > 1] = 0
        own = measure(slab[tuple(slice(planes, None) for planes in halo)], 8, with_boxes=True)[1]
        boxes = boxes_of(slab, own, halo.tolist(), (start - halo).tolist(), tuple(shape.tolist()))
        for label in range(1, 9):
            voxels = np.argwhere(slab == label) + start - halo
            if len(voxels):
                last = np.minimum(voxels.max(0) + 1, shape - 1)
                assert boxes[label].tolist() == [*voxels.min(0), *last]
                clipped += int((last == shape - 1).any())
    assert clipped > 100


def test_a_window_knows_which_of_its_clusters_have_edges_elsewhere(tmp_path):
    elsewhere = shifted = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shape = tuple(int(length) for length in rng.integers(4, 12, 3))
        path = make_prediction(tmp_path / f"{seed}_prediction.h5", rng, shape)
        settings = random_settings(rng, STATISTICS[seed % len(STATISTICS)], False)
        grid = random_grid(rng, shape, False, 16)
        work = AffinityWork(tmp_path / f"{seed}.blocks", grid, Source(str(path), settings), "content")
        for stage in work.tree_stages():
            for number in range(stage.count):
                work.run(stage, number)
        for partition, windows in enumerate(grid.partitions[:-1]):
            stage, holders = work.merge_stage(partition, 0), {}
            incomplete = []
            for number in range(windows.blocks()):
                found = store.read_all(work.path(stage, number))
                left = found["names"][found["left"]]
                ends = [*left[[*found["edge_u"], *found["edge_v"]]], *found["open_u"], *found["open_v"]]
                for name in {int(name) for name in ends}:
                    holders.setdefault(name, []).append(number)
                incomplete.append(set(found["terminals"].tolist()))
            for name, numbers in holders.items():
                if len(numbers) > 1:
                    assert all(name in incomplete[number] for number in numbers)
                    elsewhere += 1
                    shifted += any(windows.shift)
    assert elsewhere > 50
    assert shifted > 20


def test_what_is_left_is_handed_on_once(tmp_path):
    """Edges to one window, names to every one that their boxes touch; each edge with both its ends."""
    rng, moved = np.random.default_rng(3), 0
    for _ in range(40):
        shape = tuple(int(length) for length in rng.integers(2, 10, 3))
        grid = random_grid(rng, shape, False, 30)
        for windows, later in zip(grid.partitions, grid.partitions[1:]):
            number, count = int(rng.integers(windows.blocks())), 12
            box = windows.box(number)
            inside = np.stack([rng.integers(span.start, span.stop, count) for span in box], axis=1)
            low = np.maximum(0, inside - rng.integers(0, 4, (count, 3)))
            high = np.minimum(np.subtract(shape, 1), inside + rng.integers(0, 4, (count, 3)))
            boxes = np.concatenate([low, high], axis=1).astype(np.int32)
            meet = [(u, v) for u, v in product(range(1, count), repeat=2) if u < v and all(
                max(low[u, a], low[v, a], box[a].start) <= min(high[u, a], high[v, a], box[a].stop - 1)
                for a in range(3))]
            u, v = np.array(meet, np.uint32).reshape(-1, 2).T
            names = np.arange(100, 100 + count, dtype=np.uint64)
            parts = merges.handed_on(names, boxes, {"u": u, "v": v, "key": np.arange(len(u))}, box, later)
            seen = []
            for reader in range(later.blocks()):
                there = later.box(reader)
                touches = [k for k in range(count) if all(low[k, a] < there[a].stop and high[k, a] >= there[a].start
                                                          for a in range(3))]
                reaches = {k for k in range(count) if any(low[k, a] < box[a].start or high[k, a] >= box[a].stop
                                                          for a in range(3))}
                if reader not in later.overlapping(box):
                    assert f"names_{reader}" not in parts
                    continue
                told = parts[f"names_{reader}"]
                assert set(told.tolist()) == {100 + k for k in touches if k in reaches or k in u or k in v}
                for a, b, key in zip(*(parts[f"edge_{name}_{reader}"].tolist() for name in ("u", "v", "key"))):
                    assert (told[a], told[b]) == (names[u[key]], names[v[key]])
                    seen.append(key)
            assert sorted(seen) == list(range(len(u)))
            moved += len(later.overlapping(box)) > 1 and len(u) > 0
    assert moved > 20


@pytest.mark.parametrize("shape, block", [
    ((9, 10, 11), (3, 4, 4)),  # three blocks along each axis
    ((7, 5, 6), (1, 5, 3)),  # blocks of one voxel
    ((13, 4, 5), (2, 9, 9)),  # seven blocks, and a volume that is smaller than one along two axes
    ((2, 12, 12), (1, 6, 7)),
])
def test_odd_grids_equal_the_whole(tmp_path, shape, block):
    for seed, statistic in enumerate(("mean", "aff85_his256")):
        check_volume(tmp_path, 500 + seed, statistic, grids=[Grid(shape, block)])
