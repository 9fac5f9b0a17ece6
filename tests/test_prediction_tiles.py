"""Prediction in tiles: the bits of all windows added up at once, in order, for whatever tiles; memory has a bound."""

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from emcore.blocks.grid import Grid
from emcore.data import sources
from emcore.data.augment import normalise
from emcore.data.sampler import read
from emcore.data.sources import open_source
from emcore.errors import InputError
from emcore.prediction import predict, tiles
from emcore.prediction.activation import PIECE, activate
from emcore.prediction.begun import Way
from emcore.prediction.streaming import Job, Output, as_given
from emcore.prediction.tiles import Task, tile_of, way_of
from emcore.prediction.windows import starts, touching, weights
from emcore.record import differences
from emcore.segment.affinities import encode_affinities
from emcore.settings import Settings
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.predict import Activation, Infer, Views
from emcore.volumes import create_volume, open_volume
from emcore.volumes.blocks import attributes_joined
from emcore.volumes.hdf5_virtual import MOST_PARTS
from tests.test_kills import ROOT
from tests.test_predict import Blurred

AFFINITIES = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
EACH = (Activation("0", "sigmoid"), Activation("1", "tanh"), Activation("2", "none"))
ODD = dict(shape=(9, 15, 17), window=(4, 8, 8), tile=(5, 9, 7))
CASES = {
    "one voxel thick tiles": dict(ODD, shape=(5, 8, 9), tile=(1, 8, 5)),
    "sections": dict(ODD, tile=(3, 0, 0), infer=Infer(blend="gaussian")),
    "columns": dict(ODD, tile=(0, 6, 5), infer=Infer(blend="constant", dtype="float16")),
    "mirrored all around": dict(ODD, infer=Infer(pad=(1, 2, 3), activation=EACH), data=Data(normalise="score")),
    "a pad wider than a window": dict(ODD, tile=(4, 8, 8), infer=Infer(pad=(6, 9, 10), select=(2, 0))),
    "smaller than a window": dict(shape=(3, 5, 9), window=(8, 8, 8), tile=(2, 3, 4), infer=Infer(pad=(0, 2, 0))),
    "little overlap": dict(ODD, infer=Infer(overlap=0.1, dtype="uint8"), data=Data(normalise="divide", divide=200.0)),
    "an overlap for each axis": dict(ODD, infer=Infer(overlap=(0.25, 0.6, 0.0))),
    "much overlap": dict(ODD, shape=(5, 9, 10), infer=Infer(overlap=0.8, activation=(Activation(":", "softmax"),))),
    "eight bits for affinities": dict(ODD, infer=Infer(dtype="affinity8", select=(1, 2)), dtype=np.uint16),
    "views": dict(ODD, shape=(5, 8, 12), infer=Infer(views=Views((2,), True, "mean")), offsets=AFFINITIES),
    "the least of all views": dict(ODD, shape=(5, 12, 9), infer=Infer(views=Views((1,), False, "min")),
                                   offsets=AFFINITIES, dtype=np.float32),
    "a box of the image": dict(ODD, box=(2, 8, 1, 14, 3, 16), data=Data(normalise="range", percentiles=(2.0, 98.0))),
}


def alone(function, values):
    """A function of (channel, voxel) values, every voxel by itself in registers of its own."""
    return function(values[..., None].expand(*values.shape, 64).contiguous())[..., 0]


