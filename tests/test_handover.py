"""What is handed over to webknossos, Neuroglancer and databases, each read back by other means; and edits back."""

import csv
import json
import struct

import h5py
import numpy as np
import pytest

from emcore.blocks.handover import edits_of, look_at, main
from emcore.decode import decode
from emcore.errors import InputError, run_command
from emcore.segment import read_edits, write_edits
from emcore.segment.agglomerates import read_mapping
from emcore.segment.edits import decided
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume
from tests.oracles.agglomeration import contacts
from tests.test_edits import random_edits

SHAPE = (6, 12, 14)


def partition(labels):
    """The sets of voxels that have one label."""
    return {frozenset(np.flatnonzero(labels == one).tolist()) for one in np.unique(labels) if one}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with labels of random affinities, dust removed, and what they were handed over as."""
    folder = tmp_path_factory.mktemp("handover")
    affs = np.random.default_rng(3).random((3, *SHAPE), np.float32)
    with create_volume(f"{folder}/a_prediction.h5:main", affs.shape, affs.dtype, (30, 8, 8), (60, 0, 0),
                       {"offsets": (-np.eye(3, dtype=int)).tolist()}) as out:
        out[...] = affs
    decode(open_volume(folder / "a_prediction.h5"), AffinityDecode(low=0.1, high=0.95, threshold=0.4, remove_size=3),
           folder / "a_labels.h5")
    assert main([str(folder / "a_labels.h5"), str(folder / "out")]) == 0
    return folder


def read_columns(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def mapped(path):
    """Objects, contacts and positions of a mapping, read as webknossos reads them, object by object."""
    with h5py.File(path) as file:
        columns = {name: file[name][...] for name in file}
    objects, found = columns["segment_to_agglomerate"], {}
    offsets, edge_offsets = (columns[f"agglomerate_to_{name}_offsets"] for name in ("segments", "edges"))
    assert len(offsets) == len(edge_offsets) == objects.max() + 2
    assert columns["agglomerate_to_affinities"].dtype == np.float32
    assert all(columns[name].dtype == np.uint64 for name in columns if name != "agglomerate_to_affinities")
    for one in range(int(objects.max()) + 1):
        segments = columns["agglomerate_to_segments"][int(offsets[one]):int(offsets[one + 1])]
        positions = columns["agglomerate_to_positions"][int(offsets[one]):int(offsets[one + 1])]
        rows = slice(int(edge_offsets[one]), int(edge_offsets[one + 1]))
        edges = [(int(segments[int(a)]), int(segments[int(b)])) for a, b in columns["agglomerate_to_edges"][rows]]
        assert segments.tolist() == sorted(segments.tolist())
        assert edges == sorted(edges)
        assert all(objects[int(segment)] == one for segment in segments)
        found[one] = (segments.tolist(), positions.tolist(),
                      dict(zip(edges, columns["agglomerate_to_affinities"][rows].tolist())))
    assert found[0] == ([], [], {})
    return objects, found


def connected(segments, edges):
    groups = {one: {one} for one in segments}
    for a, b in edges:
        groups[a] |= groups[b]
        for one in groups[a]:
            groups[one] = groups[a]
    return len({id(group) for group in groups.values()}) == 1


def test_the_mapping_makes_the_labels_of_the_supervoxels(place):
    fragments, labels = (open_volume(place / "a_labels.h5", name)[...] for name in ("fragments", "labels"))
    volume = open_volume(place / "out" / "supervoxels.precomputed")
    assert (volume[...] == fragments).all()
    assert volume.resolution == (30, 8, 8)
    assert volume.offset == (60, 0, 0)
    objects, found = mapped(place / "out" / "agglomerates.hdf5")
    assert len(objects) == fragments.max() + 1
    assert (np.where(labels > 0, objects[fragments], 0) == labels).all()
    affs = open_volume(place / "a_prediction.h5")[...]
    truth = {pair: np.mean([value for value, _ in values]) for pair, values in contacts(fragments, affs).items()}
    for one, (segments, positions, edges) in found.items():
        if one > labels.max():
            assert len(segments) == 1  # a supervoxel that is 0 in the labels
            continue
        assert set(edges) == {(u, v) for u, v in truth if u in segments and v in segments}
        assert all(affinity == pytest.approx(truth[pair], abs=1e-6) for pair, affinity in edges.items())
        assert not segments or connected(segments, edges)
        assert all(fragments[z - 2, y, x] == segment for segment, (x, y, z) in zip(segments, positions))


def test_supervoxels_are_read_by_tensorstore(place):
    tensorstore = pytest.importorskip("tensorstore")
    found = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": {
        "driver": "file", "path": str(place / "out" / "supervoxels.precomputed")}}).result()
    voxels = found[..., 0].read().result()
    assert (open_volume(place / "a_labels.h5", "fragments")[...] == voxels.T).all()


def test_tables_of_supervoxels_and_edges(place):
    fragments, labels = (open_volume(place / "a_labels.h5", name)[...] for name in ("fragments", "labels"))
    rows = read_columns(place / "out" / "supervoxels.csv")
    assert [int(row["id"]) for row in rows] == list(range(1, fragments.max() + 1))
    for row in rows:
        at = tuple(int(row[axis]) for axis in "zyx")
        assert fragments[at] == int(row["id"])
        assert labels[at] == int(row["object"])
        assert int(row["voxels"]) == (fragments == int(row["id"])).sum()
    affs = open_volume(place / "a_prediction.h5")[...]
    truth = contacts(fragments, affs)
    rows = read_columns(place / "out" / "edges.csv")
    assert [(int(row["u"]), int(row["v"])) for row in rows] == sorted(truth)
    tree = look_at(place / "a_labels.h5").segmentation.tree
    assert sum(row["merge"] != "" for row in rows) == len(tree.a)
    assert sorted(float(row["merge"]) for row in rows if row["merge"]) == sorted((1 - tree.height).tolist())
    of = {int(row["id"]): row["object"] for row in read_columns(place / "out" / "supervoxels.csv")}
    for row in rows:
        u, v = int(row["u"]), int(row["v"])
        values = [value for value, _ in truth[u, v]]
        assert int(row["contacts"]) == len(values)
        assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-6)
        assert float(row["least"]) == pytest.approx(min(values))
        assert float(row["largest"]) == pytest.approx(max(values))
        assert (row["object_u"], row["object_v"]) == (of[u], of[v])
        at = tuple(int(row[axis]) for axis in "zyx")
        assert fragments[at] in (u, v)
        around = [tuple(np.subtract(at, step)) for step in np.eye(3, dtype=int)]
        assert {u, v} <= {int(fragments[at]), *(int(fragments[near]) for near in around if min(near) >= 0)}


def test_merges_are_lines_that_neuroglancer_reads(place):
    folder = place / "out" / "merges"
    info = json.loads((folder / "info").read_text())
    assert info["@type"] == "neuroglancer_annotations_v1"
    assert info["annotation_type"] == "LINE"
    assert info["dimensions"] == {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [30e-9, "m"]}
    assert info["lower_bound"] == [0, 0, 2]  # 60 nm of 30 nm each, where the supervoxels begin, too
    assert info["upper_bound"] == [14, 12, 8]
    found, data = look_at(place / "a_labels.h5"), (folder / "lines" / "0_0_0").read_bytes()
    count, = struct.unpack_from("<Q", data)
    tree, objects = found.segmentation.tree, found.objects
    ends = objects[tree.a], objects[tree.b]
    own = np.flatnonzero((ends[0] == ends[1]) & (ends[0] > 0)).tolist()[::-1]
    assert count == len(own) > 5
    assert len(data) == 8 + count * (28 + 8)
    for number, row in enumerate(own):
        *ends, score = struct.unpack_from("<7f", data, 8 + 28 * number)
        wanted = [at + 0.5 for end in (tree.a[row], tree.b[row])
                  for at in (found.places[end] + (2, 0, 0))[::-1].tolist()]
        assert ends == wanted
        assert score == pytest.approx(1 - tree.height[row])
        one, = struct.unpack_from("<Q", data, 8 + 28 * count + 8 * number)
        assert (folder / "by_id" / str(one)).read_bytes() == data[8 + 28 * number:36 + 28 * number]


def test_edits_are_handed_over_and_come_back(place):
    labels = open_volume(place / "a_labels.h5", "labels")[...]
    found = look_at(place / "a_labels.h5")
    for seed in range(6):
        random = np.random.default_rng(seed)
        write_edits(place / "edits.csv", random_edits(found.segmentation, labels, random))
        assert main([str(place / "a_labels.h5"), str(place / f"{seed}"), "--edits", str(place / "edits.csv")]) == 0
        objects, inside = mapped(place / f"{seed}" / "agglomerates.hdf5")
        assert all(connected(segments, edges) for segments, _, edges in inside.values() if segments)
        assert main([str(place / "a_labels.h5"), str(place / "back.csv"), "--back",
                     str(place / f"{seed}" / "agglomerates.hdf5")]) == 0
        check_back(found, read_edits(place / "back.csv"), objects, random)


def check_back(found, edits, wanted, random):
    """The edits, in any order, make the objects of a mapping."""
    edits = [edits[at] for at in random.permutation(len(edits))]
    made = found.with_edits(found.ids(edits), decided(edits, found.ids(edits)))
    has = found.objects > 0
    assert partition(np.where(has, made, 0)) == partition(np.where(has, wanted, 0))
    assert ((made == 0) == (wanted == 0))[has].all()


@pytest.mark.parametrize("seed", range(8))
def test_any_changed_mapping_becomes_edits(place, seed):
    """Supervoxels move between objects, objects join and fall apart, some become 0."""
    random = np.random.default_rng(seed)
    found = look_at(place / "a_labels.h5")
    wanted = read_mapping(place / "out" / "agglomerates.hdf5", len(found.objects) - 1)
    has = np.flatnonzero(found.objects)
    for _ in range(int(random.integers(1, 12))):
        one, other = random.choice(has, 2)
        kind = random.integers(4)
        if kind == 0:
            wanted[one] = wanted[other]
        elif kind == 1:
            wanted[wanted == wanted[one]] = wanted[other]
        elif kind == 2:
            wanted[one] = wanted.max() + 1
        else:
            wanted[(wanted == wanted[one]) & (random.random(len(wanted)) < 0.5) & (found.objects > 0)] = random.choice(
                [0, wanted.max() + 1])
    check_back(found, edits_of(found, wanted), wanted, random)


def test_edits_name_only_supervoxels_that_have_a_labelled_voxel(tmp_path):
    """Boundaries may clear every voxel of a supervoxel, and no edit can name one of these."""
    affs = np.random.default_rng(0).random((3, 6, 10, 10), np.float32)
    with create_volume(f"{tmp_path}/a_prediction.h5", affs.shape, affs.dtype, (30, 8, 8), None,
                       {"offsets": (-np.eye(3, dtype=int)).tolist()}) as out:
        out[...] = affs
    settings = AffinityDecode(low=0.1, high=0.95, threshold=0.35, boundary=0.6)
    found = look_at(decode(open_volume(tmp_path / "a_prediction.h5"), settings, tmp_path / "a_labels.h5"))
    fragments, labels = found.fragments[...], found.labels[...]
    largest = np.bincount(found.objects.astype(np.int64))[1:].argmax() + 1
    members, wanted = np.flatnonzero(found.objects == largest), found.objects.copy()
    wanted[members[:len(members) // 2]] = wanted.max() + 1
    unseen = np.setdiff1d(members, fragments[labels > 0])
    assert len(unseen)
    assert not found.seen[unseen].any()
    edits = edits_of(found, wanted)
    made = found.with_edits(found.ids(edits), decided(edits, found.ids(edits)))
    assert partition(np.where(labels > 0, made[fragments], 0)) == partition(np.where(labels > 0, wanted[fragments], 0))


def test_a_mapping_that_needs_too_many_splits_is_refused(place, monkeypatch):
    monkeypatch.setattr("emcore.blocks.handover.MOST_SPLITS", 3)
    found = look_at(place / "a_labels.h5")
    sizes = np.bincount(found.objects.astype(np.int64))
    for parts in (3, 4):
        wanted = found.objects.copy()
        own = np.flatnonzero(found.objects == np.flatnonzero(sizes[1:] > 3)[0] + 1)
        wanted[own[:parts - 1]] = wanted.max() + 1 + np.arange(parts - 1, dtype=np.uint64)
        if parts == 3:
            assert edits_of(found, wanted)
        else:
            with pytest.raises(InputError, match="needs 6 splits"):
                edits_of(found, wanted)


def test_a_mapping_of_a_split_needs_few_edits(place):
    """Where a split comes about by itself, two places say it."""
    found = look_at(place / "a_labels.h5")
    labels = open_volume(place / "a_labels.h5", "labels")[...]
    sizes = np.bincount(found.objects.astype(np.int64))
    largest = int(np.argmax(np.where(np.arange(len(sizes)) > 0, sizes, 0)))
    voxels = np.argwhere(labels == largest)
    rows = [row for row in random_edits(found.segmentation, np.where(labels == largest, labels, 0),
                                        np.random.default_rng(0), 40) if row.kind == "split"][:1]
    assert len(voxels) > 20
    assert len(rows) == 1
    wanted = found.with_edits(found.ids(rows), decided(rows, found.ids(rows)))
    assert len(edits_of(found, wanted)) <= 4


@pytest.mark.parametrize(("change", "words"), [
    (lambda file: file.__delitem__("segment_to_agglomerate"), "no mapping of webknossos"),
    (lambda file: replace(file, np.zeros(7, np.uint64)), "belongs to other labels"),
    (lambda file: replace(file, np.zeros(7, np.float32)), "no mapping of webknossos"),
    (lambda file: replace(file, np.append(np.zeros(100, np.int64), -3)), "supervoxel 100 to the object -3")])
def test_a_mapping_of_something_else_is_named(place, tmp_path, change, words):
    data = (place / "out" / "agglomerates.hdf5").read_bytes()
    (tmp_path / "a.hdf5").write_bytes(data)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        change(file)
    with pytest.raises(InputError, match=words):
        read_mapping(tmp_path / "a.hdf5", 100)


def write_group(folder, objects, **how):
    """A mapping as webknossos' specification of today lays it out, sharded and compressed, without its other arrays."""
    zarr = pytest.importorskip("zarr")
    about = {"voxelytics": {"artifact_schema_version": 4, "artifact_class": "AgglomerateViewArtifact"}}
    root = zarr.create_group(folder, zarr_format=3, attributes=about)
    array = root.create_array("segment_to_agglomerate", shape=objects.shape, dtype=objects.dtype, chunks=(16,),
                              shards=(32,), compressors=zarr.codecs.ZstdCodec(level=5, checksum=True), **how)
    array[...] = objects
    return folder


