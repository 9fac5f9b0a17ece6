"""Copies between formats: bit-equal, within bounded memory, and what is refused."""

import ctypes
import math
import os
import resource
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest

from bench.convert import check_round_trip
from emcore.errors import InputError
from emcore.volumes import create_volume, open_volume
from emcore.volumes.convert import blocks, convert, main, recast, touches
from emcore.volumes.fetched import fetching, part_of

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "emcore", *map(str, arguments)], cwd=ROOT, capture_output=True,
                          text=True, timeout=120, check=False, **options)


def refused(text, *arguments, **options):
    """Runs a command that must end with exit code 2 and one sentence that holds the text."""
    done = command(*arguments, **options)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr, done.stderr
    assert done.stdout == ""


@pytest.fixture
def source(tmp_path):
    random = np.random.default_rng(0)
    attributes = {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]], "made_by": "a test"}
    with create_volume(tmp_path / "a.h5:raw", (21, 33, 45), "uint16", (40, 4.5, 4), (400, 45, 8), attributes) as out:
        out[...] = random.integers(0, 65536, (21, 33, 45), dtype=np.uint16)
    return open_volume(tmp_path / "a.h5:raw")


def agree(one, other):
    np.testing.assert_array_equal(one[...], other[...])
    assert (one.dtype, one.resolution, one.offset) == (other.dtype, other.resolution, other.offset)


FORMATS = ["b.h5", "b.h5:deep/er", "b.npy", "b.tif", "b.zarr", "b.precomputed"]


@pytest.mark.parametrize("middle", FORMATS)
def test_every_format_gives_back_voxels_grid_and_attributes(tmp_path, source, middle):
    if middle.endswith((".tif", ".zarr")):
        pytest.importorskip({"f": "tifffile", "r": "zarr"}[middle[-1]], reason="the extra is not installed")
    convert(source, f"{tmp_path}/{middle}")
    there = open_volume(f"{tmp_path}/{middle}")
    agree(there, source)
    convert(there, f"{tmp_path}/c.h5")
    back = open_volume(f"{tmp_path}/c.h5")
    agree(back, source)
    assert {"offsets": source.attrs["offsets"], "made_by": "a test"}.items() <= back.attrs.items()
    assert not [item for item in tmp_path.rglob("*") if ".partial" in item.name]


@pytest.mark.parametrize("middle", ["b.npy", "b.precomputed", "b.h5", "b.zarr"])
def test_affinities_keep_their_channels(tmp_path, middle):
    if middle == "b.zarr":
        pytest.importorskip("zarr", reason="the extra is not installed")
    affinities = np.random.default_rng(1).random((3, 5, 6, 7), np.float32)
    convert(open_volume(affinities), f"{tmp_path}/{middle}", chunks=(2, 4, 4))
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/{middle}")[...], affinities)


def test_blocks_cover_every_voxel_once_and_stay_within_the_limit():
    random = np.random.default_rng(2)
    for _ in range(400):
        ndim = int(random.integers(3, 5))
        shape = random.integers(1, 30, ndim).tolist()
        source, target = (None if random.random() < 0.2 else random.integers(1, 12, ndim).tolist() for _ in range(2))
        voxels = int(random.integers(1, 3000))
        count = np.zeros(shape, int)
        for box in blocks(shape, source, target, voxels):
            count[box] += 1
            size = math.prod(span.stop - span.start for span in box)
            chunk = [math.prod(map(min, chunks or (1,) * ndim, shape)) for chunks in (source, target)]
            assert size <= max(voxels, *chunk)
        assert (count == 1).all()


def test_chunks_of_both_sides_are_touched_once_where_memory_allows():
    def cost(shape, source, target, voxels):
        box = next(iter(blocks(shape, source, target, voxels)))
        size = [span.stop for span in box]
        return touches(shape, size, source), touches(shape, size, target)

    assert cost((256, 1024, 1024), (32, 128, 128), (64, 64, 64), 1 << 24) == (1, 1)
    assert cost((200, 1000, 900), (1, 1000, 900), (64, 64, 64), 1 << 26) == (1, 1)  # sections, enough of them fit
    assert cost((512, 8192, 8192), (1, 8192, 8192), (64, 64, 64), 1 << 27)[0] == 1  # they do not: each decoded once
    assert cost((1 << 40,) * 3, (1, 1, 1), (64, 64, 64), 1 << 20) == (1, 1)  # and the plan takes no time