def at_once(job):
    """The prediction of a job by its definition: every window in order into sums of the whole volume."""
    sizes = [max(length, window) for length, window in zip(job.padded, job.window)]
    first = [low - pad for (low, _), pad in zip(job.source.box, job.infer.pad)]
    image = read(job.source, "image", [(low, low + size) for low, size in zip(first, sizes)])
    image = torch.from_numpy(image.astype(np.float32) if image.dtype != np.uint8 else image)[None, None]
    weight, sums, total = weights(job.window, job.infer.blend), torch.zeros(job.count, *sizes), torch.zeros(sizes)
    with torch.inference_mode():
        for place in product(*(starts(n, w, share) for n, w, share in zip(job.padded, job.window, job.infer.overlaps))):
            box = tuple(slice(at, at + side) for at, side in zip(place, job.window))
            window = normalise(image[(..., *box)], torch.tensor([job.source.statistics]), job.data)
            sums[(slice(None), *box)].addcmul_(job._windows(window)[0], weight)
            total[box] += weight
    inner = tuple(slice(pad, pad + length) for pad, length in zip(job.infer.pad, job.shape))
    values = sums[(slice(None), *inner)] / total[inner]
    if len(job.views) == 1:
        flat, made = values.flatten(1), values.flatten(1).clone()
        for channels, kind in job.activations:
            made[channels] = {"sigmoid": lambda part: alone(torch.sigmoid, part), "none": lambda part: part,
                              "tanh": lambda part: alone(torch.tanh, part),
                              "softmax": lambda part: alone(lambda one: one.softmax(0), part)}[kind](flat[channels])
        values = made.view(values.shape)
    values = values[job.channels]
    if job.infer.dtype == "affinity8":
        return encode_affinities(np.clip(values.numpy(), 0, 1))[0]
    if job.infer.dtype == "uint8":
        return (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return values.numpy().astype(job.infer.dtype)


@pytest.mark.parametrize("name", CASES)
def test_tiles_have_the_bits_of_all_windows_at_once(tmp_path, monkeypatch, name):
    case = {"infer": Infer(), "data": Data(), "dtype": np.uint8, "offsets": None, "box": None} | CASES[name]
    random = np.random.default_rng(0)
    image = random.random(case["shape"]) if case["dtype"] == np.float32 else random.integers(0, 250, case["shape"])
    np.save(tmp_path / "raw.npy", image.astype(case["dtype"]))
    files = VolumeFiles(str(tmp_path / "raw.npy"), box=case["box"])
    options = dict(window=case["window"], data=case["data"], offsets=case["offsets"])
    infer = replace(case["infer"], tile=case["tile"])
    joined = predict(Blurred(), files, tmp_path / "out.h5", infer=infer, **options)
    monkeypatch.setattr(tiles, "PART_VOXELS", 100)
    in_parts = predict(Blurred(), files, tmp_path / "parts.h5", infer=infer, **options)
    assert len(list(tmp_path.glob("parts.blocks/*/*/*"))) >= len(list(tmp_path.glob("out.blocks/*/*/*")))
    plain = predict(Blurred(), files, tmp_path / "plain.h5", infer=case["infer"], **options)
    data = replace(case["data"], storage="lazy", normalise_by="volume")
    source, infer = open_source(data, files, "test"), replace(case["infer"], window=case["window"])
    net = Blurred()
    job = Job(net, source, infer, data, case["offsets"], as_given(net, source, infer, "fp32"))
    expected = at_once(job)
    assert attributes_joined(joined, "main").keys() - attributes_joined(plain, "main").keys() == {"tiles"}
    for path in (joined, in_parts, plain):
        out = open_volume(path)
        assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
        assert np.array_equal(out[...].view(np.uint8), expected.view(np.uint8)), (
            path.name, np.argwhere(out[...] != expected)[:5])
    assert np.array_equal(predict(Blurred(), files, infer=case["infer"], **options), expected)


class Counted(Blurred):
    """A net that counts its windows, and is interrupted at one of them."""

    def __init__(self, end=None):
        super().__init__()
        self.end, self.count = end, 0

    def forward(self, x):
        self.count += x.is_cpu
        if self.count == self.end:
            raise KeyboardInterrupt
        return super().forward(x)


def predicted(net, folder, tile=None):
    """24 sections; windows begin at 0, 3, 6, 9, 12, 15, 18 and 20: three in each of these rows, or two in each tile."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "raw.npy", np.random.default_rng(0).integers(0, 250, (24, 16, 16)).astype(np.uint8))
    return predict(net, str(folder / "raw.npy"), Output(folder / "out.h5", {}, replaces=False), window=(4, 8, 16),
                   infer=Infer(tile=tile, overlap=0.25))


@pytest.fixture(params=[None, (0, 8, 0)], ids=["one tile", "two tiles"])
def tile(request, monkeypatch):
    """A tile of parts of four sections."""
    monkeypatch.setattr(tiles, "PART_VOXELS", 4 * 16 * (8 if request.param else 16))
    return request.param


def test_what_a_kill_loses_is_a_part_and_the_windows_that_reach_into_it(tmp_path, tile):
    row, others = (2, 8 * 2) if tile else (3, 0)  # windows of a row, and those of tiles that come later
    for sections, end, again in ((12, 4 * row + 1, 5 * row), (4, 3 * row, 7 * row), (0, 1, 8 * row)):
        place, net, last = tmp_path / f"{sections}", Counted(end), Counted()
        with pytest.raises(KeyboardInterrupt):
            predicted(net, place, tile)
        done = {path: path.stat().st_mtime_ns for path in place.glob("out.blocks/tiles-*/*/*.h5")}
        assert len(done) == sections // 4
        out = predicted(last, place, tile)
        assert last.count == again + others
        if tile:
            assert {path: path.stat().st_mtime_ns for path in done} == done
        assert np.array_equal(open_volume(out)[...], open_volume(predicted(Blurred(), tmp_path / "whole"))[...])


def test_damaged_and_missing_parts_of_a_tile_are_made_again_alone(tmp_path, monkeypatch, capsys, tile):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tiles.PredictionWork, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            predicted(Blurred(), tmp_path, tile)
    parts = sorted(tmp_path.glob("out.blocks/tiles-*/*/*.h5"))
    assert len(parts) == (12 if tile else 6)
    contents = [path.read_bytes() for path in parts]
    parts[1].unlink()
    parts[4].write_bytes(contents[4][:-100])
    made, write = [], tiles.write_block
    with monkeypatch.context() as patched:
        patched.setattr(tiles, "write_block", lambda path, values: (made.append(path), write(path, values)))
        out = predicted(Blurred(), tmp_path, tile)
    assert made == [parts[1], parts[4]]
    assert f"note: {parts[4]} is damaged; it is made again" in capsys.readouterr().out
    if tile:
        assert [path.read_bytes() for path in parts] == contents
    assert np.array_equal(open_volume(out)[...], open_volume(predicted(Blurred(), tmp_path / "other"))[...])


def test_the_net_goes_on_while_a_part_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "PART_VOXELS", 4 * 16 * 16)
    writes, goes_on, write = threading.Event(), threading.Event(), tiles.write_block

    class Third(Counted):
        def forward(self, x):
            values = super().forward(x)
            if self.count == 7:  # the first window of the third row, which no voxel of the first part is in
                assert writes.wait(60)
                goes_on.set()
            return values

    def slow(path, values):
        writes.set()
        assert goes_on.wait(60)
        write(path, values)

    monkeypatch.setattr(tiles, "write_block", slow)
    assert open_volume(predicted(Third(), tmp_path)).shape == (3, 24, 16, 16)


def test_after_a_part_that_could_not_be_written_none_is(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "PART_VOXELS", 4 * 16 * 16)
    made = []

    def full(path, values):
        made.append(path.name)
        raise InputError(f"cannot write {path}: the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(tiles, "write_block", full)
        with pytest.raises(InputError, match=r"000000\.h5: the disk is full"):
            predicted(Blurred(), tmp_path)
    assert made == ["000000.h5"]
    assert np.array_equal(open_volume(predicted(Blurred(), tmp_path))[...],
                          open_volume(predicted(Blurred(), tmp_path / "other"))[...])


@pytest.mark.parametrize("change", [{"tile": [4, 8]}, {"part": [4, 0, 16]}, {"joined": 1}, {"part": [3, 16, 16]},
                                    {"shape": [24, 16, "16"]}, {"part": [4, 8, 16]}, {"plan": 3}])
def test_a_damaged_plan_is_told(tmp_path, change):
    folder = tmp_path / "out.blocks"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(
        {"shape": [24, 16, 16], "tile": [8, 16, 16], "part": [4, 16, 16], "joined": False, "plan": {}} | change))
    with pytest.raises(InputError, match=re.escape(f"{folder / 'plan.json'} cannot be read")):
        predicted(Blurred(), tmp_path)


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "softmax"])
def test_a_value_depends_on_its_logits_alone(kind):
    """Threads and lengths decide which values a processor computes by other instructions."""
    logits = torch.randn(2, 3, 7, 61, 131, generator=torch.Generator().manual_seed(0)) * 4
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(activate(logits, [(slice(0, 3), kind)]))
            found.append(torch.cat([activate(part, [(slice(0, 3), kind)]) for part in logits.split([1, 2, 4], 2)], 2))
            found.append(torch.cat([activate(part, [(slice(0, 3), kind)]) for part in logits.split([100, 31], 4)], 4))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found[1:])
    expected = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "softmax": lambda x: x.softmax(1)}[kind](logits.double())
    assert (found[0] - expected).abs().max() < 1e-6
    assert logits[0, 0].numel() > 2 * PIECE


def test_windows_that_touch_are_those_that_share_voxels():
    for window, overlap, length in product((1, 4, 7), (0.0, 0.5, 0.9), (3, 12, 20)):
        places = starts(length, window, overlap)
        for low in range(length):
            for high in range(low + 1, length + 1):
                assert list(touching(places, window, low, high)) == [
                    place for place in places if set(range(place, place + window)) & set(range(low, high))]


SMALL = Task((100, 1024, 1024), Infer(window=(16, 224, 224), dtype="uint8"), 1, 3)
SIZES = {"eight thousand wide": replace(SMALL.infer, window=(18, 256, 256), dtype="float32"),
         "many channels": replace(SMALL.infer, window=(32, 160, 160), dtype="float32"),
         "flat windows": replace(SMALL.infer, window=(1, 512, 512))}


def test_a_tile_ends_with_a_part_and_of_small_volumes_there_is_one():
    assert tile_of(SMALL) == SMALL.shape
    asked = SMALL._replace(infer=replace(SMALL.infer, tile=(51, 0, 5000)))
    assert tile_of(asked) == (52, 1024, 1024)
    assert asked.sections((52, 1024, 1024)) == 13
    assert way_of(asked, Path("out.h5"), 1) == (asked.shape, (52, 1024, 1024), (13, 1024, 1024), True)


@pytest.mark.parametrize("shape", [(7, 5, 4), (13, 1, 9), (12, 6, 6)])
@pytest.mark.parametrize("tile, part", [((6, 3, 2), 2), ((6, 9, 2), 6), ((20, 4, 9), 3), ((1, 2, 3), 1)])
def test_every_part_belongs_to_one_tile_and_lies_in_it(shape, tile, part):
    tile = tuple(map(min, shape, tile))
    way = Way(shape, tile, (min(part, tile[0]), *tile[1:]), True)
    numbers = [(tile, number) for tile in range(way.tiles.blocks()) for number in way.parts_of(tile)]
    assert sorted(number for _, number in numbers) == list(range(way.parts.blocks()))
    assert len({way.name_of(number) for _, number in numbers}) == len(numbers)
    for tile, number in numbers:
        assert way.tile_of(number) == tile
        assert all(outer.start <= inner.start < inner.stop <= outer.stop
                   for inner, outer in zip(way.parts.box(number), way.tiles.box(tile)))
    for tile in range(way.tiles.blocks()):
        assert set(np.diff(way.parts_of(tile)).tolist()) <= {way.step}


@pytest.mark.parametrize("shape", [(100, 1024, 1024), (1000, 4096, 4096), (3000, 700, 700)])
@pytest.mark.parametrize("processes", [2, 4, 7, 100])
def test_several_processes_share_the_work_evenly_and_compute_few_windows_twice(shape, processes):
    task, computed = SMALL._replace(shape=shape), []
    for count in (1, processes):
        tile = tile_of(task, count)
        along = [tiles.windows_along(places, window, length, 0, side) for places, window, length, side
                 in zip(task.lattice, task.infer.window, shape, tile)]
        computed.append(sorted((prod(each) for each in product(*along)), reverse=True))
    alone, shared = computed
    assert sum(shared) <= 1.25 * sum(alone)
    busiest = max(sum(shared[rank::processes]) for rank in range(processes))
    assert busiest < (0.66 if processes < 4 else 0.4) * sum(alone)


def test_a_very_large_volume_has_no_more_parts_than_one_file_may_read():
    task = Task((8000, 16_000, 16_000), Infer(window=(16, 224, 224), dtype="uint8"), 1, 3)
    tile = tile_of(task)
    assert Grid(task.shape, (task.sections(tile), *tile[1:])).blocks() < MOST_PARTS
    assert task.memory(tile) <= tiles.MOST


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("shape", [(1000, 8192, 8192), (40, 30_000, 30_000), (5000, 500, 500)])
def test_tiles_of_large_volumes_keep_to_the_memory_and_waste_little(name, shape):
    task = Task(shape, SIZES[name], 1, 12 if name == "many channels" else 3)
    tile = tile_of(task)
    assert task.memory(tile) <= tiles.MOST
    assert task.sections(tile) == 1 or task.sections(tile) * prod(tile[1:]) <= tiles.PART_VOXELS
    windows = [sum(tiles.windows_along(places, window, length, 0, side)) / len(places)
               for places, window, length, side in zip(task.lattice, task.infer.window, shape, tile)]
    assert prod(windows) < 1.25, (tile, windows)


@pytest.mark.parametrize("made, asked, told", [
    ([640, 700], None, None), ([640, 700], (64, 0, 0), None), ([640, 700], (64, 640, 5000), None),
    ([640, 700], (64, 320, 0), "infer.tile was [640, 700] along y and x, is [320, 0]"),
    (None, (64, 0, 700), None), (None, (64, 0, 350), "infer.tile was [800, 700] along y and x, is [0, 350]")])
def test_on_a_gpu_other_sides_of_a_tile_are_another_prediction_as_they_decide_what_is_batched(made, asked, told):
    volume = {"image": "a.h5", "shape": [100, 800, 700], "box": None, "dtype": "uint8", "stamp": "1"}
    wanted = {"weights": {"digest": "0"}, "settings": {}, "volume": volume}
    for device in ("cuda", "cpu"):
        stored = {**wanted, "arithmetic": {"device": device, "batch": 0} | ({"tile": made} if made else {})}
        found = differences(stored, wanted, Settings("run", infer=Infer(tile=asked)))
        assert found == ([told] if told and device == "cuda" else [])


DEEP = Infer(window=(18, 256, 256), overlap=0.2, dtype="uint8")
CHILD = """
import resource, sys
import torch
from emcore.prediction import predict
from tests.test_prediction_tiles import DEEP
torch.set_num_threads(1)
net, place = torch.nn.Conv3d(1, 3, 1).eval(), sys.argv[1]
for name in ("small", "large"):
    predict(net, f"{place}/{name}.h5", f"{place}/{name}_out.h5", window=DEEP.window, infer=DEEP)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.long
@pytest.mark.parametrize("side", [2048, 4096])
def test_the_memory_of_a_process_stays_below_the_estimate_and_does_not_grow_with_the_section(tmp_path, side):
    shape = (20, side, side)
    for name, size in (("small", (18, 256, 256)), ("large", shape)):
        with create_volume(tmp_path / f"{name}.h5", size, "uint8") as out:
            out[:] = 9
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    before, most = (int(line) for line in done.stdout.splitlines() if line.isdigit())
    print(f"{side} x {side}: {(most - before) / 1e9:.2f} GB besides the net")
    task = Task(shape, DEEP, 1, 3)
    assert most - before < task.memory(tile_of(task)) <= tiles.MOST


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_statistics_of_a_large_section_are_counted_in_strips_to_the_same_bits(monkeypatch, dtype):
    random = np.random.default_rng(0)
    box = ((1, 7), (2, 40), (3, 50))
    for number in range(20):
        image = (random.random((8, 41, 52)) ** 3 * (number * 12 + 1)).astype(dtype)
        low, high = np.sort(random.random(2) * 100).tolist()
        for data in (Data(), Data(percentiles=(low, high)), Data(percentiles=(0.0, 100.0)), Data(normalise="score")):
            data = replace(data, normalise_by="volume")
            whole = sources.statistics_of(data, open_volume(image), box)
            with monkeypatch.context() as patched:
                patched.setattr(sources, "LARGEST_SECTION", 1)
                patched.setattr(sources, "SAMPLED", 3000)  # strips, and every fourth section
                every = -(-6 * 38 * 47 // 3000)
                found = sources.statistics_of(data, open_volume(image), box)
            chosen = sources.scale_of(image[1:7:every, 2:40, 3:50].ravel().astype(np.float64), data.normalise,
                                      data.percentiles, "")
            if data.normalise == "score":
                assert found == pytest.approx(chosen, rel=1e-12)
            else:
                assert found == chosen
            assert whole == sources.scale_of(image[1:7, 2:40, 3:50].ravel().astype(np.float64), data.normalise,
                                             data.percentiles, "")


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_a_volume_much_smaller_than_a_window_is_one_tile(overlap):
    for side in (1, 13, 31, 50):
        task = Task((40, side, 64), Infer(window=(40, 256, 64), overlap=overlap), 1, 9)
        assert tile_of(task)[1] == side
