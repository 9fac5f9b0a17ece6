"""Pieces of decoding in blocks, each against the same thing done on the whole volume at once."""

import itertools

import h5py
import numpy as np
import pytest

from emcore import segment
from emcore.errors import InputError
from emcore.segment import fragments as fragments_module
from emcore.segment.agglomeration import maxima_bins
from emcore.segment.fragments import block_fragments
from emcore.segment.pooling import concatenate, pool_edges

# ---- blocks and what random volumes are made of


def random_cuts(rng, shape):
    """Where a grid cuts each axis: in equal steps or anywhere, also into blocks of one voxel."""
    cuts = []
    for length in shape:
        step = int(rng.integers(1, max(2, length)))
        inner = range(step, length, step) if rng.random() < 0.5 else rng.integers(1, max(2, length), rng.integers(0, 5))
        cuts.append(sorted({0, *(int(at) for at in inner if 0 < at < length), length}))
    return cuts


def boxes_of(cuts):
    """Every block as three (start, stop)."""
    return list(itertools.product(*(list(itertools.pairwise(along)) for along in cuts)))


def random_affinities(rng, shape, levels):
    """Affinities of few values, so that most voxels have ties, in one of the three types."""
    values = np.sort(rng.choice(256, levels, replace=False)).astype(np.uint8)
    codes = values[rng.integers(0, levels, (3, *shape))]
    kind = rng.choice(["uint8", "float16", "float32"])
    return codes if kind == "uint8" else (codes / 255).astype(kind)


# ---- fragments


def united(affs, cuts, low, high, mask=None, context=2):
    """Labels of the whole volume from those of its blocks, by dictionaries; (labels, exits, mutual pairs)."""
    shape = affs.shape
    names = np.zeros(shape, np.int64)  # 1 + the first voxel of each label
    exits, mutual = [], []
    for box in boxes_of(cuts):
        window = [(max(0, a - context), min(n, b + context)) for (a, b), n in zip(box, shape)]
        place = tuple(slice(*ends) for ends in window)
        part = segment.Affinities(affs.values[(slice(None), *place)], affs.offsets, table=affs.table)
        core = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(box, window))
        found = block_fragments(part, low, high, core=core, origin=[start for start, _ in window], volume_shape=shape,
                                mask=None if mask is None else mask[place])
        name = np.concatenate([[0], found.firsts + 1])
        names[tuple(slice(*ends) for ends in box)] = name[found.labels]
        assert len(found.firsts) == found.labels.max()
        assert (np.diff(found.firsts) > 0).all()
        assert (np.diff(found.exit_labels.astype(int)) > 0).all()
        exits += zip(name[found.exit_labels].tolist(), found.exit_keys.tolist(), found.exit_targets.tolist())
        mutual += zip(name[found.mutual_labels].tolist(), found.mutual_targets.tolist())
    assert len(set(mutual)) == len(mutual)
    flat = names.reshape(-1).tolist()
    parent = {name: name for name in set(flat)}

    def root(name):
        while parent[name] != name:
            name = parent[name]
        return name

    def unite(a, b):
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)

    for name, target in mutual:
        unite(name, flat[target])
    best = {}
    for name, key, target in exits:
        plateau = root(name)
        best[plateau] = min(best.get(plateau, (key, target)), (key, target))
    for plateau, (_, target) in best.items():
        unite(plateau, flat[target])
    roots = {name: root(name) for name in parent}
    numbers = {name: number for number, name in enumerate(sorted(set(roots.values()) - {0}), 1)} | {0: 0}
    return np.array([numbers[roots[name]] for name in flat]).reshape(shape), exits, mutual


def random_watershed(rng):
    """Arguments of a watershed with many ties."""
    shape = tuple(int(length) for length in rng.integers(1, 10, 3))
    affs = segment.Affinities(random_affinities(rng, shape, int(rng.choice([2, 2, 3, 5, 100]))),
                              edge=str(rng.choice(["later", "earlier"])))
    low, high = sorted(rng.choice([0, 1e-4, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9999, 1.0], 2, replace=False))
    mask = (rng.random(shape) < 0.9).astype(np.uint8) if rng.random() < 0.2 else None
    return affs, low, high, mask