@pytest.mark.parametrize("seed", range(3))
def test_a_mapping_of_zarr_says_what_that_of_hdf5_says(place, tmp_path, seed):
    found, random = look_at(place / "a_labels.h5"), np.random.default_rng(seed)
    count = len(found.objects) - 1
    wanted = read_mapping(place / "out" / "agglomerates.hdf5", count)
    there = np.flatnonzero(found.objects)
    one, other = random.choice(np.unique(wanted[there]), 2, replace=False)
    wanted[wanted == one] = other
    group = write_group(tmp_path / "agglomerate_view_75", wanted)
    assert (read_mapping(group, count) == wanted).all()
    assert main([str(place / "a_labels.h5"), str(tmp_path / "back.csv"), "--back", str(group)]) == 0
    check_back(found, read_edits(tmp_path / "back.csv"), wanted, random)


@pytest.mark.parametrize(("objects", "words"), [
    (np.ones(7, np.uint64), "belongs to other labels"), (np.ones((101, 1), np.uint64), "one axis"),
    (np.ones(200, np.uint64), "belongs to other labels"), (np.ones(101, np.float32), "array of whole numbers"),
    (np.append(np.ones(100, np.int64), -3), "supervoxel 100 to the object -3"),
    (np.zeros(101, np.uint64), "is missing"),
    (np.zeros(101, np.float32), "array of whole numbers")])  # said before any value is read, as all are missing
