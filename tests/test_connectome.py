"""The wiring diagram as files and page, read back by other means, and its scores against worked cases."""

import csv
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from emcore import metrics, segment
from emcore.errors import InputError, run_command
from emcore.metrics.evaluation import score_volume
from emcore.report import connectome
from emcore.segment import wiring
from emcore.settings.evaluate import Evaluate
from emcore.volumes import create_volume

RESOLUTION = (40.0, 4.0, 4.0)
BIG = 2**63 + 5


def scene():
    """Four neurons in quarters; synapses 1 and 2 go from 1 to 2, 3 from 2 to BIG and nothing from BIG on."""
    labels = np.zeros((4, 12, 20), np.uint64)
    labels[:, :6, :10], labels[:, :6, 10:], labels[:, 6:, 10:], labels[:, 6:, :10] = 1, 2, BIG, 4
    sides = np.zeros(labels.shape, np.uint32)
    for number, (z, y) in enumerate(((0, 1), (2, 3)), start=1):
        sides[z, y:y + 2, 7:10], sides[z, y:y + 2, 10:13] = 2 * number - 1, 2 * number
    sides[1, 4:6, 15:17], sides[1, 6:8, 15:17] = 5, 6
    sides[3, 10:, 2:4] = 7
    return labels, sides


@pytest.fixture
def files(tmp_path):
    labels, sides = scene()
    for name, values in (("labels", labels), ("sides", sides), ("raw", (labels % 200).astype(np.uint16))):
        with create_volume(f"{tmp_path}/a.h5:{name}", values.shape, values.dtype, RESOLUTION) as out:
            out[...] = values
    return {name: f"{tmp_path}/a.h5:{name}" for name in ("labels", "sides", "raw")}


