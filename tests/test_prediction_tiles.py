"""Prediction in tiles: the bits of all windows added up at once, in order, for whatever tiles; memory has a bound."""

import subprocess
import sys
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest
import torch

from emcore.data import sources
from emcore.data.augment import normalise
from emcore.data.sampler import read
from emcore.data.sources import open_source
from emcore.prediction import predict, tiles
from emcore.prediction.activation import PIECE, activate
from emcore.prediction.streaming import Job, as_given
from emcore.prediction.tiles import Task, tile_of
from emcore.prediction.windows import starts, touching, weights
from emcore.segment.affinities import encode_affinities
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.predict import Activation, Infer, Views
from emcore.volumes import open_volume
from emcore.volumes.blocks import attributes_joined
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
        for place in product(*(starts(n, w, job.infer.overlap) for n, w in zip(job.padded, job.window))):
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
def test_tiles_have_the_bits_of_all_windows_at_once(tmp_path, name):
    case = {"infer": Infer(), "data": Data(), "dtype": np.uint8, "offsets": None, "box": None} | CASES[name]
    random = np.random.default_rng(0)
    image = random.random(case["shape"]) if case["dtype"] == np.float32 else random.integers(0, 250, case["shape"])
    np.save(tmp_path / "raw.npy", image.astype(case["dtype"]))
    files = VolumeFiles(str(tmp_path / "raw.npy"), box=case["box"])
    options = dict(window=case["window"], data=case["data"], offsets=case["offsets"])
    infer = replace(case["infer"], tile=case["tile"])
    joined = predict(Blurred(), files, tmp_path / "out.h5", infer=infer, **options)
    plain = predict(Blurred(), files, tmp_path / "plain.h5", infer=case["infer"], **options)
    data = replace(case["data"], storage="lazy", normalise_by="volume")
    source, infer = open_source(data, files, "test"), replace(case["infer"], window=case["window"])
    net = Blurred()
    job = Job(net, source, infer, data, case["offsets"], as_given(net, source, infer, "fp32"))
    expected = at_once(job)
    assert attributes_joined(joined, "main").keys() - attributes_joined(plain, "main").keys() == {"tiles"}
    for path in (joined, plain):
        out = open_volume(path)
        assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
        assert np.array_equal(out[...].view(np.uint8), expected.view(np.uint8)), (
            path.name, np.argwhere(out[...] != expected)[:5])
    assert np.array_equal(predict(Blurred(), files, infer=case["infer"], **options), expected)


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


def test_small_volumes_are_one_tile():
    assert tile_of(SMALL) == SMALL.shape
    assert tile_of(SMALL._replace(infer=replace(SMALL.infer, tile=(50, 0, 5000)))) == (50, 1024, 1024)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("shape", [(1000, 8192, 8192), (40, 30_000, 30_000), (5000, 500, 500)])
def test_tiles_of_large_volumes_keep_to_the_memory_and_waste_little(name, shape):
    task = Task(shape, SIZES[name], 1, 12 if name == "many channels" else 3)
    tile = tile_of(task)
    assert task.memory(tile) <= tiles.MOST
    assert prod(tile) <= tiles.SMALL
    windows = [tiles.windows_in_all(places, window, length, 0, side) / len(places)
               for places, window, length, side in zip(task.lattice, task.infer.window, shape, tile)]
    assert prod(windows) < (2.2 if name == "many channels" else 1.5), (tile, windows)


CHILD = """
import resource, sys
import torch
from emcore.prediction import predict
from emcore.settings.predict import Infer
net = torch.nn.Conv3d(1, 3, 1).eval()
window, place = (8, 128, 128), sys.argv[1]
predict(net, f"{place}/small.npy", f"{place}/small.h5", window=window, infer=Infer(overlap=0.1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
predict(net, f"{place}/large.npy", f"{place}/large.h5", window=window, infer=Infer(overlap=0.1, tile=eval(sys.argv[2])))
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.long
def test_the_memory_of_a_process_stays_below_the_estimate(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((8, 128, 128), np.uint8))
    np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint8, (24, 1500, 1500))[:, ::7] = 9
    tile = (24, 1024, 1024)
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path),
                           str(tile)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    before, most = map(int, done.stdout.split()[-2:])
    task = Task((24, 1500, 1500), Infer(window=(8, 128, 128), overlap=0.1), 1, 3)
    assert most - before < task.memory(tile)


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
