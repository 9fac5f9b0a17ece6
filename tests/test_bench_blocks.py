"""The bench of blocks on a tiny volume: what it prints, and that it fails where labels differ."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from bench import blocks, blocks_peers
from bench.watch import Watched
from emcore.segment import Affinities, MergeTree, watershed
from emcore.segment.affinities import TABLE_ATTRIBUTE
from emcore.volumes import open_volume

SIDE = 32


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Calls the bench on cells of 8 voxels, and returns what it printed."""
    labels = np.arange(1, 65, dtype=np.uint32).reshape(4, 4, 4).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["labels"] = labels

    def watched(function, *arguments):
        function(*arguments)
        return Watched(0.0, 1.0, 1.0, 2**20, 2**20)

    monkeypatch.setattr(blocks, "watch", watched)  # in this process

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", "--size", str(SIDE), "--labels", str(tmp_path / "labels.h5"),
                                          "--repeats", "1", "--workers", "1", *arguments])
        blocks.main()
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_recipes_give_the_labels_of_the_whole_in_every_grid(run, monkeypatch):
    monkeypatch.setattr(blocks, "RECIPES", ("snemi/snemi_neurons",))
    rows = [line for line in run("--recipes").splitlines() if line.startswith("snemi_neurons, ")]
    assert [row.split()[1] for row in rows] == ["16x16x16", "12x20x14", "8x32x32"]
    assert all(row.endswith("the same labels and merges") for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["differing", "merges_differ"])
def test_recipes_fail_where_a_voxel_or_a_merge_differs(run, monkeypatch, what):
    monkeypatch.setattr(blocks, what, lambda *others: 1)
    with pytest.raises(SystemExit, match="different labels"):
        run("--recipes")


def test_merges_differ_by_what_joins_where_and_when():
    tree = MergeTree(3, *np.array([[1, 1], [2, 3]], np.uint32), np.array([0.25, 0.5]), key=np.array([7, 5], np.uint64))
    assert not blocks.merges_differ(tree, replace(tree), 1)
    assert blocks.merges_differ(tree, replace(tree), 0.5)  # the whole has one below
    for name in ("b", "height", "key"):
        values = getattr(tree, name).copy()
        values[1] += 1
        assert blocks.merges_differ(SimpleNamespace(**{**vars(tree), name: values}), tree, 1), name


def test_without_peers_ours_stands_alone(run):
    printed = run("--peers", "--peer-python", "no-such-python")
    assert "VOI to its own whole: ours 0\n" in printed
    assert "volara is not installed in no-such-python: ours alone" in printed
    assert blocks_peers.PYTC in printed


def test_a_peer_has_its_row(run, tmp_path, monkeypatch):
    """A volara that splits at the face of blocks, and an emcore that does not."""

    class Halves:
        def __init__(self, python, folder, labels, workers):
            self.shape = labels.shape

        def decode(self, block):
            segments = np.ones(self.shape, np.uint64)
            segments[block[0]:] = 2
            return segments, Watched(0.0, 8.0, 9.0, 2**30, 2**31), {"fragments": 6.0, "labels": 2.0}

    monkeypatch.setattr(blocks_peers, "version_of", lambda python: "1.2.3")
    monkeypatch.setattr(blocks_peers, "Volara", Halves)
    monkeypatch.setattr(blocks.Bench, "blocks", lambda self, prediction, block: (whole, Watched(0, 2.0, 3.0, 2**20, 0)))
    monkeypatch.setattr(blocks.Bench, "whole", lambda self, prediction: (whole, None))
    whole = tmp_path / "whole.h5"
    with h5py.File(whole, "w") as file:
        file["labels"] = np.ones((SIDE,) * 3, np.uint32)
    printed = run("--peers")
    row = next(line for line in printed.splitlines() if "volara 1.2.3" in line)
    assert row.startswith(f"{SIDE}x{SIDE}x{SIDE}, blocks of 16x16x16")
    assert [float(number) for number in row.split()[6:11]] == [2, 8, 4, 1, 1024]
    assert row.endswith("VOI to its own whole: ours 0, peer 1.000 + 0.000")
    assert "volara's tasks: fragments 6.00, labels 2.00" in printed


def test_climbs_of_copies_of_a_stored_prediction_are_one_row_for_one_end(run, tmp_path):
    stored = tmp_path / "stored.h5"
    blocks.write_prediction(stored, np.arange(1, 65, dtype=np.uint32).reshape(4, 4, 4).repeat(8, 0).repeat(8, 1)
                            .repeat(8, 2))
    lines = run("--climbs", "--end", "0.5", "--gigavoxels", "6e-5", "--prediction", str(stored)).splitlines()
    affinities = open_volume(stored)[:]
    copies = np.concatenate([affinities, blocks.mirrored(affinities, 0)], axis=1)
    table = np.array(open_volume(stored).attrs[TABLE_ATTRIBUTE], np.float32)
    fragments = watershed(Affinities(copies, table=table), 0.1, 0.999)
    assert len(lines) == 2
    assert lines[0].startswith("64x32x32, blocks of 16³")
    assert lines[1].split(" | ")[:2] == ["  mean, 0.1, 0.999, 0.5", str(fragments.max())]
