"""Shapes that tell of errors: cores, crossings and ends where they are known, and the doubts that they become."""

import csv

import numpy as np
import pytest

from emcore import segment
from emcore.blocks.tables import read_segmentation
from emcore.decode.labels import decode
from emcore.errors import InputError, run_command
from emcore.report import doubts as command
from emcore.report.suspects import suspects_of
from emcore.segment import Segmentation, Skeleton
from emcore.segment.doubts import Suspects, crossing_merges, find_doubts, stake
from emcore.segment.shapes import ARM_NM, GAP_NM, _near, crossings, facing_ends, two_somata
from emcore.segment.sides import sides_of
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume
from tests.test_doubts import components, random_segmentation


def star(*ways, length=900.0, step=30.0, middle=(0, 0, 0)):
    """A skeleton with an arm along each way from a middle."""
    nodes, edges = [np.array(middle, float)], []
    for way in ways:
        unit, before = np.array(way, float) / np.linalg.norm(way), 0
        for at in range(1, int(length / step) + 1):
            edges.append((len(nodes), before))
            before = len(nodes)
            nodes.append(np.array(middle) + unit * step * at)
    return Skeleton(np.array(nodes, np.float32), np.array(edges), np.ones(len(nodes), np.float32))


def test_a_crossing_of_straight_paths_is_told_once_with_its_paths():
    found = crossings({7: star((0, 0, 1), (0.2, 1, 0), (0, 0, -1), (0, -1, 0)), 9: star((0, 0, 1), (0, 0, -1))})
    assert len(found) == 1
    assert found[0].object == 7
    paths = {frozenset(tuple(np.round(tip / ARM_NM, 1)) for tip in path) for path in (found[0].one, found[0].other)}
    assert paths == {frozenset([(0, 0, 1), (0, 0, -1)]), frozenset([(0.2, 1, 0), (0, -1, 0)])}


@pytest.mark.parametrize("ways", [
    [(0, 0, 1), (0, 0, -1), (0, 1, 0)], [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, 1, -1)],
    [(0, 0, 1), (0, 0, -1), (0, 0.3, 1), (0, 0.3, -1)],
    [(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0)]])
def test_forks_bends_and_narrow_angles_are_no_crossings(ways):
    assert crossings({1: star(*ways)}) == []
    assert crossings({1: star(*ways[:2], (0, 1, 0), (0, -1, 0), length=500)}) == []


def test_two_forks_on_one_path_close_together_are_a_crossing_and_far_apart_are_none():
    def skeleton(between):
        one = star((0, 0, -1), (0, 1, 0), (0, 0, 1), length=900)
        nodes = one.vertices.astype(float)
        at = int(np.argmin(np.abs(nodes - (0, 0, between)).sum(axis=1)))
        arm = star((0, -1, 0), length=900, middle=(0, 0, between))
        new = np.arange(len(arm.vertices)) + len(nodes)
        new[0] = at
        edges = np.concatenate([one.edges, new[arm.edges]])
        new = np.concatenate([nodes, arm.vertices])
        return Skeleton(new.astype(np.float32), edges, np.ones(len(new), np.float32))

    assert len(crossings({1: skeleton(90)})) == 1
    assert crossings({1: skeleton(600)}) == []


def path(start, way, length=600.0):
    return star(way, length=length, middle=start)


def test_ends_that_point_at_each_other_face():
    one, other = path((0, 0, 0), (0, 0, -1)), path((0, 60, 250), (0, 0.1, 1))
    found = facing_ends({3: one, 8: other})
    assert [pair.objects for pair in found] == [(3, 8)]
    assert found[0].ends.tolist() == [[0, 0, 0], [0, 60, 250]]
    for wrong in (path((0, 60, GAP_NM + 1), (0, 0, 1)), path((0, 250, 60), (0, 0, 1)), path((0, 60, 250), (0, 1, 0)),
                  path((0, 60, 250), (0, 0, 1), length=200)):
        assert facing_ends({3: one, 8: wrong}) == []
    joined = Skeleton(np.concatenate([one.vertices, other.vertices]),
                      np.concatenate([one.edges, other.edges + len(one.vertices)]),
                      np.concatenate([one.radius, other.radius]))
    assert facing_ends({3: joined}) == facing_ends({}) == []
    nearer = path((0, 20, 100), (0, 0, 1))
    assert [pair.objects for pair in facing_ends({3: one, 5: nearer, 8: other})] == [(3, 5), (3, 8)]


