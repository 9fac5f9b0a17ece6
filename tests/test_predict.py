"""Prediction: the same voxels whatever the windows, tiles, processes and kills; views that respect affinities."""

import json
import os
import signal
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from emcore.errors import InputError
from emcore.prediction import Output, predict
from emcore.prediction.windows import channel_plan, forward_view, inverse_view, starts, views_of, weights
from emcore.settings.data import Data
from emcore.settings.predict import Activation, Infer, Views
from emcore.volumes import open_volume
from tests.scripts import environment, server

RAW = Data(normalise="none")
PLAIN = (Activation(":", "none"),)


class Same(nn.Module):
    """The input, with a parameter so that it has a device."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale


class Blurred(nn.Module):
    """A small convolution: windows see borders, so blending matters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


class Neighbours(nn.Module):
    """Affinities straight from intensities: the same whichever way the volume is turned."""

    def __init__(self, offsets):
        super().__init__()
        self.offsets = offsets
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        channels = []
        for offset in self.offsets:
            moved = x.roll([-step for step in offset], (2, 3, 4))
            channels.append(torch.exp(-(x - moved).abs() * 3)[:, 0])
        return torch.stack(channels, 1) * self.scale


def volume(shape=(11, 20, 23)):
    return np.random.default_rng(0).random(shape).astype(np.float32)


def test_the_windows_are_those_of_the_published_recipes():
    assert len(starts(116, 16, 0.5)) * len(starts(1280, 224, 0.5)) ** 2 == 1694
    assert len(starts(125 + 0, 18, 0.5)) * len(starts(1314, 256, 0.5)) ** 2 == 1300
    assert starts(125, 18, 0.5)[-2:] == [99, 107] or starts(125, 18, 0.5)[-1] == 107
    assert starts(10, 16, 0.5) == [0]
    bump = weights((18, 1, 1), "bump").flatten()[:9]
    expected = [.018113, .191736, .41585, .605689, .750881, .857038, .930878, .977467, 1]
    assert bump.tolist() == pytest.approx(expected, abs=2e-6)
    assert weights((4, 1, 1), "bump").flatten().tolist() == pytest.approx([.594025, 1, 1, .594025], abs=1e-6)
    legacy = weights((8, 256, 256), "gaussian")
    assert legacy.sum().item() == pytest.approx(100189.479, rel=1e-5)
    for place, value in (((0, 0, 0), 0.00257875), ((0, 127, 127), 0.13542697), ((4, 64, 200), 0.30628157)):
        assert legacy[place].item() == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("blend", ["bump", "gaussian", "constant"])
def test_what_the_net_leaves_alone_comes_back(blend):
    image = volume()
    infer = Infer(blend=blend, activation=PLAIN, batch=3)
    out = predict(Same(), image, window=(4, 8, 8), data=RAW, infer=infer)
    np.testing.assert_allclose(out[0], image, atol=1e-6)


def test_a_volume_smaller_than_a_window_and_padding_are_mirrored_and_cut_off():
    image = volume((3, 5, 9))
    for pad in ((0, 0, 0), (2, 3, 4)):
        out = predict(Same(), image, window=(8, 8, 8), data=RAW, infer=Infer(pad=pad, activation=PLAIN))
        np.testing.assert_allclose(out[0], image, atol=1e-6)


def test_a_prediction_equals_all_windows_added_at_once():
    image, net = volume(), Blurred()
    infer = Infer(activation=(Activation("0:2", "sigmoid"), Activation("2", "tanh")), pad=(1, 2, 0))
    whole = predict(net, image, window=(4, 8, 8), data=RAW, infer=infer)
    padded = torch.from_numpy(np.pad(image, ((1, 1), (2, 2), (0, 0)), mode="reflect"))[None, None]
    sums, total, weight = torch.zeros(3, *padded.shape[2:]), torch.zeros(padded.shape[2:]), weights((4, 8, 8), "bump")
    with torch.no_grad():
        for z in starts(padded.shape[2], 4, 0.5):
            for y in starts(padded.shape[3], 8, 0.5):
                for x in starts(padded.shape[4], 8, 0.5):
                    box = slice(z, z + 4), slice(y, y + 8), slice(x, x + 8)
                    sums[(slice(None), *box)] += net(padded[(..., *box)])[0] * weight
                    total[box] += weight
    logits = (sums / total)[:, 1:-1, 2:-2]
    expected = torch.cat([logits[:2].sigmoid(), logits[2:].tanh()]).numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_all_views_are_different_and_go_back():
    assert len(views_of((0, 1, 2), False)) == 8
    assert len(views_of((0, 1, 2), True)) == 16
    assert views_of((), False) == [((), 0)]
    x = torch.rand(1, 2, 3, 4, 4)
    for view in views_of((0, 1, 2), True):
        assert torch.equal(inverse_view(forward_view(x, view), view), x)


