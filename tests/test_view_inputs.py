"""python -m emcore view: which of several sayings about its inputs counts, and what it leaves alone."""

import json
import re

import numpy as np
import pytest

from emcore import config
from emcore.errors import run_command
from emcore.files import write_text
from emcore.report import connectome, viewer
from emcore.settings import Settings
from emcore.volumes import create_volume, open_volume
from tests.oracles.annotations import Annotations

UNIT = (30.0, 8.0, 8.0)


@pytest.fixture(autouse=True)
def no_skeletons(monkeypatch):
    """They take most of the time, and nothing here asks for them."""
    monkeypatch.setattr(viewer, "write_skeletons", lambda folder: (folder / "skeletons").mkdir(exist_ok=True))


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
