"""dbMiM's evaluation files: its golden numbers and columns, and each row against labels scored on their own."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emcore import config, metrics, segment
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.systems.dbmim import sweep as dbmim
from emcore.volumes import create_volume, open_volume
from tests.scripts import run_script
from tests.test_slices import dbmim_fixture

ROOT = Path(__file__).resolve().parent.parent
NEAREST = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
COLUMNS = ("sample,affinity_variant,calibration_bias_z,calibration_bias_y,calibration_bias_x,calibration_temperature,"
           "backend,threshold,seed_distance,boundary_threshold,min_boundary,score_mode,rag_quantile,waterz_scoring,"
           "z_threshold,xy_threshold,affinity_dice,affinity_iou,inference_sec,postprocess_sec,metrics_sec,"
           "adapted_rand_error,rand_fscore,rand_precision,rand_recall,voi_split,voi_merge,voi_sum,n_pred,n_gt,n_voxels")
# segments, VOI split and merge, ARAND of the fixture by threshold
GOLDEN = {
    ("hist_quantile", 0.1): (14, .15515, .06389, .03887), ("hist_quantile", 0.2): (12, .14662, .06389, .03877),
    ("hist_quantile", 0.6): (12, .14662, .06389, .03877), ("hist_quantile", 0.7): (11, .14639, .21697, .09242),
    ("hist_quantile", 0.8): (1,), ("min", 0.6): (63,), ("min", 0.7): (59,), ("min", 0.8): (23,), ("max", 0.1): (63,),
    ("max", 0.2): (3, .01208, 1.69251, .51320), ("max", 0.6): (3, .01208, 1.69251, .51320), ("max", 0.7): (1,),
}
GOLDEN_FALSE = {
    ("hist_quantile_false", 0.2): (63,), ("hist_quantile_false", 0.3): (18, .06205, .03845, .00714),
    ("hist_quantile_false", 0.5): (18, .06205, .03845, .00714),
    ("hist_quantile_false", 0.6): (16, .05343, .03845, .00705),
    ("hist_quantile_false", 0.7): (12, .03646, .03854, .00687),
    ("hist_quantile_false", 0.8): (4, .02296, 1.40370, .45512),
}


def stored(reference, values, **attributes):
    with create_volume(reference, values.shape, values.dtype, (40, 4, 4), (0, 0, 0), attributes) as out:
        out[...] = values
    return reference


def settings_of(evaluate=None, **decode):
    table = {"name": "run", "decode": {"kind": "affinities", "fragments": "maxima_distance", **decode},
             "evaluate": {"sweep": {}, **(evaluate or {})}}
    return config.from_table(Settings, table)


def volumes(folder, count=3, shape=(8, 14, 15), **said):
    found = []
    for number in range(count):
        random = np.random.default_rng(number)
        truth = np.kron(random.integers(0, 5, (2, 3, 3)), np.ones((4, 5, 5), int))[:, :14, :15].astype(np.uint64)
        affs = dbmim.true_affinities(truth) * 0.6 + random.random((3, *shape)) * 0.4
        prediction = stored(folder / f"v{number}.h5", affs.astype(np.float32), offsets=NEAREST, **said)
        found.append((f"v{number}", Path(prediction), stored(f"{folder}/t{number}.h5:labels", truth)))
    return found


@pytest.mark.parametrize("golden, ties", [(GOLDEN, "waterz"), (GOLDEN_FALSE, "canonical")])
def test_the_golden_numbers_of_dbmim_with_waterz(tmp_path, golden, ties):
    truth, affs = dbmim_fixture()
    prediction = open_volume(stored(tmp_path / "p.h5", affs, offsets=NEAREST))
    names, thresholds = (tuple(dict.fromkeys(key[place] for key in golden)) for place in (0, 1))
    settings = settings_of({"sweep": {"merges": names, "thresholds": thresholds}}, ties=ties)
    rows = dbmim.sweep_volume(settings, "a", prediction, open_volume(truth))["records"]
    for (name, threshold), wanted in golden.items():
        row, = (row for row in rows if (row["waterz_scoring"], row["threshold"], row["affinity_variant"])
                == (name, threshold, "pred"))
        assert row["n_pred"] == wanted[0]
        if len(wanted) > 1:
            found = row["voi_split"], row["voi_merge"], row["adapted_rand_error"]
            assert found == pytest.approx(wanted[1:], abs=6e-6)


def test_the_readme_sweep_makes_sixty_records_and_computes_three_calibrations_a_volume(tmp_path, monkeypatch):
    settings = settings_of({"border_xy": 1, "sweep": {
        "biases": ((-0.5, -1.0, -1.0), (-0.25, -0.5, -0.5), (0.0, 0.0, 0.0))}}, score="hist_quantile")
    made = []
    segmentation_of = dbmim.segmentation_of
    monkeypatch.setattr(dbmim, "segmentation_of", lambda *given: made.append(1) or segmentation_of(*given))
    text = dbmim.write_sweep(tmp_path, settings, volumes(tmp_path))
    assert len(made) == 9
    records = json.loads((tmp_path / "cremi_segmentation_records.json").read_text())
    assert len(records) == 60
    assert list(dict.fromkeys(row["affinity_variant"] for row in records)) == [
        "pred", "bias_z-0.50_y-1.00_x-1.00_t1.00", "bias_z-0.25_y-0.50_x-0.50_t1.00", "bias_z+0.00_y+0.00_x+0.00_t1.00"]
    assert all(",".join(row) == COLUMNS for row in records)
    lines = (tmp_path / "cremi_segmentation_metrics.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    with open(tmp_path / "cremi_segmentation_metrics.csv", newline="") as file:
        for row, record in zip(csv.DictReader(file), records, strict=True):
            assert row == {name: "" if value in (None, "") else str(value) for name, value in record.items()}
    summary = json.loads((tmp_path / "cremi_segmentation_summary.json").read_text())
    groups = summary["per_backend_threshold"]
    assert len(groups) == 20
    assert all(row["n"] == 3 for row in groups)
    assert summary["num_records"] == 60
    for best, field in (("best_by_voi_sum", "voi_sum"), ("best_by_adapted_rand", "adapted_rand_error")):
        means = {}
        for row in records:
            means.setdefault((row["affinity_variant"], row["threshold"]), []).append(row[field])
        assert summary[best][field] == pytest.approx(min(np.mean(values) for values in means.values()))
        assert f"{summary[best][field]:.6f}" in text
    assert len(summary["per_threshold"]) == 5
    assert summary["per_threshold"][0]["n"] == 12
    assert summary["sample_records"][0].keys() == {"sample", "label_unique", "label_zero_fraction",
                                                   "metric_label_unique", "boundary_ignore_fraction"}
    assert summary["failures"] == []
    assert summary["cremi_boundary_ignore_distance_xy"] == 1


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_each_record_is_that_of_labels_made_and_scored_on_their_own(tmp_path, dtype):
    (name, path, truth_path), = volumes(tmp_path, 1)
    affs, truth = open_volume(path)[...], open_volume(truth_path)[...]
    if dtype == "uint8":
        affs = np.round(affs * 255).astype(np.uint8)
        stored(path, affs, offsets=NEAREST)
        affs = affs.astype(np.float32) / np.float32(255)
    settings = settings_of({"border_xy": 1, "border_z": 1, "crop": [0, 7, 2, 14, 1, 15], "sweep": {
        "biases": ((0.4, -0.3, 0.2),), "temperatures": (1.0, 0.5), "merges": ("mean", "aff75_his256"),
        "thresholds": (0.0, 0.2, 0.5, 1.0)}}, fragments="watershed", low=0.1, high=0.9)
    found = dbmim.sweep_volume(settings, name, open_volume(path), open_volume(truth_path))
    box = (slice(0, 7), slice(2, 14), slice(1, 15))
    mask = metrics.box_border_mask(truth, 1, 1)[box]
    assert len(found["records"]) == 3 * 2 * 4
    for row in found["records"]:
        moved = affs[(slice(None), *box)].astype(np.float64)
        if row["affinity_variant"] != "pred":
            bias = [row[f"calibration_bias_{axis}"] for axis in "zyx"]
            with np.errstate(divide="ignore"):
                logits = np.log(moved) - np.log1p(-moved)
            moved = 1 / (1 + np.exp(-(logits + np.reshape(bias, (3, 1, 1, 1))) / row["calibration_temperature"]))
        labels = segment.segment(moved.astype(np.float32), row["threshold"], row["waterz_scoring"], low=0.1, high=0.9)
        keep = ~mask & (truth[box] > 0)
        assert row["n_voxels"] == keep.sum()
        assert row["n_pred"] == len(np.unique(labels[keep]))
        assert row["n_gt"] == len(np.unique(truth[box][keep]))
        table = metrics.contingency(truth[box], labels, mask=mask)
        voi, rand = metrics.voi(table), metrics.rand(table, "dbmim")
        assert (row["voi_split"], row["voi_merge"]) == pytest.approx(tuple(voi), abs=1e-9)
        assert row["voi_sum"] == row["voi_split"] + row["voi_merge"]
        assert (row["adapted_rand_error"], row["rand_precision"], row["rand_recall"]) == pytest.approx(tuple(rand))
        assert row["rand_fscore"] == pytest.approx(1 - rand.error)
        target = dbmim.true_affinities(truth[box])
        ours = moved > 0.5
        assert row["affinity_dice"] == pytest.approx(2 * (ours & target).sum() / (ours.sum() + target.sum()))
        assert row["affinity_iou"] == pytest.approx((ours & target).sum() / (ours | target).sum())
    plain = found["statistics"][0]
    for axis, values in zip("zyx", affs[(slice(None), *box)]):
        assert plain[f"{axis}_mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert plain[f"{axis}_std"] == pytest.approx(values.std(), rel=1e-5)
        assert plain[f"{axis}_p05"] == pytest.approx(np.sort(values.ravel())[int(0.05 * (values.size - 1))], abs=0.02)
    assert found["sample"]["boundary_ignore_fraction"] == pytest.approx((mask & (truth[box] > 0)).mean())


def test_the_files_name_the_checkpoint_the_seconds_and_what_happens_at_the_volumes_faces(tmp_path):
    made_by = {"checkpoint": "outputs/run/checkpoints/step_000012000.pt", "step": 12000}
    found = volumes(tmp_path, **made_by)
    for number, (_, path, _) in enumerate(found[:2]):  # the third keeps its time to itself
        kept = {"seconds": 10.5 + number, **made_by}
        path.with_suffix(".speed.json").write_text(json.dumps(kept))
    scores = {}
    for replicate in (False, True):
        settings = settings_of({"sweep": {"thresholds": [0.5], "replicate": replicate}})
        dbmim.write_sweep(tmp_path, settings, found)
        summary = json.loads((tmp_path / "cremi_segmentation_summary.json").read_text())
        assert summary["checkpoint"] == made_by["checkpoint"]
        assert summary["replicate_affinity_boundary"] is replicate
        records = json.loads((tmp_path / "cremi_segmentation_records.json").read_text())
        assert [row["inference_sec"] for row in records] == [10.5, 10.5, 11.5, 11.5, "", ""]
        assert [row["inference_sec"] for row in summary["affinity_records"]] == [10.5, 10.5, 11.5, 11.5, "", ""]
        scores[replicate] = records[0]["affinity_dice"], records[0]["affinity_iou"]
    affs, truth = open_volume(found[0][1])[...] > 0.5, open_volume(found[0][2])[...]
    for replicate, (dice, iou) in scores.items():
        target = np.zeros_like(affs)
        for channel, z, y, x in np.ndindex(target.shape):
            before = np.array([z, y, x]) + NEAREST[channel]
            inside = before.min() >= 0
            target[channel, z, y, x] = truth[z, y, x] > 0 and (
                truth[tuple(before)] == truth[z, y, x] if inside else replicate)
        assert dice == pytest.approx(2 * (affs & target).sum() / (affs.sum() + target.sum()))
        assert iou == pytest.approx((affs & target).sum() / (affs | target).sum())
    other = found[0][1].with_suffix(".speed.json")  # left by a prediction of another checkpoint
    other.write_text(json.dumps({"seconds": 3.0, **made_by, "step": 1}))
    dbmim.write_sweep(tmp_path, settings, found[:1])
    assert json.loads((tmp_path / "cremi_segmentation_records.json").read_text())[0]["inference_sec"] == ""
    stored(found[1][1], open_volume(found[1][1])[...], offsets=NEAREST, checkpoint="other.pt")
    with pytest.raises(InputError, match=r"v0\.h5.* was made by outputs/run/.*v1\.h5.* by other\.pt: predict one"):
        dbmim.write_sweep(tmp_path, settings, found[:2])


def test_what_is_not_there_for_every_volume_is_never_the_best():
    row = dict.fromkeys(dbmim.RECORD, 0) | {"threshold": 0.5, "voi_sum": 2.0, "adapted_rand_error": 0.4}
    lucky = row | {"threshold": 0.1, "voi_sum": 0.2, "adapted_rand_error": 0.01}
    found = dbmim.summarised([row, row, lucky], 2)
    assert found["best_by_voi_sum"]["voi_sum"] == 2.0
    assert found["best_by_adapted_rand"]["threshold"] == 0.5
    assert "nothing could be scored" in dbmim.told(dbmim.summarised([lucky], 2)["best_by_voi_sum"])


def test_an_edge_at_its_earlier_voxel_agrees_with_the_truth_as_well(tmp_path):
    (name, path, truth_path), = volumes(tmp_path, 1)
    affs = open_volume(path)[...]
    for axis in range(3):
        border = [axis] + [slice(None)] * 3
        border[axis + 1] = 0
        affs[tuple(border)] = 0
    rows = []
    for values, sign in ((affs, -1), (np.stack([np.roll(affs[axis], -1, axis) for axis in range(3)]), 1)):
        prediction = open_volume(stored(tmp_path / f"s{sign}.h5", values, offsets=(-np.array(NEAREST) * sign).tolist()))
        rows.append(dbmim.sweep_volume(settings_of(), name, prediction, open_volume(truth_path))["records"][0])
    for key in ("affinity_dice", "affinity_iou", "voi_sum"):
        assert rows[0][key] == rows[1][key]


@pytest.mark.parametrize("evaluate, decode, sentence", [
    ({"border_nm": 25.0}, {}, "evaluate.border_nm, which is 25, to 0"),
    ({"sweep": {"thresholds": (0.5, 1.5)}}, {}, "evaluate.sweep.thresholds"),
    ({"sweep": {"thresholds": ()}}, {}, "evaluate.sweep.thresholds"),
    ({"sweep": {"temperatures": (0.0,)}}, {}, r"temperatures\[0\] must be above 0"),
    ({"sweep": {"merges": ("best",)}}, {}, "unknown statistic 'best'"),
    ({}, {"kind": "components"}, "decode.kind is components"),
])
def test_a_sweep_that_cannot_be_is_one_sentence(tmp_path, evaluate, decode, sentence):
    with pytest.raises(InputError, match=sentence):
        dbmim.write_sweep(tmp_path, settings_of(evaluate, **decode), volumes(tmp_path, 1))
    assert not list(tmp_path.glob("cremi_*"))


def test_a_sweep_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    found = volumes(tmp_path, 1)
    monkeypatch.setattr("emcore.memory.memory_there", lambda: 70_000)  # of 1680 voxels: 12 bytes each are read
    with pytest.raises(InputError, match=r"evaluate\.sweep of .*v0\.h5.* holds whole, needs about"):
        dbmim.write_sweep(tmp_path, settings_of(), found)


def test_names_of_variants_tell_close_biases_apart():
    settings = settings_of({"sweep": {"biases": ((0.001, 0, 0), (0.002, 0, 0), (0.5, 0, 0)), "temperatures": (1.25,)}})
    assert [name for name, _, _ in dbmim.variants(settings)] == [
        "pred", "bias_z+0.001_y+0.00_x+0.00_t1.25", "bias_z+0.002_y+0.00_x+0.00_t1.25",
        "bias_z+0.50_y+0.00_x+0.00_t1.25"]


def test_evaluate_writes_the_sweep_and_pooled_scores_and_names_the_crop_of_another_shape(tmp_path):
    settings = settings_of({"border_xy": 1})
    results = tmp_path / "outputs" / "run" / "results_step=7"
    results.mkdir(parents=True)
    found = volumes(results, 2)
    test = [{"image": "none.h5", "label": truth, "name": name} for name, _, truth in found]
    for name, path, _ in found:
        path.rename(results / f"{name}_prediction.h5")
        from emcore.decode.labels import decode
        decode(open_volume(results / f"{name}_prediction.h5"), replace(settings.decode, threshold=0.4),
               results / f"{name}_labels.h5")
    table = config.to_table(settings) | {"outputs": str(tmp_path / "outputs")}
    table["data"] = {"test": test}
    (tmp_path / "run.toml").write_text(config.to_toml(config.from_table(Settings, table)))

    def run(*more):
        return run_script("evaluate.py", "--cfg", "run.toml", *more, place=tmp_path)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "best_by_voi_sum: VOI" in done.stdout
    assert len(json.loads((results / "cremi_segmentation_records.json").read_text())) == 2 * 5 * 2
    scores = json.loads((results / "scores.json").read_text())
    assert any("pooled" in row["convention"] for row in scores["all 2 volumes"]["scores"])
    assert "all 2 volumes" in (results / "scores.txt").read_text()
    stored(found[0][2], np.ones((8, 10, 15), np.uint64))
    done = run()
    assert done.returncode == 2
    assert "(8, 14, 15)" in done.stderr
    assert "set evaluate.crop = [0, 8, 2, 12, 0, 15]" in done.stderr
    assert "Traceback" not in done.stderr