def test_a_group_of_something_else_is_named(tmp_path, objects, words):
    zarr = pytest.importorskip("zarr")
    root = zarr.create_group(tmp_path / "a", zarr_format=3)
    root.create_array("segment_to_agglomerate", data=objects)
    with pytest.raises(InputError, match=words):
        read_mapping(tmp_path / "a", 100)
    with pytest.raises(InputError, match="no array segment_to_agglomerate"):
        read_mapping(tmp_path, 100)


@pytest.mark.parametrize("broken", ["{", "[" * 100_000])
@pytest.mark.parametrize("at", ["", "segment_to_agglomerate"])
def test_a_group_with_broken_metadata_is_named(tmp_path, at, broken):
    pytest.importorskip("zarr")
    group = write_group(tmp_path / "a", np.ones(101, np.uint64))
    (group / at / "zarr.json").write_text(broken)
    with pytest.raises(InputError, match="cannot be read as zarr"):
        read_mapping(group, 100)


def replace(file, values):
    del file["segment_to_agglomerate"]
    file["segment_to_agglomerate"] = values


def test_a_supervoxel_without_a_label_cannot_be_joined(place):
    found = look_at(place / "a_labels.h5")
    wanted = read_mapping(place / "out" / "agglomerates.hdf5", len(found.objects) - 1)
    dust = int(np.flatnonzero(found.objects[1:] == 0)[0]) + 1
    assert edits_of(found, wanted) == []
    wanted[dust] = wanted[np.flatnonzero(found.objects)[0]]
    with pytest.raises(InputError, match=f"joins the supervoxel {dust} to others"):
        edits_of(found, wanted)