OFFSETS = {"nearest": [(-1, 0, 0), (0, -1, 0), (0, 0, -1)], "earlier": [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
           "long": [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -3, 0), (0, 0, -3)]}


@pytest.mark.parametrize("name", OFFSETS)
@pytest.mark.parametrize("combine", ["mean", "min", "max"])
def test_affinities_of_a_net_that_does_not_care_for_directions_are_the_same_from_all_views(name, combine):
    image, offsets = volume((8, 12, 12)), OFFSETS[name]
    options = dict(window=(8, 12, 12), data=RAW, offsets=offsets)
    plain = predict(Neighbours(offsets), image, infer=Infer(activation=PLAIN), **options)
    turned = predict(Neighbours(offsets), image, infer=Infer(activation=PLAIN, views=Views((0, 1, 2), True, combine)),
                     **options)
    for channel, offset in enumerate(offsets):  # a patch wraps around at faces that have no neighbour
        inner = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(offset, image.shape))
        np.testing.assert_allclose(turned[(channel, *inner)], plain[(channel, *inner)], atol=1e-6)


def test_views_without_a_counterpart_for_a_channel_are_refused():
    assert channel_plan([(-1, 0, 0), (0, 0, -1)], 2, ((), 1)) is None
    with pytest.raises(InputError, match="needs a counterpart for every affinity channel"):
        predict(Neighbours([(0, 0, -1)]), volume(), window=(4, 8, 8), offsets=[(0, 0, -1)], data=RAW,
                infer=Infer(views=Views((), True)))
    with pytest.raises(InputError, match="needs square windows"):
        predict(Same(), volume(), window=(4, 8, 6), data=RAW, infer=Infer(views=Views((), True)))
    with pytest.raises(InputError, match="names channels that the net does not have: it has 1"):
        predict(Same(), volume(), window=(4, 8, 8), data=RAW, infer=Infer(select=(0, 1)))


@pytest.mark.parametrize("tile", [None, (5, 0, 12)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "affinity8"])
def test_files_say_what_they_hold(tmp_path, dtype, tile):
    with h5py.File(tmp_path / "raw.h5", "w") as f:
        raw = f.create_dataset("main", data=(volume() * 255).astype(np.uint8))
        raw.attrs["resolution"] = (40, 4, 4)
        raw.attrs["offset"] = (80, 0, 0)
    offsets = OFFSETS["nearest"]
    infer = Infer(dtype=dtype, tile=tile, select=(2, 0), activation=PLAIN)
    path = predict(Neighbours(offsets), str(tmp_path / "raw.h5"), Output(tmp_path / "out.h5", {"step": 7}),
                   window=(4, 8, 8), offsets=offsets, infer=infer)
    out = open_volume(path)
    assert out.shape == (2, 11, 20, 23)
    assert out.dtype == np.dtype({"affinity8": "uint8"}.get(dtype, dtype))
    assert out.attrs["offsets"] == [[0, 0, -1], [-1, 0, 0]]
    assert out.attrs["step"] == 7
    kept = json.loads((tmp_path / "out.speed.json").read_text())  # not in the file itself, which is the same each time
    assert kept["step"] == 7
    assert 0 < kept["seconds"] < 100
    assert out.resolution == (40, 4, 4)
    assert out.offset == (80, 0, 0)
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "raw.h5", "out.h5", "out.speed.json"} | ({"out.blocks"} if tile else set())
    values = predict(Neighbours(offsets), str(tmp_path / "raw.h5"), window=(4, 8, 8), offsets=offsets,
                     infer=Infer(select=(2, 0), activation=PLAIN))
    if dtype == "affinity8":
        table = np.array(out.attrs["affinity_table"], np.float32)
        assert np.abs(table[out[...]] - values).max() < 0.05
    else:
        scale = 255 if dtype == "uint8" else 1
        np.testing.assert_allclose(out[...].astype(np.float32) / scale, values, atol=2e-3)


