"""Statistics of labels: exact, equal on any threads, from any parts, and in the tables of the command."""

import csv
import itertools

import numpy as np
import pytest

from emcore.__main__ import TOOLS
from emcore.blocks import label_statistics as command
from emcore.errors import InputError, run_command
from emcore.segment import LabelStatistics, label_statistics, pool_statistics
from emcore.volumes import create_volume
from tests.oracles import label_statistics as oracle

COLUMNS = tuple(LabelStatistics.__dataclass_fields__)


def as_dicts(found):
    objects = {label: (voxels, tuple(first), tuple(end), tuple(sums)) for label, voxels, (first, end), sums in zip(
        found.ids.tolist(), found.voxels.tolist(), found.boxes.tolist(), found.sums.tolist())}
    assert list(objects) == sorted(objects)
    pairs = list(map(tuple, found.pairs.tolist()))
    assert pairs == sorted(set(pairs))
    return objects, dict(zip(pairs, map(tuple, found.faces.tolist())))


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) and
               getattr(one, name).dtype == getattr(other, name).dtype for name in COLUMNS)


def drawn(seed, most=9):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, most, 3))
    ids = np.array([0, 1, 2, 2**32, 2**63, 2**64 - 2, 2**64 - 1], np.uint64)[: rng.integers(1, 8)]
    return ids[rng.integers(0, len(ids), shape)] if seed % 2 else np.repeat(ids[rng.integers(0, len(ids), shape)], 3, 2)


@pytest.mark.parametrize("seed", range(12))
def test_statistics_are_those_of_the_oracle_on_any_threads(seed):
    labels = drawn(seed)
    for threads in (1, 3):
        assert as_dicts(label_statistics(labels, threads=threads)) == oracle.statistics(labels)
    for given in (labels[::-1], np.asfortranarray(labels), labels[:, ::2]):
        assert as_dicts(label_statistics(given)) == oracle.statistics(given)


@pytest.mark.parametrize("seed", range(8))
def test_parts_add_up_to_the_whole(seed):
    labels = drawn(seed, 12)
    rng = np.random.default_rng(seed + 100)
    cuts = [sorted({0, length, *rng.integers(0, length + 1, rng.integers(0, 4)).tolist()}) for length in labels.shape]
    parts = []
    for spans in itertools.product(*(list(itertools.pairwise(cut)) for cut in cuts)):
        beyond = [int(end < length) for (_, end), length in zip(spans, labels.shape)]
        box = tuple(slice(start, end + more) for (start, end), more in zip(spans, beyond))
        parts.append(label_statistics(labels[box], origin=[start for start, _ in spans], beyond=beyond))
    whole = label_statistics(labels)
    assert same(pool_statistics([parts[number] for number in rng.permutation(len(parts))]), whole)
    half = len(parts) // 2
    assert same(pool_statistics([pool_statistics(parts[half:]), pool_statistics(parts[:half])]), whole)


def test_types_empty_volumes_and_background():
    labels = np.zeros((3, 4, 5), bool)
    labels[1:, 2:, 3:] = True
    wanted = {1: (8, (1, 2, 3), (3, 4, 5), (12, 20, 28))}
    for dtype in (bool, np.uint8, np.int16, ">u4", np.uint64):
        assert as_dicts(label_statistics(labels.astype(dtype))) == (wanted, {})
    assert np.array_equal(label_statistics(labels).centroids, [[1.5, 2.5, 3.5]])
    for shape in ((0, 4, 5), (3, 4, 5)):
        found = label_statistics(np.zeros(shape, np.uint16))
        assert as_dicts(found) == ({}, {})
        assert same(found, pool_statistics([]))
        assert found.centroids.shape == (0, 3)


@pytest.mark.bench
def test_cc3d_counts_the_same():
    cc3d = pytest.importorskip("cc3d", reason="the peer cc3d is not installed")
    labels = np.kron(np.random.default_rng(0).integers(0, 40, (6, 7, 8)), np.ones((3, 4, 2), int)).astype(np.uint32)
    found, peer = label_statistics(labels), cc3d.statistics(labels)
    rows = found.ids.astype(int)
    assert np.array_equal(peer["voxel_counts"][rows], found.voxels)
    assert np.allclose(peer["centroids"][rows], found.centroids, atol=1e-9)
    for row, box in zip(rows, found.boxes.tolist()):
        assert peer["bounding_boxes"][row] == tuple(slice(a, b) for a, b in zip(*box))
    faces = {tuple(pair): sum(count) for pair, count in zip(found.pairs.tolist(), found.faces.tolist())}
    assert {tuple(map(int, pair)): int(area) for pair, area in cc3d.contacts(labels, connectivity=6).items()} == faces


@pytest.mark.parametrize(("given", "words"), [
    ({"labels": np.zeros((2, 2))}, "must be integers"), ({"labels": np.zeros((2, 2), int)}, r"must be \(z, y, x\)"),
    ({"labels": np.array([[[-1]]])}, "must not be negative"), ({"origin": (0, -1, 0)}, "origin must be three"),
    ({"beyond": (0, 2, 0)}, "beyond must be 0 or 1"),
    ({"labels": np.ones((1, 3, 3), int), "beyond": (1, 0, 0)}, "leave"),
    ({"labels": np.ones((256, 256, 128), bool), "origin": (2**40, 0, 0)}, "exceed 64 bits")])
