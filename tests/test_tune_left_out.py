"""evaluate.py --tune with every volume left out in turn, against a plain loop over every point and threshold."""

import csv
import itertools
from dataclasses import replace

import numpy as np
import pytest

from emcore import metrics, segment
from emcore.decode.tune import find_sources, tune
from emcore.decode.tune_left_out import leave_out
from emcore.errors import InputError
from emcore.settings.tune import Space
from emcore.volumes import create_volume, open_volume
from tests.test_tune import OFFSETS, settings_of, stored_volume

STATISTICS, LOWS, THRESHOLDS = ["mean", "aff85_his16"], [0.0, 0.3], [0.1, 0.25, 0.4, 0.55, 0.7, 0.85]
SPACE = Space(statistic=STATISTICS, low=LOWS, high=[0.9], threshold=THRESHOLDS)


def scores_of(truth, affs, statistic, low, threshold, mask=None):
    table = metrics.contingency(truth, segment.segment(affs, threshold, statistic, low=low, high=0.9), mask=mask)
    return {"voi": sum(metrics.voi(table)), "adapted_rand": metrics.rand(table).error}


def every_score(truth, affs, mask=None):
    """{(statistic, low): [scores at every threshold]}"""
    return {(statistic, low): [scores_of(truth, affs, statistic, low, threshold, mask) for threshold in THRESHOLDS]
            for statistic, low in itertools.product(STATISTICS, LOWS)}


def rows_of(folder, names, stored=(), objective="voi", border=0.0):
    settings = settings_of(folder, names, SPACE, objective=objective)
    settings = replace(settings, evaluate=replace(settings.evaluate, border_nm=border))
    rows = tune(settings, folder, stored)
    return find_sources(settings, folder, stored), [row for row in rows if row.kind == "curve"]


@pytest.mark.parametrize("objective, border", [("voi", 0.0), ("adapted_rand", 10.0)])
def test_what_the_others_choose_is_the_best_of_a_loop_and_its_cost_is_that_of_a_decoding(tmp_path, capsys, objective,
                                                                                        border):
    names = ("a", "b", "c")
    truths = [stored_volume(tmp_path, name, number, noise=0.7 + 0.1 * number) for number, name in enumerate(names)]
    masks = [metrics.neuron_border_mask(truth, (30, 6, 6), border) if border else None for truth in truths]
    affs = [open_volume(tmp_path / f"{name}_prediction.h5")[...] for name in names]
    scores = [every_score(*volume) for volume in zip(truths, affs, masks)]
    sources, rows = rows_of(tmp_path, names, objective=objective, border=border)
    outcomes = leave_out(sources, rows, objective)
    assert [outcome.volume for outcome in outcomes] == list(names)
    costs = []
    for number, outcome in enumerate(outcomes):
        others = [place for place in range(3) if place != number]
        means = {(key, at): np.mean([scores[place][key][at][objective] for place in others])
                 for key in scores[0] for at in range(len(THRESHOLDS))}
        entry = outcome.found[outcome.volume]
        assert entry["others"] == pytest.approx(min(means.values()), abs=1e-9)
        key = outcome.chosen.decode["statistic"], outcome.chosen.decode["low"]
        at = THRESHOLDS.index(entry["threshold"])
        assert means[key, at] == pytest.approx(min(means.values()), abs=1e-9)
        for name, value in scores[number][key][at].items():
            assert entry["scores"][name] == pytest.approx(value, abs=1e-9)
            plain = scores_of(truths[number], affs[number], *key, entry["threshold"])[name]
            if border:
                assert entry["scores"][f"{name}_with_borders"] == pytest.approx(plain, abs=1e-9)
                costs.append(abs(plain - value))
        assert entry["own"] == pytest.approx(min(one[objective] for one in scores[number][key]), abs=1e-9)
    assert not border or max(costs) > 0.01
    said = capsys.readouterr().out
    assert all(f"{name} left out: the others choose watershed, " in said for name in names)
    assert ("voi_with_borders" in said) == bool(border)
    with open(tmp_path / "tune_left_out.csv") as file:
        table = list(csv.DictReader(file))
    assert [line["left_out"] for line in table] == list(names)
    assert [float(line["voi"]) for line in table] == pytest.approx(
        [outcome.found[outcome.volume]["scores"]["voi"] for outcome in outcomes], abs=1e-6)


def test_several_nets_have_thresholds_of_their_own_and_their_spread_is_told(tmp_path, capsys):
    names, stored = ("a", "b"), []
    truths = [stored_volume(tmp_path, name, number) for number, name in enumerate(names)]
    for net, power in enumerate((1.0, 0.4, 2.5)):  # nets of the same order of affinities, but other numbers
        for name in names:
            values = open_volume(tmp_path / f"{name}_prediction.h5")[...] ** np.float32(power)
            stored.append(str(tmp_path / f"{name}_{net}.h5"))
            with create_volume(stored[-1], values.shape, values.dtype, (30, 6, 6), (0, 0, 0),
                               {"offsets": OFFSETS}) as out:
                out[...] = values
    sources, rows = rows_of(tmp_path, names, stored)
    assert [source.name for source in sources] == [f"{name}, net {net}" for net in (1, 2, 3) for name in names]
    scores = [every_score(truths[place % 2], open_volume(path)[...]) for place, path in enumerate(stored)]
    for number, outcome in enumerate(leave_out(sources, rows, "voi")):
        assert outcome.volume == names[number]
        best = {key: [min(one["voi"] for one in scores[2 * net + 1 - number][key]) for net in range(3)]
                for key in scores[0]}
        assert outcome.others == pytest.approx(min(map(np.mean, best.values())), abs=1e-9)
        key = outcome.chosen.decode["statistic"], outcome.chosen.decode["low"]
        for net, entry in enumerate(outcome.found.values()):
            assert entry["others"] == pytest.approx(best[key][net], abs=1e-9)
            at = THRESHOLDS.index(entry["threshold"])
            assert entry["scores"]["voi"] == pytest.approx(scores[2 * net + number][key][at]["voi"], abs=1e-9)
    assert len({entry["threshold"] for entry in outcome.found.values()}) > 1
    assert capsys.readouterr().out.count(" of 3 nets)") >= 4
    with pytest.raises(InputError, match="of several nets once for each volume"):
        rows_of(tmp_path, names, stored[:3])


def test_one_truth_leaves_nothing_to_choose_by(tmp_path):
    stored_volume(tmp_path, "a")
    sources, rows = rows_of(tmp_path, ("a",))
    assert leave_out(sources, rows, "voi") == []
    assert not (tmp_path / "tune_left_out.csv").exists()


def test_points_that_were_drawn_are_chosen_among_but_not_those_that_all_volumes_chose(tmp_path):
    names = ("a", "b")
    for number, name in enumerate(names):
        stored_volume(tmp_path, name, number)
    space = Space(threshold={"min": 0.1, "max": 0.9}, dust_size=[0, 40])
    settings = settings_of(tmp_path, names, space, objective="voi")
    rows = tune(settings, tmp_path, draws=5)
    with open(tmp_path / "tune_left_out.csv") as file:
        table = {line["left_out"]: line for line in csv.DictReader(file)}
    base = settings.decode.threshold
    drawn = [row for row in rows if row.decode["threshold"] != base]
    assert len(drawn) == 5
    for name, other in (names, names[::-1]):
        best = min(drawn, key=lambda row: row.found["voi"]["volumes"][other]["voi"])
        assert float(table[name]["threshold"]) == best.decode["threshold"]
        assert float(table[name]["voi"]) == pytest.approx(best.found["voi"]["volumes"][name]["voi"], abs=1e-6)