def compare_watersheds(rng, volumes, grids, context=2):
    """(grids whose labels are not those of the whole, exits, mutual pairs)."""
    different = exits = mutual = 0
    for _ in range(volumes):
        affs, low, high, mask = random_watershed(rng)
        whole = segment.watershed(affs, low, high, mask=mask, threads=1)
        for _ in range(grids):
            labels, ways, pairs = united(affs, random_cuts(rng, affs.shape), low, high, mask, context)
            different += not np.array_equal(labels, whole)
            exits, mutual = exits + len(ways), mutual + len(pairs)
    return different, exits, mutual


def test_fragments_of_blocks_unite_to_those_of_the_whole_volume():
    different, exits, mutual = compare_watersheds(np.random.default_rng(2), 40, 3)
    assert different == 0
    assert min(exits, mutual) > 500


@pytest.mark.long
def test_fragments_of_many_blocks_unite_to_those_of_the_whole_volume():
    assert compare_watersheds(np.random.default_rng(3), 1000, 4)[0] == 0


def test_one_voxel_around_a_block_is_too_few(monkeypatch):
    monkeypatch.setattr(fragments_module, "CONTEXT", 1)
    assert compare_watersheds(np.random.default_rng(2), 20, 3, context=1)[0] > 5


def test_one_block_has_the_fragments_of_the_watershed():
    rng = np.random.default_rng(4)
    for shape in ((0, 3, 4), (1, 1, 1), (7, 8, 9)):
        affs = random_affinities(rng, shape, 3)
        whole = segment.watershed(affs, 0.1, 0.9)
        for threads in (1, 3):
            found = block_fragments(affs, 0.1, 0.9, core=(slice(None),) * 3, origin=(0, 0, 0), volume_shape=shape,
                                    threads=threads)
            np.testing.assert_array_equal(found.labels, whole)
            assert found.labels.dtype == np.uint32
            ids, firsts = np.unique(whole, return_index=True)
            np.testing.assert_array_equal(found.firsts, firsts[ids > 0])
            assert len(found.exit_labels) == len(found.mutual_labels) == 0


def test_a_window_that_cannot_tell_is_refused():
    affs = np.zeros((3, 6, 6, 6), np.uint8)
    inside = (slice(2, 4),) * 3

    def call(core=inside, origin=(5, 5, 5), volume=(20, 20, 20), **others):
        return block_fragments(affs, 0.1, 0.9, core=core, origin=origin, volume_shape=volume, **others)

    assert call().labels.shape == (2, 2, 2)
    assert call((slice(None),) * 3, (0, 0, 0), (6, 6, 6)).labels.shape == (6, 6, 6)
    for core, origin, volume in (((slice(1, 4),) * 3, (5, 5, 5), (20, 20, 20)), (inside, (15, 5, 5), (20, 20, 20)),
                                 ((slice(2, 5),) * 3, (5, 5, 5), (20, 20, 20)),
                                 ((slice(0, 4),) * 3, (1, 0, 0), (20, 20, 20))):
        with pytest.raises(InputError, match="must lie in it, and hold 2 voxels"):
            call(core, origin, volume)
    with pytest.raises(InputError, match="three slices"):
        call(core=(2, 3, 4))
    with pytest.raises(InputError, match="origin must be three whole numbers"):
        call(origin=(-1, 0, 0))
    with pytest.raises(InputError, match="low and high"):
        block_fragments(affs, 0.9, 0.1, core=inside, origin=(5, 5, 5), volume_shape=(20, 20, 20))
    with pytest.raises(InputError, match=r"fewer than 2\*\*61 voxels"):
        call(volume=(2**22, 2**22, 2**22))


# ---- tables of edges


