"""evaluate.py --tune against a plain loop over decodings, its file of stages, and what it refuses."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from emcore import config, metrics, segment
from emcore.decode import tune as tune_module
from emcore.decode.labels import decode
from emcore.decode.tune import tune
from emcore.decode.tune_space import drawn_points, every_point, read_choices, read_space, read_thresholds
from emcore.decode.tune_stages import curve_stage, decoded_stage
from emcore.decode.tune_store import opened
from emcore.errors import InputError
from emcore.report.heat_map import FRAME, GREY, write_heat_map
from emcore.settings import Settings
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.decode import AffinityDecode, ComponentsDecode
from emcore.settings.tune import Space, Tune
from emcore.volumes import create_volume, open_volume
from tests.scripts import run_script
from tests.test_pipeline import blocks, exact_affinities
from tests.test_train import ROOT, environment

OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]


def stored_volume(folder, name, seed=0, noise=1.0):
    """A prediction with many distinct affinities, and its truth."""
    truth = np.roll(blocks((6, 24, 24)), seed, axis=2)
    affs = exact_affinities(truth, noise)
    affs = np.clip(affs + np.random.default_rng(seed).normal(0, 0.15, affs.shape), 0, 1).astype(np.float32)
    with create_volume(folder / f"{name}_prediction.h5", affs.shape, affs.dtype, (30, 6, 6), (0, 0, 0),
                       {"offsets": OFFSETS}) as out:
        out[...] = affs
    with h5py.File(folder / f"{name}.h5", "w") as f:
        f["labels"] = truth
        f["labels"].attrs["resolution"] = (30, 6, 6)
    return truth


def settings_of(folder, names=("a",), space=None, **tuned):
    volumes = tuple(VolumeFiles(f"{name}.h5", f"{name}.h5:labels", name=name) for name in names)
    space = Space(statistic=["aff85_his256", "mean"], low=[0.0, 0.3], high=[0.8, 1.0]) if space is None else space
    return Settings("run", outputs=str(folder), data=Data(folder=str(folder), test=volumes),
                    decode=AffinityDecode(low=0.1, high=0.9), tune=Tune(space=space, **tuned))


def scored(truth, labels):
    table = metrics.contingency(truth, labels)
    voi = metrics.voi(table)
    return {"adapted_rand": metrics.rand(table).error, "voi": sum(voi), "cremi_score": metrics.cremi_score(table)}


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_the_best_of_every_curve_is_that_of_a_loop_over_thresholds(tmp_path, names):
    truths = [stored_volume(tmp_path, name, number) for number, name in enumerate(names)]
    predictions = [open_volume(tmp_path / f"{name}_prediction.h5")[...] for name in names]
    space = Space(statistic=["aff85_his16", "mean"], low=[0.0, 0.3], high=[0.8])
    rows = [row for row in tune(settings_of(tmp_path, names, space), tmp_path) if row.kind == "curve"]
    assert len(rows) == 4
    for row in rows:
        score, low = row.decode["statistic"], row.decode["low"]
        # every state of 16 bins lies between two multiples of 1/16; means are sampled
        every = [[scored(truth, segment.segment(affs, threshold, score, low=low, high=0.8))
                  for truth, affs in zip(truths, predictions)] for threshold in np.arange(17) / 16]
        for objective in ("adapted_rand", "voi", "cremi_score"):
            entry = row.found[objective]
            best, least = entry["scores"][objective], min(np.mean([one[objective] for one in all_]) for all_ in every)
            assert best == pytest.approx(least, abs=1e-9) if score == "aff85_his16" else best <= least + 1e-9
            again = [scored(truth, segment.segment(affs, entry["threshold"], score, low=low, high=0.8))[objective]
                     for truth, affs in zip(truths, predictions)]
            assert best == pytest.approx(np.mean(again), abs=1e-9)
            assert again == pytest.approx([entry["volumes"][name][objective] for name in names], abs=1e-9)


def test_the_parameters_that_are_written_decode_to_the_score_that_was_found(tmp_path):
    truth = stored_volume(tmp_path, "a")
    settings = settings_of(tmp_path, objective="voi")
    settings = replace(settings, decode=replace(settings.decode, dust_size=30, dust_affinity=0.1, remove_size=5))
    rows = tune(settings, tmp_path)
    (tmp_path / "run.toml").write_text('name = "run"\n[decode]\nkind = "none"\n')
    point = config.load(Settings, tmp_path / "run.toml", ["decode.channels=[0, 1, 2]"],
                        tmp_path / "best_params.toml").decode
    assert (point.dust_size, point.channels) == (30, (0, 1, 2))
    out = decode(open_volume(tmp_path / "a_prediction.h5"), point, tmp_path / "labels.h5")
    best = next(row for row in rows if row.kind == "decoded")
    assert scored(truth, open_volume(out, "labels")[...])["voi"] == pytest.approx(best.found["voi"]["scores"]["voi"])
    decoded = [row.found["voi"]["scores"]["voi"] for row in rows if row.kind == "decoded"]
    assert len(decoded) == 4  # the config's own settings and three confirmed points
    assert min(decoded) == decoded[0]
    with open(tmp_path / "tune.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) == 12
    assert [float(line["voi"]) for line in table] == sorted(float(line["voi"]) for line in table)


def test_voxels_per_fragment_stand_beside_the_scores_and_rows_of_older_versions_lack_them(tmp_path, capsys):
    names = ("a", "b")
    for number, name in enumerate(names):
        stored_volume(tmp_path, name, number)
    predictions = [open_volume(tmp_path / f"{name}_prediction.h5")[...] for name in names]
    settings = settings_of(tmp_path, names)
    rows = tune(settings, tmp_path)
    assert {row.kind for row in rows} == {"curve", "decoded"}
    expected = []
    for row in rows:
        found = [segment.watershed(affs, row.decode["low"], row.decode["high"]) for affs in predictions]
        voxels = sum(map(np.count_nonzero, found))
        fragments = sum(len(np.unique(labels[labels > 0])) for labels in found)
        expected.append(voxels / fragments)
        assert {entry["voxels_per_fragment"] for entry in row.found.values()} == {expected[-1]}
    assert len(set(expected)) > 1
    best = next(number for number, row in enumerate(rows) if row.kind == "decoded")
    assert f", one fragment for every {expected[best]:.0f} voxels), with the settings so far" in capsys.readouterr().out

    def column():
        with open(tmp_path / "tune.csv") as file:
            return [line["voxels_per_fragment"] for line in csv.DictReader(file)]

    assert column() == [str(round(voxels, 1)) for voxels in expected]
    before, *lines = (tmp_path / "tune.jsonl").read_text().splitlines()
    older = [json.loads(line) for line in lines]
    for row in older:
        for entry in row["found"].values():
            del entry["voxels_per_fragment"]
    (tmp_path / "tune.jsonl").write_text("\n".join([before, *map(json.dumps, older), ""]))
    assert [row.key for row in tune(settings, tmp_path)] == [row.key for row in rows]
    told = capsys.readouterr().out
    assert "0 stages to do" in told
    assert "one fragment" not in told
    assert column() == [""] * len(rows)


def test_listed_thresholds_are_the_only_ones(tmp_path):
    truth = stored_volume(tmp_path, "a")
    affs = open_volume(tmp_path / "a_prediction.h5")[...]
    space = Space(statistic="mean", low=0.3, high=0.8, threshold={"min": 0.1, "max": 0.9, "step": 0.1})
    row = next(row for row in tune(settings_of(tmp_path, space=space), tmp_path) if row.kind == "curve")
    values = {threshold: scored(truth, segment.segment(affs, threshold, "mean", low=0.3, high=0.8))["voi"]
              for threshold in np.round(np.arange(0.1, 0.95, 0.1), 12).tolist()}
    assert row.found["voi"]["threshold"] == min(values, key=values.get)
    assert row.found["voi"]["scores"]["voi"] == pytest.approx(min(values.values()))


def test_random_points_cover_what_acts_after_the_cut_and_more_of_them_continue_the_same_draws(tmp_path):
    stored_volume(tmp_path, "a")
    space = Space(statistic=["mean", "aff85_his256"], low={"min": 0.0, "max": 0.5}, high=[0.8, 0.9],
                  dust_size={"min": 1, "max": 200, "log": True}, link_iou=[0.3, 0.5], temperature=[1.0, 2.0],
                  bias=[[0, 0, 0], [0.5, 0, 0]], threshold={"min": 0.2, "max": 0.8})
    settings = settings_of(tmp_path, space=space)
    few = tune(settings, tmp_path, draws=3)
    more = tune(settings, tmp_path, draws=6)
    assert {row.key for row in few} < {row.key for row in more}
    assert len(more) == 7
    decoded = [row.decode for row in more if "link" in row.decode]
    assert len(decoded) == 6
    assert all(0.2 <= table["threshold"] <= 0.8 and 1 <= table["dust_size"] <= 200 for table in decoded)
    assert {table["temperature"] for table in decoded} == {1.0, 2.0}


def test_random_watersheds_without_a_later_step_are_whole_curves(tmp_path):
    stored_volume(tmp_path, "a")
    space = Space(statistic=["mean", "aff85_his256"], low={"min": 0.0, "max": 0.5}, high={"min": 0.8, "max": 0.99})
    rows = tune(settings_of(tmp_path, space=space), tmp_path, draws=5)
    assert sum(row.kind == "curve" for row in rows) == 5


def contents(folder):
    """What a tune has kept, without what a clock says."""
    rows = [json.loads(line) for line in (folder / "tune.jsonl").read_text().splitlines()[1:]]
    return sorted(json.dumps({name: value for name, value in row.items() if name != "seconds"}) for row in rows)


def test_a_killed_tune_goes_on_to_the_same_stages_and_the_same_best_point(tmp_path):
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        stored_volume(tmp_path / folder, "a")
    rows = tune(settings_of(tmp_path / "whole"), tmp_path / "whole")
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from pathlib import Path\nfrom emcore.decode.tune import tune\n"
            "from emcore.decode.tune_store import Stages\n"
            "from tests.test_tune import settings_of\nfolder = Path(sys.argv[1])\nadd = Stages.add\n"
            "def kill(stages, row):\n    add(stages, row)\n    stages.file.write(b'{\"key\": \"torn')\n"
            "    print('written', flush=True)\n    import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
            "Stages.add = kill\ntune(settings_of(folder), folder)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed")], capture_output=True, text=True,
                          env=environment(), cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.endswith("written\n")
    text = (tmp_path / "killed" / "tune.jsonl").read_text()
    assert (text.count("\n"), text.endswith('torn')) == (2, True)  # what it is bound to, one stage, a part of another
    assert not (tmp_path / "killed" / "best_params.toml").exists()
    again = tune(settings_of(tmp_path / "killed"), tmp_path / "killed")
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    assert [row[:4] for row in again] == [row[:4] for row in rows]
    best = [(tmp_path / folder / "best_params.toml").read_text() for folder in ("whole", "killed")]
    assert best[0] == best[1]


def test_a_spent_budget_leaves_the_rest_to_the_next_run(tmp_path, capsys):
    stored_volume(tmp_path, "a")
    rows = tune(settings_of(tmp_path), tmp_path, minutes=0)
    assert [row.kind for row in rows] == ["decoded"]
    assert "the budget is spent with 4 of 4 stages left" in capsys.readouterr().out
    assert sum(row.kind == "curve" for row in tune(settings_of(tmp_path), tmp_path)) == 8


def endless_at_low_03(task, point, scores, thresholds):
    """A stage that hangs in a kernel, for one watershed."""
    if point.low == 0.3 and point.high == 1.0:
        time.sleep(1000)
    return curve_stage(task, point, scores, thresholds)


def endless_but_for_one(task, point):
    if point.low == 0.1:  # the settings so far
        time.sleep(1000)
    return decoded_stage(task, point)


@pytest.mark.slow
def test_a_stage_over_its_time_is_ended_and_marked_and_the_tune_goes_on(tmp_path, monkeypatch, capsys):
    stored_volume(tmp_path, "a")
    settings = settings_of(tmp_path, processes=2)
    monkeypatch.setattr(tune_module, "curve_stage", endless_at_low_03)
    monkeypatch.setattr(tune_module, "decoded_stage", endless_but_for_one)
    begin = time.monotonic()
    rows = tune(settings, tmp_path, limit=6)
    assert time.monotonic() - begin < 500
    kinds = [row.kind for row in rows]
    assert kinds.count("curve") == 6
    stopped = [row for row in rows if row.kind == "stopped"]
    assert sorted((row.decode["low"], row.decode["statistic"]) for row in stopped) == [
        (0.1, "mean"), (0.3, "aff85_his256"), (0.3, "mean")]  # the settings so far, and two scores of one watershed
    told = capsys.readouterr().out
    assert "3 points took longer than their stage had" in told
    assert "with the settings so far not decoded in time" in told
    with open(tmp_path / "tune.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["stage"] for row in table] == kinds
    for row in table:
        assert (row["adapted_rand"] == "") is (row["stage"] == "stopped")
        assert row["stage"] != "stopped" or float(row["seconds"]) == 6
    # within the same time they are not tried again; without a limit they are, and become what they would have been
    jobs = []
    monkeypatch.setattr(tune_module, "run", lambda given, *more: jobs.extend(given) or iter(()))
    tune(settings, tmp_path, limit=6)
    assert not jobs
    monkeypatch.undo()
    again = tune(replace(settings, tune=replace(settings.tune, processes=1)), tmp_path)
    assert not [row for row in again if row.kind == "stopped"]
    (tmp_path / "whole").mkdir()
    stored_volume(tmp_path / "whole", "a")
    whole = tune(settings_of(tmp_path / "whole"), tmp_path / "whole")
    assert {row[:4] for row in map(hashable, again)} == {row[:4] for row in map(hashable, whole)}
    with pytest.raises(InputError, match=r"--tune-trial-seconds must be a number of seconds above 0; got 0"):
        tune(settings, tmp_path, limit=0)


def hashable(row):
    return row.key, row.kind, json.dumps(row.decode), json.dumps(row.found), row.seconds


@pytest.mark.long
def test_two_processes_find_what_one_finds(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        stored_volume(tmp_path / folder, "a")
        tune(settings_of(tmp_path / folder, processes=1 if folder == "one" else 2), tmp_path / folder)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_stages_of_another_prediction_or_truth_are_refused_and_those_of_older_versions_told(tmp_path, capsys):
    stored_volume(tmp_path, "a")
    settings = settings_of(tmp_path, space=Space(statistic="mean", low=0.1, high=0.8))
    tune(settings, tmp_path)
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f["labels"][0, 0, 0] = 77
    with pytest.raises(InputError, match=r"made from other inputs, namely another truth of a: .* move it away"):
        tune(settings, tmp_path)
    with pytest.raises(InputError, match=r"another rule of scoring"):
        tune(replace(settings, evaluate=replace(settings.evaluate, border_nm=6.0)), tmp_path)
    for foreign in (b"no stages at all", b"no stages\nat all\n", b'{"truth of a": 1}\n[3]\n', b"[]\n"):
        (tmp_path / "tune.jsonl").write_bytes(foreign)
        with pytest.raises(InputError, match=r"does not hold the stages of a tune .*: move it away"):
            tune(settings, tmp_path)
        assert (tmp_path / "tune.jsonl").read_bytes() == foreign
    (tmp_path / "tune.jsonl").unlink()
    (tmp_path / "tune.db").write_bytes(b"SQLite format 3")
    tune(settings, tmp_path)
    assert re.search(r"tune\.db is of an older version and is not read: .* delete it\n", capsys.readouterr().out)


def test_two_tunes_do_not_write_one_file(tmp_path):
    stored_volume(tmp_path, "a")
    with opened(tmp_path / "tune.jsonl", {}), pytest.raises(InputError, match=r"in use by another tune"):
        tune(settings_of(tmp_path), tmp_path)


@pytest.mark.parametrize("name, given, sentence", [
    ("low", [], r"tune.space.low is an empty list"),
    ("low", {"min": 0.5, "max": 0.1}, "tune.space.low is an empty range: min 0.5 is above max 0.1"),
    ("threshold", [0.5, 1.5], "tune.space.threshold must be between 0 and 1; got 1.5"),
    ("threshold", {"min": -0.1, "max": 1}, "tune.space.threshold must be between 0 and 1; got -0.1"),
    ("high", {"min": 0.5}, "tune.space.high must be a list, or a table of min, max"),
    ("high", {"min": 0.5, "max": 1, "setp": 1}, "tune.space.high must be a list, or a table of min, max"),
    ("high", {"min": 0.5, "max": 1, "step": 0}, "step must be a number above 0"),
    ("low", {"min": 0, "max": 1, "log": True}, "with log must begin above 0"),
    ("low", ["a"], "must hold numbers; got 'a'"),
    ("dust_size", [-1], "must be 0 or more; got -1"),
    ("bias", [[1, 2]], "must be a list of triples"),
    ("statistic", ["aff85_his25x"], "unknown statistic"),
    ("statistic", {"min": 0, "max": 1}, "tune.space.statistic must be a list"),
])
def test_a_range_that_cannot_be_searched_is_refused(name, given, sentence):
    with pytest.raises(InputError, match=sentence):
        (read_thresholds if name == "threshold" else read_space)(Space(**{name: given}))


def test_what_cannot_be_tried_exhaustively_is_said(tmp_path):
    base = AffinityDecode()
    with pytest.raises(InputError, match=r"dust_size acts after the cut.*--tune-random N"):
        every_point(base, read_space(Space(dust_size=[0, 100])))
    with pytest.raises(InputError, match=r"low goes from 0.0 to 0.5 without a step"):
        every_point(base, read_space(Space(low={"min": 0, "max": 0.5})))
    with pytest.raises(InputError, match=r"every low is above every high"):
        every_point(base, read_space(Space(low=[0.9], high=[0.5])))
    assert len(every_point(base, read_space(Space()))) == 5 * 6 * 4


def test_what_a_tune_needs_is_said_before_any_work(tmp_path):
    settings = settings_of(tmp_path)
    with pytest.raises(InputError, match=r"there is no .*a_prediction.h5: run infer.py first"):
        tune(settings, tmp_path)
    without = replace(settings.data, test=(VolumeFiles("a.h5"),))
    with pytest.raises(InputError, match=r"there is no truth to tune by: no volume of data.test has a label"):
        tune(replace(settings, data=without), tmp_path)
    two = replace(settings.data, test=tuple(VolumeFiles("a.h5", "a.h5:labels", name=name) for name in "ab"))
    with pytest.raises(InputError, match=r"--from must be given once for each of the 2 volumes"):
        tune(replace(settings, data=two), tmp_path, ["a", "b", "c"])
    with pytest.raises(InputError, match=r"tune.objective must be one of adapted_rand, .*; got 'ari'"):
        tune(replace(settings, tune=replace(settings.tune, objective="ari")), tmp_path)
    with pytest.raises(InputError, match=r"searches decode.kind"):
        tune(replace(settings, decode=ComponentsDecode()), tmp_path)
    with pytest.raises(InputError, match=r"--tune-random must be at least 1; got 0"):
        tune(settings, tmp_path, draws=0)
    truth = stored_volume(tmp_path, "a")
    with h5py.File(tmp_path / "a.h5", "r+") as f:
        f["labels"][...] = np.zeros_like(truth)
    with pytest.raises(InputError, match=r"no voxel of the truth .* counts"):
        tune(settings, tmp_path)


def test_ranges_are_written_as_in_parameter_spaces():
    assert read_choices("low", {"min": 0.0, "max": 0.5, "step": 0.1}) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert read_choices("high", 0.9) == [0.9]
    assert read_choices("dust_size", [100, 200.4]) == [100, 200]
    points = drawn_points(AffinityDecode(), {"temperature": read_choices("temperature", {
        "min": 0.1, "max": 10, "log": True})}, read_thresholds(Space()), seed=3, count=400)
    temperatures = np.array([point.temperature for point in points])
    assert temperatures.min() >= 0.1
    assert temperatures.max() <= 10
    assert 0.4 < np.mean(temperatures < 1) < 0.6


def test_a_heat_map_frames_the_lowest_value_and_greys_what_is_missing(tmp_path):
    write_heat_map(tmp_path / "map.svg", "a < b", ["a", "b"], {"low": ["0.1", "0.2"]},
                   np.array([[0.5, np.nan], [0.25, 1.0]]))
    picture = ElementTree.parse(tmp_path / "map.svg").getroot()
    rects = [rect for rect in picture.iter("{http://www.w3.org/2000/svg}rect") if "x" in rect.attrib]
    assert [rect.get("fill") for rect in rects[1:]] == [GREY, "#fde725", "#440154"]
    assert [rect.get("stroke") for rect in rects] == [None, None, FRAME, None]
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(words) == sorted(["a < b", "low", "0.1", "0.2", "a", "b", "0.5000", "0.2500", "1.0000"])
    write_heat_map(tmp_path / "wide.svg", "title", ["a"], {"low": list("12") * 100}, np.arange(200.0)[None])
    wide = (tmp_path / "wide.svg").read_text()
    assert "the best 120 of 200 columns" in wide
    assert ">119.00<" in wide
    assert ">120.00<" not in wide
    with pytest.raises(InputError, match=r"at least one number"):
        write_heat_map(tmp_path / "none.svg", "title", ["a"], {"low": ["0.1"]}, np.array([[np.nan]]))


def test_evaluate_tunes_and_infer_takes_what_it_found(tmp_path):
    truth = stored_volume(tmp_path, "a")
    (tmp_path / "run.toml").write_text(f"""name = "run"
outputs = "{tmp_path}"
[data]
folder = "{tmp_path}"
[[data.test]]
image = "a.h5"
label = "a.h5:labels"
[decode]
kind = "affinities"
[tune.space]
score = ["mean"]
low = {{min = 0.1, max = 0.2, step = 0.1}}
high = [0.8]
""")
    stored = tmp_path / "a_prediction.h5"
    done = run_script("evaluate.py", "--cfg", tmp_path / "run.toml", "--tune", "--from", stored, place=ROOT)
    assert done.returncode == 0, done.stderr
    assert "adapted_rand" in done.stdout
    assert "adapted_rand, best threshold" in (tmp_path / "tune.svg").read_text()
    done = run_script("infer.py", "--cfg", tmp_path / "run.toml", "--from", stored, "--params",
                      tmp_path / "best_params.toml", place=ROOT)
    assert done.returncode == 0, done.stderr
    labels = open_volume(tmp_path / "a_labels.h5", "labels")[...]
    with open(tmp_path / "tune.csv") as file:
        best = next(csv.DictReader(file))
    assert scored(truth, labels)["adapted_rand"] == pytest.approx(float(best["adapted_rand"]), abs=1e-6)
