"""Doubts: sides against brute force, known errors first, their places and stakes, and the files of the command."""

import csv
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from emcore import metrics, record, segment
from emcore.blocks.tables import read_segmentation
from emcore.decode.labels import decode
from emcore.errors import InputError, run_command
from emcore.report import doubts as command
from emcore.report.places import outer_fragments, places_of
from emcore.report.stakes import synapses_of
from emcore.report.wiring_files import HEAD
from emcore.segment import Segmentation, cut
from emcore.segment.doubts import find_doubts
from emcore.segment.sides import sides_of
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume
from tests.test_block_tables import both_ways

RESOLUTION = (20.0, 10.0, 10.0)
SHAPE = (12, 36, 48)
SETTINGS = {"statistic": "max", "threshold": 0.5, "low": 0.05, "high": 0.97}


def components(pairs, count):
    """The smallest fragment of every fragment's group, by flooding."""
    neighbours = {fragment: [] for fragment in range(count + 1)}
    for one, other in pairs:
        neighbours[one].append(other)
        neighbours[other].append(one)
    found = np.full(count + 1, -1)
    for fragment in range(count + 1):
        waiting = [fragment] if found[fragment] < 0 else []
        while waiting:
            at = waiting.pop()
            if found[at] < 0:
                found[at] = fragment
                waiting += neighbours[at]
    return found


def random_segmentation(seed):
    affs = np.random.default_rng(seed).random((3, 5, 9, 10), np.float32)
    return Segmentation(affs, low=0.2, high=0.95)


@pytest.mark.parametrize("seed", range(4))
def test_sides_are_what_falls_apart_when_a_merge_is_left_out(seed):
    segmentation = random_segmentation(seed)
    graph, tree, count = segmentation.graph, segmentation.tree, segmentation.graph.fragments
    sides = sides_of(tree, graph, 0.6)
    doubts, parted = find_doubts(segmentation, 0.6, 1e-6)
    ends = list(zip(graph.u[sides.contact].tolist(), graph.v[sides.contact].tolist()))
    assert 5 < sides.made == np.count_nonzero(tree.height < 0.6)
    assert (components(ends, count) == components(zip(tree.a[:sides.made], tree.b[:sides.made]), count)).all()
    weights, every = np.random.default_rng(seed).integers(0, 9, count + 1), np.arange(count + 1)
    weighed = parted.weigh(doubts.merge, doubts.contact, weights)
    for row in range(len(doubts)):
        merge, contact = int(doubts.merge[row]), int(doubts.contact[row])
        u, v = int(graph.u[contact]), int(graph.v[contact])
        groups = components(ends if merge < 0 else ends[:merge] + ends[merge + 1:], count)
        wanted = np.where(groups == groups[u], 1, np.where(groups == groups[v], 2, 0))
        assert (parted.sides_in(merge, contact, every) == wanted).all()
        assert weighed[row].tolist() == [weights[wanted == 1].sum(), weights[wanted == 2].sum()]
        assert doubts.voxels[row].tolist() == [segmentation.sizes[wanted == side].sum() for side in (1, 2)]
        if merge >= 0:
            groups = components(zip(tree.a[:merge], tree.b[:merge]), count)
            wanted = np.where(groups == groups[u], 1, np.where(groups == groups[v], 2, 0))
            assert doubts.faces[row] == graph.count[(wanted[graph.u] + wanted[graph.v] == 3)
                                                    & (wanted[graph.u] * wanted[graph.v] == 2)].sum()
        assert (parted.near(merge, contact, every) == wanted).all()


@pytest.mark.parametrize("seed", range(3))
def test_doubts_that_part_an_object_in_nearly_the_same_way_name_the_first_of_them(seed):
    segmentation = random_segmentation(seed)
    doubts, parted = find_doubts(segmentation, 0.6, 1e-6)
    every, sizes = np.arange(segmentation.graph.fragments + 1), segmentation.sizes
    parts = [parted.sides_in(int(merge), int(contact), every)
             for merge, contact in zip(doubts.merge, doubts.contact)]

    def alike(row, before):
        one, other = parts[row], parts[before]
        if min(doubts.merge[row], doubts.merge[before]) < 0 or ((one > 0) != (other > 0)).any():
            return False
        moved = min(sizes[one != other].sum(), sizes[(one > 0) & (one == other)].sum())
        return moved <= 0.1 * min(doubts.voxels[row].min(), doubts.voxels[before].min())

    wanted = [next((before for before in range(row) if alike(row, before)), -1) for row in range(len(doubts))]
    assert max(wanted) > 0
    assert parted.alike(doubts).tolist() == wanted