def test_near_places_are_those_within_reach():
    places = np.random.default_rng(0).uniform(-500, 500, (60, 3))
    one, other = _near(places, 200.0)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    wanted = {(a, b) for a, b in np.argwhere(apart <= 200).tolist() if a != b}
    assert len(wanted) > 20
    assert sorted(zip(one.tolist(), other.tolist())) == sorted(wanted)


def dumbbell(way, size=80.0, radius=1700.0):
    """Two balls of label 5 that a way of this radius in nm joins, and one ball of label 9."""
    z, y, x = np.indices((64, 64, 200)) * size
    labels = np.zeros(z.shape, np.uint16)
    labels[(z - 2500) ** 2 + (y - 2500) ** 2 + (x - 13500) ** 2 <= radius**2] = 9
    for middle in (2500, 8500):
        labels[(z - 2500) ** 2 + (y - 2500) ** 2 + (x - middle) ** 2 <= radius**2] = 5
    labels[((z - 2500) ** 2 + (y - 2500) ** 2 <= way**2) & (x > 2500) & (x < 8500)] = 5
    return labels


def test_two_somata_in_one_object_are_found_and_thick_ways_and_small_balls_are_none(tmp_path):
    resolution = (80.0, 80.0, 80.0)
    labels = dumbbell(300.0)
    found = two_somata(open_volume(labels), resolution)
    assert [pair.object for pair in found] == [5]
    middles = sorted((found[0].one * 80).tolist() + (found[0].other * 80).tolist(), reverse=True)
    assert abs(found[0].one[2] - found[0].other[2]) * 80 == pytest.approx(6000, abs=600)
    assert all(abs(at * 80 - 2500) < 500 for place in (found[0].one, found[0].other) for at in place[:2]), middles
    with create_volume(f"{tmp_path}/a.h5:labels", labels.shape, labels.dtype, resolution) as out:
        out[...] = labels
    stored = two_somata(open_volume(f"{tmp_path}/a.h5:labels"), resolution)
    assert [(pair.object, *pair.one, *pair.other) for pair in stored] == [
        (pair.object, *pair.one, *pair.other) for pair in found]
    assert two_somata(open_volume(dumbbell(1300.0)), resolution) == []
    assert two_somata(open_volume(dumbbell(300.0, radius=1300.0)), resolution) == []
    assert two_somata(open_volume(labels[:10]), resolution) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_merge_that_joined_two_fragments_is_the_first_after_which_they_are_one(seed):
    whole, random = random_segmentation(seed), np.random.default_rng(seed)
    tree, sides = whole.tree, sides_of(whole.tree, whole.graph, 0.6)
    one, other = random.integers(1, tree.fragments + 1, (2, 40))
    wanted = np.full(40, len(tree.a))
    for merge in range(len(tree.a), -1, -1):
        groups = components(zip(tree.a[:merge].tolist(), tree.b[:merge].tolist()), tree.fragments)
        wanted[groups[one] == groups[other]] = merge - 1
    assert sides.joined(one, other).tolist() == wanted.tolist()
    crossed = random.integers(1, tree.fragments + 1, (300, 4))
    whole_by, across = [], []
    for a, b, c, d in crossed.tolist():
        whole_by.append(max(sides.joined(np.array([a, c]), np.array([b, d]))))
        across.append({int(at) for at in sides.joined(np.array([a, a, b, b]), np.array([c, d, c, d]))})
    kept = [min(merges) for own, merges in zip(whole_by, across) if len(merges) == 1 and own < min(merges)]
    assert len(kept) > 5
    assert crossing_merges(sides, crossed).tolist() == kept


