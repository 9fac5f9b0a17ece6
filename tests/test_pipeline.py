"""infer.py and evaluate.py as a user runs them after train.py."""

import json

import h5py
import numpy as np
import pytest

from emcore import metrics, segment
from emcore.decode.labels import decode, recut
from emcore.metrics.evaluation import score_volume
from emcore.settings.decode import AffinityDecode, ComponentsDecode, PolarityDecode
from emcore.settings.evaluate import Evaluate
from emcore.volumes import create_volume, open_volume
from tests.scripts import run_script
from tests.test_train import CONFIG

TEST = """
[[data.test]]
image = "vol.h5:raw"
label = "vol.h5:labels"
[decode]
kind = "affinities"
low = 0.01
high = 0.99
[evaluate]
scores = ["voi", "rand", "curve", "instances"]
"""


def blocks(shape=(12, 36, 36)):
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(1, 50, tuple(n // 6 for n in shape)), np.ones((6, 6, 6), int))
    return segment.connected_components(labels.astype(np.uint32), 6)


def exact_affinities(labels, noise=0.1):
    random = np.random.default_rng(1)
    affs = np.zeros((3, *labels.shape), np.float32)
    for axis in range(3):
        later, earlier = (tuple(part if a == axis else slice(None) for a in range(3))
                          for part in (slice(1, None), slice(None, -1)))
        affs[(axis, *later)] = labels[later] == labels[earlier]
    return np.clip(affs * 0.9 + 0.05 + random.uniform(-noise, noise, affs.shape) / 2, 0, 1).astype(np.float32)


def stored(tmp_path, affs, **attributes):
    with create_volume(tmp_path / "prediction.h5", affs.shape, affs.dtype, (30, 6, 6), (0, 0, 0), attributes) as out:
        out[...] = affs
    return open_volume(tmp_path / "prediction.h5")


def test_a_prediction_becomes_labels_and_its_tree_gives_every_other_threshold(tmp_path):
    truth = blocks()
    affs = exact_affinities(truth)
    prediction = stored(tmp_path, affs, offsets=[[-1, 0, 0], [0, -1, 0], [0, 0, -1]])
    out = decode(prediction, AffinityDecode(threshold=0.5, low=0.1, high=0.9), tmp_path / "labels.h5")
    labels = open_volume(out, "labels")
    assert labels.resolution == (30, 6, 6)
    table = metrics.contingency(truth, labels[...])
    assert sum(metrics.voi(table)) == 0
    assert np.array_equal(labels[...], segment.segment(affs, 0.5, low=0.1, high=0.9))
    again = open_volume(recut(out, 0.05, tmp_path / "other.h5"), "labels")[...]
    assert np.array_equal(again, segment.segment(affs, 0.05, low=0.1, high=0.9))
    with h5py.File(tmp_path / "truth.h5", "w") as f:
        f["labels"] = truth
    found = score_volume(Evaluate(("voi", "rand", "curve", "instances")), str(tmp_path / "truth.h5"), out,
                         tmp_path / "prediction.h5")
    scores = {row["score"]: row["value"] for row in found["scores"]}
    assert scores["voi_split"] == scores["voi_merge"] == scores["rand_error"] == 0
    assert scores["instance_f1"] == 1
    assert found["curve"]["best"]["voi"]["value"] == 0
    assert found["curve"]["chosen"] == 0.5


def test_channels_in_another_order_or_in_8_bits_decode_to_the_same_labels(tmp_path):
    affs = exact_affinities(blocks())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = decode(stored(tmp_path / "a", affs[::-1], offsets=[[0, 0, -1], [0, -1, 0], [-1, 0, 0]]),
                   AffinityDecode(low=0.1, high=0.9), tmp_path / "a" / "labels.h5")
    codes, table = segment.encode_affinities(affs)
    coded = decode(stored(tmp_path / "b", codes, offsets=[[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
                          affinity_table=table.tolist()), AffinityDecode(low=0.1, high=0.9),
                   tmp_path / "b" / "labels.h5")
    one, two = (open_volume(path, "labels")[...] for path in (plain, coded))
    assert sum(metrics.voi(metrics.contingency(one, two))) == 0


def test_clefts_and_polarity_become_objects(tmp_path):
    values = np.zeros((3, 4, 40, 40), np.float32)
    values[0, :, 5:15, 5:10] = values[1, :, 5:15, 12:17] = 0.9
    values[2, :, 5:15, 5:17] = 0.9
    prediction = stored(tmp_path, values)
    labels = open_volume(decode(prediction, PolarityDecode(), tmp_path / "polarity.h5"), "labels")[...]
    assert dict(zip(*np.unique(labels[labels > 0], return_counts=True))) == {1: 200, 2: 200}
    labels = open_volume(decode(prediction, ComponentsDecode(remove_size=10), tmp_path / "parts.h5"), "labels")[...]
    assert labels.max() == 1


@pytest.mark.slow
def test_the_scripts_lead_from_a_checkpoint_to_scores(tmp_path):
    labels = blocks()
    random = np.random.default_rng(0)
    with h5py.File(tmp_path / "vol.h5", "w") as f:
        f["labels"] = labels
        f["raw"] = ((labels.astype(int) * 37) % 200 + 20 + random.integers(0, 30, labels.shape)).astype(np.uint8)
    (tmp_path / "run.toml").write_text(CONFIG + TEST)

    def run(script, *arguments):
        return run_script(script, "--cfg", "run.toml", *arguments, place=tmp_path)

    for script in ("infer.py", "evaluate.py"):
        done = run(script)
        assert done.returncode == 2
        assert "run train.py first" in done.stderr or "run infer.py first" in done.stderr
    for script in ("train.py", "infer.py", "evaluate.py"):
        done = run(script)
        assert done.returncode == 0, done.stderr
    results = tmp_path / "outputs" / "tiny" / "results_step=20"
    assert open_volume(results / "test_im_prediction.h5").attrs["offsets"] == [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    scores = json.loads((results / "scores.json").read_text())["test_im"]["scores"]
    assert {"voi_split", "voi_merge", "rand_error"} <= {row["score"] for row in scores}
    assert all(row["convention"] for row in scores)
    assert (tmp_path / "outputs" / "tiny" / "report.html").read_text().lower().startswith("<!doctype html>")
    assert run("infer.py", "--cut", "0.3").returncode == 0
    assert (results / "test_im_labels_0.3.h5").exists()
    assert run("infer.py", "--cut", "1.5").returncode == 2
    assert run("infer.py", "--from", str(results / "test_im_prediction.h5")).returncode == 0
    assert run("infer.py", "--from", str(results / "test_im_prediction.h5"), "--cut", "0.4").returncode == 0
    assert open_volume(results / "test_im_labels_0.4.h5", "labels").attrs["decode"]["threshold"] == 0.4
    refused = run("infer.py", "--from", str(results / "test_im_prediction.h5"), "--checkpoint", "best")
    assert refused.returncode == 2
    assert "--checkpoint would do nothing: leave it out" in refused.stderr
