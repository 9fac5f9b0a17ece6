"""python -m emcore view: a folder for viewers, read back by other means, made once, and refused in one sentence."""

import base64
import json
import re
import zlib
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest

from emcore import config, segment
from emcore.blocks import meshes
from emcore.errors import InputError, run_command
from emcore.files import write_text
from emcore.png import colour_labels
from emcore.report import connectome, scene, viewer
from emcore.report.wiring_files import read_synapses
from emcore.segment.edges import degrees
from emcore.segment.mesh_files import encoded, read_fragment
from emcore.segment.wiring import Partners
from emcore.settings import Settings
from emcore.volumes import create_volume, open_volume, serve
from tests.oracles.annotations import Annotations

UNIT, OFFSET = (40.0, 8.0, 8.0), (80.0, -16.0, 160.0)
BIG = 2**40 + 5


def tissue():
    """Three neurons in a row along x, and two synapses: from 7 to BIG, and from BIG to 9."""
    labels = np.zeros((6, 20, 36), np.uint64)
    labels[:, 2:18, 1:12], labels[:, 2:18, 12:24], labels[1:, 2:18, 24:34] = 7, BIG, 9
    sides = np.zeros(labels.shape, np.uint32)
    for number, x in ((1, 12), (2, 24)):
        sides[2:4, 5:8, x - 2:x], sides[2:4, 5:8, x:x + 2] = 2 * number - 1, 2 * number
    return {"labels": labels, "sides": sides, "raw": (labels % 200).astype(np.uint8)}


def store(path, **arrays):
    for name, values in arrays.items():
        with create_volume(f"{path}:{name}", values.shape, values.dtype, UNIT, OFFSET) as out:
            out[...] = values
    return path


def run(*arguments):
    return run_command(viewer.main, [str(argument) for argument in arguments])


