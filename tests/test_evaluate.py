"""Scores by [evaluate]: placed, masked, pooled; against the metrics and against counting by hand."""

import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from emcore import config, metrics, segment
from emcore.decode.labels import decode
from emcore.errors import InputError
from emcore.metrics.case import Case
from emcore.metrics.evaluation import BETTER, SCORES, check_evaluate, pooled, score_volume
from emcore.metrics.partitions import CONVENTIONS, OBJECTIVES
from emcore.metrics.placement import Borders, Shared, whole_table
from emcore.report.scores import write_scores
from emcore.settings.data import Data
from emcore.settings.decode import AffinityDecode, PolarityDecode
from emcore.settings.evaluate import Evaluate
from emcore.volumes import create_volume, open_volume
from tests.test_train import ROOT

NEAREST = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
RESOLUTION = (40.0, 4.0, 4.0)


def stored(reference, values, offset=(0, 0, 0), resolution=RESOLUTION, **attributes):
    with create_volume(reference, values.shape, values.dtype, resolution, offset, attributes) as out:
        out[...] = values
    return reference


def value(found, score, convention=None):
    rows = [row["value"] for row in found["scores"]
            if row["score"] == score and (convention is None or row["convention"].startswith(convention))]
    assert len(rows) == 1, (score, found["scores"])
    return rows[0]


@pytest.fixture
def decoded(tmp_path):
    """A prediction with three affinities, its labels and a truth that differs from them."""
    random = np.random.default_rng(0)
    affs = random.random((3, 6, 14, 15), np.float32)
    truth = np.kron(random.integers(0, 9, (3, 4, 4)), np.ones((2, 4, 4), int))[:, :14, :15].astype(np.uint64)
    stored(tmp_path / "a_prediction.h5", affs, offsets=NEAREST)
    labels = decode(open_volume(tmp_path / "a_prediction.h5"), AffinityDecode(low=0.1, high=0.99, threshold=0.3),
                    tmp_path / "a_labels.h5")
    return tmp_path / "a_prediction.h5", labels, stored(f"{tmp_path}/truth.h5:labels", truth), truth


@pytest.mark.parametrize("settings", [
    Evaluate(), Evaluate(convention="dbmim", border_xy=1), Evaluate(convention="skimage", border_xy=1, border_z=1),
    Evaluate(convention="snemi3d", border_z=2), Evaluate(convention="isbi", border_nm=5.0),
    Evaluate(crop=(1, 5, 2, 14, 0, 9)), Evaluate(crop=(2, 6, 0, 14, 0, 12), border_xy=1),
], ids=str)
def test_scores_and_curve_are_those_of_the_voxels_that_count(decoded, settings):
    prediction, labels, reference, truth = decoded
    found = score_volume(replace(settings, scores=("voi", "rand", "curve")), reference, labels, prediction)
    if settings.border_nm:
        mask = metrics.neuron_border_mask(truth, RESOLUTION, settings.border_nm)
    else:
        mask = metrics.box_border_mask(truth, settings.border_xy, settings.border_z)
    span = settings.crop or (0, 6, 0, 14, 0, 15)
    box = tuple(slice(a, b) for a, b in zip(span[::2], span[1::2]))
    table = metrics.contingency(truth[box], open_volume(labels, "labels")[box], mask=mask[box])
    assert value(found, "voi_split") == pytest.approx(metrics.voi(table).split, abs=1e-12)
    assert value(found, "rand_error") == pytest.approx(metrics.rand(table, settings.convention).error, abs=1e-12)
    curve = found["curve"]
    at = np.searchsorted(curve["threshold"], curve["chosen"], side="left") - 1
    assert curve["chosen"] == 0.3
    assert curve["voi_merge"][at] == pytest.approx(value(found, "voi_merge"), abs=1e-9)
    assert curve["rand_error"][at] == pytest.approx(value(found, "rand_error"), abs=1e-9)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("box_border", [(1, 0), (2, 1), (0, 2)])
