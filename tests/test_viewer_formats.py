"""OME-Zarr and precomputed for viewers: read by other readers, levels by the oracle, resumed, refused."""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from emcore.errors import InputError
from emcore.volumes import (
    Layout,
    create_volume,
    multiscale,
    ome_zarr,
    open_volume,
    precomputed_writing,
    serve,
    write_ome_zarr,
    write_precomputed,
)
from emcore.volumes.blocks import join_blocks, write_block
from emcore.volumes.convert import main as convert
from emcore.volumes.formats import split_reference
from emcore.volumes.pyramid import Level
from tests.oracles import pyramid as oracle

tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed: the extra remote brings it")
needs_zarr = pytest.mark.skipif(find_spec("zarr") is None, reason="zarr is not installed: the extra zarr brings it")
ROOT = Path(__file__).resolve().parent.parent
GRID = {"resolution": (40.0, 8.0, 4.0), "offset": (-80.0, 24.0, 12.0)}


def sample(shape, dtype, seed=0):
    """Random voxels, with the least and the largest value of the type among them."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (random.integers(-1000, 1000, shape) / 64).astype(dtype)  # whose sums are exact
    about = np.iinfo(dtype)
    array = random.integers(about.min, about.max, shape, dtype, endpoint=True)
    array = np.where(random.random(shape) < 0.7, array.reshape(-1)[0], array).astype(dtype)
    array.reshape(-1)[-2:] = about.min, about.max
    return array


def volume(array, **grid):
    return replace(open_volume(array), **{**GRID, **grid})


def box_of(array):
    return tuple(slice(0, length) for length in array.shape)


# ---- other readers: each gives a level as an array (c,) z, y, x and what it says of the grid, in nm


def ome_levels(path, version="0.5"):
    if version == "0.5":
        return json.loads((Path(path) / "zarr.json").read_text())["attributes"]["ome"]
    return json.loads((Path(path) / ".zattrs").read_text())


def by_zarr(path, level):
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: the extra zarr brings it")
    return zarr.open_array(f"{path}/{level}", mode="r")[...]


def by_tensorstore(path, level):
    driver = "zarr3" if (Path(path) / "zarr.json").exists() else "zarr"
    return tensorstore.open({"driver": driver, "kvstore": f"file://{path}/{level}/"}).result().read().result()


def by_ome_zarr(path, level):
    reader = pytest.importorskip("ome_zarr.reader", reason="ome-zarr is not installed")
    location = pytest.importorskip("ome_zarr.io", reason="ome-zarr is not installed").parse_url(str(path))
    (node, *_) = reader.Reader(location)()
    return np.asarray(node.data[level])


@pytest.mark.parametrize("dtype,version", [
    *((dtype, "0.5") for dtype in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16",
                                   "float32", "float64")),
    *((dtype, "0.4") for dtype in ("uint8", "int16", "uint64", "float32"))])
def test_every_level_of_ome_zarr_is_what_other_readers_read(tmp_path, version, dtype):
    array, path = sample((7, 20, 37), dtype), tmp_path / "a.ome.zarr"
    write_ome_zarr(volume(array), path, Layout(chunks=(4, 8, 8)), version)
    mode = dtype in ("uint32", "uint64", "int64")
    levels = open_levels(path, version)
    assert len(levels) == 5
    for number, resolution in enumerate(levels):
        for read in (by_zarr, by_tensorstore, *([by_ome_zarr] if find_spec("ome_zarr") else [])):
            found = read(path, number)
            assert (found.dtype, found.shape) == (array.dtype, array.shape), read.__name__
            np.testing.assert_array_equal(found, array, err_msg=f"{read.__name__} {number}")
        if number + 1 < len(levels):
            factors = [round(b / a) for a, b in zip(resolution, levels[number + 1])]
            array = oracle.coarser(array, (0, 0, 0), factors, mode)


def open_levels(path, version):
    """The resolution of each level, checked against where its first voxel lies."""
    about = ome_levels(path, version)["multiscales"][0]
    assert [axis["name"] for axis in about["axes"]] == ["z", "y", "x"]
    assert {(axis["type"], axis["unit"]) for axis in about["axes"]} == {("space", "nanometer")}
    scales = []
    for entry in about["datasets"]:
        scale, translation = (step[step["type"]] for step in entry["coordinateTransformations"])
        corner = [place - size / 2 + own / 2
                  for place, size, own in zip(translation, scale, scales[0] if scales else scale)]
        assert corner == list(GRID["offset"])  # the corner of every level is that of the volume
        scales.append(scale)
    return scales


@needs_zarr
@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_our_own_reader_gives_back_voxels_grid_and_attributes(tmp_path, version):
    array = sample((3, 5, 9, 8), "float32")
    source = replace(volume(array), attrs={"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]], "record": {"a": 1}})
    write_ome_zarr(source, tmp_path / "a.ome.zarr", Layout(chunks=(4, 4, 4)), version)
    found = open_volume(tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(found[...], array)
    assert (found.resolution, found.offset, found.attrs) == (*GRID.values(), source.attrs)
    assert found.chunks == (1, 4, 4, 4)
    coarse = open_volume(f"{tmp_path}/a.ome.zarr:1")
    assert (coarse.resolution, coarse.offset, coarse.shape) == ((40, 8, 8), GRID["offset"], (3, 5, 9, 4))
    about = ome_levels(tmp_path / "a.ome.zarr", version)["multiscales"][0]
    assert about["axes"][0] == {"name": "c", "type": "channel"}


@pytest.mark.parametrize("kind", ["Image", "Label"])
@pytest.mark.parametrize("version,module", [("0.5", "v05"), ("0.4", "v04")])
def test_the_metadata_pass_the_models_of_the_specification(tmp_path, kind, version, module):
    models = pytest.importorskip("ome_zarr_models", reason="ome-zarr-models is not installed")
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: the extra zarr brings it")
    path = tmp_path / "a.ome.zarr"
    write_ome_zarr(volume(sample((7, 20, 37), "uint8")), path, Layout(chunks=(4, 8, 8)), version)
    write_ome_zarr(volume(sample((7, 20, 37), "uint64")), f"{path}:labels/cells", Layout(chunks=(4, 8, 8)))
    write_ome_zarr(volume(sample((7, 20, 37), "uint32")), f"{path}:labels/other", Layout(chunks=(4, 8, 8)))
    assert ome_levels(path / "labels", version)["labels"] == ["cells", "other"]
    group = zarr.open_group(path if kind == "Image" else path / "labels" / "cells", mode="r")
    found = models.open_ome_zarr(group)
    assert type(found).__name__ == ("Image" if kind == "Image" else "ImageLabel")
    assert module in type(found).__module__


@needs_zarr
def test_labels_stand_beside_their_image(tmp_path):
    path, labels = tmp_path / "a.ome.zarr", sample((7, 20, 37), "uint64")
    with pytest.raises(InputError, match="write the image first"):
        write_ome_zarr(volume(labels), f"{path}:labels/cells")
    write_ome_zarr(volume(sample((7, 20, 37), "uint8")), path, Layout(chunks=(4, 8, 8)))
    write_ome_zarr(volume(labels), f"{path}:labels/cells")
    np.testing.assert_array_equal(open_volume(f"{path}:labels/cells")[...], labels)
    assert len(ome_levels(path / "labels" / "cells")["multiscales"][0]["datasets"]) == 5  # as many as the image has
    for wrong, text in (({"target": f"{path}:cells"}, "takes labels as"), ({"version": "0.4"}, "cannot be 0.4"),
                        ({"layout": Layout(levels=2)}, "has 5 levels, and its labels need as many"),
                        ({"source": volume(sample((7, 20, 37), "uint8"))}, "say --layer segmentation")):
        with pytest.raises(InputError, match=text):
            write_ome_zarr(**{"source": volume(labels), "target": f"{path}:labels/b", **wrong})


def test_shards_hold_whole_chunks_and_none_lies_beyond_the_volume(tmp_path):
    array = sample((20, 40, 70), "uint16")
    write_ome_zarr(volume(array), tmp_path / "a.ome.zarr", Layout(chunks=(8, 8, 16), shards=(16, 32, 1024), levels=1))
    about = json.loads((tmp_path / "a.ome.zarr" / "0" / "zarr.json").read_text())
    assert about["chunk_grid"]["configuration"]["chunk_shape"] == [16, 32, 80]
    assert about["codecs"][0]["configuration"]["chunk_shape"] == [8, 8, 16]
    files = sorted(str(file.relative_to(tmp_path / "a.ome.zarr" / "0" / "c"))
                   for file in (tmp_path / "a.ome.zarr" / "0" / "c").rglob("*") if file.is_file())
    assert files == ["0/0/0", "0/1/0", "1/0/0", "1/1/0"]
    with pytest.raises(InputError, match="whole multiples of the chunks"):
        write_ome_zarr(volume(array), tmp_path / "b.ome.zarr", Layout(chunks=(8, 8, 16), shards=(12, 32, 64)))


def by_cloudvolume(path, scale):
    volumes = pytest.importorskip("cloudvolume", reason="cloud-volume is not installed")
    found = volumes.CloudVolume(f"precomputed://file://{path}", mip=scale, progress=False, fill_missing=False)
    return np.asarray(found[:, :, :]).transpose()


def precomputed_by_tensorstore(path, scale):
    return tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/",
                             "scale_index": scale}).result().read().result().transpose()


@pytest.mark.parametrize("encoding,dtype,sharded,start", [
    ("raw", "uint8", False, (0, 0, 0)), ("raw", "uint8", True, (-2, 3, 3)), ("raw", "int16", False, (-2, 3, 3)),
    ("raw", "float32", True, (1, 0, -5)), ("raw", "uint64", False, (-2, 3, 3)),
    ("compressed_segmentation", "uint32", False, (-2, 3, 3)), ("compressed_segmentation", "uint64", False, (1, 0, -5)),
    ("compressed_segmentation", "uint64", True, (-2, 3, 3)), ("compressed_segmentation", "uint8", True, (0, 0, 0))])
def test_every_scale_of_precomputed_is_what_other_readers_read(tmp_path, monkeypatch, encoding, dtype, sharded, start):
    if sharded:
        monkeypatch.setattr(precomputed_writing, "MOST_CHUNK_FILES", 4)
        monkeypatch.setattr(precomputed_writing, "SHARD_BYTES", 4096)
    array, path = sample((7, 20, 37), dtype), tmp_path / "a.precomputed"
    offset = tuple(place * size for place, size in zip(start, GRID["resolution"]))
    layer = "segmentation" if encoding != "raw" else None
    write_precomputed(volume(array, offset=offset), path, Layout(chunks=(4, 8, 8), layer=layer), encoding)
    if encoding != "raw":
        check_sizes(path, array)
    array = array.astype("uint32") if encoding != "raw" and dtype == "uint8" else array
    info = json.loads((path / "info").read_text())
    assert ("sharding" in info["scales"][0]) == sharded
    sizes = [scale["resolution"][::-1] for scale in info["scales"]]
    assert len(sizes) >= 4
    mode = layer is not None or dtype == "uint64"
    for number, scale in enumerate(info["scales"]):
        assert scale["voxel_offset"][::-1] == list(start)
        for read in (precomputed_by_tensorstore, *([by_cloudvolume] if find_spec("cloudvolume") else [])):
            found = read(path, number)[0]
            assert (found.dtype, found.shape) == (array.dtype, array.shape), read.__name__
            np.testing.assert_array_equal(found, array, err_msg=f"{read.__name__} {number}")
        if number + 1 < len(sizes):
            factors = [round(b / a) for a, b in zip(sizes[number], sizes[number + 1])]
            array = oracle.coarser(array, start, factors, mode)
            start = tuple(place // factor for place, factor in zip(start, factors))


def check_sizes(path, array):
    about = json.loads((path / "segment_properties" / "info").read_text())["inline"]
    labels, counts = np.unique(array[array > 0], return_counts=True)
    assert about["ids"] == [str(label) for label in labels.tolist()]
    assert about["properties"][0]["values"] == counts.tolist()


def test_channels_of_precomputed_and_a_lossy_jpeg(tmp_path):
    array = sample((2, 5, 9, 11), "float32")
    write_precomputed(volume(array), tmp_path / "a.precomputed", Layout(chunks=(4, 4, 4)))
    np.testing.assert_array_equal(open_volume(tmp_path / "a.precomputed")[...], array)  # raw is what we read, too
    smooth = np.add.outer(np.arange(5), np.add.outer(np.arange(40), np.arange(50))).astype(np.uint8)
    write_precomputed(volume(smooth), tmp_path / "j.precomputed", Layout(chunks=(4, 32, 32)), "jpeg")
    found = precomputed_by_tensorstore(tmp_path / "j.precomputed", 0)[0].astype(int)
    assert 0 < np.abs(found - smooth).max() <= 8


def test_shards_of_precomputed_follow_by_themselves_from_a_hundred_thousand_chunks():
    level = Level((4096, 4096, 4096), (0, 0, 0), (1, 1, 1), (8.0, 8.0, 8.0))
    assert precomputed_writing.shard_of(level, (64, 64, 64), 1) == (256, 512, 512)
    assert precomputed_writing.shard_of(level, (128, 128, 128), 1) is None
    flat = Level((1, 1 << 16, 1 << 18), (0, 0, 0), (1, 1, 1), (8.0, 8.0, 8.0))
    assert precomputed_writing.shard_of(flat, (1, 64, 64), 8) == (1, 2048, 4096)


# ---- unfinished, killed, in parallel


def blocks_of_labels(folder):
    """Labels that are joined from blocks, as blockwise decoding leaves them."""
    labels, parts = sample((12, 30, 34), "uint64", seed=3), []
    for number, low in enumerate(range(0, 12, 5)):
        for place, left in enumerate(range(0, 34, 16)):
            box = slice(low, min(12, low + 5)), slice(0, 30), slice(left, min(34, left + 16))
            (folder / "A_labels.blocks").mkdir(exist_ok=True)
            write_block(folder / "A_labels.blocks" / f"{number}_{place}.h5", labels[box])
            parts.append((box, f"A_labels.blocks/{number}_{place}.h5"))
    join_blocks(folder / "A_labels.h5", "labels", labels.shape, labels.dtype, parts, GRID["resolution"])
    return labels


@needs_zarr
def test_labels_in_blocks_become_shards_in_parallel_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    labels = blocks_of_labels(tmp_path)
    target = tmp_path / "A.ome.zarr"
    command = [f"{tmp_path}/A_labels.h5:labels", str(target), "--chunks", "4", "8", "8", "--shards", "4", "16", "16"]
    real, asked = multiscale.Pyramid.block, []

    def block(self, level, box):
        asked.append(box)
        if len(asked) > 7:
            raise InputError("a block cannot be read today")
        return real(self, level, box)

    with monkeypatch.context() as patched:
        patched.setattr(multiscale.Pyramid, "block", block)
        with pytest.raises(InputError, match="cannot be read today"):
            convert(command)
    assert not target.exists()
    work = tmp_path / "A.ome.zarr.unfinished"
    shards = {file.relative_to(work / "store"): file.stat().st_mtime_ns
              for file in (work / "store" / "0" / "c").rglob("*") if file.is_file()}
    assert len(shards) == len(os.listdir(work / "done" / "0")) == 7
    for path in (target, work, work / "store" / "0"):
        with pytest.raises(InputError, match="unfinished part of a volume"):
            open_volume(path)
    with pytest.raises(InputError, match="of another conversion"):
        convert([*command, "--levels", "1"])
    convert([*command, "--workers", "2"])
    assert {file: (target / file).stat().st_mtime_ns for file in shards} == shards  # what was there stays
    np.testing.assert_array_equal(open_volume(target)[...], labels)
    assert not work.exists()
    convert([*command, "--force", "--workers", "2"])
    assert (target / next(iter(shards))).stat().st_mtime_ns > max(shards.values())
    np.testing.assert_array_equal(open_volume(target)[...], labels)


@needs_zarr
def test_a_lost_shard_is_no_silent_zero(tmp_path):
    for version, lost in (("0.5", "c/0/0/0"), ("0.4", "0/0/0")):
        path = tmp_path / f"{version}.ome.zarr"
        write_ome_zarr(volume(np.zeros((8, 8, 8), "uint8")), path, Layout(chunks=(4, 4, 4)), version)
        assert not open_volume(path)[...].any()
        convert([str(path), str(tmp_path / f"{version}.h5"), "--box", "4:8,4:8,4:8", "--scale", "0"])
        assert "emcore" not in open_volume(tmp_path / f"{version}.h5").attrs  # the copy does not promise every chunk
        (path / "0" / lost).unlink()
        with pytest.raises(InputError, match="is missing, so part of the volume is lost"):
            open_volume(path)[:2, :2, :2]
        with pytest.raises(InputError):
            open_volume(path, scale=0)[:2, :2, :2]


@needs_zarr
def test_a_kill_right_after_the_name_was_given_does_not_bring_the_old_volume_back(tmp_path, monkeypatch):
    target, real = tmp_path / "a.ome.zarr", multiscale.publish

    def killed(store, name):
        kept = shutil.copytree(name, tmp_path / "kept")
        real(store, name)
        shutil.rmtree(store, ignore_errors=True)
        os.rename(kept, store)
        raise KeyboardInterrupt

    for value in (1, 2):
        with create_volume(tmp_path / f"{value}.h5:raw", (8, 8, 8), "uint8", (8, 8, 8)) as out:
            out[...] = value
    write_ome_zarr(open_volume(f"{tmp_path}/1.h5:raw"), target, Layout(chunks=(4, 4, 4)))
    with monkeypatch.context() as patch:
        patch.setattr(multiscale, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            write_ome_zarr(open_volume(f"{tmp_path}/2.h5:raw"), target, Layout(chunks=(4, 4, 4)))
    write_ome_zarr(open_volume(f"{tmp_path}/2.h5:raw"), target, Layout(chunks=(4, 4, 4)))
    assert (open_volume(target)[...] == 2).all()


@needs_zarr
def test_a_group_of_other_arrays_is_not_replaced(tmp_path):
    import zarr

    zarr.open_group(tmp_path / "g.zarr", mode="w").create_array("raw", shape=(4, 4, 4), dtype="uint8")
    with pytest.raises(InputError, match="holds other things"):
        write_ome_zarr(volume(np.zeros((4, 4, 4), "uint8")), tmp_path / "g.zarr")
    assert (tmp_path / "g.zarr" / "raw").is_dir()


@needs_zarr
def test_a_command_that_is_killed_goes_on(tmp_path):
    array = sample((24, 40, 40), "uint64")
    with create_volume(tmp_path / "a.h5:labels", array.shape, array.dtype, (8, 8, 8)) as out:
        out[...] = array
    command = [sys.executable, "-c", KILLED, str(ROOT), f"{tmp_path}/a.h5:labels", f"{tmp_path}/a.ome.zarr"]
    for parts in (3, 2):
        assert subprocess.run([*command, str(parts)], capture_output=True, timeout=120).returncode == -9
    assert len(os.listdir(tmp_path / "a.ome.zarr.unfinished" / "done" / "0")) == 5
    assert not [name for name in os.listdir(tmp_path) if name == "a.ome.zarr"]
    convert([*command[4:6], *OPTIONS])
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/a.ome.zarr")[...], array)
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.ome.zarr"]


OPTIONS = ["--chunks", "4", "8", "8", "--shards", "8", "16", "16"]
KILLED = f"""import os, signal, sys
sys.path.insert(0, sys.argv[1])
from emcore.volumes import multiscale
from emcore.volumes.convert import main
wrote, most, real = [0], int(sys.argv[4]), multiscale.Pyramid.mark

