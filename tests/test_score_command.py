"""`python -m emcore score`: any two label files, laid on each other, in blocks; JSON that explains itself."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from emcore import create_volume, metrics
from emcore.errors import run_command
from emcore.metrics import score as command

RESOLUTION = (40.0, 4.0, 4.0)


def written(path, labels, offset=(0, 0, 0), resolution=RESOLUTION):
    with create_volume(f"{path}:labels", labels.shape, labels.dtype, resolution, offset) as volume:
        volume[...] = labels
    return f"{path}:labels"


@pytest.fixture
def pair(tmp_path):
    random = np.random.default_rng(40)
    truth = np.kron(random.integers(0, 9, (4, 5, 6)), np.ones((2, 11, 9), int)).astype(np.uint64)
    labels = np.where(random.random(truth.shape) < 0.9, np.roll(truth, 2, axis=2), 3).astype(np.uint32)
    return written(tmp_path / "labels.h5", labels), written(tmp_path / "truth.h5", truth), labels, truth


def by_name(result, convention):
    return {entry["score"]: entry["value"] for entry in result["scores"] if entry["convention"] == convention}


def test_scores_are_those_of_the_library_and_name_their_convention(pair, capsys):
    prediction, truth_path, labels, truth = pair
    assert run_command(command.main, [prediction, truth_path, "--border-nm", "9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    table = metrics.contingency(truth, labels, mask=metrics.neuron_border_mask(truth, RESOLUTION, 9))
    assert result["voxels"] == {"compared": truth.size, "near_borders": table.masked}
    assert {entry["convention"] for entry in result["scores"]} == set(command.CONVENTIONS)
    for convention in command.CONVENTIONS:
        ours = table.ignoring(()) if convention == "gala" else table
        found = by_name(result, convention)
        assert (found["voi_split"], found["voi_merge"]) == pytest.approx(metrics.voi(ours), abs=1e-12)
        assert found["rand_error"] == pytest.approx(metrics.rand(ours, convention).error, abs=1e-12)
    assert by_name(result, "cremi")["cremi_score"] == pytest.approx(metrics.cremi_score(table), abs=1e-12)
    assert by_name(result, "isbi")["v_info"] == pytest.approx(metrics.foreground_restricted(table).v_info, abs=1e-12)


def test_the_text_has_a_line_for_each_convention_with_its_meaning(pair, capsys):
    assert run_command(command.main, [*pair[:2], "--convention", "cremi", "--convention", "skimage"]) == 0
    text = capsys.readouterr().out
    table = metrics.contingency(pair[3], pair[2])
    line = next(line for line in text.splitlines() if line.startswith("cremi "))
    assert f"{metrics.rand(table, 'cremi').error:.6f}" in line
    assert line.endswith("0, 2^64 - 2, 2^64 - 1")
    assert "skimage  (P - N) / (B - N, A - N)" in text
    assert "funlib  " not in text


@pytest.mark.parametrize("block_bytes", [1, 3000, 40_000])
def test_blocks_score_like_the_whole_even_where_a_section_does_not_fit(pair, monkeypatch, block_bytes):
    whole = command.score(*pair[:2], border_nm=9)
    monkeypatch.setattr(command, "BLOCK_BYTES", block_bytes)
    for arrays in (pair[:2], pair[2:]):
        blocks = command.score(*arrays, border_nm=9, resolution=RESOLUTION)
        assert blocks["scores"] == whole["scores"]
        assert blocks["voxels"] == whole["voxels"]


def test_volumes_of_different_extents_are_laid_on_each_other_by_offset(pair, tmp_path):
    _, truth_path, labels, truth = pair
    part = written(tmp_path / "part.h5", labels[3:, 5:40, 7:], np.array([3, 5, 7]) * RESOLUTION)
    result = command.score(part, truth_path, border_nm=9)
    mask = metrics.neuron_border_mask(truth, RESOLUTION, 9)  # of the whole truth: it sees past the part
    box = (slice(3, None), slice(5, 40), slice(7, None))
    table = metrics.contingency(truth[box], labels[box], mask=mask[box])
    assert by_name(result, "funlib")["rand_error"] == pytest.approx(metrics.rand(table, "funlib").error, abs=1e-12)
    assert "(5, 35, 47) voxels from (3, 5, 7) of the truth (8, 55, 54)" in result["notes"][0]
    ahead = written(tmp_path / "ahead.h5", labels[2:], np.array([-2, 0, 0]) * RESOLUTION)
    table = metrics.contingency(truth[:4], labels[4:])
    found = by_name(command.score(ahead, truth_path), "funlib")
    assert found["voi_split"] == pytest.approx(metrics.voi(table).split, abs=1e-12)


def test_what_is_undefined_is_null_and_explained_without_a_warning(tmp_path):
    labels = written(tmp_path / "labels.h5", np.ones((2, 3, 4), np.uint8))
    nothing = written(tmp_path / "truth.h5", np.zeros((2, 3, 4), np.uint16))
    done = subprocess.run([sys.executable, "-W", "error", "-m", "emcore", "score", labels, nothing, "--json"],
                          capture_output=True, text=True, check=True, cwd=os.getcwd())
    assert done.stderr == ""
    result = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert by_name(result, "cremi") == {"voi_split": None, "voi_merge": None, "rand_error": None,
                                        "rand_precision": None, "rand_recall": None, "cremi_score": None}
    assert any("cremi: no voxel is left to score" in note for note in result["notes"])
    assert by_name(result, "gala")["rand_error"] == 0


def test_cremi_ids_are_ignored_by_cremi_alone_unless_other_ids_are_named(tmp_path):
    truth = np.array([[[2**64 - 1, 2**64 - 2, 0, 1, 1, 2]]], np.uint64)
    labels = np.array([[[1, 1, 1, 1, 1, 2]]], np.uint64)
    kept = {entry["convention"]: entry["voxels"] for entry in command.score(labels, truth)["scores"]}
    assert kept == {"cremi": 3, "snemi3d": 5, "skimage": 5, "dbmim": 5, "funlib": 5, "gala": 6, "isbi": 5}
    named = command.score(labels, truth, ["cremi"], ignore_truth=(2**64 - 1,), ignore_labels=(2,))
    assert {entry["voxels"] for entry in named["scores"]} == {4}


def test_label_0_of_the_prediction_is_pointed_out():
    labels = np.array([[[0, 0, 1]]])
    notes = command.score(labels, labels)["notes"]
    assert any("label 0 of the prediction covers 2 of the compared voxels" in note for note in notes)


@pytest.mark.parametrize("labels, truth, options, sentence", [
    (np.ones((2, 3, 4), int), np.ones((2, 3, 5), int), [], "has the shape (2, 3, 4), the truth"),
    (np.ones((2, 3, 4)), np.ones((2, 3, 4), int), [], "labels are integers"),
    (np.full((2, 3, 4), -3), np.ones((2, 3, 4), int), [], "labels must not be negative; it holds -3"),
    (np.ones((2, 3, 4), int), np.ones((2, 3, 4), int), ["--border-nm", "25"], "give --resolution Z Y X"),
    (np.ones((2, 3, 4), int), np.ones((2, 3, 4), int), ["--threads", "0"], "threads must be at least 1"),
    (np.ones((2, 3, 4), int), np.ones((2, 3, 4), int), ["--ignore-truth", "-1"], "ignored ids must be integers"),
])
def test_a_mistake_ends_in_a_sentence_and_exit_code_2(tmp_path, capsys, labels, truth, options, sentence):
    for name, array in (("labels", labels), ("truth", truth)):
        np.save(tmp_path / f"{name}.npy", array)
    code = run_command(command.main, [str(tmp_path / "labels.npy"), str(tmp_path / "truth.npy"), *options])
    assert code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("offset, resolution, sentence", [
    ((40, 2, 0), RESOLUTION, "not a whole number"),
    ((4000, 0, 0), RESOLUTION, "do not overlap"),
    ((0, 0, 0), (30, 4, 4), "resample one of them"),
])
def test_volumes_that_do_not_fit_on_each_other_are_refused(tmp_path, capsys, offset, resolution, sentence):
    labels = written(tmp_path / "labels.h5", np.ones((2, 3, 4), np.uint8), offset, resolution)
    truth = written(tmp_path / "truth.h5", np.ones((2, 3, 4), np.uint8))
    assert run_command(command.main, [labels, truth]) == 2
    assert sentence in capsys.readouterr().err


def test_undefined_scores_never_reach_the_text_as_nan(capsys, tmp_path):
    np.save(tmp_path / "zeros.npy", np.zeros((1, 2, 3), int))
    path = str(tmp_path / "zeros.npy")
    assert run_command(command.main, [path, path]) == 0
    text = capsys.readouterr().out
    assert "undefined" in text
    assert not any(word == "nan" for word in text.split())
    assert math.isnan(metrics.voi(metrics.contingency(np.zeros(3, int), np.zeros(3, int))).split)