@pytest.mark.parametrize("seed", range(3))
def test_stakes_are_differences_of_voi_and_every_pair_that_touches_is_listed(seed):
    segmentation = random_segmentation(seed)
    doubts, parted = find_doubts(segmentation, 0.6, 1e-6)
    graph, labels = segmentation.graph, cut(segmentation.fragments, segmentation.tree, 0.6)
    for row in range(0, len(doubts), 7):
        sides = parted.sides_in(int(doubts.merge[row]), int(doubts.contact[row]), segmentation.fragments)
        one, two = labels.astype(np.int64), labels.astype(np.int64)
        one[sides > 0], two[sides > 0] = -1, -sides[sides > 0].astype(np.int64)
        voi = metrics.voi(metrics.contingency(one + 2, two + 2, (2,)))
        assert doubts.stake[row] == pytest.approx(voi.split + voi.merge, abs=1e-9)
    table = segmentation.tree.table(0.6)
    ends = zip(table[graph.u].tolist(), table[graph.v].tolist())
    pairs = {tuple(sorted(pair)) for pair in ends if pair[0] != pair[1]}
    outside = doubts.contact[doubts.merge < 0]
    listed = [tuple(sorted(pair)) for pair in zip(table[graph.u[outside]].tolist(), table[graph.v[outside]].tolist())]
    assert sorted(listed) == sorted(pairs)
    by_mean = {tuple(sorted(pair)): [0, 0] for pair in listed}
    for pair, total, count in zip(zip(table[graph.u], table[graph.v]), graph.sum, graph.count):
        if pair[0] != pair[1]:
            by_mean[tuple(sorted(map(int, pair)))][0] += int(total)
            by_mean[tuple(sorted(map(int, pair)))][1] += int(count)
    for pair, height in zip(listed, doubts.height[doubts.merge < 0].tolist()):
        assert height == pytest.approx(1 - by_mean[pair][0] / by_mean[pair][1] / 2**24, abs=1e-6)
    assert (np.diff(doubts.urgency) <= 0).all()


def test_heights_that_are_probabilities_are_taken_as_they_are():
    doubts, _ = find_doubts(random_segmentation(3), 0.5, 1e-6, certain=True)
    merged = doubts.merge >= 0
    assert merged.any()
    assert (doubts.chance == np.where(merged, doubts.height, 1 - doubts.height)).all()
    assert (np.diff(doubts.urgency) <= 0).all()


def scene():
    """(truth, affinities): bodies 1 and 2 leak into each other through a window, body 3 is nearly cut in two.

    Body 4 lies free within body 5, so it ends inside the volume, and nothing is unsure about it.
    """
    truth = np.ones(SHAPE, np.uint64)
    truth[:, :, 16:32], truth[:, :, 32:] = 2, 5
    truth[:, 24:, :32] = 3
    truth[4:8, 10:16, 37:43] = 4
    affs = np.ones((3, *SHAPE), np.float32)
    for axis in range(3):
        after = np.moveaxis(truth, axis, 0)
        values = np.moveaxis(affs[axis], axis, 0)
        values[1:][after[1:] != after[:-1]] = 0.02
        values[0] = 0
    affs[2, 4:8, 8:14, 16] = 0.56  # the window, which merges at 0.44
    affs[2, :, 24:, 16] = 0.47  # across body 3, whose halves would merge at 0.53
    noise = np.random.default_rng(0).uniform(-0.01, 0, affs.shape).astype(np.float32)
    return truth, np.clip(affs + noise, 0, 1)


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """(labels file, truth) of the scene, where only the window is a contact between bodies 1 and 2."""
    place = tmp_path_factory.mktemp("doubts")
    truth, affs = scene()
    affs[2, :, :24, 16] = np.where(affs[2, :, :24, 16] < 0.1, 0.3, affs[2, :, :24, 16])
    offsets = {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}
    for name, values, more in (("a_prediction.h5:main", affs, offsets), ("a.h5:labels", truth, None),
                               ("a.h5:raw", (affs.mean(0) * 200).astype(np.uint8), None)):
        with create_volume(f"{place}/{name}", values.shape, values.dtype, RESOLUTION, (40, 50, 60), more) as out:
            out[...] = values
    return decode(open_volume(place / "a_prediction.h5"), AffinityDecode(**SETTINGS), place / "a_labels.h5"), truth