def run(files, out, *more):
    return run_command(connectome.main, ["--labels", files["labels"], "--synapses", files["sides"], str(out), *more])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Page(HTMLParser):
    """What a page would load, and its pictures."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.pictures = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action"):
                self.pictures += value.startswith("data:image/png;base64,")
                self.loads += [] if value.startswith(("data:", "#")) else [value]


def test_the_files_say_what_the_table_says(files, tmp_path, capsys):
    assert run(files, tmp_path / "deep" / "out", "--image", files["raw"]) == 0
    assert "4 synapses, 1 of them without a partner on one side, 2 pairs of 3 neurons" in capsys.readouterr().out
    out = tmp_path / "deep" / "out"
    assert {path.name for path in out.iterdir()} == {"synapses.csv", "edges.csv", "graph.graphml", "graph.npz",
                                                     "connectome.html"}
    table = segment.partners(files["labels"], files["sides"])
    synapses = rows_of(out / "synapses.csv")
    assert [(int(row["pre"]), int(row["post"])) for row in synapses] == [(1, 2), (1, 2), (2, BIG), (4, 0)]
    for row, place, confidence, area in zip(synapses, table.place, table.confidence, table.contact_area):
        assert [float(row[f"{axis}_nm"]) for axis in "zyx"] == place.tolist()
        assert (float(row["confidence"]), float(row["contact_area_nm2"])) == (confidence, area)
    assert synapses[3]["post_z_nm"] == ""
    assert synapses[3]["voxels"] == "4"
    assert rows_of(out / "edges.csv") == [
        {"pre": "1", "post": "2", "directed": "1", "synapses": "2", "voxels": "24", "contact_area_nm2": "640.0"},
        {"pre": "2", "post": str(BIG), "directed": "1", "synapses": "1", "voxels": "8", "contact_area_nm2": "320.0"}]
    graph = ElementTree.parse(out / "graph.graphml").getroot()[-1]
    space = "{http://graphml.graphdrawing.org/xmlns}"
    assert [node.get("id") for node in graph.iter(f"{space}node")] == ["1", "2", str(BIG)]
    assert [[edge.get("source"), edge.get("target"), *(data.text for data in edge)] for edge in
            graph.iter(f"{space}edge")] == [["1", "2", "2", "24", "640.0", "true"],
                                            ["2", str(BIG), "1", "8", "320.0", "true"]]
    stored = np.load(out / "graph.npz", allow_pickle=False)
    dense = np.zeros(stored["shape"], int)
    dense[stored["row"], stored["col"]] = stored["data"]
    assert dense.tolist() == [[0, 2, 0], [0, 0, 1], [0, 0, 0]]
    assert stored["neurons"].tolist() == [1, 2, BIG]


def test_every_file_is_the_same_for_any_blocks(files, tmp_path, monkeypatch):
    """The chunks of the files and the room of a block decide what is read together, and nothing else."""
    run(files, tmp_path / "whole", "--image", files["raw"])
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for number, (voxels, chunks) in enumerate(((1, (1, 5, 3)), (40, (2, 4, 7)), (200, (3, 3, 20)))):
        monkeypatch.setattr(wiring, "BLOCK_VOXELS", voxels)
        for name, values in zip(("labels", "sides"), scene()):
            with create_volume(f"{tmp_path}/a.h5:{name}", values.shape, values.dtype, RESOLUTION, chunks=chunks) as out:
                out[...] = values
        run(files, tmp_path / str(number), "--image", files["raw"])
        assert {path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()} == wanted


def test_the_page_loads_nothing_and_shows_the_strongest_pairs(files, tmp_path):
    run(files, tmp_path / "out", "--image", files["raw"])
    text = (tmp_path / "out" / "connectome.html").read_text()
    page = Page(text)
    assert page.loads == []
    assert page.pictures == 4
    assert "default-src 'none'" in text
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["1. 1 to 2: 2 synapses, 24 voxels",
                                                   f"2. 2 to {BIG}: 1 synapse, 8 voxels"]
    run(files, tmp_path / "out")  # again, over what is there
    assert Page((tmp_path / "out" / "connectome.html").read_text()).pictures == 2


def test_other_programs_read_the_graph(files, tmp_path):
    run(files, tmp_path / "out")
    networkx, sparse = pytest.importorskip("networkx"), pytest.importorskip("scipy.sparse")
    graph = networkx.read_graphml(tmp_path / "out" / "graph.graphml")
    assert graph.is_directed()
    assert graph["1"]["2"] == {"synapses": 2, "voxels": 24, "contact_area_nm2": 640.0,
                                                       "directed": True}
    assert sparse.load_npz(tmp_path / "out" / "graph.npz").toarray().tolist() == [[0, 2, 0], [0, 0, 1], [0, 0, 0]]
    run(files, tmp_path / "faces", "--clefts")
    graph = networkx.read_graphml(tmp_path / "faces" / "graph.graphml")
    assert not graph.is_directed()
    assert set(graph.nodes) == {"1", "2", str(BIG)}


def test_volumes_without_synapses_give_empty_files(files, tmp_path):
    with create_volume(f"{tmp_path}/a.h5:none", (4, 12, 20), np.uint8, RESOLUTION) as out:
        out[...] = np.zeros((4, 12, 20), np.uint8)
    assert run({**files, "sides": f"{tmp_path}/a.h5:none"}, tmp_path / "out") == 0
    assert rows_of(tmp_path / "out" / "edges.csv") == []
    assert rows_of(tmp_path / "out" / "synapses.csv") == []
    assert np.load(tmp_path / "out" / "graph.npz")["shape"].tolist() == [0, 0]


@pytest.mark.parametrize("change, more, sentence", [
    ({"sides": "small"}, (), "they must cover the same voxels"),
    ({"sides": "moved"}, (), "cut both to what they share"),
    ({"sides": "fine"}, (), "resample one of them"),
    ({"sides": "there.h5"}, (), "there is no file"),
    ({}, ("--direction", "x.h5"), "--direction belongs to --clefts"),
    ({}, ("--image", "fine"), "must agree to be laid on each other"),
])
def test_a_misfit_is_one_sentence_and_leaves_nothing(files, tmp_path, capsys, change, more, sentence):
    for name, shape, resolution, offset in (("small", (4, 12, 19), RESOLUTION, (0, 0, 0)),
                                            ("moved", (4, 12, 20), RESOLUTION, (40, 0, 0)),
                                            ("fine", (4, 12, 20), (40, 4, 2), (0, 0, 0))):
        with create_volume(tmp_path / f"{name}.h5", shape, np.uint8, resolution, offset) as out:
            out[...] = np.zeros(shape, np.uint8)
    more = [str(tmp_path / f"{part}.h5") if part == "fine" else part for part in more]
    given = files | {key: str(tmp_path / (name if "." in name else f"{name}.h5")) for key, name in change.items()}
    assert run(given, tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- scores


def test_edges_are_counted_by_their_synapses():
    truth = [(1, 2)] * 5 + [(2, 1)] * 2 + [(3, 4), (0, 4)]
    ours = [(1, 2)] * 4 + [(2, 1)] * 3 + [(4, 3), (5, 0)]
    found = metrics.edge_scores(truth, ours)
    assert [(one.synapses, one.found, one.invented, one.missed) for one in found] == [
        (1, 2, 1, 1), (2, 2, 0, 0), (5, 0, 0, 1)]
    assert (found[0].precision, found[0].recall, found[1].f1, found[2].recall) == (2 / 3, 2 / 3, 1, 0)
    assert np.isnan(metrics.edge_scores([], [])[0].f1)
    for wrong in ([(1, 2, 3)], [(1.5, 2)], [(-1, 2)]):
        with pytest.raises(InputError, match="ids of pre- and postsynaptic neurons"):
            metrics.edge_scores(wrong, [])
    with pytest.raises(InputError, match="at_least must be whole numbers"):
        metrics.edge_scores([], [], (0,))


def test_labels_are_matched_by_most_of_their_voxels():
    table = metrics.contingency(np.array([1, 1, 2, 2, 3, 0]), np.array([5, 5, 5, 6, 6, 7]), ignore_truth=(0,))
    assert metrics.matched_ids(table) == {5: 1, 6: 2}


def cremi_file(path, labels, pairs):
    """A file as the challenge gives them out."""
    with h5py.File(path, "w") as file:
        file["volumes/labels/neuron_ids"] = labels
        file["volumes/labels/neuron_ids"].attrs["resolution"] = RESOLUTION
        file["annotations/ids"] = np.arange(2 * len(pairs), dtype=np.uint64)
        file["annotations/locations"] = np.array(pairs, float).reshape(-1, 3)
        file["annotations/presynaptic_site/partners"] = np.arange(2 * len(pairs), dtype=np.uint64).reshape(-1, 2)


def test_evaluate_scores_partners_on_true_and_on_predicted_neurons(tmp_path):
    labels, sides = scene()
    pairs = [((0, 4, 32), (0, 4, 44)), ((80, 12, 32), (80, 12, 44)), ((40, 16, 64), (40, 24, 64))]
    cremi_file(tmp_path / "truth.hdf", labels, pairs)
    for name, values in (("sides", sides), ("merged", np.where(labels == BIG, 1, labels + np.uint64(7)))):
        with create_volume(f"{tmp_path}/{name}.h5:labels", sides.shape, values.dtype, RESOLUTION) as out:
            out[...] = values
    found = score_volume(Evaluate(("partners",), neurons=str(tmp_path / "merged.h5")),
                         f"{tmp_path}/truth.hdf:volumes/labels/neuron_ids", tmp_path / "sides.h5", tmp_path / "p.h5")
    values = {(entry["score"], entry["convention"]): entry["value"] for entry in found["scores"]}
    json.dumps(found, allow_nan=False)
    for name in ("f1", "precision", "recall"):
        assert values[f"partners_{name}", "cremi, 400 nm, neurons of the truth"] == 1
        assert values[f"edges_{name}", "from 1 synapses on, neurons of the truth"] == 1
        assert values[f"edges_{name}", "from 2 synapses on, neurons of the truth"] == 1
        assert values[f"edges_{name}", "from 5 synapses on, neurons of the truth"] is None
    whole = sides.copy()
    whole[sides == 6] = 0  # synapse 3 has no postsynaptic side any more
    with create_volume(f"{tmp_path}/sides.h5:labels", sides.shape, whole.dtype, RESOLUTION) as out:
        out[...] = whole
    merged = np.where(labels == 4, 2, labels)  # 4 joins 2: most of its voxels are as many, so the smaller id counts
    with create_volume(f"{tmp_path}/merged.h5:labels", sides.shape, merged.dtype, RESOLUTION) as out:
        out[...] = merged
    found = score_volume(Evaluate(("partners",), neurons=str(tmp_path / "merged.h5")),
                         f"{tmp_path}/truth.hdf:volumes/labels/neuron_ids", tmp_path / "sides.h5", tmp_path / "p.h5")
    values = {(entry["score"], entry["convention"]): entry["value"] for entry in found["scores"]}
    for whose in ("the truth", str(tmp_path / "merged.h5")):
        assert values["partners_recall", f"cremi, 400 nm, neurons of {whose}"] == pytest.approx(2 / 3)
        assert values["edges_precision", f"from 1 synapses on, neurons of {whose}"] == 1
        assert values["edges_recall", f"from 1 synapses on, neurons of {whose}"] == 0.5


def test_a_truth_without_annotations_leaves_a_note(tmp_path):
    labels, sides = scene()
    with h5py.File(tmp_path / "truth.h5", "w") as file:
        file["volumes/labels/neuron_ids"] = labels
        file["volumes/labels/neuron_ids"].attrs["resolution"] = RESOLUTION
    for truth in (labels, str(tmp_path / "truth.h5")):
        found = score_volume(Evaluate(("partners",)), truth, _stored(tmp_path, sides), tmp_path / "p.h5")
        assert found["scores"] == []
        assert "partners needs a truth in a file with volumes/labels/neuron_ids (or labels) and annotations/" in \
            found["notes"][0]


def _stored(folder, values):
    with create_volume(f"{folder}/sides.h5:labels", values.shape, values.dtype, RESOLUTION) as out:
        out[...] = values
    return folder / "sides.h5"
