"""One prediction with all channels of snemi_neurons, decoded by two selections: as two predictions of the selected."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emcore import config
from emcore.decode.affinities import pick_channels
from emcore.engine import checkpoint
from emcore.errors import InputError, run_command
from emcore.models.build import build_model
from emcore.settings import Settings
from emcore.smoke import narrow
from emcore.volumes import create_volume, open_volume

ROOT = Path(__file__).resolve().parent.parent
SMALL = """
base = "{root}/configs/snemi/snemi_neurons.toml"
[data]
folder = "."
test = [{{image = "raw.h5", name = "test_im"}}]
[infer]
window = [8, 32, 32]
pad = [2, 8, 8]
batch = 1
layout = "contiguous"
[decode]
threshold = 0.2
dust_size = 4
remove_size = 2
"""


def run(script, *arguments):
    main = runpy.run_path(str(ROOT / f"{script}.py"))["main"]
    return run_command(main, ["--cfg", "run.toml", *arguments])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A recipe like snemi_neurons with a small net whose affinities are far from one half, and a small image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(SMALL.format(root=ROOT))
    settings = config.load(Settings, tmp_path / "run.toml", [])
    model = narrow(settings.model)
    torch.manual_seed(0)
    net = build_model(model, settings.data.patch)
    with torch.no_grad():
        last = list(net.parameters())[-2]
        last.mul_(12)
    checkpoint.save(tmp_path / "net.pt", {"step": 100_000, "model": net.state_dict(), "ema": None,
                                          "config": config.to_table(replace(settings, model=model))})
    raw = np.random.default_rng(1).integers(0, 256, (10, 40, 40)).astype(np.uint8)
    with create_volume("raw.h5", raw.shape, raw.dtype, (30, 6, 6)) as out:
        out[...] = raw
    return tmp_path


def labels(folder):
    return open_volume(folder / "test_im_labels.h5", "labels")[...]


@pytest.mark.slow
def test_one_prediction_of_all_channels_serves_every_selection(place):
    results = {}
    for name, settings in (("all", []), ("near", ["infer.select=[0,1,2]"]),
                           ("far", ["infer.select=[6,9,4]", "decode.channels=[2,1,0]"])):
        assert run("infer", "--checkpoint", "net.pt", f"name={name}", *settings) == 0
        results[name] = place / "outputs" / f"{name}_weights=net"
    prediction = open_volume(results["all"] / "test_im_prediction.h5")
    assert prediction.shape[0] == 12
    assert prediction.attrs["offsets"][4] == [-3, 0, 0]
    for name, channels in (("near", [0, 1, 2]), ("far", [6, 9, 4])):
        stored = open_volume(results[name] / "test_im_prediction.h5")
        assert np.array_equal(stored[...], prediction[...][channels])
        assert stored.attrs["offsets"] == [prediction.attrs["offsets"][channel] for channel in channels]
    near, far = labels(results["near"]), labels(results["far"])
    assert len(np.unique(near)) > 3
    assert not np.array_equal(near, far)
    assert np.array_equal(labels(results["all"]), near)
    stored = str(results["all"] / "test_im_prediction.h5")
    before = Path(stored).stat().st_mtime_ns
    assert run("infer", "--from", stored, "decode.channels=[4,9,6]") == 0
    assert np.array_equal(labels(results["all"]), far)
    assert run("infer", "--from", stored) == 0
    assert np.array_equal(labels(results["all"]), near)
    assert Path(stored).stat().st_mtime_ns == before
    assert run("infer", "--from", stored, "decode.channels=[6,9,4]") == 2  # x, y, z, the original's order


def test_a_channel_of_longer_range_lies_where_its_sign_says_and_none_is_taken_for_another(tmp_path):
    offsets = [[-1, 0, 0], [0, -1, 0], [0, 0, -1], [4, 0, 0], [0, -9, 0], [0, 0, 27], [0, -3, -3]]
    with create_volume(tmp_path / "p.h5", (8, 4, 4, 4), np.float32, attributes={"offsets": offsets}) as out:
        out[...] = 0
    prediction = open_volume(tmp_path / "p.h5")
    assert pick_channels(prediction, ()) == ([0, 1, 2], [(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
    assert pick_channels(prediction, (3, 4, 5)) == ([3, 4, 5], [(1, 0, 0), (0, -1, 0), (0, 0, 1)])
    assert pick_channels(prediction, (0, 4, 5)) == ([0, 4, 5], [(-1, 0, 0), (0, -1, 0), (0, 0, 1)])
    for channels, sentence in (((5, 4, 3), r"channel 5 of .* which is not along z"), ((3, 6, 5), "is not along y"),
                               ((3, 4, 7), r"channel 7 of .* is not along x"), ((3, 4, 8), "three different channels"),
                               ((3, 4, -1), "three different channels"), ((3, 3, 5), "three different channels"),
                               ((3, 4), "three different channels")):
        with pytest.raises(InputError, match=sentence):
            pick_channels(prediction, channels)