@pytest.fixture(scope="module")
def written(decoded, tmp_path_factory):
    labels, _ = decoded
    out = tmp_path_factory.mktemp("out") / "doubts"
    assert run_command(command.main, [str(labels), str(out), "--image", f"{labels.parent}/a.h5:raw"]) == 0
    with open(out / "doubts.csv", newline="") as file:
        return out, list(csv.DictReader(file))


def test_a_known_false_merge_and_a_known_false_split_come_first_at_their_places(decoded, written):
    labels, truth = decoded
    segmentation = read_segmentation(labels)
    doubts, parted = find_doubts(segmentation, 0.5, 2e-6)
    found = cut(segmentation.fragments, segmentation.tree, 0.5)
    assert len(np.unique(found)) == 5
    assert len(np.unique(truth)) == 5
    places = list(places_of(doubts.rows(np.arange(2)), parted, open_volume(labels, "fragments"), (12, 20, 20)))
    kinds = {int(doubts.merge[row]) >= 0: (row, place) for row, place in enumerate(places)}
    row, place = kinds[True]
    assert truth[place.one] != truth[place.two]
    assert {int(truth[place.one]), int(truth[place.two])} == {1, 2}
    assert place.middle[2] in (15, 16)
    assert place.middle[1] < 24
    assert sorted(doubts.voxels[row].tolist()) == sorted(np.count_nonzero(truth == body) for body in (1, 2))
    row, place = kinds[False]
    assert truth[place.one] == truth[place.two] == 3
    assert found[place.one] != found[place.two]
    assert place.middle[2] in (15, 16)
    assert place.middle[1] >= 24
    half = np.count_nonzero(truth == 3) // 2
    assert doubts.voxels[row].tolist() == [half, half]
    n = truth.size
    assert doubts.stake[row] == pytest.approx(2 * half / n)  # a bit for each of the voxels that two equal halves have


def test_the_table_names_voxels_labels_and_places(decoded, written):
    labels, truth = decoded
    out, rows = written
    stored = open_volume(labels, "labels")[...]
    assert [row["edit"] for row in rows[:2]] in (["split", "join"], ["join", "split"])
    for row in rows:
        one, two = (tuple(int(row[side + axis]) for axis in "zyx") for side in ("", "to_"))
        assert (stored[one] == stored[two]) == (row["edit"] == "split")
        assert [int(row["object"]), int(row["to_object"])] == [stored[one], stored[two]]
        nm = [float(row[f"at_{axis}_nm"]) for axis in "zyx"]
        voxel = (np.array(nm) - (40, 50, 60)) / RESOLUTION
        assert (voxel == voxel.round()).all()
        assert (np.abs(voxel - one) <= 32).all()
    orphans = [row for row in rows if row["reason"] == "orphan"]
    assert {truth[tuple(int(row[side + axis]) for axis in "zyx")] for row in orphans for side in ("", "to_")} == {4, 5}
    state = json.loads((out / "doubts.json").read_text())
    lines = state["layers"][0]["annotations"]
    assert state["dimensions"]["z"] == [20e-9, "m"]
    assert len(lines) == len(rows)
    first = rows[0]
    assert lines[0]["pointB"] == [int(first["to_x"]) + 6.5, int(first["to_y"]) + 5.5, int(first["to_z"]) + 2.5]


def test_a_yes_to_every_listed_doubt_is_an_edit_that_holds(decoded, written, tmp_path):
    labels, _ = decoded
    _, rows = written
    whole, stored = read_segmentation(labels), open_volume(labels, "labels")[...]
    names = ("edit", "z", "y", "x", "to_z", "to_y", "to_x")
    for row in rows[:20]:
        (tmp_path / "edits.csv").write_text(f"{','.join(names)}\n{','.join(row[name] for name in names)}\n")
        edits = segment.read_edits(tmp_path / "edits.csv")
        found = segment.apply_edits(whole, stored, 0.5, edits)
        one, two = edits[0].place, edits[0].other
        assert (found[one] == found[two]) == (row["edit"] == "join")
        assert len(np.unique(found)) == len(np.unique(stored)) + (1 if row["edit"] == "split" else -1)


