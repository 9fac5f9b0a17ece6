"""`python -m emcore score` of skeletons in SWC files and of synaptic partners in files of CREMI."""

import json

import h5py
import numpy as np
import pytest

from emcore import create_volume, metrics
from emcore.errors import run_command
from emcore.metrics import score as command

RESOLUTION = (40.0, 4.0, 4.0)
# two neurons along x, nodes a voxel apart; the second one branches off at its second node
STRAIGHT = "".join(f"{k} 0 {4 * k} 8 40 1 {k - 1 if k > 1 else -1}\n" for k in range(1, 6))
BRANCHED = "# x y z in nm\n7 0 4 20 120 1 -1\n8 0 8 20 120 1 7\n\n9 0 12 20 120 1 8\n10 0 8 24 120 1 8\n"


@pytest.fixture
def traced(tmp_path):
    labels = np.zeros((5, 9, 9), np.uint32)
    labels[1, 2, 1:4], labels[1, 2, 4:6], labels[3, 5, 1:4] = 3, 4, 5  # the branch's end is on no segment
    with create_volume(f"{tmp_path}/labels.h5:labels", labels.shape, labels.dtype, RESOLUTION, (40, 0, 0)) as out:
        out[...] = np.roll(labels, -1, axis=0)  # the file begins a section further down
    (tmp_path / "traced").mkdir()
    (tmp_path / "traced" / "a.swc").write_text(STRAIGHT)
    (tmp_path / "traced" / "b.swc").write_text(BRANCHED)
    return tmp_path


def said(capsys, *arguments):
    code = run_command(command.main, [*map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out + told.err


def test_skeletons_are_scored_in_the_segments_under_their_nodes(traced, capsys):
    code, text = said(capsys, f"{traced}/labels.h5:labels", traced / "traced", "--skeletons", "--json")
    assert code == 0, text
    found = json.loads(text)
    rows = {(row["score"], row["convention"]): row["value"] for row in found["scores"]}
    # edges of 4 nm: 2 + 1 of the straight one's 4 are within segments 3 and 4, two of the branched one's 3 within 5
    expected = (16 * (2**2 + 1 + 2**2)) / (4 * 7)
    for convention in ("em_erl", "banis"):
        assert rows["erl", convention] == pytest.approx(expected)
        assert rows["erl_perfect", convention] == pytest.approx(16 * (4**2 + 3**2) / (4 * 7))
        assert rows["nerl", convention] == pytest.approx(9 / 25)
        assert [rows[f"{kind}_edges", convention] for kind in ("split", "omitted", "merged")] == [1, 1, 0]
    assert rows["voi_split", "banis"] == pytest.approx(
        metrics.skeleton_voi([1] * 5 + [2] * 4, [3, 3, 3, 4, 4, 5, 5, 5, 0]).split)
    text = said(capsys, f"{traced}/labels.h5:labels", traced / "traced" / "a.swc", "--skeletons")[1]
    assert "5 nodes and 4 edges of 1 skeletons" in text
    assert "nerl                         0.312500  the ratio of both; higher is better (em_erl)" in text
    with create_volume(f"{traced}/one.h5:labels", (5, 9, 9), np.uint32, RESOLUTION) as out:
        out[...] = np.ones((5, 9, 9), np.uint32)
    for nodes, value in ((1, 0), (5, 1)):
        found = json.loads(said(capsys, f"{traced}/one.h5:labels", traced / "traced", "--skeletons", "--contact-nodes",
                                nodes, "--json")[1])
        assert found["scores"][2]["value"] == value


def cremi(path, sites, neurons=None, offset=(0.0, 0.0, 0.0)):
    """A file with pairs of sites (z y x in nm), as the challenge gives them out."""
    with h5py.File(path, "w") as file:
        group = file.create_group("annotations")
        group["ids"] = np.arange(100, 100 + 2 * len(sites), dtype=np.uint64)
        group["locations"] = np.reshape(sites, (-1, 3)) - offset
        group["presynaptic_site/partners"] = np.arange(100, 100 + 2 * len(sites), dtype=np.uint64).reshape(-1, 2)
        group.attrs["offset"] = offset
        if neurons is not None:
            file["volumes/labels/neuron_ids"] = neurons
            file["volumes/labels/neuron_ids"].attrs["resolution"] = (40.0, 40.0, 40.0)
    return path


def test_partners_of_two_files_of_cremi_are_matched_by_neuron_and_distance(tmp_path, capsys):
    neurons = np.ones((1, 2, 40), np.uint64)
    neurons[0, 0, 20:], neurons[0, 1] = 2, 3
    truth = cremi(tmp_path / "truth.h5", [[(0, 0, 200), (0, 40, 200)], [(0, 0, 1000), (0, 40, 1000)]], neurons)
    ours = cremi(tmp_path / "ours.h5", [[(0, 0, 240), (0, 40, 240)], [(0, 40, 80), (0, 0, 1200)]], None, (0, 0, 40))
    code, text = said(capsys, ours, truth, "--partners", "--json")
    assert code == 0, text
    assert [row["value"] for row in json.loads(text)["scores"]] == [0.5, 0.5, 0.5, 1, 1]
    text = said(capsys, ours, truth, "--partners", "--distance-nm", 30)[1]
    assert "partners_f1                  0.000000  higher is better" in text
    assert "2 predicted and 2 true pairs" in text


def test_what_points_need_is_told_in_a_sentence(traced, capsys):
    labels, folder = f"{traced}/labels.h5:labels", traced / "traced"
    cremi(traced / "ours.h5", [[(0, 0, 0), (0, 0, 0)]])
    with h5py.File(traced / "lost.h5", "w") as file:
        file["annotations/ids"], file["annotations/locations"] = [1], np.zeros((1, 3))
        file["annotations/presynaptic_site/partners"] = [[1, 9]]
        file["volumes/labels/neuron_ids"] = np.ones((1, 2, 3), np.uint64)
        file["volumes/labels/neuron_ids"].attrs["resolution"] = RESOLUTION
    (traced / "bad.swc").write_text("1 0 0 0 0 1\n")
    (traced / "orphan.swc").write_text("1 0 0 0 0 1 5\n")
    with create_volume(f"{traced}/plain.h5:labels", (2, 3, 4), np.uint32) as out:
        out[...] = np.zeros((2, 3, 4), np.uint32)
    for arguments, sentence in (
            ((labels, traced / "bad.swc", "--skeletons"), "is not an SWC file: each line needs the numbers"),
            ((labels, traced / "orphan.swc", "--skeletons"), "names the parent 5, but has no such node"),
            ((labels, traced / "none.swc", "--skeletons"), "there is no file"),
            ((labels, traced, "--skeletons", "--border-nm", 5), "--border-nm cannot be used with --skeletons"),
            ((labels, folder, "--contact-nodes", 5), "--contact-nodes cannot be used without --skeletons"),
            ((labels, folder, "--distance-nm", 5), "--distance-nm cannot be used without --clefts or --partners"),
            ((f"{traced}/plain.h5:labels", folder, "--skeletons"), "does not say its resolution"),
            ((traced / "ours.h5", traced / "lost.h5", "--partners"), "partners with the id 9, but no annotation"),
            ((traced / "labels.h5", traced / "lost.h5", "--partners"), "no annotations/presynaptic_site/partners")):
        code, told = said(capsys, *arguments)
        assert code == 2, told
        assert sentence in told