def test_suspects_raise_chances_and_make_doubts_of_objects_apart():
    whole = random_segmentation(1)
    plain, parted = find_doubts(whole, 0.4, 1e-6)
    first = next(row for row in range(len(plain)) if plain.merge[row] >= 0)
    ends = [int(getattr(parted.graph, end)[plain.contact[first]]) for end in "uv"]
    pair = next(row for row in range(len(plain)) if plain.merge[row] < 0)
    touch = [int(getattr(parted.graph, end)[plain.contact[pair]]) for end in "uv"]
    table, pairs = parted.table, set()
    for u, v in zip(table[whole.graph.u].tolist(), table[whole.graph.v].tolist()):
        pairs |= {(u, v), (v, u)}
    every = range(1, whole.graph.fragments + 1)
    apart = next([a, b] for a in every for b in every if table[a] != table[b] and (table[a], table[b]) not in pairs)
    none = np.zeros((0, 4), np.int64)
    found, more = find_doubts(whole, 0.4, 1e-6, suspects=Suspects(
        np.array([ends]), none, np.array([touch, apart, apart, ends]), np.array([0, 7, 8, 9])))
    assert len(found) == len(plain) + 1
    by_contact = {int(contact): row for row, contact in enumerate(found.contact) if found.merge[row] < 0}
    soma = int(np.flatnonzero(found.merge == plain.merge[first])[0])
    assert (found.shape[soma], found.chance[soma]) == (1, max(0.9, plain.chance[first]))
    row = by_contact[int(plain.contact[pair])]
    odds = plain.chance[pair] / (1 - plain.chance[pair])
    assert found.shape[row] == 3
    assert found.chance[row] == pytest.approx(3 * odds / (1 + 3 * odds))
    row = int(np.flatnonzero(found.faces == 0)[0])
    sizes = [int(whole.sizes[table == table[end]].sum()) for end in sorted(apart)]
    assert (found.shape[row], found.chance[row], found.voxels[row].tolist()) == (3, 0.05, sizes)
    assert found.stake[row] == pytest.approx(stake(np.array([sizes]), int(whole.sizes[1:].sum()))[0])
    assert more.graph.key[found.contact[row]] == 7 * 3
    assert (np.diff(found.urgency) <= 0).all()
    assert (found.shape > 0).sum() == 3


def test_merges_come_first_where_many_more_false_splits_are_expected():
    found, _ = find_doubts(random_segmentation(2), 0.3, 1e-6)
    merged = found.merge >= 0
    ratio = found.chance[~merged].sum() / found.chance[merged].sum()
    assert found.weight == pytest.approx(ratio**2)
    few, _ = find_doubts(random_segmentation(2), 0.7, 1e-6)
    assert few.weight == 1
    assert ratio >= 2
    plain = found.chance * found.stake**0.5
    assert found.urgency == pytest.approx(np.where(merged, plain * ratio**2, plain))