@pytest.mark.parametrize("seed", range(3))
def test_what_was_one_on_either_side_of_a_doubted_merge_stays_one_when_it_is_undone(seed):
    whole = random_segmentation(seed)
    stored, fragments = whole.labels(0.6), np.asarray(whole.fragments)
    doubts, parted = find_doubts(whole, 0.6, 1e-6)
    for row in np.flatnonzero(doubts.merge >= 0)[:15]:
        sides = parted.near(int(doubts.merge[row]), int(doubts.contact[row]), fragments)
        places = [tuple(np.argwhere(sides == side)[0].tolist()) for side in (1, 2)]
        found = segment.apply_edits(whole, stored, 0.6, [segment.Edit("split", *places)])
        one, two = (set(np.unique(found[sides == side]).tolist()) for side in (1, 2))
        assert len(one) == len(two) == 1
        assert one != two


def test_what_dust_has_joined_after_the_cut_is_no_longer_asked(decoded, tmp_path):
    labels, truth = decoded
    settings = AffinityDecode(**SETTINGS, dust_size=3000, dust_affinity=0.4)
    out = decode(open_volume(labels.with_name("a_prediction.h5")), settings, tmp_path / "b_labels.h5")
    half = int(open_volume(out, "labels")[0, 30, 4])
    assert half == open_volume(out, "labels")[0, 30, 28]
    assert truth[0, 30, 4] == truth[0, 30, 28] == 3
    before, after = command.list_doubts(labels, 50), command.list_doubts(out, 50)
    edits = [[row[1] for row in listed.rows] for listed in (before, after)]
    assert edits[1].count("join") == edits[0].count("join") - 1
    assert edits[1].count("split") == edits[0].count("split")


def test_cable_and_synapses_are_those_of_either_side(decoded, tmp_path):
    labels, _truth = decoded
    skeletons, wiring = tmp_path / "skeletons", tmp_path / "wiring"
    skeletons.mkdir()
    wiring.mkdir()
    # nodes along x through the whole of body 3, of which a half is 160 nm long
    nodes = [(i + 1, 0, 60 + 10 * (x + 0.5), 50 + 305, 40 + 110, 1, i or -1) for i, x in enumerate(range(32))]
    (skeletons / "3.swc").write_text("".join(" ".join(map(str, node)) + "\n" for node in nodes))
    write_synapses(wiring, "100,350,80,100,350,360", "100,350,80,,,", "100,340,90,100,60,70")
    listed = command.list_doubts(labels, 50, skeletons, wiring)
    row = next(row for row in (dict(zip(listed.columns, row)) for row in listed.rows)
               if row["edit"] == "join" and {row["um3"], row["to_um3"]} == {0.004608})
    assert [row["cable_um"], row["to_cable_um"]] == pytest.approx([0.155, 0.155])
    assert sorted([row["synapses"], row["to_synapses"]]) == [1, 3]


def write_synapses(folder, *sites):
    """A table of synapses with these places of either side; one that lacks a place has no neuron there."""
    rows = [f"{at},100,60,70,9,3,{int(not places.endswith(','))},1,0.9,10,{places}"
            for at, places in enumerate(sites, 1)]
    (folder / "synapses.csv").write_text("\n".join([",".join(HEAD), *rows, ""]))


@pytest.mark.parametrize("places", [None, "abc,350,80,100,350,360", "100,350,80,100,350,1e300",
                                    "1" * 200_000 + ",1,1,1,1,1"])
def test_tables_of_synapses_that_cannot_be_read_are_refused(decoded, tmp_path, places):
    if places is not None:
        write_synapses(tmp_path, places)
    with pytest.raises(InputError):
        synapses_of(tmp_path, open_volume(decoded[0], "fragments"), 100)


def test_tables_that_do_not_fit_each_other_are_refused(decoded):
    segmentation, other = random_segmentation(0), random_segmentation(1)
    with pytest.raises(InputError, match="not of this graph"):
        sides_of(other.tree, segmentation.graph, 0.6)
    with pytest.raises(InputError, match="not of this graph"):
        sides_of(replace(segmentation.tree, a=segmentation.tree.b[::-1].copy()), segmentation.graph, 0.6)
    doubts, parted = find_doubts(read_segmentation(decoded[0]), 0.5, 1e-6)
    fragments = open_volume(decoded[0], "fragments")
    for key in (3 * fragments.size, 0):
        graph = replace(parted.graph, key=np.full_like(parted.graph.key, key))
        with pytest.raises(InputError, match="is not where the graph says"):
            list(places_of(doubts, replace(parted, graph=graph), fragments, (4, 4, 4)))
    with pytest.raises(InputError, match="the file is damaged"):
        list(places_of(doubts, replace(parted, graph=replace(parted.graph, fragments=1)), fragments, (4, 4, 4)))