@pytest.mark.parametrize("block_bytes", [100, 400, 5000])
def test_borders_in_voxels_are_the_same_in_blocks(decoded, monkeypatch, box_border, block_bytes):
    truth = decoded[3]
    labels = open_volume(decoded[1], "labels")[...]
    monkeypatch.setattr("emcore.metrics.pairs.BLOCK_BYTES", block_bytes)
    place = Shared((0, 0, 0), (0, 0, 0), truth.shape)
    table = whole_table(open_volume(labels), open_volume(truth), place, Borders(None, *box_border))
    wanted = metrics.contingency(truth, labels, mask=metrics.box_border_mask(truth, *box_border))
    assert table.masked == wanted.masked > 0
    assert np.array_equal(table.counts, wanted.counts)


def test_every_number_of_every_score_says_whether_lower_or_higher_is_better(decoded):
    prediction, labels, reference, truth = decoded
    for convention in ("cremi", "isbi"):
        found = score_volume(Evaluate(tuple(SCORES), convention), reference, labels, prediction)
        names = {row["score"] for row in found["scores"]}
        assert {"voi_split", "v_info", "cleft_f1", "synapse_f1", "accuracy"} <= names
        assert names - BETTER.keys() == {"v_rand_threshold", "v_info_threshold"}
    alone = score_volume(Evaluate(("indices", "average_precision", "accuracy")), reference, labels, prediction)
    ours = open_volume(labels, "labels")[...]
    table = metrics.contingency(truth, ours)
    assert value(alone, "adjusted_rand") == pytest.approx(metrics.overlap_indices(table).adjusted_rand)
    assert value(alone, "average_precision") == pytest.approx(metrics.average_precision(table).mean)
    assert value(alone, "accuracy") == pytest.approx(((truth > 0) == (ours > 0)).mean())


def test_a_score_or_convention_that_is_not_there_is_told_with_those_that_are():
    for settings, sentence in ((Evaluate(("voi", "vio")), "evaluate.scores must be names of voi, rand, .*; got 'vio'"),
                               (Evaluate(convention="krasowski"), "must be one of cremi, .*; got 'krasowski'")):
        with pytest.raises(InputError, match=sentence):
            check_evaluate(settings)
    with pytest.raises(InputError, match="two masks"):
        Evaluate(border_nm=5.0, border_xy=1)
    page = (ROOT / "docs" / "scores.md").read_text()
    for name in (*SCORES, *BETTER, *CONVENTIONS, *OBJECTIVES):
        assert f"`{name}`" in page, name


def test_masks_and_ids_of_the_data_table_leave_voxels_out(decoded, tmp_path):
    prediction, labels, reference, truth = decoded
    usable = np.random.default_rng(1).random(truth.shape) < 0.7
    stored(f"{tmp_path}/mask.h5:mask", usable.astype(np.uint8))
    found = score_volume(Evaluate(), reference, labels, prediction, Data(ignore=(3,), background=(5,)),
                         f"{tmp_path}/mask.h5:mask")
    table = metrics.contingency(truth, open_volume(labels, "labels")[...], (0, 3, 5), mask=~usable)
    assert value(found, "voi_split") == pytest.approx(metrics.voi(table).split, abs=1e-12)
    stored(f"{tmp_path}/small.h5:mask", usable[1:].astype(np.uint8))
    with pytest.raises(InputError, match=r"must have the shape \(6, 14, 15\) of the truth"):
        score_volume(Evaluate(), reference, labels, prediction, mask=f"{tmp_path}/small.h5:mask")


