"""Edits: held at every threshold, the same in every order, and nothing else changes; against an oracle."""

import numpy as np
import pytest

from emcore import segment
from emcore.errors import InputError
from emcore.segment import Edit, LinkRule, Segmentation, apply_edits, read_edits, write_edits
from emcore.segment.edit_files import canonical, digest_of_edits
from emcore.segment.edits import decided, ids_at
from tests.oracles import edits as oracle

STATISTICS = ("mean", "max", "min", "aff85_his256", "aff50_his256", "aff85", "aff75_his256_all")
AFTER = ({}, {"boundary": 0.3}, {"dust_size": 9, "dust_affinity": 0.1}, {"remove_size": 4},
         {"dust_size": 6, "remove_size": 5, "boundary": 0.2, "link": LinkRule(iou=0.2, one_sided=0.6)})


def random_case(seed):
    """(segmentation, threshold, what follows the cut, random generator)"""
    random = np.random.default_rng(seed)
    levels = int(random.choice([5, 12, 200]))
    shape = tuple(random.integers(3, 8, 3).tolist())
    affs = (random.integers(0, levels, (3, *shape)) / (levels - 1)).astype(np.float32)
    low, high = float(random.choice([0.0, 0.1, 0.4])), float(random.choice([0.8, 0.95, 1.0]))
    whole = Segmentation(affs, low=low, high=high, statistic=str(random.choice(STATISTICS)))
    return whole, float(random.choice([0.0, 0.2, 0.4, 0.5, 0.8, 1.0])), AFTER[random.integers(len(AFTER))], random


def random_edits(whole, labels, random, most=14):
    """Edits that do not contradict each other: each fragment has a neuron, 0 is no neuron."""
    voxels = np.argwhere(labels > 0)
    neuron = random.integers(0, random.integers(3, 6), whole.tree.fragments + 1)
    edits = []
    for _ in range(int(random.integers(1, most)) if len(voxels) else 0):
        one, other = (tuple(voxels[random.integers(len(voxels))].tolist()) for _ in range(2))
        mine, theirs = neuron[whole.fragments[one]], neuron[whole.fragments[other]]
        if mine == 0 and random.random() < 0.5:
            edits.append(Edit("drop", one))
        elif mine != theirs:
            edits.append(Edit("split", one, other))
        elif mine:
            edits.append(Edit("join", one, other))
    return edits


def of_oracle(whole, labels, threshold, edits):
    """The labels that the oracle makes."""
    cut = whole.tree.table(threshold)
    objects = {fragment: int(labels[cut[whole.fragments] == cut[fragment]].max())
               for fragment in range(1, whole.tree.fragments + 1)}
    made = whole.tree.height < threshold
    merges = [(a, b) for a, b in zip(whole.tree.a[made].tolist(), whole.tree.b[made].tolist())]
    graph = whole.graph
    contacts = {(u, v): row for u, v, *row in zip(*(getattr(graph, name).tolist() for name in (
        "u", "v", "count", "sum", "key")))}
    by_kind = {kind: [tuple(int(whole.fragments[place]) for place in edit[1:3] if place) for edit in edits
                      if edit.kind == kind] for kind in ("join", "split", "drop")}
    inside = [(a, b) for a, b in merges if objects[a] and objects[b]]
    new = oracle.edited(objects, inside, contacts, by_kind["join"], by_kind["split"],
                        [one for one, in by_kind["drop"]], int(whole.tree.table(threshold).max()))
    table = np.array([new.get(fragment, 0) for fragment in range(whole.tree.fragments + 1)])
    return np.where(labels > 0, table[whole.fragments], 0)


def check(whole, threshold, after, random, edits=None):
    """Everything that is promised of one list of edits."""
    labels = whole.labels(threshold, **after)
    edits = random_edits(whole, labels, random) if edits is None else edits
    out = apply_edits(whole, labels, threshold, edits)
    assert (out == of_oracle(whole, labels, threshold, edits)).all()
    for _ in range(3):  # in any order, of rows and of the two places, and said twice
        order = random.permutation(len(edits)).tolist()
        turned = [edit._replace(place=edit.other, other=edit.place) if edit.other and random.random() < 0.5 else edit
                  for edit in (edits[at] for at in [*order, *order[:2]])]
        assert (apply_edits(whole, labels, threshold, turned) == out).all()
        assert digest_of_edits(turned) == digest_of_edits(edits)
        assert canonical(turned) == canonical(edits)
    for edit in edits:
        if edit.kind == "join":
            assert out[edit.place] == out[edit.other] > 0
        elif edit.kind == "split":
            assert out[edit.place] != out[edit.other] or out[edit.place] == 0  # where both are dropped
        else:
            assert out[edit.place] == 0
    named = {int(labels[place]) for edit in edits for place in edit[1:3] if place}
    others = ~np.isin(labels, list(named)) | (labels == 0)
    assert (out[others] == labels[others]).all()
    new = np.setdiff1d(out[~others], [0, *named])
    assert not np.isin(new, labels).any()
    assert ((out == 0) <= ((labels == 0) | ~others)).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_random_list_of_edits_is_held(seed):
    check(*random_case(seed))


