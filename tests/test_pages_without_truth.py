"""evaluate.py draws a page also where there is no truth, and of a prediction that infer.py --from decoded."""

import json
from pathlib import Path

import numpy as np

from emcore import config
from emcore.settings import Settings
from emcore.volumes import create_volume, open_volume
from tests.test_report import unpacked, views_of
from tests.test_results import place, run, values  # noqa: F401

CURVE = "evaluate.scores=['voi', 'rand', 'curve']"
NO_TRUTH = "data.test=[{image = 'a.h5:raw'}]"


def layers_of(page):
    view, = views_of(page.read_text())
    return {layer["kind"]: unpacked(layer, view["shape"]) for layer in view["layers"]}


def test_a_volume_without_a_truth_has_a_page_and_no_scores(place):  # noqa: F811
    run("infer.py", NO_TRUTH)
    told = run("evaluate.py", NO_TRUTH)
    assert "test_im: predicted by averaged weights" in told
    assert "test_im: there is no truth (data.test label), so nothing is scored" in told
    page = place.parent / "report.html"
    assert told.strip().endswith(str(page.relative_to(Path.cwd())))
    assert not (place / "scores.json").exists()
    layers = layers_of(page)
    assert set(layers) == {"raw", "prediction", "labels"}
    np.testing.assert_array_equal(layers["raw"], values("a.h5", "raw"))
    assert "No volume has a truth, so nothing is scored." in page.read_text()


def test_a_prediction_that_was_only_decoded_has_its_page_beside_it(place):  # noqa: F811
    run("infer.py")
    told = run("evaluate.py", CURVE)
    assert "test_im: the truth is a.h5:labels" in told
    found = json.loads((place / "scores.json").read_text())["test_im"]
    curve = found["curve"]
    rows = {line[2:26].strip(): line[26:].split() for line in told.splitlines() if line.startswith("  threshold")}
    assert float(rows["threshold used"][0]) == config.load(Settings, "run.toml").decode.threshold
    best = curve["best"]["voi"]
    assert rows["threshold best for voi"][:3] == [f"{best['threshold']:.6g}", "voi", f"{best['value']:.6g}"]
    assert curve["used"]["voi"] >= best["value"]
    scores = {row["score"]: row["value"] for row in found["scores"]}  # those of the labels that were cut there
    assert np.isclose(curve["used"]["voi"], scores["voi_split"] + scores["voi_merge"])
    assert np.isclose(curve["used"]["cremi"], scores["rand_error"])

    Path("mine").mkdir()
    stored = open_volume(place / "test_im_prediction.h5")
    with create_volume("mine/affinities.h5", stored.shape, stored.dtype, (30, 8, 8), attributes=stored.attrs) as out:
        out[...] = stored[...]
    assert "there is neither" not in run("evaluate.py", "--from", "mine/affinities.h5", "data.test=[]")
    run("infer.py", "--from", "mine/affinities.h5")
    told = run("evaluate.py", "--from", "mine/affinities.h5", "data.test=[]")
    assert told.strip().endswith("mine/affinities_report.html")
    assert [*Path("mine").glob("scores*")] == []
    layers = layers_of(Path("mine/affinities_report.html"))
    np.testing.assert_array_equal(layers["raw"], values("a.h5", "raw"))  # the record of the prediction names it
    labels = values("mine/affinities_labels.h5", "labels")
    assert len(np.unique(layers["labels"])) == len(np.unique(labels)) > 1
    run("evaluate.py", "--from", "mine/affinities.h5", CURVE)  # data.test of the config names its volume and truth
    assert json.loads(Path("mine/scores.json").read_text())["affinities"]["scores"] == found["scores"]
    assert set(layers_of(Path("mine/affinities_report.html"))) == {"raw", "prediction", "truth", "labels"}
    assert "there is nothing to score or to show: set data.test" in run("evaluate.py", "data.test=[]", code=2)
    refused = run("evaluate.py", "--from", "mine/affinities.h5", "--from", "mine/affinities.h5", code=2)
    assert "--from must be given once for each of the 1 volumes of data.test; got 2" in refused


def test_labels_of_a_prediction_that_is_named_with_its_dataset_must_be_made_of_it(place):  # noqa: F811
    run("infer.py")
    stored = open_volume(place / "test_im_prediction.h5")
    for name in ("mine", "other"):
        with create_volume(f"{name}.h5:main", stored.shape, stored.dtype, (30, 8, 8), attributes=stored.attrs) as out:
            out[...] = stored[...]
    run("infer.py", "--from", "mine.h5:main")
    told = run("evaluate.py", "--from", "mine.h5:main")
    assert "mine: predicted by averaged weights" in told
    assert "there is neither" not in told
    made_by = stored.attrs["record"]
    made_by["weights"]["digest"] = "0" * 64
    with create_volume("mine.h5:main", stored.shape, stored.dtype, (30, 8, 8),
                       attributes=stored.attrs | {"record": made_by}) as out:
        out[...] = stored[...]
    refused = run("evaluate.py", "--from", "mine.h5:main", code=2)
    assert "mine_labels.h5 was decoded from another prediction than mine.h5:main" in refused
    run("infer.py", "--from", "other.h5:main")
    Path("other_labels.h5").unlink()
    assert "other: predicted by" in run("evaluate.py", "--from", "other.h5:main", "data.test=[]")


def test_a_prediction_of_a_box_has_its_page_without_a_truth(place):  # noqa: F811
    run("infer.py", "data.test.0.box=[0,8,4,24,0,20]")
    Path("mine").mkdir()
    stored = open_volume(place / "test_im_prediction.h5")
    with create_volume("mine/part_prediction.h5", stored.shape, stored.dtype, (30, 8, 8), stored.offset,
                       attributes=stored.attrs) as out:
        out[...] = stored[...]
    run("infer.py", "--from", "mine/part_prediction.h5", "data.test=[]")
    told = run("evaluate.py", "--from", "mine/part_prediction.h5", "data.test=[]")
    assert told.strip().endswith("mine/part_report.html")
    layers = layers_of(Path("mine/part_report.html"))
    assert set(layers) == {"raw", "prediction", "labels"}
    np.testing.assert_array_equal(layers["raw"], values("a.h5", "raw"))  # the whole image, with the box in its place
    labels = values("mine/part_labels.h5", "labels")
    assert labels.shape == (8, 20, 20)
    np.testing.assert_array_equal(layers["labels"][:, 4:, :20] > 0, labels > 0)
    assert not layers["labels"][:, :4].any()
    assert not layers["labels"][:, :, 20:].any()