def test_a_truth_of_another_shape_names_both_and_the_crop_that_fits(tmp_path):
    random = np.random.default_rng(2)
    padded = random.integers(1, 4, (8, 20, 19)).astype(np.uint32)
    truth = random.integers(1, 4, (8, 16, 14)).astype(np.uint32)
    labels = stored(f"{tmp_path}/labels.h5:labels", padded)
    with pytest.raises(InputError) as caught:
        score_volume(Evaluate(), stored(f"{tmp_path}/truth.h5:t", truth), tmp_path / "labels.h5", tmp_path / "none.h5")
    assert "(8, 20, 19)" in str(caught.value)
    assert "(8, 16, 14)" in str(caught.value)
    crop = json.loads(str(caught.value).partition("evaluate.crop = ")[2])
    assert crop == [0, 8, 2, 18, 2, 16]
    settings = Evaluate(crop=tuple(crop))
    found = score_volume(settings, f"{tmp_path}/truth.h5:t", tmp_path / "labels.h5", tmp_path / "none.h5")
    table = metrics.contingency(truth, padded[:, 2:18, 2:16])
    assert value(found, "voi_split") == pytest.approx(metrics.voi(table).split, abs=1e-12)
    larger = stored(f"{tmp_path}/larger.h5:labels", np.pad(padded, 3, constant_values=1))
    settings = Evaluate(crop=(3, 11, 3, 23, 3, 22))
    found = score_volume(settings, larger, tmp_path / "labels.h5", tmp_path / "none.h5")
    assert value(found, "rand_error") == 0
    for wrong in ((0, 8, 2, 18, 2, 15), (1, 9, 2, 18, 2, 16), (0, 0, 0, 0, 0, 0)):
        with pytest.raises(InputError, match="does not fit"):
            score_volume(Evaluate(crop=wrong), f"{tmp_path}/truth.h5:t", tmp_path / "labels.h5", tmp_path / "none.h5")
    mixed = stored(f"{tmp_path}/mixed.h5:t", truth[:7].repeat(2, axis=1))
    with pytest.raises(InputError, match="neither holds the other"):
        score_volume(Evaluate(), mixed, tmp_path / "labels.h5", tmp_path / "none.h5")
    assert labels


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "affinity8"])
def test_clefts_jaccard_and_dice_of_one_channel_among_several(tmp_path, dtype):
    random = np.random.default_rng(3)
    numbers = random.random((3, 5, 12, 13)).astype(np.float32)
    extra, values = {}, numbers.astype("float32")
    if dtype == "affinity8":
        values, table = segment.encode_affinities(numbers)
        extra = {"affinity_table": table.tolist()}
    elif dtype == "uint8":
        values = np.floor(numbers * 255).astype(np.uint8)
    else:
        values = numbers.astype(dtype)
    stored(tmp_path / "p.h5", values, **extra)
    marks = np.array([2**64 - 1, 2**64 - 2, 0, 7, 8, 9], np.uint64)
    truth = marks[random.integers(0, 6, numbers.shape[1:])]
    reference = stored(f"{tmp_path}/truth.h5:clefts", truth)
    settings = Evaluate(("clefts", "jaccard", "dice"), threshold=0.7, channel=2, cleft_nm=8)
    found = score_volume(settings, reference, None, tmp_path / "p.h5", Data(background=(9,)))
    ours = {"uint8": values[2] / 255, "affinity8": table[values[2]] if dtype == "affinity8" else None}.get(
        dtype, values[2]) > 0.7
    known = truth != 2**64 - 2
    real = (truth == 7) | (truth == 8)
    both, either = (real & ours & known).sum(), ((real | ours) & known).sum()
    assert value(found, "jaccard") == pytest.approx(both / either)
    assert value(found, "dice") == pytest.approx(2 * both / (real.sum() + (ours & known).sum()))
    wanted = metrics.clefts(real.astype(np.uint8), (ours & known).astype(np.uint8), RESOLUTION, 8)
    assert value(found, "cleft_score") == pytest.approx(wanted.score)
    assert value(found, "cleft_false_positives") == wanted.false_positives
    with pytest.raises(InputError, match=r"one of the 3 channels .*got 3"):
        score_volume(Evaluate(("dice",), channel=3), reference, None, tmp_path / "p.h5")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_membranes_are_scored_by_section_at_the_best_threshold(tmp_path, dtype):
    ndimage = pytest.importorskip("scipy.ndimage")
    random = np.random.default_rng(6)
    truth = np.ones((3, 21, 22), np.uint8)
    truth[:, 7], truth[:, :, 11] = 0, 0
    perfect = np.where(truth, 0.85, 0.25)
    leaky = perfect.copy()
    leaky[1, 7, 5] = 0.55  # a hole in a membrane, closed from 0.6 on
    noisy = np.clip(leaky + random.normal(0, 0.2, truth.shape), 0, 1)
    reference, found = stored(f"{tmp_path}/t.h5:inside", truth), []
    for number, values in enumerate((perfect, leaky, noisy)):
        values = np.round(values * 255).astype(np.uint8) if dtype == "uint8" else values.astype(np.float32)
        stored(tmp_path / "p.h5", values[None])
        rows = score_volume(Evaluate(("membranes",)), reference, None, tmp_path / "p.h5")
        found.append([value(rows, name, "isbi 2012") for name in ("v_rand", "v_info")])
        best = 0
        for threshold in np.arange(11) / 10:
            numbers = values / 255 if dtype == "uint8" else values
            scores = []
            for real, section in zip(truth, numbers):
                objects, _ = ndimage.label(section > threshold)
                if objects.any():  # each pixel to its nearest object; ties within membranes count nowhere
                    nearest = ndimage.distance_transform_cdt(objects == 0, "taxicab", return_distances=False,
                                                             return_indices=True)
                    objects = objects[tuple(nearest)]
                table = metrics.contingency(ndimage.label(real)[0][None], objects[None])
                scores.append(metrics.foreground_restricted(table).v_rand)
            best = max(best, np.mean(scores))
        if number < 2:  # noise leaves ties where they count
            assert found[-1][0] == pytest.approx(best)
    assert found[0] == found[1] == [1, 1]
    assert found[2][0] < 1


