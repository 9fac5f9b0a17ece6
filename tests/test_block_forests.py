"""Forests of what lies outside a block, and what may merge in it by them, each against a slow search."""

import numpy as np

from emcore import files
from emcore.blocks import merging, store, sweeps
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.windows import Source
from emcore.decode.affinities import read_affinities, segmentation_of
from emcore.volumes import open_volume
from tests.oracles import absorption as oracle
from tests.test_blocks import events_by, events_of, make_prediction, random_grid, random_settings


def random_graph(rng, names, pairs):
    """Edges between some names, as (u, v, height, key), with few heights and different keys."""
    found = {}
    for _ in range(pairs):
        a, b = sorted(rng.choice(names, 2, replace=False).tolist())
        found[a, b] = a, b, float(rng.integers(0, 6)) / 8, 0
    keys = rng.permutation(100)[:len(found)].tolist()
    return [(a, b, height, key) for (a, b, height, _), key in zip(found.values(), keys)]


def as_forest(edges):
    columns = zip(*edges) if edges else [()] * 4
    return {name: np.array(column, kind) for (name, kind), column in zip(sweeps.FOREST.items(), columns)}


def as_edges(forest):
    return list(zip(*(forest[name].tolist() for name in sweeps.FOREST)))


def test_a_forest_connects_terminals_at_every_rank_as_all_edges_do():
    rng, smaller = np.random.default_rng(1), 0
    for _ in range(300):
        names = np.unique(rng.integers(1, 2**62, 12, dtype=np.uint64))
        parts = [random_graph(rng, names, int(rng.integers(1, 15))) for _ in range(int(rng.integers(1, 4)))]
        terminals = np.sort(rng.choice(names, int(rng.integers(0, 9)), replace=False))
        forest = as_edges(sweeps.spanning([as_forest(part) for part in parts], terminals))
        every = [edge for part in parts for edge in part]
        wanted = set(terminals.tolist())
        assert {end for edge in forest for end in edge[:2]} <= wanted
        assert len(forest) < max(1, len(wanted))
        for rank in {edge[2:] for edge in every}:
            assert oracle.together(forest, wanted, rank) == oracle.together(every, wanted, rank)
        smaller += len(forest) < len(every)
    assert smaller > 100
    assert as_edges(sweeps.spanning([], np.empty(0, np.uint64))) == []


def test_absorptions_are_those_that_nothing_can_come_before():
    rng, counts = np.random.default_rng(2), [0, 0, 0]
    for _ in range(1000):
        names = np.arange(0, 14, dtype=np.uint64)
        edges = random_graph(rng, names[1:], int(rng.integers(1, 20)))
        incomplete = np.sort(rng.choice(names[1:], int(rng.integers(2, 8)), replace=False))
        outside = [(a, b, height, key + 100) for a, b, height, key in
                   random_graph(rng, incomplete, int(rng.integers(0, 4)))]
        edges.sort()
        u, v, height, key = (np.array(column) for column in zip(*edges))
        columns = {"u": u.astype(np.uint32), "v": v.astype(np.uint32), "key": key.astype(np.uint64)}
        found = sweeps.absorptions(names, columns, height, np.isin(names, incomplete), as_forest(outside),
                                    np.inf)
        found = {(source, target, edges[edge]) for source, target, edge in zip(*(part.tolist() for part in found))}
        wanted = oracle.absorptions(edges, outside, set(incomplete.tolist()))
        once = {edge for _, _, edge in wanted}
        assert found <= wanted
        assert {edge for _, _, edge in found} == once
        assert len(found) == len(once) == len({source for source, *_ in found})
        counts[0] += len(once)
        counts[1] += sum(target in incomplete for _, target, _ in found)
        counts[2] += len(oracle.absorptions(edges, [], set(incomplete.tolist()))) > len(wanted)
    assert min(counts) > 50


def different_events(folder, seeds):
    """How many of the volumes have other merges in blocks than as a whole, and how many of all absorb anything."""
    different = absorbing = 0
    folder.mkdir()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        shape = tuple(int(length) for length in rng.integers(5, 12, 3))
        path = make_prediction(folder / f"{seed}_prediction.h5", rng, shape)
        settings = random_settings(rng, "mean", False)
        tree = segmentation_of(read_affinities(open_volume(path), settings), settings).tree
        grid = random_grid(rng, shape, False, 16)
        work = AffinityWork(folder / f"{seed}.blocks", grid, Source(str(path), settings), "content")
        for stage in work.tree_stages():
            for number in range(stage.count):
                work.run(stage, number)
        different += events_by(work) != events_of(tree, settings.end)
        heights = [store.read(work.path(work.merge_stage(0, turn), number), "height")[0]
                   for turn in (0, None) for number in range(work.grid.blocks())]
        half = len(heights) // 2
        absorbing += sum(map(len, heights[half:])) > sum(map(len, heights[:half]))
    return different, absorbing


def test_without_what_lies_outside_merges_are_others(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "flush_to_disk", lambda path: None)
    different, absorbing = different_events(tmp_path / "with", range(10))
    assert different == 0
    assert absorbing > 4
    monkeypatch.setattr(merging.TreeWork, "make_outside", lambda self, *node: sweeps.NOTHING)
    assert different_events(tmp_path / "without", range(10))[0] > 2
