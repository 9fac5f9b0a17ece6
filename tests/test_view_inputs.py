"""python -m emcore view: which of several sayings about its inputs counts, and what it leaves alone."""

import json
import re

import numpy as np
import pytest

from emcore import config
from emcore.errors import run_command
from emcore.files import write_text
from emcore.report import viewer
from emcore.settings import Settings
from emcore.volumes import create_volume, open_volume
from tests.oracles.annotations import Annotations

UNIT = (30.0, 8.0, 8.0)


@pytest.fixture(autouse=True)
def no_skeletons(monkeypatch):
    """They take most of the time, and nothing here asks for them."""
    monkeypatch.setattr(viewer, "write_skeletons", lambda folder, workers: (folder / "skeletons").mkdir(exist_ok=True))


def store(path, resolution=UNIT, offset=(0.0, 0.0, 0.0), only=None):
    """Two neurons and a synapse between them."""
    labels, sides = np.zeros((8, 24, 24), np.int32), np.zeros((8, 24, 24), np.uint32)
    labels[:, :, :12], labels[:, :, 12:] = 1, 2
    sides[2:5, 8:14, 10:12], sides[2:5, 8:14, 12:14] = 1, 2
    for name, values in (("labels", labels), ("sides", sides), ("raw", labels.astype(np.uint8) * 90)):
        if only in (None, name):
            with create_volume(f"{path}:{name}", values.shape, values.dtype, resolution, offset) as out:
                out[...] = values
    return path


def run(*arguments):
    return run_command(viewer.main, ["--workers", "1", *map(str, arguments)])


def test_only_parts_that_the_command_makes_are_ever_removed(tmp_path):
    file, out = store(tmp_path / "a.h5"), tmp_path / "out"
    out.mkdir()
    (tmp_path / "thesis.txt").write_text("mine")
    (out / "notes.txt").write_text("mine")
    foreign = ["../thesis.txt", str(tmp_path / "thesis.txt"), "notes.txt", "labels.precomputed/../../thesis.txt"]
    write_text(out / "made.json", json.dumps(dict.fromkeys(foreign, "0")))
    assert run(f"{file}:labels", out) == 0
    assert (tmp_path / "thesis.txt").read_text() == (out / "notes.txt").read_text() == "mine"
    assert not json.loads((out / "made.json").read_text()).keys() & set(foreign)


def wired(out):
    return re.search(r'"wired": (true|false)', (out / "view.html").read_text())[1]


def test_a_page_is_made_again_where_synapses_come_or_go(tmp_path):
    file, out = store(tmp_path / "a.h5"), tmp_path / "out"
    chosen = (f"{file}:labels", out, "--neurons", "1,2")
    for more, told in ((("--synapses", f"{file}:sides"), "true"), ((), "false"), ((), "false"),
                       (("--synapses", f"{file}:sides"), "true")):
        assert run(*chosen, *more) == 0
        assert wired(out) == told


def test_the_page_of_the_wiring_shows_the_image_of_now(tmp_path):
    file, out = store(tmp_path / "a.h5"), tmp_path / "out"
    arguments = (f"{file}:labels", out, "--synapses", f"{file}:sides", "--image", f"{tmp_path}/b.h5:raw")
    pages = []
    for value in (20, 200):
        with create_volume(f"{tmp_path}/b.h5:raw", (8, 24, 24), np.uint8, UNIT) as volume:
            volume[...] = value
        assert run(*arguments) == 0
        pages.append((out / "connectome" / "connectome.html").read_text())
    assert pages[0] != pages[1]


def test_the_wiring_in_the_folder_stays_where_the_command_names_it(tmp_path):
    file, out = store(tmp_path / "a.h5"), tmp_path / "out"
    assert run(f"{file}:labels", out, "--synapses", f"{file}:sides") == 0
    for _ in range(2):
        assert run(f"{file}:labels", out, "--connectome", out / "connectome") == 0
        assert (out / "connectome" / "synapses.csv").is_file()
        assert wired(out) == "true"


def test_a_file_of_a_run_knows_its_resolution_better_than_the_recipe(tmp_path):
    folder, place = tmp_path / "run", tmp_path / "run" / "results_step=10"
    store(tmp_path / "a.h5", only="raw")
    settings = config.from_table(Settings, {"name": "run", "data": {
        "folder": str(tmp_path), "resolution": [50.0, 5.0, 5.0], "test": [{"image": "a.h5:raw"}]}})
    place.mkdir(parents=True)
    store(place / "test_im_labels.h5", only="labels")
    write_text(folder / "config.toml", config.to_toml(settings))
    assert run(folder, tmp_path / "out") == 0
    assert open_volume(tmp_path / "out" / "labels.precomputed").resolution == UNIT


def test_synapses_lie_in_their_neurons_where_the_offset_is_no_whole_voxel(tmp_path):
    file, out = store(tmp_path / "a.h5", offset=(10.0, 3.0, -13.0)), tmp_path / "out"
    assert run(f"{file}:labels", out, "--synapses", f"{file}:sides") == 0
    volume, found = open_volume(out / "labels.precomputed"), Annotations(out / "synapses")
    assert volume.offset == (0.0, 0.0, -16.0)
    assert found.info["lower_bound"] == [-16, 0, 0]
    for (pre, post, _), _ in found.by_id().values():
        for label, end in ((1, pre), (2, post)):
            at = (np.array(end)[::-1] - volume.offset) / UNIT
            assert np.array_equal(at % 1, [0.5] * 3)
            assert volume[...][tuple(at.astype(int))] == label


def test_labels_and_synapses_take_the_place_of_their_image(tmp_path):
    file, out = store(tmp_path / "a.h5", None), tmp_path / "out"
    image = store(tmp_path / "b.h5", offset=(300.0, 80.0, 160.0), only="raw")
    assert run(f"{file}:labels", out, "--synapses", f"{file}:sides", "--image", f"{image}:raw") == 0
    assert open_volume(out / "labels.precomputed").offset == (300.0, 80.0, 160.0)
    assert len(Annotations(out / "synapses").by_id()) == 1