def test_a_note_says_what_the_pieces_of_the_truth_itself_have(tmp_path):
    truth = np.full((2, 4, 8), 7, np.uint32)
    truth[:, :, 3], truth[0, 0, 0], truth[1, 3, 7] = 9, 0, 5
    truth[1, 0, 6:] = 5  # so 7 lies on both sides of 9, and 5 is two pieces, one of them a single voxel
    stored(f"{tmp_path}/labels.h5:labels", truth)
    sizes = {7: (23, 29), 5: (2, 1), 9: (8,)}
    voxels = sum(map(sum, sizes.values()))
    split = -sum(n / voxels * math.log2(n / sum(pieces)) for pieces in sizes.values() for n in pieces)
    true, found = (sum(n * n for pieces in sizes.values() for n in group(pieces))
                   for group in (lambda pieces: [sum(pieces)], list))
    error = 1 - 2 * found / (found + true)
    notes = score_volume(Evaluate(("voi",)), stored(f"{tmp_path}/t.h5:t", truth), tmp_path / "labels.h5",
                         tmp_path / "p.h5")["notes"]
    assert notes == [f"the truth's own floor: its 3 bodies are 5 pieces within the volume, which as labels of their "
                     f"own have a VOI of {split:.4g} and a Rand error of {error:.4g}"]
    truth[truth == 5] = 0
    truth[:, 3, 3] = 7
    notes = score_volume(Evaluate(("voi",)), stored(f"{tmp_path}/u.h5:t", truth), tmp_path / "labels.h5",
                         tmp_path / "p.h5")["notes"]
    assert notes == []


def test_the_pieces_of_a_mask_are_its_objects(tmp_path):
    truth, labels = np.zeros((2, 4, 8), np.uint8), np.zeros((2, 4, 8), np.uint32)
    truth[0, :2, :2] = truth[1, 2, 2] = truth[:, :, 6:] = 255  # the second touches the first by a corner
    labels[0, :2, :2], labels[1, :, 7] = 1, 2
    stored(f"{tmp_path}/labels.h5:labels", labels)
    truth = stored(f"{tmp_path}/t.h5:t", truth)

    def recall(**options):
        found = score_volume(Evaluate(("instances",), **options), truth, tmp_path / "labels.h5", tmp_path / "p.h5")
        return value(found, "instance_recall"), value(found, "instance_precision")

    assert recall(pieces=26) == (0.5, 0.5)  # 4 voxels of 5, 4 of 16
    assert recall(pieces=26, instance_iou=0.25) == (1, 1)
    assert recall() == (0, 0)  # one object of 21 voxels


