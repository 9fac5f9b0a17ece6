"""scores = ["run_length"]: from files and from the truth's own skeletons, in blocks, and the curve over thresholds."""

import json

import numpy as np
import pytest

from emcore import metrics, segment
from emcore.decode.labels import decode
from emcore.errors import InputError
from emcore.metrics.evaluation import score_volume
from emcore.metrics.nodes import node_table
from emcore.settings.data import Data
from emcore.settings.decode import AffinityDecode
from emcore.settings.evaluate import Evaluate
from emcore.volumes import create_volume, open_volume

RESOLUTION = (40.0, 8.0, 8.0)


def scene():
    """Two bars, of which the second is one segment and the first two."""
    truth = np.zeros((4, 20, 60), np.uint64)
    truth[1:3, 2:8, 2:58], truth[1:3, 12:18, 2:58] = 4, 7
    labels = np.where(truth == 4, np.where(np.arange(60) < 20, 1, 2), np.where(truth == 7, 3, 0)).astype(np.uint32)
    return truth, labels


def store(path, values, name, offset=(0, 0, 0), resolution=RESOLUTION):
    with create_volume(f"{path}:{name}", values.shape, values.dtype, resolution, offset, chunks=(2, 8, 16)) as out:
        out[...] = values


def numbers(found):
    json.dumps(found, allow_nan=False)
    return {(entry["score"], entry["convention"]): entry["value"] for entry in found["scores"]}


@pytest.fixture
def files(tmp_path):
    truth, labels = scene()
    store(tmp_path / "truth.h5", truth, "labels", (400, 80, 0))
    store(tmp_path / "labels.h5", labels, "labels", (400, 80, 0))
    return tmp_path


def score(folder, **settings):
    return score_volume(Evaluate(("run_length",), **settings), str(folder / "truth.h5"), folder / "labels.h5",
                        folder / "p.h5")


def test_run_lengths_of_the_truths_own_skeletons(files):
    truth, labels = scene()
    found = score(files)
    nodes = node_table(segment.skeletonize(truth, RESOLUTION))
    under = metrics.labels_at(labels, nodes.places, RESOLUTION, rounding="nearest")
    values = numbers(found)
    for nodes_needed, convention, rule in ((50, "em_erl", "em_erl, segments with 50 nodes of two skeletons merge"),
                                           (1, "banis", "nisb, contacts of more than 0 nodes merge"),
                                           (101, "banis", "nisb, contacts of more than 100 nodes merge")):
        expected = metrics.run_length(nodes.skeletons, under, nodes.edges, nodes.lengths, nodes_needed, convention)
        assert values["erl", f"{rule}, nm"] == pytest.approx(expected.expected, rel=1e-12)
        assert values["nerl", rule] == pytest.approx(expected.normalized, rel=1e-12)
    assert 0.6 < values["nerl", "nisb, contacts of more than inf nodes merge"] < 0.9
    assert values["split_edges", "between two segments"] == 1
    listed = found["skeletons"]["nisb, contacts of more than 0 nodes merge"]
    assert {entry["id"]: entry["split_edges"] for entry in listed} == {4: 1, 7: 0}
    perfect = next(entry for entry in listed if entry["id"] == 7)
    assert perfect["erl"] == pytest.approx(perfect["length"])
    assert "run_length" not in found


def test_files_of_skeletons_give_the_same(files):
    truth, _ = scene()
    offset = np.array([400.0, 80, 0])
    traced = {label: segment.Skeleton(one.vertices + offset, one.edges, one.radius)
              for label, one in segment.skeletonize(truth, RESOLUTION).items()}
    segment.write_skeletons(files / "skeletons", traced)
    assert numbers(score(files, skeletons=str(files / "skeletons"))) == pytest.approx(numbers(score(files)))
    segment.write_skeletons(files / "elsewhere", {1: segment.Skeleton(np.zeros((1, 3)), np.zeros((0, 2), int),
                                                                       np.zeros(1))})
    with pytest.raises(InputError, match=r"1 of 1 nodes of .* lie outside the labels"):
        score(files, skeletons=str(files / "elsewhere"))


def test_a_part_of_the_truth_is_scored_where_the_labels_lie(files):
    truth, labels = scene()
    store(files / "labels.h5", labels[1:, 1:, 4:40], "labels", (440, 88, 32))
    nodes = node_table(segment.skeletonize(truth[1:, 1:, 4:40], RESOLUTION))
    under = metrics.labels_at(labels[1:, 1:, 4:40], nodes.places, RESOLUTION, rounding="nearest")
    expected = metrics.run_length(nodes.skeletons, under, nodes.edges, nodes.lengths, 50)
    assert numbers(score(files))["nerl", "em_erl, segments with 50 nodes of two skeletons merge"] == pytest.approx(
        expected.normalized)


def test_unknown_voxels_have_no_skeleton_and_a_resolution_is_asked_for(tmp_path):
    truth, labels = scene()
    truth[truth == 7] = 2**64 - 2
    store(tmp_path / "truth.h5", truth, "labels", resolution=None)
    store(tmp_path / "labels.h5", labels, "labels", resolution=None)
    with pytest.raises(InputError, match=r"set data\.resolution"):
        score(tmp_path)
    found = score_volume(Evaluate(("run_length",)), str(tmp_path / "truth.h5"), tmp_path / "labels.h5",
                         tmp_path / "p.h5", Data(resolution=RESOLUTION))
    assert [entry["id"] for entry in found["skeletons"]["nisb, contacts of more than 0 nodes merge"]] == [4]


def test_the_curve_holds_the_run_length_at_the_threshold_of_the_labels(tmp_path):
    truth, labels = scene()
    rng = np.random.default_rng(0)
    affinities = np.ones((3, *truth.shape), np.float32) * rng.uniform(0.7, 1, (3, *truth.shape)).astype(np.float32)
    for axis in range(3):
        affinities[axis][np.roll(labels, 1, axis) != labels] = rng.uniform(0.2, 0.6)
    store(tmp_path / "truth.h5", truth, "labels")
    with create_volume(tmp_path / "p.h5", affinities.shape, np.float32, RESOLUTION,
                       attributes={"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}) as out:
        out[...] = affinities
    decode(open_volume(tmp_path / "p.h5"), AffinityDecode(low=0.1, high=0.95, threshold=0.3), tmp_path / "labels.h5")
    found = score(tmp_path)
    curve, values = found["run_length"], numbers(found)
    for rule in ("em_erl, segments with 50 nodes of two skeletons merge", "nisb, contacts of more than 0 nodes merge"):
        below = np.searchsorted(curve["threshold"][1:], 0.3)
        assert curve[rule]["nerl"][below] == pytest.approx(values["nerl", rule], rel=1e-12)
        assert curve[rule]["best"]["value"] >= values["nerl", rule]