def test_mistakes_are_named_and_nothing_is_written(place, tmp_path, capsys):
    labels = str(place / "a_labels.h5")
    assert run_command(main, [labels, str(place / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert run_command(main, [labels, str(tmp_path / "e.csv"), "--back", str(tmp_path / "none.hdf5")]) == 2
    assert "there is no mapping" in capsys.readouterr().err
    assert run_command(main, [str(place / "a_prediction.h5"), str(tmp_path / "out")]) == 2
    (tmp_path / "edits.csv").write_text("edit,z,y,x,to_z,to_y,to_x\ndrop,99,0,0,,,\n")
    assert run_command(main, [labels, str(tmp_path / "out"), "--edits", str(tmp_path / "edits.csv")]) == 2
    assert "line 2" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edits.csv"]


def changed_labels(place, path, change):
    """A copy of the labels of the place with others in them."""
    path.write_bytes((place / "a_labels.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        values, attributes = file["labels"][...].astype(np.uint64), dict(file["labels"].attrs)
        del file["labels"]
        stored = file.create_dataset("labels", data=change(values))
        for name, value in attributes.items():
            stored.attrs[name] = value
    return path


def half_renamed(labels):
    """The labels, of which those in one half of the volume have other numbers."""
    labels[:, :, 7:][labels[:, :, 7:] > 0] += labels.max()
    return labels


def test_labels_that_are_not_made_of_clusters_are_refused(place, tmp_path, capsys):
    path = changed_labels(place, tmp_path / "a_labels.h5", half_renamed)
    assert run_command(main, [str(path), str(tmp_path / "out")]) == 2
    assert "made of whole clusters" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [2**33, 2**60])
def test_labels_with_huge_numbers_are_refused(place, tmp_path, capsys, number):
    path = changed_labels(place, tmp_path / "a_labels.h5", lambda labels: np.where(labels == 1, number, labels))
    assert run_command(main, [str(path), str(tmp_path / "out")]) == 2
    assert f"has the label {number}" in capsys.readouterr().err


def test_a_volume_that_begins_below_zero_is_refused(tmp_path, capsys):
    with create_volume(f"{tmp_path}/a_prediction.h5", (3, 2, 3, 4), np.float32, (30, 8, 8), (-60, 0, 0),
                       {"offsets": (-np.eye(3, dtype=int)).tolist()}) as out:
        out[...] = np.full((3, 2, 3, 4), 0.9, np.float32)
    decode(open_volume(tmp_path / "a_prediction.h5"), AffinityDecode(), tmp_path / "a_labels.h5")
    assert run_command(main, [str(tmp_path / "a_labels.h5"), str(tmp_path / "out")]) == 2
    assert "begins at the voxel [-2, 0, 0]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