def test_voxels_are_scored_of_labels_where_there_are_some_and_what_is_undefined_is_null(tmp_path):
    labels = np.zeros((2, 4, 4), np.uint32)
    labels[0, :2] = 5
    stored(f"{tmp_path}/labels.h5:labels", labels)
    truth = stored(f"{tmp_path}/t.h5:t", (labels > 0).astype(np.uint8))
    found = score_volume(Evaluate(("dice", "instances")), truth, tmp_path / "labels.h5", tmp_path / "p.h5")
    assert value(found, "dice") == value(found, "instance_f1") == 1
    found = score_volume(Evaluate(("membranes",)), truth, tmp_path / "labels.h5", tmp_path / "p.h5")
    assert any("there is no p.h5" in note for note in found["notes"])
    stored(tmp_path / "other.h5", np.where(labels > 0, 0.6, 0.7).astype(np.float32)[None])
    assert value(score_volume(Evaluate(("dice",)), truth, tmp_path / "labels.h5", tmp_path / "other.h5"), "dice") == 1
    assert value(score_volume(Evaluate(("dice",)), truth, None, tmp_path / "other.h5"), "dice") < 1
    nothing = stored(f"{tmp_path}/n.h5:t", np.zeros((2, 4, 4), np.uint8))
    found = score_volume(Evaluate(("clefts",)), nothing, tmp_path / "labels.h5", tmp_path / "p.h5")
    assert value(found, "cleft_adgt") is None
    assert any("cleft_adgt is undefined" in note for note in found["notes"])
    json.dumps(found, allow_nan=False)
    found = score_volume(Evaluate(("voi",)), nothing, None, tmp_path / "p.h5")
    assert any("voi need labels" in note for note in found["notes"])
    with pytest.raises(InputError, match=r"p\.h5"):
        score_volume(Evaluate(("dice",)), nothing, None, tmp_path / "p.h5")


def test_synapses_with_sides_are_scored_from_a_prediction_with_three_channels(tmp_path):
    values = np.zeros((3, 8, 40, 40), np.float32)
    values[0, 2:6, 5:15, 5:10] = values[1, 2:6, 5:15, 12:17] = values[2, 2:6, 5:15, 5:17] = 0.9
    values[0, :, 30:33, 30:32] = values[2, :, 30:33, 30:32] = 0.9  # 48 voxels that nobody drew
    truth = np.zeros((8, 40, 40), np.uint32)
    truth[2:6, 5:15, 5:10], truth[2:6, 5:15, 12:17] = 3, 4
    swapped = np.where(truth == 3, 4, np.where(truth == 4, 3, 0)).astype(np.uint32)
    stored(tmp_path / "p.h5", values)
    labels = decode(open_volume(tmp_path / "p.h5"), PolarityDecode(small=10), tmp_path / "labels.h5")
    for name, given, wanted in (("truth", truth, (2 / 3, 2 / 3)), ("swapped", swapped, (2 / 3, 0.0))):
        reference = stored(f"{tmp_path}/{name}.h5:t", given)
        found = score_volume(Evaluate(("synapses",)), reference, labels, tmp_path / "p.h5")
        assert (value(found, "synapse_f1"), value(found, "synapse_sides_f1")) == pytest.approx(wanted)
    reference = f"{tmp_path}/truth.h5:t"
    large = score_volume(Evaluate(("synapses",), synapse_size=60), reference, labels, tmp_path / "p.h5")
    assert value(large, "synapse_sides_f1") == 1
    within = score_volume(Evaluate(("synapses",), synapse_margin=2, synapse_size=30), reference, labels,
                          tmp_path / "p.h5")
    assert value(within, "synapse_sides_precision") == 1  # 24 of the 48 voxels are left
    with pytest.raises(InputError, match="synapse_margin must leave some of the 8 sections"):
        score_volume(Evaluate(("synapses",), synapse_margin=4), reference, labels, tmp_path / "p.h5")