class Slow(Blurred):
    """One that takes some seconds for each window, so that it can be killed in the middle."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return super().forward(x)


def predict_slowly(place, out, seconds, tile, variables):
    """Predicts raw.h5 of a folder in a process of its own."""
    os.chdir(place)
    os.environ.clear()
    os.environ.update(variables)
    predict(Slow(seconds), "raw.h5", out, window=(8, 16, 16), infer=Infer(tile=tile))


def tiles_in(folder):
    return list(folder.glob("tiles-*/*/*.h5"))


@pytest.mark.long
def test_a_prediction_killed_again_and_again_or_shared_ends_with_the_same_bytes(tmp_path):
    with h5py.File(tmp_path / "raw.h5", "w") as f:
        f["main"] = (volume((24, 40, 40)) * 255).astype(np.uint8)

    def start(out, sleep=0.002, tile=(8, 20, 40), **more):
        process = server().Process(target=predict_slowly, args=(str(tmp_path), out, sleep, tile, environment() | more))
        process.start()
        return process

    def ended(process):
        process.join(100)
        return process.exitcode

    assert ended(start("whole.h5", 0, None)) == 0
    for _ in range(3):
        process = start("killed.h5", 0.02)
        deadline, folder = time.monotonic() + 60, tmp_path / "killed.blocks"
        before = len(tiles_in(folder))
        while time.monotonic() < deadline and len(tiles_in(folder)) < before + 1:
            time.sleep(0.02)
        assert not (tmp_path / "killed.h5").exists()
        process.kill()
        assert ended(process) == -signal.SIGKILL
    assert ended(start("killed.h5", 0)) == 0
    shared = [start("shared.h5", WORLD_SIZE="2", RANK=str(rank)) for rank in range(2)]
    shared += [start("both.h5", tile=None, WORLD_SIZE="2", RANK=str(rank)) for rank in range(2)]  # into one plain file
    assert [ended(process) for process in shared] == [0, 0, 0, 0]
    expected = open_volume(tmp_path / "whole.h5")[...]
    assert np.array_equal(open_volume(tmp_path / "both.h5")[...], expected)
    assert not (tmp_path / "both.blocks").exists()
    for name in ("killed", "shared"):
        assert np.array_equal(open_volume(tmp_path / f"{name}.h5")[...], expected)
        assert json.loads((tmp_path / f"{name}.speed.json").read_text())["seconds"] > 0
        assert {entry.suffix for entry in (tmp_path / f"{name}.blocks").rglob("*") if entry.is_file()} == {".h5"}
    names = {entry.name.partition(".")[0] for entry in tmp_path.iterdir()}
    assert names == {"raw", "whole", "killed", "shared", "both"}


def blurring(folder, tile=(4, 20, 20)):
    """What predicts a small volume into out.h5 of the folder, in three tiles."""
    np.save(folder / "raw.npy", (volume((12, 20, 20)) * 255).astype(np.uint8))
    return lambda: predict(Blurred(), str(folder / "raw.npy"), Output(folder / "out.h5", {}, replaces=False),
                           window=(4, 8, 8), infer=Infer(tile=tile))


@pytest.mark.parametrize("tile", [(4, 20, 20), None])
@pytest.mark.parametrize("moment", ["before the plan", "before the work", "after the work", "before the start"])
def test_a_process_that_comes_second_finds_the_work_done_and_does_none_of_it(tmp_path, monkeypatch, moment, tile):
    from emcore.prediction import begun, streaming, tiles

    work = blurring(tmp_path, tile)
    real, calls = {"begin": begun.begin, "carry_out": tiles.carry_out, "Job": streaming.Job}, []
    pieces = streaming.Job.pieces

    def other_process_does_all():
        """Its calls are counted where this process is done, else only those that this process makes after it."""
        with monkeypatch.context() as plain:
            plain.setattr(begun, "begin", real["begin"])
            plain.setattr(tiles, "carry_out", real["carry_out"])
            plain.setattr(streaming, "Job", real["Job"])
            work()
        if moment != "after the work":
            calls.clear()

    def begin(*arguments):
        if moment == "before the plan":
            other_process_does_all()
        return real["begin"](*arguments)

    def carry_out(*arguments):
        if moment == "before the work":
            other_process_does_all()
        real["carry_out"](*arguments)
        if moment == "after the work":
            calls.clear()
            other_process_does_all()

    def job(*arguments):
        if moment == "before the start":
            other_process_does_all()
        return real["Job"](*arguments)

    def counted(self, box):
        calls.append(box)
        return pieces(self, box)

    monkeypatch.setattr(begun, "begin", begin)
    monkeypatch.setattr(tiles, "carry_out", carry_out)
    monkeypatch.setattr(streaming, "Job", job)
    monkeypatch.setattr(real["Job"], "pieces", counted)
    assert work() == tmp_path / "out.h5"
    assert open_volume(tmp_path / "out.h5").shape == (3, 12, 20, 20)
    assert not calls
    left = {entry.name for entry in tmp_path.iterdir()}
    assert left == {"raw.npy", "out.h5", "out.speed.json"} | ({"out.blocks"} if tile else set())
    assert {entry.suffix for entry in tmp_path.rglob("out.blocks/*/*/*")} <= {".h5"}


def test_where_files_cannot_be_locked_predictions_work_all_the_same(tmp_path, monkeypatch):
    work = blurring(tmp_path)

    def no_locks(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert open_volume(work()).shape == (3, 12, 20, 20)


def test_another_prediction_takes_the_place_of_one_that_is_there(tmp_path):
    image = (volume((8, 16, 16)) * 255).astype(np.uint8)
    for number, tile in enumerate(((4, 16, 16), (4, 16, 16), None, (4, 8, 16))):
        net = Blurred()
        with torch.no_grad():
            net.conv.bias += number
        out = predict(net, image, tmp_path / "out.h5", window=(4, 8, 8), infer=Infer(tile=tile))
        assert np.array_equal(open_volume(out)[...], predict(net, image, window=(4, 8, 8)))
        assert len(list(tmp_path.rglob("out.blocks/*/*/*"))) == {None: 0, (4, 16, 16): 2, (4, 8, 16): 4}[tile]


def test_a_checkpoint_of_another_config_and_a_full_disk_are_told(tmp_path, monkeypatch):
    net, image = torch.nn.Conv3d(1, 2, 1).eval(), np.zeros((8, 16, 16), np.uint8)
    with pytest.raises(InputError, match="predicts 2 channels, but the config has 3 affinity offsets"):
        predict(net, image, window=(4, 8, 8), offsets=[(-1, 0, 0), (0, -1, 0), (0, 0, -1)])
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = image
    out = tmp_path / "a_prediction.h5"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    for tile in ((4, 16, 16), None):
        infer = Infer(tile=tile)
        with monkeypatch.context() as patched:
            patched.setattr("emcore.files.os.fsync", full)
            with pytest.raises(InputError, match="the disk is full; make room and run the same command again"):
                predict(net, str(tmp_path / "raw.h5"), out, window=(4, 8, 8), infer=infer)
        assert not out.exists()
        predict(net, str(tmp_path / "raw.h5"), out, window=(4, 8, 8), infer=infer)
        assert out.exists()
        out.unlink()


@pytest.mark.parametrize("wrong, told", [
    (dict(arithmetic="bf17"), "arithmetic must be one of fp32, bf16, fp16; got 'bf17'"),
    (dict(arithmetic="FP32"), "arithmetic must be one of"),
    (dict(window=(8, 8)), "window must be three lengths above 0"),
    (dict(window=(0, 8, 8)), "window must be three lengths above 0"),
    (dict(volume=np.zeros((2, 8, 16, 16), np.uint8)), r"net cannot take windows of 2 channels and \[4, 8, 8\] voxels"),
])
def test_what_does_not_fit_is_told_in_one_sentence(wrong, told):
    given = dict(volume=np.zeros((8, 16, 16), np.uint8), window=(4, 8, 8)) | wrong
    with pytest.raises(InputError, match=told):
        predict(torch.nn.Conv3d(1, 2, 1).eval(), **given)


def test_a_compiler_that_stumbles_costs_nothing_but_the_speed(monkeypatch, capsys):
    def stumbling(model, dynamic):
        def run(x):
            raise RuntimeError("no compiler here\nand much more")
        return run

    image = np.random.default_rng(0).integers(0, 255, (6, 20, 20)).astype(np.uint8)
    infer = Infer(activation=PLAIN, compile="off")
    expected = predict(Blurred(), image, window=(4, 12, 12), infer=infer, data=RAW)
    monkeypatch.setattr(torch, "compile", stumbling)
    found = predict(Blurred(), image, window=(4, 12, 12), infer=replace(infer, compile="on"), data=RAW)
    assert np.array_equal(found, expected)
    assert "not compiled: no compiler here\n" in capsys.readouterr().out