@pytest.mark.long
@pytest.mark.parametrize("part", range(8))
def test_three_hundred_random_lists_of_edits_are_held(part):
    for seed in range(12 + part, 300, 8):
        check(*random_case(seed))


def test_edits_are_held_at_every_threshold():
    random = np.random.default_rng(1)
    whole = Segmentation(random.random((3, 4, 6, 6), np.float32), low=0.1, high=0.95)
    edits = random_edits(whole, whole.fragments, random, 40)
    assert {edit.kind for edit in edits} == {"join", "split", "drop"}
    for threshold in (0.0, 0.1, 0.37, 0.5, 0.9, 1.0):
        check(whole, threshold, {}, random, edits)


# ---- one object by hand


def row_of_fragments(*affinities):
    """A row of voxels, each a fragment of its own, with these affinities between them."""
    affs = np.zeros((3, 1, 1, len(affinities) + 1), np.float32)
    affs[2, 0, 0, 1:] = affinities
    return Segmentation(affs, fragments=np.arange(1, len(affinities) + 2, dtype=np.uint32).reshape(1, 1, -1))


def row(whole, threshold, *edits):
    return apply_edits(whole, whole.labels(threshold), threshold, edits)[0, 0].tolist()


def at(x):
    return 0, 0, x


def test_an_object_falls_apart_at_the_weakest_link_between_the_two_places():
    whole = row_of_fragments(0.9, 0.8, 0.6, 0.95, 0.7)
    assert whole.labels(0.5)[0, 0].tolist() == [1] * 6
    assert row(whole, 0.5, Edit("split", at(0), at(5))) == [1, 1, 1, 2, 2, 2]
    assert row(whole, 0.5, Edit("split", at(0), at(1))) == [1, 2, 2, 2, 2, 2]
    assert row(whole, 0.5, Edit("split", at(4), at(5))) == [1, 1, 1, 1, 1, 2]
    assert row(whole, 1.0, Edit("split", at(0), at(5)), Edit("split", at(3), at(5))) == [1, 1, 1, 1, 1, 2]
    assert row(whole, 1.0, Edit("split", at(0), at(5)), Edit("split", at(0), at(3))) == [1, 1, 1, 2, 2, 2]


def test_objects_that_no_edit_names_keep_their_numbers_and_new_parts_come_behind_all():
    whole = row_of_fragments(0.9, 0.1, 0.8, 0.1, 0.7)
    assert row(whole, 0.5) == [1, 1, 2, 2, 3, 3]
    assert row(whole, 0.5, Edit("split", at(0), at(1))) == [1, 4, 2, 2, 3, 3]
    assert row(whole, 0.5, Edit("join", at(0), at(5))) == [1, 1, 2, 2, 1, 1]
    assert row(whole, 0.5, Edit("drop", at(2))) == [1, 1, 0, 0, 3, 3]
    assert row(whole, 0.5, Edit("split", at(0), at(1)), Edit("join", at(1), at(4))) == [1, 3, 2, 2, 3, 3]
    assert row(whole, 0.0, Edit("join", at(0), at(5))) == [1, 2, 3, 4, 5, 1]


def test_new_parts_come_behind_labels_that_have_other_numbers():
    whole = row_of_fragments(0.9, 0.1, 0.8, 0.1, 0.7)
    for shift in (1, 10):
        labels = whole.labels(0.5)
        labels[labels > 0] += shift
        out = apply_edits(whole, labels, 0.5, [Edit("split", at(0), at(1))])
        assert out[0, 0].tolist() == [1 + shift, 4 + shift, 2 + shift, 2 + shift, 3 + shift, 3 + shift]


def test_a_dropped_place_is_held_apart_from_what_joins_call_a_neuron():
    whole = row_of_fragments(0.9, 0.8, 0.6, 0.95, 0.7)
    assert row(whole, 0.5, Edit("drop", at(4))) == [0] * 6
    assert row(whole, 0.5, Edit("drop", at(4)), Edit("join", at(0), at(1))) == [1, 1, 1, 0, 0, 0]


def test_too_many_dropped_places_among_neurons_are_refused(monkeypatch):
    whole = row_of_fragments(0.9, 0.8, 0.6, 0.95, 0.7)
    joins = [Edit("join", at(0), at(1)), Edit("join", at(2), at(3))]
    edits = [*joins, Edit("drop", at(4)), Edit("drop", at(5))]
    monkeypatch.setattr("emcore.segment.edits.MOST_PAIRS", 3)
    assert row(whole, 0.5, *edits[:3])[4] == 0
    with pytest.raises(InputError, match="hold 4 pairs of places apart"):
        row(whole, 0.5, *edits)