def test_ends_that_face_across_a_gap_become_a_doubt_whose_yes_holds(tmp_path):
    truth = np.ones((8, 12, 100), np.uint64)
    truth[:, :, 40:60], truth[:, :, 60:] = 2, 3
    affs = np.full((3, *truth.shape), 0.99, np.float32)
    affs[2][:, :, 1:][truth[:, :, 1:] != truth[:, :, :-1]] = 0.02
    affs -= np.random.default_rng(0).uniform(0, 0.01, affs.shape).astype(np.float32)
    with create_volume(f"{tmp_path}/a_prediction.h5:main", affs.shape, affs.dtype, (10, 10, 10), (50, 0, 0),
                       {"offsets": (-np.eye(3, dtype=int)).tolist()}) as out:
        out[...] = affs
    with create_volume(f"{tmp_path}/a.h5:raw", truth.shape, np.uint8, (10, 10, 10), (50, 0, 0)) as out:
        out[...] = truth.astype(np.uint8)
    labels = decode(open_volume(tmp_path / "a_prediction.h5"), AffinityDecode(low=0.05, high=0.999, threshold=0.5),
                    tmp_path / "a_labels.h5")
    segment.write_skeletons(tmp_path / "skeletons", {1: path((95, 65, 385), (0, 0, -1), length=360),
                                                    3: path((95, 65, 615), (0, 0, 1), length=360)})
    assert run_command(command.main, [str(labels), str(tmp_path / "out"), "--image", f"{tmp_path}/a.h5:raw",
                                      "--skeletons", str(tmp_path / "skeletons")]) == 0
    with open(tmp_path / "out" / "doubts.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["reason"] == "ends that face")
    assert [row[name] for name in ("edit", "faces", "value", "chance")] == ["join", "0", "0.0", "0.05"]
    one, two = (tuple(int(row[side + axis]) for axis in "zyx") for side in ("", "to_"))
    assert {int(truth[one]), int(truth[two])} == {1, 3}
    assert [float(row[f"at_{axis}_nm"]) for axis in "zyx"] == [90, 60, 500]
    whole, stored = read_segmentation(labels), open_volume(labels, "labels")[...]
    found = segment.apply_edits(whole, stored, 0.5, [segment.Edit("join", one, two)])
    assert len(np.unique(found)) == len(np.unique(stored)) - 1


def test_suspects_are_the_fragments_under_shapes():
    labels = dumbbell(300.0)
    fragments = open_volume(labels)
    without = suspects_of(fragments, _placed(labels), {})
    assert without.somata.tolist() == [[5, 5]]
    assert without.crossings.shape == (0, 4)
    assert without.facing.shape == (0, 2)
    lines = star((0, 0, 1), (0, 1, 0), (0, 0, -1), (0, -1, 0), length=1400, middle=(2500, 2500, 13500))
    found = suspects_of(fragments, _placed(labels), {9: lines})
    assert found.crossings.tolist() == [[9, 9, 9, 9]]


def _placed(labels):
    """The labels as a volume that says its resolution."""
    from dataclasses import replace
    return replace(open_volume(labels), resolution=(80.0, 80.0, 80.0))


def test_segmentations_without_doubts_stay_without_shapes():
    whole = Segmentation(np.full((3, 2, 3, 4), 0.9, np.float32))
    none = np.zeros((0, 2), np.int64)
    found, _ = find_doubts(whole, 0.5, 1e-6, suspects=Suspects(none, np.zeros((0, 4), np.int64), none, none[:, 0]))
    assert len(found) == 0


def test_edges_that_stand_twice_and_rings_are_walked_over_once():
    """Skeletons of other programs have such edges; a walk that turned back would take 2**100 steps."""
    line = np.zeros((101, 3), np.float32)
    line[:, 2] = np.arange(101) * 0.5
    edges = np.stack([np.arange(1, 101), np.arange(100)], axis=1)
    nodes = star((0, 0, 1), (0.2, 1, 0), (0, 0, -1), (0, -1, 0))
    twice = Skeleton(nodes.vertices, np.concatenate([nodes.edges, nodes.edges[:, ::-1], nodes.edges[:3, [0, 0]]]),
                     nodes.radius)
    for wanted, found in zip(crossings({1: nodes}), crossings({1: twice}), strict=True):
        np.testing.assert_array_equal(found.one, wanted.one)
        np.testing.assert_array_equal(found.other, wanted.other)
    doubled = Skeleton(line, np.concatenate([edges, edges]), np.ones(101, np.float32))
    assert crossings({1: doubled}) == []
    # a ladder, whose rungs are rings: the ways through it double with every rung
    sides = np.concatenate([line[:30], line[:30] + np.float32([0, 0.5, 0])])
    along = np.stack([np.arange(1, 30), np.arange(29)], axis=1)
    ladder = np.concatenate([along, along + 30, np.stack([np.arange(30), np.arange(30, 60)], axis=1)])
    assert crossings({1: Skeleton(sides, ladder, np.ones(60, np.float32))}) == []


def test_somata_beyond_memory_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr("emcore.memory.memory_there", lambda: 10_000)
    with pytest.raises(InputError, match=r"looking for somata at .* voxels needs about .*: give a part of the labels"):
        two_somata(open_volume(dumbbell(300.0)), (80.0, 80.0, 80.0))
