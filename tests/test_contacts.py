"""Statistics of contacts: against the oracle, for every way of storing affinities, and pooled in any order."""

from dataclasses import fields

import numpy as np
import pytest

from emcore import segment
from emcore.errors import InputError
from emcore.segment.affinities import Affinities, encode_affinities
from emcore.segment.agglomeration import Agglomeration
from emcore.segment.contacts import (
    BINS,
    Contacts,
    Pairs,
    first_graph,
    measure_contacts,
    pool_contacts,
    step_groups,
    touching,
)
from emcore.segment.graph import RegionGraph
from tests.oracles import contacts as oracle

OFFSETS = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -3, 0), (0, 0, -3), (-4, 0, 0), (0, -9, 0), (0, 0, -9)]


def volume(seed, shape=(6, 11, 13), fragments=14):
    """Random blobs with some background, and affinities of nine channels with many equal values."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, shape, (fragments, 3))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    labels = ((grid[..., None, :] - points) ** 2).sum(-1).argmin(-1).astype(np.uint32) + 1
    labels[rng.random(shape) < 0.03] = 0
    labels = segment.relabel(labels)[0].astype(np.uint32)
    affs = rng.random((9, *shape)).astype(np.float32)
    affs[rng.random(affs.shape) < 0.2] = 1
    affs[rng.random(affs.shape) < 0.2] = 0
    return labels, affs


def same(one, other):
    for field in fields(Contacts):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if field.name == "pairs":
            assert len(left) == len(right)
            for a, b in zip(left, right):
                assert all(np.array_equal(getattr(a, name.name), getattr(b, name.name)) for name in fields(Pairs))
        else:
            assert np.array_equal(left, right), field.name


def check(contacts, fragments, values, groups, stored_earlier=()):
    faces, long, inside = oracle.statistics(fragments, values, groups, stored_earlier)
    assert list(zip(contacts.u.tolist(), contacts.v.tolist())) == sorted(faces)
    for row, ends in enumerate(sorted(faces)):
        found = np.array(faces[ends]["faces"], np.int64)
        assert contacts.count[row] == len(found)
        assert contacts.z_faces[row] == faces[ends]["z"]
        assert np.array_equal(contacts.sums[row], found.sum(0))
        assert np.array_equal(contacts.squares[row], ((found >> 8) ** 2).sum(0))
        assert np.array_equal(contacts.least[row], found.min(0))
        assert np.array_equal(contacts.most[row], found.max(0))
        for quantity in range(found.shape[1]):
            bins = np.minimum(found[:, quantity] >> 20, BINS - 1)
            assert np.array_equal(contacts.histograms[row, quantity], np.bincount(bins, minlength=BINS))
    for rows, wanted in zip(contacts.pairs, long):
        assert {(u, v): [count, total] for u, v, count, total in zip(
            *(getattr(rows, name).tolist() for name in ("u", "v", "count", "sum")))} == wanted
    for label, wanted in inside.items():
        assert contacts.least_height[label] == wanted["least"]
        assert contacts.voxel_sums[label].tolist() == wanted["sums"]
        assert contacts.sizes[label] == wanted["size"]


@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_those_of_the_oracle(seed):
    fragments, affs = volume(seed)
    groups, steps = step_groups(OFFSETS)
    contacts = measure_contacts(fragments, Affinities(affs, OFFSETS), threads=1 + seed)
    assert contacts.steps == steps == ((1, 1, 1), (2, 3, 3), (4, 9, 9))
    check(contacts, fragments, affs, list(zip(groups, steps)))


def test_a_volume_that_is_thinner_than_a_step_counts_the_nearest_in_its_place():
    fragments, affs = volume(3, (3, 12, 12))
    groups, steps = step_groups(OFFSETS)
    check(measure_contacts(fragments, Affinities(affs, OFFSETS)), fragments, affs, list(zip(groups, steps)))


def test_codes_of_8_bits_half_floats_and_values_at_earlier_voxels_say_the_same():
    fragments, affs = volume(4)
    groups, steps = step_groups(OFFSETS)
    turned = [tuple(-step for step in offset) for offset in OFFSETS]
    codes, table = encode_affinities(affs)
    pairs = list(zip(groups, steps))
    check(measure_contacts(fragments, Affinities(codes, OFFSETS, table=table)), fragments, table[codes], pairs)
    half = affs.astype(np.float16)
    check(measure_contacts(fragments, Affinities(half, OFFSETS)), fragments, half.astype(np.float32), pairs)
    check(measure_contacts(fragments.astype(np.uint64), Affinities(affs, turned)), fragments, affs, pairs, range(9))


def test_threads_change_no_number():
    fragments, affs = volume(5, (20, 30, 30), 120)
    one = measure_contacts(fragments, Affinities(affs, OFFSETS), threads=1)
    for threads in (2, 3, 7):
        same(one, measure_contacts(fragments, Affinities(affs, OFFSETS), threads=threads))


def test_clusters_have_the_statistics_that_their_own_labels_have_whatever_the_order_of_pooling():
    rng = np.random.default_rng(6)
    fragments, affs = volume(6, (12, 20, 20), 80)
    contacts, count = measure_contacts(fragments, Affinities(affs, OFFSETS)), int(fragments.max())
    for _ in range(5):
        table = np.zeros(count + 1, np.uint32)
        table[1:] = np.unique(rng.integers(0, 9, count), return_inverse=True)[1] + 1
        direct = measure_contacts(table[fragments], Affinities(affs, OFFSETS))
        same(pool_contacts(contacts, table), direct)
        # the same clusters by way of smaller ones, in random groupings
        finer = np.zeros(count + 1, np.uint32)
        finer[1:] = np.unique(table[1:] * 100 + rng.integers(0, 3, count), return_inverse=True)[1] + 1
        then = np.zeros(int(finer.max()) + 1, np.uint32)
        then[finer] = table
        same(pool_contacts(pool_contacts(contacts, finer), then), direct)


def test_pooling_everything_into_one_leaves_no_contact():
    fragments, affs = volume(7)
    table = np.minimum(np.arange(int(fragments.max()) + 1), 1).astype(np.uint32)
    pooled = pool_contacts(measure_contacts(fragments, Affinities(affs, OFFSETS)), table)
    assert len(pooled.u) == 0
    assert [len(rows.u) for rows in pooled.pairs] == [0, 0]
    assert pooled.sizes.tolist() == [(fragments == 0).sum(), (fragments > 0).sum()]


def test_pairs_of_two_that_touch_are_found_among_all_pairs():
    fragments, affs = volume(8)
    contacts = measure_contacts(fragments, Affinities(affs, OFFSETS))
    for rows in contacts.pairs:
        known = {(u, v): (count, total) for u, v, count, total in zip(rows.u, rows.v, rows.count, rows.sum)}
        count, total = touching(contacts, rows)
        assert [known.get(ends, (0, 0)) for ends in zip(contacts.u, contacts.v)] == list(zip(count, total))
        assert not set(known) <= set(zip(contacts.u, contacts.v))  # some do not touch


def test_the_first_merges_are_by_the_mean_of_nearest_and_shortest_longer_pairs():
    fragments, affs = volume(9)
    contacts = measure_contacts(fragments, Affinities(affs, OFFSETS))
    graph = first_graph(contacts)
    count, total = touching(contacts, contacts.pairs[0])
    assert np.allclose(graph.mean, (contacts.sums[:, 0] + total) / 2**24 / (contacts.count + count))


def test_affinities_without_longer_steps_or_with_wrong_values_are_refused():
    fragments, affs = volume(10)
    with pytest.raises(InputError, match="at least one longer step"):
        measure_contacts(fragments, Affinities(affs[:3], OFFSETS[:3]))
    with pytest.raises(InputError, match="over the fragments' shape"):
        measure_contacts(fragments[1:], Affinities(affs, OFFSETS))
    affs[8, 2, 3, 4] = 1.5
    with pytest.raises(InputError, match=r"found 1.5 in channel 8 at voxel \(2, 3, 4\)"):
        measure_contacts(fragments, Affinities(affs, OFFSETS))


# ---- two large clusters stay two


def slow_merges(graph, limit, threshold):
    """The cluster of every fragment: the best edge again and again, of those that do not join two large ones."""
    edges = {(int(u), int(v)): [int(count), int(total), int(key)] for u, v, count, total, key in zip(
        graph.u, graph.v, graph.count, graph.sum, graph.key)}
    sizes, root = graph.sizes.copy(), np.arange(graph.fragments + 1)
    while True:
        allowed = {ends: row for ends, row in edges.items() if min(sizes[list(ends)]) <= limit}
        best = min(allowed, key=lambda ends: ((allowed[ends][0] * 2**24 - allowed[ends][1]) / (
            allowed[ends][0] * 2**24), allowed[ends][2]), default=None)
        if best is None or 1 - allowed[best][1] / (allowed[best][0] * 2**24) >= threshold:
            return root
        a, b = best
        root[root == b] = a
        sizes[a] += sizes[b]
        pooled = {}
        for ends, row in edges.items():
            if ends != best:
                ends = tuple(sorted(a if end == b else end for end in ends))
                old = pooled.get(ends, [0, 0, 0])
                pooled[ends] = [old[0] + row[0], old[1] + row[1], max(old[2], row[2])]
        edges = pooled


def random_graph(rng, fragments=40):
    pairs = sorted({tuple(sorted(rng.choice(fragments, 2, replace=False) + 1)) for _ in range(3 * fragments)})
    u, v = np.array(pairs, np.uint32).T
    count = rng.integers(1, 5, len(u))
    total = count * rng.integers(0, 17, len(u)) * 2**20  # many equal scores
    affinity = (total / count / 2**24).astype(np.float32)
    sizes = rng.integers(1, 30, fragments + 1)
    return RegionGraph(fragments, u, v, count, total, affinity, affinity, rng.permutation(len(u)).astype(np.uint64),
                       sizes)


def groups_of(table):
    return {tuple(np.flatnonzero(table[1:] == name)) for name in set(table[1:].tolist())}


@pytest.mark.parametrize("seed", range(20))
def test_two_clusters_above_the_limit_never_merge_on_any_number_of_threads(seed):
    rng = np.random.default_rng(seed)
    graph, threshold, limit = random_graph(rng), float(rng.choice([0.3, 0.6, 1.0])), int(rng.integers(10, 120))
    wanted = groups_of(slow_merges(graph, limit, threshold))
    for threads in (1, 2, 3):
        run = Agglomeration(graph, "mean", limit=limit)
        run.advance(threshold, threads)
        assert groups_of(run.tree().table(threshold)) == wanted


def test_a_limit_matters():
    graph = random_graph(np.random.default_rng(0))
    found = []
    for limit in (0, 60, None):
        run = Agglomeration(graph, "mean", limit=limit)
        run.advance(1.0)
        found.append(len(run.tree().a))
    assert found[0] == 0 < found[1] < found[2]


@pytest.mark.parametrize("seed", range(20))
def test_with_frozen_ids_every_merge_is_one_of_the_whole(seed):
    rng = np.random.default_rng(seed)
    graph, limit = random_graph(rng), int(rng.integers(10, 120))
    frozen = np.unique(rng.integers(1, graph.fragments + 1, 8)).astype(np.uint32)
    run = Agglomeration(graph, "mean", frozen=frozen, limit=limit)
    run.advance(0.7)
    whole = slow_merges(graph, limit, 0.7)
    for root, cluster in enumerate(run.roots()):
        assert whole[root] == whole[cluster]


def test_a_limit_needs_sizes():
    graph = random_graph(np.random.default_rng(0))
    with pytest.raises(InputError, match="limit needs the sizes"):
        Agglomeration(graph, "mean", "waterz", limit=5)