def test_the_number_of_touched_chunks_is_right_on_aligned_and_odd_grids():
    for length, step, chunk in ((24, 4, 8), (24, 8, 4), (24, 24, 5), (60, 6, 4), (60, 10, 4)):
        parts = [range(a, min(a + step, length)) for a in range(0, length, step)]
        met = sum(len({voxel // chunk for voxel in part}) for part in parts)
        assert touches((length,), (step,), (chunk,)) == pytest.approx(met / -(-length // chunk))


@pytest.mark.parametrize("values,dtype", [([0, 255], "uint8"), ([0, 2**24], "float32"), ([-1, 5], "int8"),
                                          ([0.5, np.nan, np.inf], "float32"), ([1.0, 0.0], "bool"), ([3.0], "uint64")])
def test_a_type_that_holds_every_value_is_taken(values, dtype):
    result = recast(np.array(values), np.dtype(dtype), "a")
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("block,dtype", [
    (np.array([256]), "uint8"), (np.array([-1]), "uint8"), (np.array([-1]), "uint64"), (np.array([0.5]), "uint8"),
    (np.array([np.nan]), "uint8"), (np.array([1e300]), "float32"), (np.array([2**53 + 1]), "float64"),
    (np.array([2**64 - 1], np.uint64), "int64"), (np.array([2**64 - 1], np.uint64), "float64"),
    (np.array([2], np.uint8), "bool"), (np.array([0.1]), "float32")])
def test_a_type_that_would_change_a_value_is_refused(block, dtype):
    with pytest.raises(InputError, match=f"a holds .* which {dtype} cannot hold"):
        recast(block, np.dtype(dtype), "a")


def test_small_types_named_like_labels_become_a_segmentation(tmp_path):
    for name, dtype, layer in (
            ("labels", "uint16", "segmentation"), ("volumes/labels/neuron_ids", "uint8", "segmentation"),
            ("raw", "uint16", "image"), ("main", "uint16", "image"), ("main", "uint64", "segmentation"),
            ("labels", "bool", "segmentation"), ("labels", "float32", "image")):
        with create_volume(tmp_path / f"a.h5:{name}", (2, 3, 4), dtype):
            pass
        convert(open_volume(tmp_path / f"a.h5:{name}"), f"{tmp_path}/b.precomputed")
        assert f'"type": "{layer}"' in (tmp_path / "b.precomputed" / "info").read_text()


def test_the_command_converts_with_one_line_and_asks_for_a_missing_resolution(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    done = command("convert", tmp_path / "a.npy", tmp_path / "b.precomputed")
    assert done.returncode == 0
    first, note = done.stderr.splitlines()
    assert ": 100% 60 of 60 voxels" in first
    assert "--resolution" in note
    done = command("convert", tmp_path / "b.precomputed", tmp_path / "c.h5:raw", "--resolution", 40, 4, 4,
                   "--chunks", 1, 4, 4, "--dtype", "uint32")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    volume = open_volume(tmp_path / "c.h5:raw")
    assert (volume.resolution, volume.chunks, volume.dtype) == ((40, 4, 4), (1, 4, 4), np.uint32)
    np.testing.assert_array_equal(volume[...].ravel(), np.arange(60))


def test_an_existing_target_is_refused_unless_forced_and_a_new_dataset_is_welcome(tmp_path, source):
    file = f"{tmp_path}/a.h5"
    before = Path(file).read_bytes()
    np.save(tmp_path / "b.npy", np.ones((2, 3, 4), np.uint8))
    refused("exists already; choose another name, or add --force", "convert", tmp_path / "b.npy", f"{file}:raw")
    refused("exists already", "convert", tmp_path / "b.npy", file)
    refused("exists already", "convert", f"{file}:raw", tmp_path / "b.npy")
    assert Path(file).read_bytes() == before
    assert command("convert", tmp_path / "b.npy", f"{file}:mask").returncode == 0
    agree(open_volume(f"{file}:raw"), source)
    assert command("convert", tmp_path / "b.npy", f"{file}:raw", "--force").returncode == 0
    assert open_volume(f"{file}:raw").shape == open_volume(f"{file}:mask").shape == (2, 3, 4)


def write_lying_tiff(path):
    """A little-endian TIFF whose header promises 2^31 x 2^31 pixels and holds none."""
    entries = [(256, 4, 2**31), (257, 4, 2**31), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
               (278, 4, 2**31), (279, 4, 2**32 - 1)]
    body = b"".join(tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
                    + value.to_bytes(4, "little") for tag, kind, value in entries)
    path.write_bytes(b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little") + body + bytes(4))


@pytest.mark.parametrize("tool", ["convert", "inspect"])
def test_each_bad_input_is_one_sentence_and_exit_code_2(tmp_path, source, tool):
    def expect(text, file):
        refused(text, tool, f"{tmp_path}/{file}", *([f"{tmp_path}/out.precomputed"] if tool == "convert" else []))
        assert not [item for item in tmp_path.iterdir() if "out" in item.name]

    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[:len(whole) // 2])
    expect("cut.h5 is cut off", "cut.h5")
    expect("has no dataset 'labels'; it has: raw (21, 33, 45) uint16", "a.h5:labels")
    (tmp_path / "text.h5").write_text("z,y,x\n1,2,3\n")
    expect("text.h5 is not an HDF5 file; it begins with b'z,y,x", "text.h5")
    expect("there is no file", "nothing.h5")
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["five"] = np.zeros((1, 2, 3, 4, 5), np.uint8)
        file["none"] = np.zeros((0, 3, 4), np.uint8)
        file["words"] = np.array([[[b"a", b"b"]]])
    if tool == "convert":
        expect("has 5 axes, shape (1, 2, 3, 4, 5)", "odd.h5:five")
        expect("is empty: its shape is (0, 3, 4)", "odd.h5:none")
        expect("not numbers", "odd.h5:words")
        expect("odd.h5:none is empty", "odd.h5")  # the only one with the axes of a volume
    write_lying_tiff(tmp_path / "lie.tif")
    if find_spec("tifffile"):
        expect("lie.tif", "lie.tif")


def test_float_labels_are_refused_where_labels_are_needed(tmp_path):
    np.save(tmp_path / "labels.npy", np.zeros((2, 3, 4), np.float32))
    refused("cannot be a segmentation of float32: labels are unsigned integers", "convert", tmp_path / "labels.npy",
            tmp_path / "out.precomputed", "--layer", "segmentation")
    refused("--layer is for a .precomputed or .ome.zarr target", "convert", tmp_path / "labels.npy",
            tmp_path / "out.h5", "--layer", "image")
    refused("cannot hold float64; Neuroglancer", "convert", tmp_path / "labels.npy", tmp_path / "out.precomputed",
            "--dtype", "float64")
    refused("--dtype must be a numpy type", "convert", tmp_path / "labels.npy", tmp_path / "out.h5", "--dtype", "red")
    refused("ends in no format to write", "convert", tmp_path / "labels.npy", tmp_path / "out.mrc")
    refused("chunks must be one positive size", "convert", tmp_path / "labels.npy", tmp_path / "out.h5",
            "--chunks", 0, 1, 1)
    assert [item.name for item in tmp_path.iterdir()] == ["labels.npy"]


@pytest.mark.parametrize("name", ["out.h5", "out.npy", "out.precomputed"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, source, name):
    refused("its folder does not exist", "convert", tmp_path / "a.h5", tmp_path / "no" / name)
    (tmp_path / "file").touch()
    refused("its folder is a file", "convert", tmp_path / "a.h5", tmp_path / "file" / name)
    (tmp_path / "locked").mkdir(mode=0o555)
    root = os.geteuid() == 0
    refused("permission denied", "convert", tmp_path / "a.h5", tmp_path / "locked" / name,
            preexec_fn=heed_permissions if root else None)


def heed_permissions():
    """Takes from a root process the right to write where nobody may (PR_CAPBSET_DROP of CAP_DAC_OVERRIDE)."""
    assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0


def limit_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("name", ["out.h5", "out.h5:deep/er", "out.npy", "out.precomputed"])
def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, source, name):
    refused("cannot write", "convert", tmp_path / "a.h5", tmp_path / name, preexec_fn=limit_files)
    assert [item.name for item in tmp_path.iterdir()] == ["a.h5"]


def test_a_full_disk_leaves_the_older_volume_as_it_was(tmp_path, source):
    np.save(tmp_path / "b.npy", np.ones((2, 3, 4), np.uint8))
    convert(open_volume(tmp_path / "b.npy"), f"{tmp_path}/out.precomputed")
    refused("cannot write", "convert", tmp_path / "a.h5", tmp_path / "out.precomputed", "--force",
            preexec_fn=limit_files)
    assert (open_volume(tmp_path / "out.precomputed")[...] == 1).all()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.h5", "b.npy", "out.precomputed"]


@pytest.mark.long
def test_a_gigabyte_goes_to_precomputed_and_back_in_a_fraction_of_its_memory(tmp_path):
    for step in check_round_trip(tmp_path, gigabytes=1.0):
        assert step.peak_bytes < 600e6, step


def test_a_box_lies_where_the_given_resolution_says(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 8), np.uint8))
    main([str(tmp_path / "a.npy"), str(tmp_path / "b.h5"), "--box", "4:8,4:8,4:8", "--resolution", "40", "8", "4"])
    found = open_volume(tmp_path / "b.h5")
    assert (found.shape, found.resolution, found.offset) == ((4, 4, 4), (40, 8, 4), (160, 32, 16))


def test_fetched_blocks_of_another_box_are_not_taken(tmp_path):
    values = np.arange(512, dtype=np.uint16).reshape(8, 8, 8)
    np.save(tmp_path / "a.npy", values)  # without a resolution both boxes lie at the same place
    whole, boxes = open_volume(tmp_path / "a.npy"), [tuple(slice(low, low + 2) for low in (z, 0, 0)) for z in (0, 2)]
    for low in (0, 4):
        part = part_of(whole, [(low, low + 4), (0, 8), (0, 8)])
        with suppress(KeyboardInterrupt), fetching(part, str(tmp_path / "a.npy"), tmp_path / "b.h5", boxes) as found:
            next(found)
            raise KeyboardInterrupt
    with fetching(part, str(tmp_path / "a.npy"), tmp_path / "b.h5", boxes) as found:
        for box, block in found:
            np.testing.assert_array_equal(block, values[4:][box])
