"""evaluate.py --tune by run length: the best of every curve against a loop over decodings, scored edge by edge."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from emcore import metrics, segment
from emcore.decode.tune import tune
from emcore.errors import InputError
from emcore.metrics.nodes import RUN_OBJECTIVES, node_table
from emcore.settings.evaluate import Evaluate
from emcore.settings.tune import Space
from emcore.volumes import open_volume
from tests.oracles.run_length import run_length
from tests.test_tune import settings_of, stored_volume

RESOLUTION = (30, 6, 6)


def slow(nodes, labels, name):
    """1 - NERL by the definition."""
    contact_nodes, convention, _ = RUN_OBJECTIVES[name]
    under = metrics.labels_at(labels, nodes.places, RESOLUTION, rounding="nearest").tolist()
    found, perfect = run_length(nodes.skeletons.tolist(), under, nodes.edges.tolist(), nodes.lengths.tolist(),
                                contact_nodes, convention)
    return 1 - found / perfect


@pytest.mark.parametrize("objective", list(RUN_OBJECTIVES))
def test_the_best_of_every_curve_is_that_of_a_loop_over_thresholds(tmp_path, objective):
    names = ("a", "b")
    truths = [stored_volume(tmp_path, name, number) for number, name in enumerate(names)]
    nodes = [node_table(segment.skeletonize(truth, RESOLUTION)) for truth in truths]
    predictions = [open_volume(tmp_path / f"{name}_prediction.h5")[...] for name in names]
    space = Space(statistic=["aff85_his16", "mean"], low=0.3, high=0.8)
    rows = tune(settings_of(tmp_path, names, space, objective=objective), tmp_path)

    def every(threshold, statistic, low, high):
        return [slow(one, segment.segment(affs, threshold, statistic, low=low, high=high), objective)
                for one, affs in zip(nodes, predictions)]

    curves = [row for row in rows if row.kind == "curve"]
    assert len(curves) == 2
    for row in curves:
        how = [row.decode[name] for name in ("statistic", "low", "high")]
        entry = row.found[objective]
        best = entry["scores"][objective]
        assert best == pytest.approx(np.mean(every(entry["threshold"], *how)), abs=1e-9)
        assert best == pytest.approx(np.mean([entry["volumes"][name][objective] for name in names]), abs=1e-12)
        if how[0] == "aff85_his16":  # every state of 16 bins lies between two multiples of 1/16
            assert best == pytest.approx(min(np.mean(every(number / 16, *how)) for number in range(17)), abs=1e-9)
        assert entry["left_out"]["a"]["others"] >= row.found[objective]["left_out"]["b"]["own"] - 1e-12
    decoded = [row for row in rows if row.kind == "decoded"]
    for row in decoded:
        how = [row.decode[name] for name in ("statistic", "low", "high")]
        assert row.found[objective]["scores"][objective] == pytest.approx(
            np.mean(every(row.decode["threshold"], *how)), abs=1e-9)
    values = [row.found[objective]["scores"][objective] for row in decoded]
    assert values == sorted(values)
    assert min(values) < max(values)
    with open(tmp_path / "tune.csv") as file:
        assert [float(line[objective]) for line in csv.DictReader(file)] == pytest.approx(
            [row.found[objective]["scores"][objective] for row in rows], abs=1e-6)
    assert f"{objective} {values[0]:.4f}" in (tmp_path / "best_params.toml").read_text()


def test_other_objectives_neither_trace_nor_meet_the_stages_of_run_lengths(tmp_path, capsys):
    stored_volume(tmp_path, "a")
    settings = settings_of(tmp_path, objective="voi")
    first = tune(settings, tmp_path)
    assert not any(name in row.found for row in first for name in RUN_OBJECTIVES)
    kept = (tmp_path / "tune.jsonl").read_bytes()
    rows = tune(replace(settings, tune=replace(settings.tune, objective="lost_run_length")), tmp_path)
    assert all(name in row.found for row in rows for name in RUN_OBJECTIVES)
    assert (tmp_path / "tune.jsonl").read_bytes() == kept
    for row, plain in zip(sorted(rows), sorted(first)):
        if row.kind == "curve":
            assert {name: row.found["voi"]["scores"][name] for name in plain.found["voi"]["scores"]} == (
                plain.found["voi"]["scores"])
    capsys.readouterr()
    tune(replace(settings, tune=replace(settings.tune, objective="lost_run_length_nisb")), tmp_path)
    assert ", 0 stages to do" in capsys.readouterr().out


def test_skeletons_of_a_file_are_those_that_count(tmp_path):
    truth = stored_volume(tmp_path, "a")
    traced = segment.skeletonize(truth, RESOLUTION)
    few = {label: traced[label] for label in list(traced)[:5]}
    segment.write_skeletons(tmp_path / "few", few)
    settings = replace(settings_of(tmp_path, objective="lost_run_length_nisb"),
                       evaluate=Evaluate(skeletons=str(tmp_path / "few")))
    rows = tune(settings, tmp_path)
    affs, nodes = open_volume(tmp_path / "a_prediction.h5")[...], node_table(few)
    row = next(row for row in rows if row.kind == "curve")
    entry = row.found["lost_run_length_nisb"]
    labels = segment.segment(affs, entry["threshold"], row.decode["statistic"], low=row.decode["low"],
                             high=row.decode["high"])
    nodes = nodes._replace(places=nodes.places // RESOLUTION * RESOLUTION)  # the voxel that holds a node
    assert entry["scores"]["lost_run_length_nisb"] == pytest.approx(slow(nodes, labels, "lost_run_length_nisb"))
    segment.write_skeletons(tmp_path / "others", {label: traced[label] for label in list(traced)[5:]})
    with pytest.raises(InputError, match="made from other inputs, namely another rule of run lengths"):
        tune(replace(settings, evaluate=Evaluate(skeletons=str(tmp_path / "others"))), tmp_path)
    stored_volume(tmp_path, "b", 1)
    two = replace(settings_of(tmp_path, ("a", "b"), objective="lost_run_length"), evaluate=settings.evaluate)
    with pytest.raises(InputError, match=r"skeletons of one volume, but 2 volumes of data\.test have a label"):
        tune(two, tmp_path)
    assert json.loads((tmp_path / "tune_run_length.jsonl").read_text().splitlines()[0])["rule of run lengths"]