def mark(self, *arguments):
    if wrote[0] == most:
        os.kill(os.getpid(), signal.SIGKILL)
    wrote[0] += 1
    real(self, *arguments)

multiscale.Pyramid.mark = mark
main([sys.argv[2], sys.argv[3], *{OPTIONS}])
"""


def test_two_processes_do_not_write_one_volume(tmp_path):
    pytest.importorskip("fcntl", reason="this system has no locks")
    source = volume(sample((8, 8, 8), "uint8"))
    layout = Layout().checked(source)
    pyramid = ome_zarr.planned(source, tmp_path / "a.ome.zarr", layout, "0.5", None)
    with multiscale.working(pyramid), pytest.raises(InputError, match="being written by another process"):
        write_ome_zarr(source, tmp_path / "a.ome.zarr")


def test_a_source_that_cannot_be_told_apart_begins_anew(tmp_path):
    array = sample((8, 8, 8), "uint8")
    pyramid = ome_zarr.planned(volume(array), tmp_path / "a.ome.zarr", Layout().checked(volume(array)), "0.5", None)
    with pytest.raises(KeyError):
        pyramid.write(lambda store: {}["fails at the end"])
    other = sample((8, 8, 8), "uint8", seed=9)
    write_ome_zarr(volume(other), tmp_path / "a.ome.zarr")
    np.testing.assert_array_equal(by_tensorstore(tmp_path / "a.ome.zarr", 0), other)


def test_a_foreign_folder_is_not_taken_for_ours(tmp_path):
    (tmp_path / "a.ome.zarr.unfinished").mkdir()
    (tmp_path / "a.ome.zarr.unfinished" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="no unfinished volume: move it away"):
        write_ome_zarr(volume(sample((8, 8, 8), "uint8")), tmp_path / "a.ome.zarr")
    (tmp_path / "b.precomputed").mkdir()
    (tmp_path / "b.precomputed" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="no precomputed volume"):
        write_precomputed(volume(sample((8, 8, 8), "uint8")), tmp_path / "b.precomputed")


def test_a_full_disk_is_one_sentence(tmp_path):
    with create_volume(tmp_path / "a.npy", (64, 64, 64), "uint8") as out:
        out[...] = np.random.default_rng(0).integers(0, 255, (64, 64, 64), np.uint8)
    code = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); sys.argv[0] = 'emcore'; "
            "from emcore.__main__ import main; sys.exit(main())")
    done = subprocess.run([sys.executable, "-c", code, "convert", f"{tmp_path}/a.npy", f"{tmp_path}/a.ome.zarr"],
                          capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: cannot write {tmp_path}/a.ome.zarr: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "a.ome.zarr").exists()


# ---- the command, and what is refused


def test_the_command_writes_what_is_asked_for(tmp_path):
    array = sample((7, 20, 37), "uint8")
    with create_volume(tmp_path / "a.h5:labels", array.shape, "uint8", GRID["resolution"]) as out:
        out[...] = array
    source = f"{tmp_path}/a.h5:labels"
    convert([source, f"{tmp_path}/a.ome.zarr", "--levels", "2"])
    assert len(ome_levels(tmp_path / "a.ome.zarr")["multiscales"][0]["datasets"]) == 2
    assert "image-label" in ome_levels(tmp_path / "a.ome.zarr")  # by the name of its dataset
    with pytest.raises(InputError, match="exists already"):
        convert([source, f"{tmp_path}/a.ome.zarr"])
    convert([source, f"{tmp_path}/b.zarr", "--format", "ome-zarr-0.4", "--layer", "image"])
    assert ome_levels(tmp_path / "b.zarr", "0.4")["multiscales"][0]["type"] == "mean"
    convert([source, f"{tmp_path}/c.precomputed", "--format", "precomputed", "--resolution", "30", "6", "6"])
    info = json.loads((tmp_path / "c.precomputed" / "info").read_text())
    assert (info["scales"][0]["encoding"], info["scales"][0]["resolution"]) == ("compressed_segmentation", [6, 6, 30])
    np.testing.assert_array_equal(precomputed_by_tensorstore(tmp_path / "c.precomputed", 0)[0], array)


REFUSED = [
    (["a.npy", "b.h5", "--levels", "2"], "--levels is for viewers"),
    (["a.npy", "b.zarr", "--shards", "8", "8", "8"], "--shards is for viewers"),
    (["a.npy", "b.zarr", "--workers", "2"], "--workers is for viewers"),
    (["a.npy", "b.ome.zarr", "--encoding", "raw"], "--encoding is for --format precomputed"),
    (["a.npy", "b.h5", "--format", "ome-zarr"], "ends in .zarr"),
    (["a.npy", "b.zarr", "--format", "precomputed"], "ends in .precomputed"),
    (["a.npy", "b.ome.zarr", "--workers", "0"], "workers must be at least 1"),
    (["a.npy", "b.ome.zarr", "--chunks", "0", "1", "1"], "chunks must be three positive sizes"),
    (["a.npy", "b.ome.zarr", "--chunks", "2000", "2000", "2000", "--shards", "1", "1", "1"], "exceed 1024 MB"),
    (["a.npy", "b.zarr", "--format", "ome-zarr-0.4", "--shards", "8", "8", "8"], "0.4 has no shards"),
    (["a.npy", "b.precomputed", "--encoding", "jpeg"], "jpeg is for images"),
    (["a.npy", "b.precomputed", "--encoding", "compressed_segmentation"], "compressed_segmentation is for labels"),
    (["a.npy", "b.precomputed", "--format", "precomputed", "--shards", "8", "8", "8"], "sharded by itself"),
    (["a.npy", "b.ome.zarr", "--layer", "segmentation"], "labels are unsigned integers"),
]


@pytest.mark.parametrize("arguments,text", REFUSED)
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path, arguments, text):
    with create_volume(tmp_path / "a.npy", (8, 8, 8), "int16") as out:
        out[...] = 1
    with pytest.raises(InputError, match=text):
        convert([f"{tmp_path}/{arguments[0]}", f"{tmp_path}/{arguments[1]}", *arguments[2:]])
    assert os.listdir(tmp_path) == ["a.npy"]


def test_without_tensorstore_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    for write, name in ((write_ome_zarr, "a.ome.zarr"), (write_precomputed, "a.precomputed")):
        with pytest.raises(InputError, match=r"needs the extra remote, which is not installed here: .* -m pip"):
            write(volume(sample((8, 8, 8), "uint8")), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_an_older_volume_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.ome.zarr"
    write_ome_zarr(volume(sample((30, 30, 30), "uint8")), path, Layout(chunks=(4, 4, 4)))
    write_ome_zarr(volume(sample((8, 8, 8), "uint8")), path)
    assert sorted(os.listdir(path)) == ["0", "zarr.json"]
    assert os.listdir(tmp_path) == ["a.ome.zarr"]
    assert split_reference(f"{path}:0") == (path, "0")
    shutil.rmtree(path)


# ---- served


def test_another_reader_reads_shards_from_our_server_by_byte_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(precomputed_writing, "MOST_CHUNK_FILES", 4)
    image, labels = sample((7, 20, 37), "uint8"), sample((7, 20, 37), "uint64")
    write_ome_zarr(volume(image), tmp_path / "a.ome.zarr", Layout(chunks=(4, 8, 8)))
    write_ome_zarr(volume(labels), f"{tmp_path}/a.ome.zarr:labels/cells", Layout(chunks=(4, 8, 8)))
    write_precomputed(volume(labels), tmp_path / "b.precomputed", Layout(chunks=(4, 8, 8)))
    (tmp_path / "c.ome.zarr.unfinished" / "store" / "0").mkdir(parents=True)
    shutil.copy(tmp_path / "a.ome.zarr" / "0" / "zarr.json", tmp_path / "c.ome.zarr.unfinished" / "store" / "0")
    assert serve.find_volumes(tmp_path) == [("a.ome.zarr", "zarr", "auto"),
                                            ("a.ome.zarr/labels/cells", "zarr", "segmentation"),
                                            ("b.precomputed", "precomputed", "segmentation")]
    server = serve.server_for(str(tmp_path), "127.0.0.1", 0, public=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for driver, place, wanted in (("zarr3", "a.ome.zarr/0", image), ("zarr3", "a.ome.zarr/labels/cells/0", labels),
                                      ("neuroglancer_precomputed", "b.precomputed", labels)):
            store = tensorstore.open({"driver": driver, "kvstore": f"{url}/{place}/"}).result()
            store = store if driver == "zarr3" else store.T.translate_to[0][0]
            np.testing.assert_array_equal(store.read().result(), wanted)
            np.testing.assert_array_equal(store[3:5, 2:9, 30:].read().result(), wanted[3:5, 2:9, 30:])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