def random_table(rng, rows, clusters, wide):
    """Edges with repeats in any order."""
    ends = np.stack([rng.integers(1, clusters, rows), rng.integers(1, clusters, rows)])
    u, v = ends[:, ends[0] != ends[1]].astype(np.uint64)
    rows = len(u)
    table = {"u": u, "v": v, "key": rng.permutation(rows).astype(np.uint64),
             "top_u": rng.integers(0, 2**60, rows).astype(np.uint64), "top_v": np.arange(rows, dtype=np.uint64),
             "count": rng.integers(1, 2**40, rows), "sum": rng.integers(0, 2**60 // max(1, rows), rows),
             "max": rng.random(rows).astype(np.float32), "min": rng.random(rows).astype(np.float32)}
    lengths = rng.integers(1, 5, rows)
    table["bin_starts"] = np.concatenate([[0], np.cumsum(lengths)])
    table["bins"] = np.concatenate([np.zeros(0, np.int64), *(np.sort(rng.choice(6, n, replace=False)) for n in lengths)]
                                   ).astype(np.uint32)
    table["bin_counts"] = rng.integers(1, 9, len(table["bins"]))
    if wide:
        table["u"], table["v"] = (table[end] * np.uint64(2**40 + 1) for end in "uv")
    return table


def pooled_by_hand(table):
    found = {}
    for row in range(len(table["u"])):
        u, v = sorted((int(table["u"][row]), int(table["v"][row])))
        bins = slice(int(table["bin_starts"][row]), int(table["bin_starts"][row + 1]))
        histogram = dict(zip(table["bins"][bins].tolist(), table["bin_counts"][bins].tolist()))
        found.setdefault((u, v), []).append((row, histogram))
    rows = []
    for (u, v), parts in sorted(found.items()):
        where = [row for row, _ in parts]
        top = max(where, key=lambda row: int(table["key"][row]))
        total = {}
        for _, histogram in parts:
            for level, count in histogram.items():
                total[level] = total.get(level, 0) + count
        rows.append((u, v, sum(int(table["count"][row]) for row in where), sum(int(table["sum"][row]) for row in where),
                     max(table["max"][where]), min(table["min"][where]), int(table["key"][top]),
                     int(table["top_u"][top]), int(table["top_v"][top]), tuple(sorted(total.items()))))
    return rows


def as_rows(table):
    names = ("u", "v", "count", "sum", "max", "min", "key", "top_u", "top_v")
    columns = [table[name].tolist() for name in names]
    starts = table["bin_starts"].tolist()
    histograms = [tuple(zip(table["bins"][a:b].tolist(), table["bin_counts"][a:b].tolist()))
                  for a, b in itertools.pairwise(starts)]
    return list(zip(*columns, histograms, strict=True))


@pytest.mark.parametrize("wide", [False, True])
def test_edges_pool_as_a_dictionary_says(wide):
    rng = np.random.default_rng(0)
    for rows in (0, 1, 2, 5, 40, 300, 300):
        for clusters in (3, 5, 9, 400):
            table = random_table(rng, rows, clusters, wide)
            pooled = pool_edges(table)
            assert as_rows(pooled) == pooled_by_hand(table)
            for name, column in table.items():
                assert pooled[name].dtype == column.dtype
            parts = [random_table(rng, rows // 2, clusters, wide), table]
            joined = concatenate(parts)
            assert as_rows(joined) == as_rows(parts[0]) + as_rows(parts[1])
            joined["key"] = rng.permutation(len(joined["key"])).astype(np.uint64)
            first = np.arange(len(joined["u"])) < len(joined["u"]) // 3
            again = pool_edges(concatenate([pool_edges(select(joined, part)) for part in (first, ~first)]))
            assert as_rows(again) == pooled_by_hand(joined)


def test_edges_pool_under_the_names_that_clusters_have_by_now():
    rng = np.random.default_rng(4)
    for rows in (0, 1, 5, 40, 300):
        table, roots = random_table(rng, rows, 20, False), rng.integers(0, 9, 20).astype(np.uint64)
        renamed = table | {end: roots[table[end].astype(int)] for end in "uv"}
        between = select(renamed, renamed["u"] != renamed["v"])
        assert as_rows(pool_edges(table, roots)) == pooled_by_hand(between)


def select(table, rows):
    lengths = np.diff(table["bin_starts"])
    chosen = {name: column[np.repeat(rows, lengths)] if name in ("bins", "bin_counts") else column[rows]
              for name, column in table.items() if name != "bin_starts"}
    return chosen | {"bin_starts": np.concatenate([[0], np.cumsum(lengths[rows])])}


def test_tables_that_cannot_be_pooled_are_refused():
    table = random_table(np.random.default_rng(1), 9, 5, False)
    with pytest.raises(InputError, match="from a cluster to itself"):
        pool_edges(table | {"v": table["u"]})
    with pytest.raises(InputError, match="all have the same columns"):
        concatenate([table, {name: column for name, column in table.items() if name != "max"}])
    with pytest.raises(InputError, match="if there is one"):
        concatenate([])


# ---- merges

STATISTICS = ("mean", "max", "min", "aff85_his256", "aff50_his256", "aff85", "aff85_his256_all")
NEEDED = {"mean": ("count", "sum"), "max": ("max",), "min": ("min",), "quantile": ("bin_starts", "bins", "bin_counts")}
SIDES = [(axis, side) for axis in range(3) for side in (0, 1)]


def leaf(fragments, affs, box, statistic):
    """(edges between fragments of a block, the fragments at each of its faces with edges that others measure)."""
    halo = [int(a > 0) for a, _ in box]
    start = [a - plane for (a, _), plane in zip(box, halo)]
    place = tuple(slice(a, b) for a, (_, b) in zip(start, box))
    names, local = np.unique(np.concatenate([[0], fragments[place].ravel()]), return_inverse=True)
    local = local[1:].reshape(fragments[place].shape).astype(np.uint32)
    part = segment.Affinities(affs.values[(slice(None), *place)], affs.offsets, table=affs.table)
    graph = segment.region_graph(local, part, statistic=statistic, threads=1,
                                 place=segment.Place(start, fragments.shape, halo))
    edges = {name: getattr(graph, name) for name in ("key", *NEEDED[statistic.kind]) if name != "bin_starts"}
    edges |= {"u": names[graph.u], "v": names[graph.v], "top_u": names[graph.u], "top_v": names[graph.v]}
    if statistic.kind == "quantile" and statistic.every_contact:
        edges["bin_starts"] = graph.bin_starts
    elif statistic.kind == "quantile":
        edges |= {"bin_starts": np.arange(len(graph.u) + 1), "bins": maxima_bins(graph.max, statistic),
                  "bin_counts": np.ones(len(graph.u), np.int64)}
    faces = {}
    for axis, side in SIDES:
        ends = [[int(plane), None] for plane in halo]
        ends[axis] = [0, 1] if side == 0 else [local.shape[axis] - 1, None]
        inner = halo[axis] if side == 0 else box[axis][1] < fragments.shape[axis]
        faces[axis, side] = set(names[local[tuple(slice(*one) for one in ends)]].ravel().tolist()) if inner else set()
    return edges, faces


def node(edges, faces, statistic, end, freeze=True):
    """(merges as (height, key, fragment, fragment), edges that are left) of one block."""
    names, local = np.unique(np.concatenate([[0], edges["u"], edges["v"]]), return_inverse=True)
    u, v = local[1:].reshape(2, -1).astype(np.uint32)
    count = len(u)
    blank = {"count": np.ones(count, np.int64), "sum": np.zeros(count, np.int64), "max": np.zeros(count, np.float32),
             "min": np.zeros(count, np.float32)}
    given = {name: edges[name] for name in ("key", *NEEDED[statistic.kind])}
    graph = segment.RegionGraph(len(names) - 1, u, v, **(blank | given))
    at_faces = np.isin(names, list(set().union(*faces.values()) - {0}))
    run = segment.Agglomeration(graph, statistic, frozen=np.flatnonzero(at_faces & freeze),
                                maxima=statistic.kind == "quantile" and not statistic.every_contact)
    run.advance(end)
    tree, made, left = run.tree(), run.merges(), run.remaining_edges()
    top, heights, roots = left.pop("top"), left.pop("height"), run.roots()
    np.testing.assert_array_equal(np.sort(heights), run.remaining().height)
    assert (left["u"] < left["v"]).all()
    np.testing.assert_array_equal(roots[[left["u"], left["v"]]], [left["u"], left["v"]])
    np.testing.assert_array_equal(roots[tree.a], roots[tree.b])
    left |= {"u": names[left["u"]], "v": names[left["v"]], "top_u": edges["top_u"][top], "top_v": edges["top_v"][top]}
    return list(zip(tree.height.tolist(), tree.key.tolist(), edges["top_u"][made].tolist(),
                    edges["top_v"][made].tolist(), strict=True)), left


def gathered(tables):
    """The edges of leaves, each in the first leaf that has it, at the largest of its maxima and keys."""
    found = {}
    for number, table in enumerate(tables):
        for pair in zip(*(table[name].tolist() for name in ("u", "v", "bins", "key"))):
            first, bins, key = found.get(pair[:2], (number, 0, 0))
            found[pair[:2]] = first, max(bins, pair[2]), max(key, pair[3])
    for number, table in enumerate(tables):
        pairs = [found[pair] for pair in zip(table["u"].tolist(), table["v"].tolist())]
        kept = np.array([first == number for first, *_ in pairs], bool)
        table |= {"bins": np.array([bins for _, bins, _ in pairs], np.uint32),
                  "key": np.array([key for *_, key in pairs], np.uint64)}
        yield select(table, kept)


def merges_of_blocks(fragments, affs, cuts, statistic, end=None, gather=gathered, freeze=True):
    """All merges, from the blocks of a grid up an octree whose nodes see nothing but what their children left."""
    events, level = [], {}
    places = itertools.product(*(range(len(along) - 1) for along in cuts))
    tables, faces_of = zip(*(leaf(fragments, affs, box, statistic) for box in boxes_of(cuts)))
    if statistic.kind == "quantile" and not statistic.every_contact:
        tables = gather(tables)
    for place, edges, faces in zip(places, tables, faces_of):
        made, left = node(pool_edges(edges), faces, statistic, end, freeze)
        events += made
        level[place] = left, faces
    while len(level) > 1:
        groups = {}
        for place, child in level.items():
            groups.setdefault(tuple(at // 2 for at in place), []).append((place, *child))
        level = {}
        for parent, children in groups.items():
            faces = {(axis, side): set() for axis, side in SIDES}
            for axis, side in SIDES:
                outer = (max if side else min)(place[axis] for place, *_ in children)
                faces[axis, side].update(*(own[axis, side] for place, _, own in children if place[axis] == outer))
            made, left = node(pool_edges(concatenate([left for _, left, _ in children])), faces, statistic, end, freeze)
            events += made
            level[parent] = left, faces
    return sorted(events)


def random_fragments(rng):
    """(connected fragments, affinities between them with many ties, cuts)."""
    shape = tuple(int(length) for length in rng.integers(3, 11, 3))
    own = segment.Affinities(random_affinities(rng, shape, int(rng.choice([5, 200, 200]))))
    mask = (rng.random(shape) < 0.9).astype(np.uint8) if rng.random() < 0.2 else None
    fragments = segment.watershed(own, 0.0, 1.0, mask=mask, threads=1)
    affs = segment.Affinities(random_affinities(rng, shape, int(rng.choice([2, 3, 5, 200]))))
    cuts = random_cuts(rng, shape)
    while len(boxes_of(cuts)) > 30:
        cuts = random_cuts(rng, shape)
    return fragments, own if rng.random() < 0.3 else affs, cuts


def compare_merges(rng, volumes, names=STATISTICS, **others):
    """(volumes whose merges are not those of the whole, by statistic; merges in all)."""
    different, merges = dict.fromkeys(names, 0), 0
    for _ in range(volumes):
        fragments, affs, cuts = random_fragments(rng)
        end = None if rng.random() < 0.7 else float(rng.random())
        for name in names:
            statistic = segment.parse_statistic(name)
            graph = segment.region_graph(fragments, affs, statistic=name, threads=1)
            tree = segment.agglomerate(graph, name, threshold=end, threads=1)
            whole = list(zip(tree.height.tolist(), tree.key.tolist(), tree.a.tolist(), tree.b.tolist(), strict=True))
            assert whole == sorted(whole)
            different[name] += merges_of_blocks(fragments, affs, cuts, statistic, end, **others) != whole
            merges += len(whole)
    return different, merges


def test_merges_of_blocks_are_those_of_the_whole_volume():
    different, merges = compare_merges(np.random.default_rng(5), 20)
    assert different == dict.fromkeys(STATISTICS, 0)
    assert merges > 2000


@pytest.mark.long
def test_merges_of_many_blocks_are_those_of_the_whole_volume():
    different, _ = compare_merges(np.random.default_rng(6), 300)
    assert different == dict.fromkeys(STATISTICS, 0)


def test_without_the_rules_merges_of_blocks_are_others():
    """Nothing frozen; and maxima of the parts of one contact counted each."""
    different, _ = compare_merges(np.random.default_rng(5), 10, ("mean",), freeze=False)
    assert different["mean"] > 2

    different, _ = compare_merges(np.random.default_rng(5), 20, ("aff50_his256",), gather=list)
    assert different["aff50_his256"] > 2


@pytest.mark.parametrize("statistic, others, sentence", [
    ("mean", {"frozen": np.array([0])}, r"frozen must be ids of 1 to 8; got \(1,\) int64, 0 to 0"),
    ("mean", {"frozen": np.array([3, 9], np.uint32)}, r"frozen must be ids of 1 to 8; got \(2,\) uint32, 3 to 9"),
    ("mean", {"frozen": np.array([1.0])}, r"frozen must be ids of 1 to 8; got \(1,\) float64"),
    ("mean", {"maxima": True}, "for graphs with histograms and quantiles of maxima"),
    ("aff85_his256_all", {"maxima": True}, "for graphs with histograms and quantiles of maxima"),
    ("aff85_his4", {"maxima": True}, "the bins of aff85_his4 lie below 4; the graph has 255"),
    ("mean", {"ties": "waterz", "frozen": np.array([1])}, "whole volumes only"),
])
def test_what_no_block_can_be_is_refused(statistic, others, sentence):
    fragments = np.arange(1, 9, dtype=np.uint32).reshape(2, 2, 2)
    graph = segment.region_graph(fragments, np.ones((3, 2, 2, 2), np.float32), extras=("histogram", "running_mean"))
    with pytest.raises(InputError, match=sentence):
        segment.Agglomeration(graph, statistic, **others)


def test_a_block_gives_no_cut_and_what_has_no_histograms_no_edges():
    fragments = np.arange(1, 9, dtype=np.uint32).reshape(2, 2, 2)
    graph = segment.region_graph(fragments, np.full((3, 2, 2, 2), 0.8, np.float32), extras=("running_mean",))
    run = segment.Agglomeration(graph, frozen=np.array([1, 2]))
    run.advance()
    with pytest.raises(InputError, match=r"computed up to 0\.0; it cannot be cut at 0.5"):
        run.tree().table(0.5)
    with pytest.raises(InputError, match="give maxima=True"):
        segment.Agglomeration(graph, "aff85_his256").remaining_edges()
    for call in ("merges", "remaining_edges"):
        with pytest.raises(InputError, match="ties='waterz'"):
            getattr(segment.Agglomeration(graph, ties="waterz"), call)()


def test_keys_of_merges_are_stored_and_those_of_another_tree_are_refused(tmp_path):
    keys = np.array([5, 2**63 + 1], np.uint64)
    tree = segment.MergeTree(4, *np.array([[1, 2], [2, 3]], np.uint32), np.array([0.25, 0.25]), key=keys)
    segment.write_tree(tmp_path / "tree.h5", tree)
    np.testing.assert_array_equal(segment.read_tree(tmp_path / "tree.h5").key, keys)
    for stored in (keys[::-1], keys[:1], keys.astype(float)):
        with h5py.File(tmp_path / "tree.h5", "a") as file:
            del file["merge_keys"]
            file["merge_keys"] = stored.reshape(1, 1, 1, -1)
        with pytest.raises(InputError, match="the keys of its merges do not fit"):
            segment.read_tree(tmp_path / "tree.h5")
    with h5py.File(tmp_path / "tree.h5", "a") as file:
        del file["merge_keys"]  # a file of an older version
    assert segment.read_tree(tmp_path / "tree.h5").key is None