@pytest.mark.parametrize("convention", ["cremi", "skimage", "isbi"])
def test_pooled_scores_are_those_of_one_table_with_ids_made_different(tmp_path, convention):
    random = np.random.default_rng(5)
    found, truths, ours = {}, [], []
    settings = Evaluate(("voi", "rand"), convention=convention)
    for number, shape in enumerate(((2, 6, 7), (3, 8, 5), (1, 9, 9))):
        truth, labels = (random.integers(0, 6, shape).astype(np.uint32) for _ in range(2))
        stored(f"{tmp_path}/labels{number}.h5:labels", labels)
        found[f"v{number}"] = score_volume(settings, stored(f"{tmp_path}/t{number}.h5:t", truth),
                                           tmp_path / f"labels{number}.h5", tmp_path / "none.h5")
        truths.append(np.where(truth, truth + 100 * number, 0).ravel())
        nothing = 50 + 100 * number if convention == "skimage" else 0  # there label 0 is an object of each volume
        ours.append(np.where(labels, labels + 100 * number, nothing).ravel())
    together = pooled(settings, found)
    table = metrics.contingency(np.concatenate(truths), np.concatenate(ours))
    rule = f"{convention}, voxels of 3 volumes pooled"
    if convention == "skimage":
        assert value(together, "voi_split", rule) == pytest.approx(metrics.voi(table).split, abs=1e-12)
        assert value(together, "voi_merge", rule) == pytest.approx(metrics.voi(table).merge, abs=1e-12)
    assert value(together, "rand_error", rule) == pytest.approx(metrics.rand(table, convention).error, abs=1e-12)
    mean = np.mean([value(found[f"v{number}"], "rand_error") for number in range(3)])
    assert value(together, "rand_error", f"{convention}, mean of 3") == pytest.approx(mean)
    text = write_scores(tmp_path, settings, {**found, "all 3 volumes": together})
    assert "all 3 volumes\n" in text
    assert metrics.partitions.CONVENTIONS[convention] in text
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(entry["scores"]) for entry in (*found.values(), together))
    assert json.loads((tmp_path / "scores.json").read_text())["v0"] == found["v0"]
    assert not any(math.isnan(float(row["value"] or 0)) for row in rows)


def test_the_tables_of_evaluate_are_read_from_a_file(tmp_path):
    (tmp_path / "run.toml").write_text("[sweep]\nbiases = [[-0.5, -1.0, -1.0], [0, 0, 0]]\n")
    settings = config.load(Evaluate, tmp_path / "run.toml")
    assert settings.sweep.biases == ((-0.5, -1.0, -1.0), (0.0, 0.0, 0.0))
    assert settings.sweep.thresholds == (0.35, 0.4, 0.45, 0.5, 0.55)


@pytest.mark.parametrize("chosen", [0.7, None, "high", [0.3], True, float("nan"), 10**400, {"a": 1}],
                         ids=lambda chosen: str(chosen)[:5])
def test_the_threshold_of_a_curve_is_rounded_like_that_of_a_cut_and_what_is_none_is_left_out(chosen):
    """The float32 next to 0.7 is below 0.7, and a cut does not merge what lies on its threshold."""
    tree = segment.MergeTree(3, np.array([1, 1], np.uint32), np.array([2, 3], np.uint32),
                             np.array([0.7, 0.9], np.float32))
    parts = SimpleNamespace(tree=lambda: tree, fragments=lambda: open_volume(np.array([[[1, 2, 3]]], np.uint32)))
    case = Case(Evaluate(), open_volume(np.ones((1, 1, 3), np.uint64)), None, None, Data(), None, lambda _: parts)
    case.labels = SimpleNamespace(attrs={"decode": {"threshold": chosen}})
    assert SCORES["curve"].rows(case) == []
    found = case.found["curve"]
    assert found["chosen"] == (0.7 if chosen == 0.7 else None)
    assert found["used"].get("voi") == (pytest.approx(math.log2(3)) if chosen == 0.7 else None)