@pytest.mark.parametrize("wrong, told", [
    (lambda labels: [str(labels.with_name("a.h5")), "out", "--image", f"{labels.parent}/a.h5:raw"], "no merge tree"),
    (lambda labels: [str(labels.with_name("none.h5")), "out"], "none.h5 is no labels file"),
    (lambda labels: [str(labels.parent.parent), "out"], "0 files *_labels.h5"),
    (lambda labels: [str(labels), "out"], "which image"),
    (lambda labels: [str(labels), "out", "--most", "0"], "--most"),
    (lambda labels: [str(labels), "out", "--image", str(labels.with_name("a_prediction.h5"))], "takes (z, y, x)"),
])
def test_what_cannot_be_done_is_one_sentence(decoded, tmp_path, monkeypatch, capsys, wrong, told):
    monkeypatch.chdir(tmp_path)
    assert run_command(command.main, wrong(decoded[0])) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_recorded_image_must_be_the_one_that_was_predicted(decoded, tmp_path):
    image = tmp_path / "a.h5"
    values = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)

    def write(values):
        with create_volume(image, values.shape, values.dtype, RESOLUTION, (40, 50, 60)) as out:
            out[...] = values

    write(values)
    volume = record.with_content(record.described(str(image), None, None))
    made = decode(open_volume(decoded[0].with_name("a_prediction.h5")), AffinityDecode(**SETTINGS),
                  tmp_path / "a_labels.h5", {"decode": {}, "prediction": {"volume": volume}})
    assert command.image_of(made, None)[0].shape == SHAPE
    write(values)  # at another time
    os.utime(image, (1, 1))
    assert command.image_of(made, None)[0].shape == SHAPE
    write(values[::-1])
    with pytest.raises(InputError, match=r"not the image any more.*--image"):
        command.image_of(made, None)
    assert command.image_of(made, str(image))[0].shape == SHAPE


def test_doubts_of_voxels_that_are_long_along_z_have_places(tmp_path):
    affs = np.random.default_rng(3).random((3, 6, 12, 14), np.float32)
    with create_volume(f"{tmp_path}/a_prediction.h5", affs.shape, affs.dtype, (400, 8, 8), None,
                       {"offsets": (-np.eye(3, dtype=int)).tolist()}) as out:
        out[...] = affs
    labels = decode(open_volume(tmp_path / "a_prediction.h5"), AffinityDecode(low=0.1, high=0.95, threshold=0.4),
                    tmp_path / "a_labels.h5")
    listed = command.list_doubts(labels, 20)
    assert len(listed.rows) == 20
    assert all(set(np.unique(place.sides)) >= {1, 2} for place in listed.places)


def test_labels_in_blocks_have_the_doubts_of_the_whole(tmp_path):
    whole, blocks = (read_segmentation(path) for path in both_ways(tmp_path, 1, "mean"))
    threshold = min(0.5, whole.tree.complete_below, blocks.tree.complete_below)
    found = [find_doubts(segmentation, threshold, 1e-6)[0] for segmentation in (whole, blocks)]
    assert len(found[0]) > 0
    for name in ("merge", "contact", "height", "faces", "voxels", "chance", "stake"):
        np.testing.assert_array_equal(*(getattr(doubts, name) for doubts in found))


def test_the_folder_of_a_run_stands_for_its_newest_labels(decoded, tmp_path):
    for step in (9, 10):
        (tmp_path / "run" / f"results_step={step}").mkdir(parents=True)
        shutil.copy(decoded[0], tmp_path / "run" / f"results_step={step}" / "a_labels.h5")
    newest = tmp_path / "run" / "results_step=10"
    assert command.labels_in(tmp_path / "run") == command.labels_in(newest) == newest / "a_labels.h5"


def test_outer_fragments_are_those_at_the_faces():
    labels = np.random.default_rng(1).integers(0, 300, (6, 7, 8)).astype(np.uint32)
    wanted = np.zeros(301, bool)
    wanted[np.setdiff1d(labels, np.setdiff1d(labels[1:-1, 1:-1, 1:-1], np.concatenate([
        labels[[0, -1]].ravel(), labels[:, [0, -1]].ravel(), labels[:, :, [0, -1]].ravel()])))] = True
    assert (outer_fragments(open_volume(labels), 300) == wanted).all()