def test_mistakes_are_one_sentence(given, words):
    with pytest.raises(InputError, match=words):
        label_statistics(**{"labels": np.ones((3, 3, 3), int), **given})


def test_tables_that_are_none_are_refused():
    found = label_statistics(np.ones((2, 2, 2), int))
    with pytest.raises(InputError, match="tables of label_statistics"):
        pool_statistics([3])
    with pytest.raises(InputError, match="boxes of a table must be"):
        pool_statistics([LabelStatistics(found.ids, found.voxels, found.sums, found.sums, found.pairs, found.faces)])


# ---- the command


@pytest.fixture
def stored(tmp_path):
    labels = drawn(7, 14)
    with create_volume(tmp_path / "a.h5:labels", labels.shape, "uint64", (40.0, 4.0, 8.0), (400.0, 0.0, 8.0)) as out:
        out[...] = labels
    return labels, tmp_path / "a.h5"


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments):
    return run_command(command.main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("block", [(256, 256, 256), (3, 4, 7)])
def test_the_command_writes_both_tables_exactly(stored, tmp_path, capsys, block):
    labels, path = stored
    assert run(path, tmp_path / "out.csv", "--workers", 1, "--block", *block) == 0
    found = label_statistics(labels)
    rows, contacts = rows_of(tmp_path / "out.csv"), rows_of(tmp_path / "out_contacts.csv")
    assert [int(row["id"]) for row in rows] == found.ids.tolist()
    assert [int(row["voxels"]) for row in rows] == found.voxels.tolist()
    for row, (first, end), centroid, voxels in zip(rows, found.boxes.tolist(), found.centroids, found.voxels):
        assert [int(row[f"first_{axis}"]) for axis in "zyx"] == first
        assert [int(row[f"end_{axis}"]) for axis in "zyx"] == end
        assert [float(row[f"centroid_{axis}"]) for axis in "zyx"] == centroid.tolist()
        nm = (centroid + 0.5) * (40, 4, 8) + (400, 0, 8)
        assert np.allclose([float(row[f"centroid_{axis}_nm"]) for axis in "zyx"], nm)
        assert float(row["volume_nm3"]) == voxels * 1280
    assert [(int(row["first_id"]), int(row["second_id"])) for row in contacts] == list(map(tuple, found.pairs.tolist()))
    for row, faces in zip(contacts, found.faces.tolist()):
        assert [int(row[f"faces_{axis}"]) for axis in "zyx"] == faces
        assert float(row["area_nm2"]) == np.dot(faces, (32, 320, 160))
    assert f"{len(found.ids)} labels" in capsys.readouterr().out
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.h5", "out.csv", "out_contacts.csv"]


def test_a_box_keeps_its_indices_and_what_is_done_is_not_done_again(stored, tmp_path, monkeypatch, capsys):
    labels, path = stored
    depth, height, width = labels.shape
    box = f"1:{depth},0:{height},2:{width}"
    calls, count = [], command.label_statistics

    def fail_at_third(*given, **more):
        calls.append(more["origin"])
        if len(calls) == 3:
            raise InputError("the disk is tired")
        return count(*given, **more)

    monkeypatch.setattr(command, "label_statistics", fail_at_third)
    arguments = path, tmp_path / "out.csv", "--workers", 1, "--box", box, "--block", depth, height, 2
    assert run(*arguments) == 2
    assert "the disk is tired" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    assert run(*arguments) == 0
    assert len(calls) == len(set(map(tuple, calls))) + 1  # one was done twice, as it failed
    found = label_statistics(labels[1:, :, 2:], origin=(1, 0, 2))
    rows = rows_of(tmp_path / "out.csv")
    assert [[int(row[f"first_{axis}"]) for axis in "zyx"] for row in rows] == found.boxes[:, 0].tolist()
    assert [float(row["centroid_x"]) for row in rows] == found.centroids[:, 2].tolist()


@pytest.mark.parametrize(("arguments", "words"), [
    (("{0}/none.h5", "{0}/out.csv"), "there is no file"), (("{0}/a.h5", "{0}/out.txt"), "name it .csv"),
    (("{0}/a.h5", "{0}/out.csv", "--box", "0:1,0:1"), "--box is z0:z1"),
    (("{0}/a.h5", "{0}/out.csv", "--box", "0:1,0:1,3:3"), "--box is z0:z1"),
    (("{0}/a.h5", "{0}/out.csv", "--block", "0", "1", "1"), "must be above 0")])
def test_mistakes_of_the_command_write_nothing(stored, tmp_path, capsys, arguments, words):
    assert run(*(argument.format(tmp_path) for argument in arguments)) == 2
    assert words in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]
    assert TOOLS["statistics"][0] == command.__name__
