"""What `inspect` says of files, for people and as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore.volumes import create_volume, open_volume
from emcore.volumes.inspect import central_box, inspect, text_of, values

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "emcore", "inspect", *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def cremi(tmp_path):
    path = tmp_path / "sample.hdf"
    with create_volume(f"{path}:volumes/raw", (20, 30, 40), "uint8", (40, 4, 4), chunks=(5, 10, 10)) as out:
        out[...] = (np.arange(24000).reshape(20, 30, 40) % 200).astype(np.uint8)
    labels = np.zeros((10, 15, 20), np.uint64)
    labels[:, 3:, :10], labels[:, 3:, 10:] = 7, 2**40
    with create_volume(f"{path}:volumes/labels/neuron_ids", labels.shape, "uint64", (40, 4, 4), (200, 20, 20)) as out:
        out[...] = labels
    with h5py.File(path, "a") as file:
        file["annotations/ids"] = np.arange(12)
        file["annotations/types"] = np.array([b"presynaptic_site"])
        file["empty"] = np.zeros((0, 3, 3), np.uint8)
    return path


def test_every_dataset_of_a_file_is_listed_with_its_facts_and_a_sample(cremi):
    report = inspect(str(cremi))
    assert report["format"] == "HDF5"
    entries = {entry["dataset"]: entry for entry in report["datasets"]}
    assert set(entries) == {"volumes/raw", "volumes/labels/neuron_ids", "annotations/ids", "annotations/types", "empty"}
    raw, labels = entries["volumes/raw"], entries["volumes/labels/neuron_ids"]
    assert (raw["shape"], raw["dtype"], raw["chunks"]) == ([20, 30, 40], "uint8", [5, 10, 10])
    assert raw["resolution"] == (40, 4, 4)
    assert raw["sample"] | {"mean": 0} == {"box": [[2, 18], [0, 30], [0, 40]], "min": 0, "max": 199, "mean": 0,
                                           "distinct": 199, "zeros": 96 / 19200}
    assert labels["offset"] == (200, 20, 20)
    assert (labels["sample"]["min"], labels["sample"]["max"]) == (0, 2**40)
    assert (labels["sample"]["distinct"], labels["sample"]["zeros"]) == (2, 0.2)
    assert "is empty" in entries["empty"]["error"]
    assert "sample" not in entries["annotations/ids"]
    assert [entry["dataset"] for entry in inspect(f"{cremi}:empty")["datasets"]] == ["empty"]


def test_the_text_says_what_a_person_asks(cremi):
    lines = text_of(inspect(str(cremi))).splitlines()
    assert lines[0] == f"{cremi}: HDF5"
    place = lines.index("  volumes/labels/neuron_ids  10 x 15 x 20 uint64, chunks 10 x 15 x 20")
    assert lines[place + 1] == "    resolution 40 x 4 x 4 nm (z, y, x), 0.4 x 0.06 x 0.08 um, offset 200 x 20 x 20 nm"
    assert lines[place + 2] == "    all voxels: 0 to 1099511627776, 2 labels, 20.0% background"
    assert "    central 16 x 30 x 40: 0 to 199, mean 99.5, 199 values besides 0, 0.5% zeros" in lines
    assert "  annotations/ids  12 int64" in lines


def test_json_holds_the_same_and_no_nan(cremi, tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 3, 4), np.nan, np.float32))
    (tmp_path / "a.npy.json").write_text('{"mean": NaN, "resolution": [1, 2, 3]}')
    done = command(cremi, tmp_path / "a.npy", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert first == json.loads(json.dumps(inspect(str(cremi))))
    assert second["datasets"][0]["attributes"] == {"mean": None}
    assert second["datasets"][0]["sample"]["not_finite"] == 24


def test_a_bad_file_does_not_hide_the_good_ones_and_the_exit_code_is_2(cremi, tmp_path):
    (tmp_path / "notes.h5").write_text("hello")
    for options in ((), ("--json",)):
        done = command(tmp_path / "notes.h5", cremi, tmp_path / "gone.h5", *options)
        assert done.returncode == 2
        assert "neuron_ids" in done.stdout
        assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "error"]
        assert "notes.h5 is not an HDF5 file" in done.stderr
    assert ["error" in entry for entry in json.loads(done.stdout)] == [True, False, True]


def test_scales_of_a_precomputed_folder_are_its_datasets(tmp_path):
    with create_volume(tmp_path / "a.precomputed", (3, 200, 300), "uint8", (40, 8, 8)) as out:
        out[...] = 5
    report = inspect(str(tmp_path / "a.precomputed"))
    assert report["format"] == "precomputed"
    assert [entry["dataset"] for entry in report["datasets"]] == ["8_8_40", "16_16_40"]
    assert report["datasets"][1]["shape"] == [3, 100, 150]


def test_a_sample_is_bounded_whatever_the_shape():
    for shape, itemsize in (((10**6,) * 3, 8), ((1, 1, 10**9), 4), ((5000, 3, 10**5, 10**5), 4), ((1, 1, 1), 1)):
        volume = open_volume(np.broadcast_to(np.zeros((), f"u{itemsize}"), shape))
        box = central_box(volume)
        voxels = np.prod([span.stop - span.start for span in box])
        assert 1 <= voxels * itemsize <= 32 << 20
        assert all(0 <= span.start < span.stop <= length for span, length in zip(box, shape))


def test_a_chunk_too_large_to_decode_is_said_and_not_read(tmp_path):
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("a", (1, 40_000, 40_000), "uint8", chunks=(1, 40_000, 40_000), compression="gzip")
    report = inspect(str(tmp_path / "bomb.h5"))
    assert "one chunk of (1, 40000, 40000) takes 1.60GB" in report["datasets"][0]["error"]


def test_values_count_what_is_there():
    assert values(np.array([0, 0, 5, 9, 9], np.int16)) == {"min": 0, "max": 9, "mean": 4.6, "distinct": 2, "zeros": 0.4}
    assert values(np.array([True, True]))["distinct"] == 1
    found = values(np.array([np.nan, 1, 3, np.inf], np.float16))
    assert (found["min"], found["max"], found["mean"], found["not_finite"]) == (1, 3, 2, 2)
    assert values(np.array([np.nan]))["min"] is None
    assert values(np.array([2**64 - 1], np.uint64))["max"] == 2**64 - 1


def test_names_in_a_file_do_not_steer_the_terminal(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["\x1b[2Jraw"] = np.zeros((2, 3, 4), np.uint8)
        file["\x1b[2Jraw"].attrs["\x07bell"] = "\x1b]0;title"
    text = text_of(inspect(str(tmp_path / "a.h5")))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\\x1b[2Jraw" in text
