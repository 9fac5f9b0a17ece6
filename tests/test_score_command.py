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


@pytest.mark.parametrize("block_bytes", [400, 3000, 40_000])
def test_blocks_score_like_the_whole_even_where_a_section_does_not_fit(pair, monkeypatch, block_bytes):
    whole = command.score(*pair[:2], border_nm=9)
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", block_bytes)
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


def test_a_volume_of_one_channel_scores_as_the_volume_and_several_are_refused(pair, tmp_path, capsys):
    prediction, truth_path, labels, truth = pair
    written(tmp_path / "one.h5", labels[None])
    written(tmp_path / "ids.h5", truth[None])
    found = command.score(str(tmp_path / "one.h5"), str(tmp_path / "ids.h5"), border_nm=9)
    assert found["scores"] == command.score(prediction, truth_path, border_nm=9)["scores"]
    written(tmp_path / "three.h5", np.stack([labels] * 3))
    assert run_command(command.main, [str(tmp_path / "three.h5"), truth_path]) == 2
    assert "score takes (z, y, x), or one channel (1, z, y, x)" in capsys.readouterr().err


BACKGROUND = 2**64 - 1  # no cleft, in CREMI's files


@pytest.fixture
def golden():
    """The published example: truth and prediction as masks of 12 x 120 x 160 voxels."""
    truth, predicted = np.zeros((2, 12, 120, 160), bool)
    truth[2:5, 20:60, 30:36] = truth[8:10, 70:75, 20:100] = True
    predicted[3:6, 22:64, 31:38] = predicted[0:1, 100:110, 100:160] = True
    return truth, predicted


def cleft_scores(result):
    return [entry["value"] for entry in result["scores"]]


GOLDEN = [131.9752416, 158.2990786, 105.6514046, 0.6651584, 0.6863328, 600, 288]


@pytest.mark.parametrize("form", ["legacy", "floats", "labels", "mask"])
def test_clefts_are_scored_by_the_published_numbers_in_any_form(golden, form, tmp_path, capsys, monkeypatch):
    truth, predicted = golden
    ids = np.where(truth, 7, np.uint64(BACKGROUND)).astype(np.uint64)
    values = {"legacy": np.where(predicted, 128, 127).astype(np.uint8)[None],  # what 2019's test writes, around 1/2
              "floats": np.where(predicted, 0.51, 0.5).astype(np.float32)[None],
              "labels": np.where(predicted, 9, 0).astype(np.uint32), "mask": predicted.astype(np.uint8)}[form]
    prediction = written(tmp_path / "volume_0.h5", values, resolution=None)
    reference = written(tmp_path / "syn.h5", ids, resolution=None)
    arguments = [prediction, reference, "--clefts", "--resolution", "40", "4", "4"]
    assert run_command(command.main, [*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert cleft_scores(result) == pytest.approx(GOLDEN, abs=1e-6)
    assert result["voxels"] == {"compared": truth.size, "predicted": 1482, "true": 1520}
    assert run_command(command.main, [*arguments, "--distance-nm", "1000"]) == 0
    text = capsys.readouterr().out
    assert "cleft_adgt                 158.299079  of predicted voxels to the truth, nm" in text
    assert "cleft_false_positives               0" in text
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", 50_000)  # in blocks the same
    assert run_command(command.main, [*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_files_of_clefts_without_a_resolution_say_so_and_empty_ones_too(golden, tmp_path, capsys):
    truth, predicted = golden
    files = [written(tmp_path / f"{name}.h5", values.astype(np.uint32), resolution=None)
             for name, values in (("truth", truth), ("predicted", predicted), ("empty", truth & False))]
    assert run_command(command.main, [files[1], files[0], "--clefts"]) == 2
    assert "neither" in (told := capsys.readouterr().err)
    assert "says its resolution; give --resolution Z Y X" in told
    found = command_clefts(files[2], files[0])
    assert cleft_scores(found) == [None, None, None, 0.0, 0.0, 0, 1520]
    assert "there is no cleft in the prediction" in found["notes"][0]
    assert "there is no cleft in the truth" in command_clefts(files[0], files[2])["notes"][0]
    assert "nothing to find" in command_clefts(files[2], files[2])["notes"][0]
    for options, sentence in ((["--clefts", "--border-nm", "25"], "--border-nm cannot be used with --clefts"),
                              (["--threshold", "0.3"], "--threshold cannot be used without --clefts"),
                              (["--clefts", "--threshold", "3"], "the threshold must be between 0 and 1")):
        assert run_command(command.main, [*files[:2], *options]) == 2
        assert sentence in capsys.readouterr().err
    for value in (4.0, np.nan):
        logits = written(tmp_path / "logits.h5", np.where(predicted, value, 0).astype(np.float32))
        assert run_command(command.main, [logits, files[0], "--clefts"]) == 2
        assert "apply the sigmoid to logits first" in capsys.readouterr().err


def command_clefts(prediction, truth):
    from emcore.metrics.score_clefts import score_clefts
    return score_clefts(prediction, truth, resolution=RESOLUTION)


def test_clefts_of_a_file_of_cremi_are_its_clefts_and_what_nobody_knows_does_not_count(golden, tmp_path):
    truth, predicted = golden
    ids = np.where(truth, 7, np.uint64(BACKGROUND)).astype(np.uint64)
    ids[0, 100:110, 100:160] = 2**64 - 2  # where the false piece is
    with create_volume(f"{tmp_path / 'a.hdf'}:volumes/labels/neuron_ids", ids.shape, "uint64", RESOLUTION) as out:
        out[...] = 3
    with create_volume(f"{tmp_path / 'a.hdf'}:volumes/labels/clefts", ids.shape, "uint64", RESOLUTION) as out:
        out[...] = ids
    found = command_clefts(written(tmp_path / "p.h5", predicted.astype(np.uint32)), str(tmp_path / "a.hdf"))
    assert found["truth"]["name"].endswith("volumes/labels/clefts")
    assert found["voxels"] == {"compared": truth.size, "predicted": 1482 - 600, "true": 1520}
    assert cleft_scores(found)[5] == 0