def asked(file, *more):
    return (f"{file}:labels", "--image", f"{file}:raw", "--synapses", f"{file}:sides", "--workers", 1, *more)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A folder that the command made, and the file that it is of."""
    place = tmp_path_factory.mktemp("view")
    file = store(place / "a.h5", **tissue())
    assert run(*asked(file, place / "out")) == 0
    return place / "out", file


def test_the_folder_holds_the_volumes_their_objects_and_the_tables(seen):
    out, _ = seen
    assert {path.name for path in out.iterdir()} == {
        "labels.precomputed", "image.precomputed", "labels.csv", "labels_contacts.csv", "connectome", "synapses",
        "view.json", "view.html", "made.json", "lock"}
    for name, dataset in (("labels", "labels"), ("image", "raw")):
        found = open_volume(out / f"{name}.precomputed")
        assert np.array_equal(found[...], tissue()[dataset])
        assert (found.resolution, found.offset) == (UNIT, OFFSET)
    volume = out / "labels.precomputed"
    info = json.loads((volume / "info").read_text())
    assert (info["type"], info["mesh"], info["skeletons"], info["segment_properties"]) == (
        "segmentation", "mesh", "skeletons", "segment_properties")
    for label, mesh in segment.mesh(tissue()["labels"], UNIT, offset=OFFSET).items():
        assert np.array_equal(read_fragment(volume / "mesh" / f"{label}:0:mesh").vertices, mesh.vertices)
    assert set(segment.read_skeletons(volume / "skeletons")) == {7, 9, BIG}
    about = json.loads((volume / "segment_properties" / "info").read_text())["inline"]
    labels, voxels = np.unique(tissue()["labels"], return_counts=True)
    assert about["ids"] == [str(label) for label in labels[1:].tolist()]
    assert {row["id"]: row["values"] for row in about["properties"]} == {
        "voxels": voxels[1:].tolist(), "outgoing": [1, 0, 1], "incoming": [0, 1, 1], "partners": [1, 1, 2]}


def test_the_synapses_are_lines_that_their_neurons_know(seen):
    out, _ = seen
    found, table = Annotations(out / "synapses"), read_synapses(out / "connectome")
    assert found.info["lower_bound"] == list(OFFSET[::-1])
    assert found.info["upper_bound"] == [160 + 36 * 8, -16 + 20 * 8, 80 + 6 * 40]
    lines = found.by_id()
    assert [related for _, related in lines.values()] == [[(7,), (BIG,)], [(BIG,), (9,)]]
    for row, ((pre, post, values), _) in enumerate(lines.values()):
        for end, place in ((pre, table.pre_place[row]), (post, table.post_place[row])):
            assert end == tuple((place + np.array(UNIT) / 2)[::-1])  # the middle of the voxel, which meshes surround
            inside = ((np.array(end)[::-1] - OFFSET) / UNIT).astype(int)
            assert tissue()["labels"][tuple(inside)] == lines[row + 1][1][0 if end == pre else 1][0]
        assert values == {"voxels": 24, "confidence": 1, "contact_area_nm2": table.contact_area[row], "directed": 1}


def test_a_link_opens_the_state_where_the_folder_is_served(seen):
    out, _ = seen
    state = json.loads((out / "view.json").read_text())
    assert [layer["type"] for layer in state["layers"]] == ["image", "segmentation", "annotation"]
    assert state["dimensions"] == {"x": [8e-9, "m"], "y": [8e-9, "m"], "z": [4e-8, "m"]}
    assert state["position"] == [20 + 18, -2 + 10, 2 + 3]
    assert state["layers"][1]["segments"] == [str(BIG), "7", "9"]
    for label, colour in state["layers"][1]["segmentColors"].items():
        assert colour == "#" + bytes(colour_labels(np.array([int(label)], np.uint64))[0]).hex()
    link = serve.link_of_view("http://127.0.0.1:1234", out)
    opened = json.loads(unquote(link.partition("#!")[2]))
    for layer in opened["layers"]:
        assert layer["source"].startswith("precomputed://http://127.0.0.1:1234/")
        assert (out / layer["source"].rpartition("/")[2] / "info").is_file()
    assert serve.link_of_view("http://127.0.0.1:1234", out.parent) is None


def packed_meshes(text):
    """What a page holds, unpacked: id -> (vertices x y z in nm from the middle, triangles, error)."""
    page = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])
    found = {}
    for neuron in page["neurons"]:
        data, count = zlib.decompress(base64.b64decode(neuron["data"])), neuron["vertices"]
        steps = np.cumsum(np.frombuffer(data[:6 * count], "<u2").reshape(3, count), axis=1, dtype=np.uint16)
        corners = np.cumsum(np.frombuffer(data[6 * count:], "<u4"), dtype=np.uint32)
        assert len(corners) == 3 * neuron["triangles"]
        places = np.array(neuron["low"]) + steps.T * neuron["step"]
        found[neuron["id"]] = places, corners.reshape(-1, 3), neuron["error"]
    return page, found


def test_the_page_holds_the_meshes_and_the_synapses(seen):
    out, _ = seen
    page, found = packed_meshes((out / "view.html").read_text())
    middle = np.array(OFFSET) + np.array(UNIT) * (6, 20, 36) / 2
    assert page["middle"] == middle[::-1].tolist()
    for label, (places, corners, error) in found.items():
        mesh = read_fragment(out / "labels.precomputed" / "mesh" / f"{label}:0:mesh")
        assert error == 0
        assert np.array_equal(corners, mesh.faces)
        assert np.abs(places - (mesh.vertices - middle)[:, ::-1]).max() <= 0.5 * 300 / 65535
    assert [(neuron["id"], neuron["voxels"], neuron["outgoing"], neuron["incoming"]) for neuron in page["neurons"]] == [
        (str(BIG), 1152, 1, 1), ("7", 1056, 1, 0), ("9", 800, 0, 1)]
    assert page["neurons"][0]["volume"] == pytest.approx(1152 * 40 * 8 * 8 / 1e9)
    assert [row[:6] for row in page["synapses"]] == [["1", "7", str(BIG), 1, 24, 1], ["2", str(BIG), "9", 1, 24, 1]]
    lines = Annotations(out / "synapses").by_id()
    for row in page["synapses"]:
        (pre, post, _), _ = lines[int(row[0])]
        assert row[6:] == [*(np.array(pre) - middle[::-1]), *(np.array(post) - middle[::-1])]


def test_what_is_there_is_not_made_again_and_what_changed_is(tmp_path, capsys):
    file, out = store(tmp_path / "a.h5", **tissue()), tmp_path / "out"
    assert run(*asked(file, out)) == 0
    before = stamps(out)
    assert run(*asked(file, out, "--neurons", "9,7")) == 0
    assert {path for path in before if stamps(out)[path] != before[path]} == {
        "view.html", "view.json", "made.json", "labels.precomputed/segment_properties/info"}
    assert "2 of 3 labels in 3-d" in capsys.readouterr().out
    assert json.loads((out / "view.json").read_text())["layers"][1]["segments"] == ["7", "9"]
    changed = tissue()
    changed["labels"][changed["labels"] == 9] = 11
    store(file, labels=changed["labels"])
    assert run(f"{file}:labels", "--workers", 1, out) == 0
    assert sorted(path.name for path in (out / "labels.precomputed" / "mesh").iterdir() if ":0:" in path.name) == [
        f"{BIG}:0:mesh", "11:0:mesh", "7:0:mesh"]
    assert np.array_equal(open_volume(out / "labels.precomputed")[...], changed["labels"])
    for name in ("image.precomputed", "connectome", "synapses"):  # the command did not ask for them
        assert not (out / name).exists()
    assert [layer["name"] for layer in json.loads((out / "view.json").read_text())["layers"]] == ["neurons"]


def stamps(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_after_an_end_the_same_command_goes_on(tmp_path, monkeypatch):
    file, out = store(tmp_path / "a.h5", **tissue()), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(meshes, "announce", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*asked(file, out)) == 130
    assert not (out / "view.html").exists()
    assert set(json.loads((out / "made.json").read_text())) == {"labels.precomputed"}
    chunks = {path: stamp for path, stamp in stamps(out / "labels.precomputed").items() if path.startswith("8_8_40/")}
    assert chunks
    assert run(*asked(file, out)) == 0
    assert chunks.items() <= stamps(out / "labels.precomputed").items()
    assert (out / "view.html").exists()


def test_the_plain_copy_serves_where_tensorstore_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "has_tensorstore", lambda: False)
    file = store(tmp_path / "a.h5", labels=tissue()["labels"].astype(np.int64), raw=tissue()["raw"])
    assert run(f"{file}:labels", "--image", f"{file}:raw", "--workers", 1, tmp_path / "out") == 0
    info = json.loads((tmp_path / "out" / "labels.precomputed" / "info").read_text())
    assert (info["type"], info["data_type"], info["scales"][0]["encoding"]) == ("segmentation", "uint64", "raw")
    assert np.array_equal(open_volume(tmp_path / "out" / "labels.precomputed")[...], tissue()["labels"])
    about = json.loads((tmp_path / "out" / "labels.precomputed" / "segment_properties" / "info").read_text())
    assert [row["id"] for row in about["inline"]["properties"]] == ["voxels"]


def test_the_folder_of_a_run_names_labels_and_image(tmp_path):
    arrays, folder = tissue(), tmp_path / "outputs" / "mine"
    store(tmp_path / "a.h5", raw=arrays["raw"])
    settings = config.from_table(Settings, {"name": "other", "data": {
        "folder": str(tmp_path), "test": [{"image": "a.h5:raw"}]}})
    for step in (10, 20):
        (folder / f"results_step={step}").mkdir(parents=True)
        store(folder / f"results_step={step}" / "test_im_labels.h5", labels=arrays["labels"] * (step == 20))
    write_text(folder / "config.toml", config.to_toml(settings))
    out = tmp_path / "out"
    assert run(folder, "--workers", 1, out) == 0
    assert np.array_equal(open_volume(out / "labels.precomputed")[...], arrays["labels"])
    assert np.array_equal(open_volume(out / "image.precomputed")[...], arrays["raw"])


def test_the_record_of_labels_names_their_image(tmp_path):
    file, labels = store(tmp_path / "a.h5", raw=tissue()["raw"]), tmp_path / "b_labels.h5"
    made_by = {"decode": {"kind": "affinities"}, "prediction": {"digest": "0", "volume": {"image": f"{file}:raw"}}}
    with create_volume(f"{labels}:labels", (6, 20, 36), "uint64", UNIT, OFFSET, {"record": made_by}) as out:
        out[...] = tissue()["labels"]
    assert run(labels, "--workers", 1, tmp_path / "out") == 0
    assert np.array_equal(open_volume(tmp_path / "out" / "image.precomputed")[...], tissue()["raw"])
    file.unlink()  # an image that is gone is left out
    assert run(labels, "--workers", 1, tmp_path / "other") == 0
    assert not (tmp_path / "other" / "image.precomputed").exists()


def test_mistakes_are_one_sentence(tmp_path, capsys, seen):
    _, file = seen
    arrays = tissue()
    store(tmp_path / "b.h5", labels=arrays["labels"], moved=arrays["labels"] * np.uint64(2))
    with create_volume(f"{tmp_path}/bare.h5:labels", (6, 20, 36), "uint64") as volume:
        volume[...] = arrays["labels"]
    assert run_command(connectome.main, ["--labels", f"{file}:labels", "--synapses", f"{file}:sides",
                                         str(tmp_path / "wired")]) == 0
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "broken").mkdir()
    write_text(tmp_path / "broken" / "synapses.csv", "a,b\n1,2\n")
    out = tmp_path / "out"
    for arguments, told in (
            ((f"{tmp_path}/bare.h5:labels", out), "does not say its resolution; give --resolution Z Y X"),
            ((f"{file}:labels", out, "--neurons", "5"), "has no voxel of 5"),
            ((f"{file}:labels", out, "--neurons", "5;6"), "--neurons are labels with commas between"),
            ((f"{file}:labels", out, "--clefts"), "--clefts belongs to --synapses"),
            ((f"{tmp_path}/b.h5:moved", out, "--connectome", tmp_path / "wired"), "has a neuron 7, but the labels"),
            ((f"{file}:labels", out, "--connectome", tmp_path), "has no synapses.csv"),
            ((f"{file}:labels", out, "--connectome", tmp_path / "broken"), "does not begin with the columns"),
            ((f"{file}:labels", tmp_path / "full"), "no view that this command has made: choose a new folder"),
            ((f"{file}:labels", out, "--workers", "-1"), "--workers must be above 0")):
        capsys.readouterr()
        assert run("--workers", 1, *arguments) == 2, arguments
        said = capsys.readouterr().err
        assert told in said
        assert said.count("error: ") == 1
        assert not (out / "view.html").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


# ---- parts


@pytest.mark.bench
def test_cloudvolume_and_zmesh_read_the_folder(seen):
    cloudvolume = pytest.importorskip("cloudvolume", reason="the reader cloud-volume is not installed")
    zmesh = pytest.importorskip("zmesh", reason="the reader zmesh is not installed")
    out, _ = seen
    volume = cloudvolume.CloudVolume(f"precomputed://file://{out}/labels.precomputed", progress=False)
    assert np.array_equal(np.asarray(volume[:])[..., 0].transpose(), tissue()["labels"])
    for label, wanted in segment.read_skeletons(out / "labels.precomputed" / "skeletons").items():
        read = volume.skeleton.get(label)
        assert np.array_equal(np.asarray(read.vertices)[:, ::-1], wanted.vertices)
        data = (out / "labels.precomputed" / "mesh" / f"{label}:0:mesh").read_bytes()
        assert len(zmesh.Mesh.from_precomputed(data).faces) == len(volume.mesh.get(label, fuse=False)[label].faces)


def test_degrees_count_synapses_and_partners():
    edges = segment.Connections(*(np.array(column) for column in (
        [1, 1, 2, 3], [2, 3, 1, 4], [True, True, True, False], [5, 1, 2, 7], [0] * 4, [0.0] * 4)))
    found = degrees(edges)
    assert {name: getattr(found, name).tolist() for name in found._fields} == {
        "neurons": [1, 2, 3, 4], "outgoing": [6, 2, 0, 0], "incoming": [2, 5, 1, 0], "undirected": [0, 0, 7, 7],
        "partners": [2, 1, 2, 1]}
    assert found.synapses.tolist() == [8, 7, 8, 7]


def test_a_damaged_fragment_is_refused(tmp_path):
    mesh = segment.mesh(np.ones((2, 3, 4), np.uint8), UNIT)[1]
    data = b"".join(encoded(mesh, "precomputed"))
    path = tmp_path / "1:0:mesh"
    path.write_bytes(data)
    assert np.array_equal(read_fragment(path).faces, mesh.faces)
    for wrong, told in ((data[:-1], "do not hold"), (b"\xff\xff\xff\xff" + data[4:], "do not hold"), (b"ab", "do not"),
                        (data[:-4] + b"\xff\xff\xff\x7f", "has a triangle at vertex")):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=told):
            read_fragment(path)


def test_a_page_keeps_its_budget_and_says_what_that_cost(seen, tmp_path, monkeypatch):
    def page_of(*arguments):
        scene.write_scene(tmp_path / "page.html", *arguments)
        return (tmp_path / "page.html").read_text()

    out, _ = seen
    folder = out / "labels.precomputed" / "mesh"
    ids = np.array([7, 9, BIG], np.uint64)
    none = np.zeros(3, np.int64)
    neurons = scene.Neurons(ids, np.array([5, 6, 7]), none, none, none, none)
    box = np.array([OFFSET, np.array(OFFSET) + np.array(UNIT) * (6, 20, 36)])
    whole = packed_meshes(page_of(folder, neurons, None, UNIT, box, "a"))[1]
    size = sum(len(row["data"]) for row in (scene.encoded(read_fragment(folder / f"{label}:0:mesh"), box.mean(0))
                                            for label in ids.tolist()))
    monkeypatch.setattr(scene, "LEAST_MESH_BYTES", 0)
    monkeypatch.setattr(scene, "MESH_BYTES", size // 3)
    text = page_of(folder, neurons, None, UNIT, box, "a")
    page, found = packed_meshes(text)
    assert "too rich" not in text
    assert sum(len(text) for text in re.findall(r'"data": "([^"]*)"', text)) <= size // 3
    for label, (places, corners, error) in found.items():
        assert 0 < error <= 60
        assert len(corners) < len(whole[label][1]) / 2
        # no vertex of the whole mesh is farther from a simpler surface than the error, so from its box
        assert (whole[label][0] >= places.min(0) - error - 0.01).all()
        assert (whole[label][0] <= places.max(0) + error + 0.01).all()
    largest = max(error for _, _, error in found.values())
    assert f"farther than {largest:.3g} nm" in text
    monkeypatch.setattr(scene, "MESH_BYTES", 150)
    text = page_of(folder, neurons, None, UNIT, box, "a")
    assert len(packed_meshes(text)[1]) + text.count("has a surface too rich to be shown here: choose fewer") == 3
    assert "too rich" in text
    assert page["wired"] is False


def test_a_small_neuron_has_room_beside_a_large_one(tmp_path):
    labels = np.ones((4, 40, 40), np.uint8)
    labels[1:3, 10:14, 10:14] = 2
    for label, mesh in segment.mesh(labels, UNIT).items():
        (tmp_path / f"{label}:0:mesh").write_bytes(b"".join(encoded(mesh, "precomputed")))
    empty = replace(segment.mesh(labels, UNIT)[2], vertices=np.zeros((0, 3), np.float32),
                    faces=np.zeros((0, 3), np.uint32))
    (tmp_path / "3:0:mesh").write_bytes(b"".join(encoded(empty, "precomputed")))
    none, ids = np.zeros(3, np.int64), np.array([1, 2, 3], np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene, "MESH_BYTES", 1000)
        found = scene.drawn(tmp_path, scene.Neurons(ids, none, none, none, none, none), np.zeros(3))
    assert found[1] is not None
    assert found[1]["error"] == 0
    assert (found[2]["vertices"], found[2]["triangles"]) == (0, 0)


def test_the_page_tells_numbers_of_clefts_that_a_browser_would_round():
    number = 2**53 + 1
    one, place = np.ones(1), np.zeros((1, 3))
    ids = np.array([7], np.uint64)
    table = Partners(np.array([number], np.uint64), place, np.ones(1, np.int64), ids, ids + np.uint64(2), one > 0, one,
                     one, place, place)
    assert scene.synapses_of(table, ids, UNIT, np.zeros(3))[0][0] == str(number)