@pytest.mark.parametrize(("edits", "words"), [
    ([Edit("split", at(0), at(2), "a.csv, line 4"), Edit("join", at(0), at(1), "a.csv, line 2"),
      Edit("join", at(1), at(2), "a.csv, line 3")], r"line 4.*line 2.*line 3"),
    ([Edit("join", at(0), at(1), "line 2"), Edit("drop", at(1), None, "line 3")], "line 3.*line 2"),
    ([Edit("split", at(1), at(1))], "one|whole fragments"),
    ([Edit("drop", at(9))], "outside of the volume"),
    ([Edit("drop", at(3))], "label 0"),
    ([Edit("merge", at(0), at(1))], "join, split or drop"),
    ([Edit("join", at(0))], "six numbers"),
    ([Edit("drop", at(0), at(1))], "three numbers"),
    ([Edit("drop", (0, 0, -1))], "three numbers"),
    ([Edit("join", (0, 0, 0, 0), (0, 1))], r"z, y, x of a voxel; got \(0, 0, 0, 0\)"),
    ([Edit("join", (0, 0), (0, 0, 0, 1))], r"z, y, x of a voxel; got \(0, 0\)")])
def test_edits_that_cannot_be_held_are_named(edits, words):
    whole = row_of_fragments(0.9, 0.8, 0.6)
    labels = whole.labels(0.5)
    labels[0, 0, 3] = 0
    with pytest.raises(InputError, match=words):
        apply_edits(whole, labels, 0.5, edits)


def test_labels_of_something_else_are_refused():
    whole = row_of_fragments(0.9, 0.8, 0.6)
    with pytest.raises(InputError, match="this segmentation made"):
        apply_edits(whole, whole.labels(0.5)[..., :2], 0.5, [])
    blocky = Segmentation(whole.affs, fragments=np.array([[[1, 1, 2, 2]]], np.uint32))
    with pytest.raises(InputError, match="made of whole clusters"):
        apply_edits(blocky, np.array([[[1, 2, 2, 2]]], np.uint32), 0.5, [])


def test_what_edits_say_about_fragments():
    whole = row_of_fragments(0.9, 0.8, 0.6)
    edits = [Edit("join", at(0), at(1)), Edit("split", at(2), at(3)), Edit("drop", at(3))]
    ids = ids_at(edits, (1, 1, 4), lambda place: (int(whole.fragments[place]), 1))
    found = decided(edits, ids)
    assert found.joined.tolist() == [[1, 2]]
    assert found.apart.tolist() == [[3, 4]]
    assert found.dropped.tolist() == [4]


# ---- files


def test_a_file_is_read_as_it_was_written(tmp_path):
    edits = [Edit("join", (1, 2, 3), (4, 5, 6)), Edit("drop", (7, 8, 9)), Edit("split", (0, 0, 0), (2**40 - 1, 0, 0))]
    write_edits(tmp_path / "a.csv", edits)
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "edit,z,y,x,to_z,to_y,to_x"
    found = read_edits(tmp_path / "a.csv")
    assert [edit._replace(where="") for edit in found] == edits
    assert [edit.where for edit in found] == [f"{tmp_path}/a.csv, line {line}" for line in (2, 3, 4)]
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\r\n", "\r\n\r\n").encode())
    assert [edit._replace(where="") for edit in read_edits(tmp_path / "b.csv")] == edits


@pytest.mark.parametrize("text", ["", "z,y,x\n1,2,3\n", "join,1,2,3,4,5,6\n"])
def test_a_file_of_something_else_is_named(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"a\.csv holds no edits: its first line must be edit,z,y,x,to_z,to_y,to_x"):
        read_edits(tmp_path / "a.csv")


@pytest.mark.parametrize(("rows", "words"), [
    ("join,1,2,3\n", "line 2.*six"), ("drop,1,2,3,,,\ndrop,1,2,3,4,5,6\n", "line 3.*three"),
    ("join,1,2,3,4,5,6.0\n", "line 2.*six"), ("fuse,1,2,3,4,5,6\n", "line 2.*'fuse'"),
    ("drop," + "9" * 5000 + ",2,3\n", "line 2.*three"), ("drop," + "0" * 20 + "9" * 30 + ",2,3\n", "line 2.*three"),
    ("drop," + "0" * 20 + "9" * 5000 + ",2,3\n", "line 2.*three"), ("drop,-1,2,3\n", "line 2.*three"),
    ("join,1,2,3,4,5,6,7\n", "line 2.*six"), ("join,\x00,2,3,4,5,6\n", "line 2")])
def test_a_damaged_row_is_named(tmp_path, rows, words):
    (tmp_path / "a.csv").write_text("edit,z,y,x,to_z,to_y,to_x\n" + rows)
    with pytest.raises(InputError, match=words):
        read_edits(tmp_path / "a.csv")


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot read the edits"):
        read_edits(tmp_path / "none.csv")


def test_an_empty_list_changes_nothing():
    whole = segment.Segmentation(np.random.default_rng(0).random((3, 4, 6, 6), np.float32), low=0.1, high=0.9)
    labels = whole.labels(0.5)
    assert (apply_edits(whole, labels, 0.5, []) == labels).all()
