"""What follows the cut, in blocks, against the whole volume: borders, dust, boundaries and links, bit for bit."""

from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from emcore import segment
from emcore.blocks import pooled
from emcore.blocks.borders import border_columns, borders_in_order, is_small, pool_borders
from emcore.blocks.dust import dust_table, pool_sizes, sizes_of
from emcore.blocks.grid import Grid
from emcore.blocks.linking import decide, link_table, overlap_columns, pool_overlaps, z_planes
from emcore.decode.affinities import labels_of, segmentation_of
from emcore.kernels import overlaps as overlaps_kernel
from emcore.segment.cleanup import clear_boundaries
from emcore.segment.graph import COLUMNS, Place
from emcore.settings.decode import AffinityDecode, Link

STATISTICS = ("mean", "max", "min", "aff85_his256", "aff50_his256", "aff85", "aff85_his256_all", "aff30_his2",
              "aff50_his256_all")


def random_affinities(random, shape):
    """Affinities of a few levels, so that heights are tied, or of many; stored at either voxel of an edge.

    Half of the volumes have segments that mostly stay in their sections, so that there is something to link.
    """
    levels, flat = random.integers(2, 6), random.integers(2)
    drawn = random.integers(0, levels, (3, *shape))
    kind = random.choice(["codes", "encoded", "levels", "numbers"])
    table = None
    if kind == "codes":
        values = (drawn * (255 // (levels - 1))).astype(np.uint8)
    elif kind == "encoded":
        values, table = segment.encode_affinities((drawn / (levels - 1)).astype(np.float32))
    elif kind == "levels":
        values = (drawn / (levels - 1)).astype(random.choice(["f2", "f4"]))
    else:
        values = random.random((3, *shape), np.float32)
    if flat:
        values[0][random.random(shape) < 0.8] = 0
    return segment.Affinities(values, edge=str(random.choice(["later", "earlier"])), table=table,
                              offsets=[(-1, 0, 0), (0, -1, 0), (0, 0, -1)])


def random_settings(random, statistic):
    """Each step after the cut is on or off."""
    link = Link(iou=random.choice([0, .1, .4]), best_buddy=bool(random.integers(2)),
                one_sided=random.choice([0, .3, .7]), one_sided_size=random.integers(0, 6),
                affinity=random.choice([0, 0, .1, .3]), min_size=random.integers(0, 4))
    return AffinityDecode(
        statistic=statistic, threshold=float(random.choice([.1, .3, .5, .7])), low=float(random.choice([0, .1, .3])),
        high=float(random.choice([.6, .8, .9999])), boundary=float(random.choice([0, 0, .2, .5])),
        dust_size=int(random.choice([0, 2, 5, 12, 40])), dust_affinity=float(random.choice([0, .2, .4])),
        remove_size=int(random.choice([0, 0, 3, 8])), link=link if random.integers(3) else None)


def random_grid(random, shape):
    """Blocks down to one voxel, but at most 60 of them."""
    while True:
        grid = Grid(tuple(shape.tolist()), tuple(random.integers(1, shape + 1).tolist()))
        if grid.blocks() <= 60:
            return grid


def window_of(segmentation, grid, block):
    """(what a block with one plane before it covers, where the block lies in that, the affinities there)."""
    window, inside = grid.grown(block, 1, 0)
    affs = segmentation.affs
    return window, inside, segment.Affinities(affs.values[:, *window], affs.offsets, table=affs.table)


def graph_of_block(segmentation, grid, block):
    """(the columns of a block's region graph, the fragment of the whole volume that each of its ids stands for)."""
    window, inside, affs = window_of(segmentation, grid, block)
    fragments, local = np.unique(np.append(segmentation.fragments[window], 0), return_inverse=True)
    local = local[:-1].reshape([span.stop - span.start for span in window]).astype(np.uint32)
    place = Place([span.start for span in window], grid.shape, [span.start for span in inside])
    graph = segment.region_graph(local, affs, statistic=segmentation.statistic, channels=affs.channels, place=place)
    columns = {name: getattr(graph, name) for name in COLUMNS if getattr(graph, name) is not None}
    return columns | {"names": fragments.astype(np.uint64) << np.uint64(33)}, fragments


def cut_labels(segmentation, settings, grid, block, before=0):
    """Labels of a block after clearing, with `before` sections before it where there are some; where they begin."""
    window, inside, affs = window_of(segmentation, grid, block)
    inside = (slice(max(0, inside[0].start - before), inside[0].stop), *inside[1:])
    labels = segmentation.tree.table(settings.threshold)[segmentation.fragments[window]][inside]
    if settings.boundary > 0:
        clear_boundaries(labels, affs, inside, settings.boundary)
    return labels, window[0].start + inside[0].start, z_planes(affs, inside)


def labels_in_blocks(segmentation, settings, grid):
    """(the final labels by the functions of blocks, what happened on the way)."""
    table, happened = segmentation.tree.table(settings.threshold), set()
    cut = {block: cut_labels(segmentation, settings, grid, block)[0] for block in range(grid.blocks())}
    final = np.arange(table.max() + 1, dtype=np.uint32)
    if settings.boundary > 0 and any((cut[block] != table[segmentation.fragments[grid.box(block)]]).any()
                                     for block in cut):
        happened.add("cleared")
    if settings.dust_size or settings.remove_size:
        sizes = pool_sizes(map(sizes_of, cut.values()), len(final) - 1)

        def borders(block):
            columns, fragments = graph_of_block(segmentation, grid, block)
            numbers = table[fragments]
            return border_columns(columns, numbers, is_small(numbers, sizes, settings.dust_size), settings.statistic)

        final = dust_table(map(borders, cut), sizes, settings)
        assert final.dtype == np.uint32
        if len(np.unique(final[final > 0])) < np.count_nonzero(final):
            happened.add("merged")
        if (final[sizes > 0] == 0).any():
            happened.add("removed")
    joined = segment.join_pairs(np.empty((0, 2), np.uint64))
    if settings.link:
        rule, pixels, rows, spans = segment.LinkRule(**asdict(settings.link)), grid.shape[1] * grid.shape[2], [], []
        for _, blocks in grid.slabs():
            overlaps = []
            for block in blocks:
                labels, z, planes = cut_labels(segmentation, settings, grid, block, 1)
                overlaps.append(overlap_columns(final[labels], z, pixels, planes if rule.affinity else None))
            rows.append(decide(pool_overlaps(overlaps), pixels, rule))
            spans += overlaps
        joined = link_table(rows, spans)
        if len(joined.old):
            happened.add("linked")
    out = np.empty(grid.shape, np.uint32)
    for block, labels in cut.items():
        out[grid.box(block)] = segment.remap(final[labels], (joined.old, joined.new.astype(np.uint32)), missing="keep")
    return out, happened


def compare(seeds):
    counted = Counter()
    for seed in seeds:
        random = np.random.default_rng(seed)
        shape = random.integers(1, 10, 3)
        settings = random_settings(random, STATISTICS[seed % len(STATISTICS)])
        segmentation = segmentation_of(random_affinities(random, shape), settings)
        wanted = labels_of(segmentation, settings)
        found, happened = labels_in_blocks(segmentation, settings, random_grid(random, shape))
        np.testing.assert_array_equal(found, wanted, err_msg=f"{seed} {settings}")
        counted.update(happened)
    return counted


def test_labels_of_blocks_equal_those_of_the_whole_volume():
    counted = compare(range(36))
    assert min(counted[name] for name in ("cleared", "merged", "removed", "linked")) >= 5, counted


@pytest.mark.long
def test_labels_of_blocks_equal_those_of_hundreds_of_whole_volumes():
    counted = compare(range(1000, 1300))
    assert min(counted[name] for name in ("cleared", "merged", "removed", "linked")) >= 50, counted


@pytest.mark.parametrize("statistic", STATISTICS)
def test_pooled_borders_are_those_that_an_agglomeration_ends_with(statistic):
    pairs = 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        shape = random.integers(1, 9, 3)
        affs = random_affinities(random, shape)
        whole = segment.Segmentation(affs, low=0.1, high=0.8, statistic=statistic)
        grid, threshold = random_grid(random, shape), float(random.choice([0, .2, .4]))
        run = segment.Agglomeration(whole.graph, statistic)
        run.advance(threshold)
        wanted, table = run.remaining(), whole.tree.table(threshold)

        def columns(block, whole=whole, grid=grid, table=table):
            graph, fragments = graph_of_block(whole, grid, block)
            return border_columns(graph, table[fragments], np.ones(len(fragments), bool), statistic)

        pooled = pool_borders(map(columns, range(grid.blocks())), statistic)
        a, b, heights = borders_in_order(pooled, statistic)
        ends = np.sort([table[wanted.u], table[wanted.v]], axis=0)
        np.testing.assert_array_equal(a, ends[0])
        np.testing.assert_array_equal(b, ends[1])
        np.testing.assert_array_equal(heights.view(np.uint64), wanted.height.view(np.uint64))
        keys = {}
        for u, v, key in zip(table[whole.graph.u], table[whole.graph.v], whole.graph.key.tolist()):
            if u != v:
                pair = min(u, v), max(u, v)
                keys[pair] = max(key, keys.get(pair, 0))
        of_rows = {}
        for first, second, key in zip(pooled["a"], pooled["b"], pooled["key"].tolist()):
            of_rows[first, second] = max(key, of_rows.get((first, second), 0))
        assert of_rows == keys
        pairs += len(keys)
    assert pairs > 50


def test_borders_between_large_segments_are_left_out_and_not_missed():
    affs = segment.Affinities(np.random.default_rng(1).random((3, 8, 8, 8), np.float32))
    settings = AffinityDecode(threshold=0.4, low=0.1, high=0.8, dust_size=6)
    whole = segmentation_of(affs, settings)
    table, grid = whole.tree.table(0.4), Grid((8, 8, 8), (8, 8, 8))
    columns, fragments = graph_of_block(whole, grid, 0)
    sizes = pool_sizes([sizes_of(table[whole.fragments])], int(table.max()))
    np.testing.assert_array_equal(sizes, np.bincount(table[whole.fragments].ravel()) * (np.arange(len(sizes)) > 0))
    of_small = border_columns(columns, table[fragments], is_small(table[fragments], sizes, 6), "mean")
    of_all = border_columns(columns, table[fragments], np.ones(len(fragments), bool), "mean")
    assert 0 < len(of_small["a"]) < len(of_all["a"])
    np.testing.assert_array_equal(dust_table([of_small], sizes, settings), dust_table([of_all], sizes, settings))


def test_a_segment_that_lost_every_voxel_to_the_boundary_still_joins_and_counts_nothing():
    row = {"a": np.array([1, 2], np.uint64), "b": np.array([2, 3], np.uint64), "key": np.array([1, 2], np.uint64),
           "max": np.array([.9, .8], np.float32)}
    settings = AffinityDecode(statistic="max", dust_size=2)
    np.testing.assert_array_equal(dust_table([row], np.array([0, 1, 0, 9]), settings), [0, 1, 1, 1])
    np.testing.assert_array_equal(dust_table([row], np.array([0, 5, 0, 9]), settings), [0, 1, 1, 2])
    none = {name: values[:0] for name, values in row.items()}
    np.testing.assert_array_equal(dust_table([none], np.array([0, 5, 0, 9]), settings), [0, 1, 0, 2])


def test_rows_pool_as_a_dict_pools_them_however_they_come(monkeypatch):
    random = np.random.default_rng(2)
    columns = {"a": random.integers(0, 5, 300), "b": random.integers(0, 4, 300), "sum": random.integers(0, 2**40, 300),
               "max": random.random(300, np.float32), "min": random.random(300, np.float32),
               "key": random.integers(0, 2**63, 300).astype(np.uint64)}
    expected, found = {}, pooled.pool(columns, ("a", "b"))
    for *pair, total, most, least, key in zip(*(values.tolist() for values in columns.values())):
        old = expected.get(tuple(pair), (0, -1, 2, 0))
        expected[tuple(pair)] = old[0] + total, max(old[1], most), min(old[2], least), max(old[3], key)
    assert list(zip(*(values.tolist() for values in found.values()))) == [
        (*pair, *values) for pair, values in sorted(expected.items())]
    monkeypatch.setattr(pooled, "FEW", 7)
    parts = [{name: values[start:start + 11] for name, values in columns.items()} for start in range(0, 300, 11)]
    for given in (parts, parts[::-1]):
        for name, values in pooled.pool_all(iter(given), ("a", "b")).items():
            np.testing.assert_array_equal(values, found[name])
    empty = pooled.pool({name: values[:0] for name, values in columns.items()}, ("a", "b"))
    assert {name: values.dtype for name, values in empty.items()} == {name: v.dtype for name, v in columns.items()}
    assert not any(map(len, empty.values()))


def test_overlaps_and_spans_of_blocks_are_those_of_whole_sections():
    random = np.random.default_rng(3)
    for dtype in (np.uint32, np.uint64):
        shape = random.integers(2, 9, 3)
        labels = random.integers(0, 6, shape).astype(dtype) << dtype(20 * (dtype == np.uint64))
        affs = segment.Affinities(random.random((3, *shape), np.float32))
        grid, pixels = random_grid(random, shape), int(shape[1] * shape[2])
        for z in range(1, len(labels)):
            wanted = overlaps_kernel.overlaps(labels[z - 1], labels[z], affs.plane(0, z), pixels)
            parts = []
            for block in range(grid.blocks()):
                core = grid.box(block)
                if core[0].start <= z < core[0].stop:
                    box = (slice(max(0, core[0].start - 1), core[0].stop), *core[1:])
                    parts.append(overlap_columns(labels[box], box[0].start, pixels, z_planes(affs, box)))
            pooled = pool_overlaps(parts)
            for name in wanted.dtype.names:
                np.testing.assert_array_equal(pooled[name][pooled["z"] == z - 1], wanted[name])
        columns = overlap_columns(labels, 0, pixels)
        assert columns["total"].tolist() == [0] * len(columns["z"])
        for number, begin, end in zip(*(columns[name].tolist() for name in ("number", "begin", "end"))):
            sections = np.flatnonzero((labels == number).any(axis=(1, 2)))
            assert (begin, end) == (sections[0], sections[-1])
        assert columns["number"].tolist() == np.unique(labels).tolist()
