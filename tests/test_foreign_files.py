"""Files that others wrote, or made to do harm: read as far as they can be trusted, else refused in one sentence."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore import config
from emcore.errors import InputError
from emcore.reading import open_regular
from emcore.report.figures import plot
from emcore.report.page import read_log
from emcore.report.scores import read_scores
from emcore.settings import Settings
from emcore.volumes import hdf5, list_datasets, open_volume
from emcore.volumes.download import unpack
from emcore.volumes.inspect import inspect, text_of

ROOT = Path(__file__).resolve().parent.parent
VOLUME = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)

linux = pytest.mark.skipif(sys.platform != "linux", reason="has pipes, devices and names of any bytes")


def refused(action, *arguments, says="", **options):
    """Runs what must be refused by one line that says something."""
    with pytest.raises(InputError, match=r"\A[^\n]+\Z") as caught:
        action(*arguments, **options)
    assert says in str(caught.value), str(caught.value)


def joined(path, shape, *parts):
    """Writes a virtual dataset main; parts: (slice, file, dataset, its shape, slice of it)."""
    layout = h5py.VirtualLayout(shape, "uint8")
    for place, file, dataset, whole, taken in parts:
        layout[place] = h5py.VirtualSource(file, dataset, whole)[taken]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("main", layout)
    return path


ALL = slice(None)


# ---- HDF5


@pytest.mark.parametrize("source", ["self.h5", ".", "other.h5"])
def test_a_virtual_dataset_that_is_joined_from_itself_is_refused_before_hdf5_dies_of_it(tmp_path, source):
    path = joined(tmp_path / "self.h5", (4, 4, 4), (ALL, source, "main", (4, 4, 4), ALL))
    joined(tmp_path / "other.h5", (4, 4, 4), (ALL, "self.h5", "main", (4, 4, 4), ALL))
    code = f"from emcore.volumes.inspect import main; raise SystemExit(main([{str(path)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "is joined from itself, through" in done.stdout


def test_parts_are_read_only_from_inside_the_folder(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    for path in (inside / "a.h5", outside / "a.h5"):
        with h5py.File(path, "w") as file:
            file["main"] = VOLUME
    (inside / "link.h5").symlink_to(outside / "a.h5")
    (inside / "good.h5").symlink_to("a.h5")
    for number, name in enumerate(["../out/a.h5", str(outside / "a.h5"), "link.h5"]):
        path = joined(inside / f"v{number}.h5", (4, 5, 6), (ALL, name, "main", (4, 5, 6), ALL))
        refused(open_volume, path, says="lies outside of its folder")
    for number, name in enumerate([str(inside / "a.h5"), "a.h5", "good.h5"]):
        path = joined(inside / f"w{number}.h5", (4, 5, 6), (ALL, name, "main", (4, 5, 6), ALL))
        assert (open_volume(path)[...] == VOLUME).all()
    (outside / "linked.h5").symlink_to(inside / "w1.h5")
    assert (open_volume(outside / "linked.h5")[...] == VOLUME).all()  # the folder of the file itself


def test_a_part_that_goes_missing_is_an_error_at_each_read_that_needs_it(tmp_path):
    for name in "ab":
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["main"] = VOLUME + 1
    path = joined(tmp_path / "v.h5", (8, 5, 6), (slice(0, 4), "a.h5", "main", (4, 5, 6), ALL),
                  (slice(4, 8), "b.h5", "main", (4, 5, 6), ALL))
    volume = open_volume(path)
    assert (volume[:4] == VOLUME + 1).all()
    (tmp_path / "b.h5").unlink()
    for _ in range(2):
        refused(volume.__getitem__, slice(2, 6), says="b.h5, which is missing now")
    assert (volume[:4] == VOLUME + 1).all()
    refused(open_volume, path, says="missing: b.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["main"] = VOLUME[:2]
    refused(open_volume, path, says="does not hold what is taken of it")
    refused(volume.__getitem__, slice(4, 8), says="does not hold what is taken of it")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["other"] = VOLUME
    refused(open_volume, path, says="which is missing")
    (tmp_path / "b.h5").write_bytes(b"no HDF5")
    refused(open_volume, path, says="cannot be read")


def test_more_than_a_part_has_is_not_read_beyond_its_end(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["main"] = VOLUME
    path = joined(tmp_path / "v.h5", (3, 5, 6), (ALL, "a.h5", "main", (9, 5, 6), slice(6, 9)))
    refused(open_volume, path, says="whose shape (4, 5, 6) does not hold what is taken of it")


def test_voxels_in_another_file_are_not_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"x" * 200)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("main", (4, 5, 6), "uint8", external=[(str(secret), 0, 120)])
    joined(tmp_path / "v.h5", (4, 5, 6), (ALL, "a.h5", "main", (4, 5, 6), ALL))
    for name in ("a.h5", "v.h5"):
        refused(open_volume, tmp_path / name, says="keeps its voxels in another file")
    assert "another file" in inspect(str(tmp_path / "a.h5"))["datasets"][0]["error"]


def test_links_out_of_the_file_are_refused_and_circles_end(tmp_path):
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["g/main"] = VOLUME
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["g/raw"] = VOLUME
        file["g"].attrs["resolution"] = [40, 4, 4]
        file["away"], file["folder"] = h5py.ExternalLink("b.h5", "/g/main"), h5py.ExternalLink("b.h5", "/g")
        file["soft"], file["group"] = h5py.SoftLink("/g/raw"), h5py.SoftLink("g")
        file["via"] = h5py.SoftLink("/folder/main")
        file["p"], file["q"], file["nothing"] = h5py.SoftLink("/q"), h5py.SoftLink("/p"), h5py.SoftLink("/not/there")
        file["g/self"] = file["g"]
    path = tmp_path / "a.h5"
    assert [item.name for item in list_datasets(path)] == ["g/raw"]
    for name in ("soft", "group/raw", "g/self/self/raw"):
        assert (open_volume(path, name)[...] == VOLUME).all()
    assert open_volume(path, "group/raw").resolution == (40, 4, 4)
    for name in ("away", "folder/main", "via"):
        refused(open_volume, path, name, says="is a link into another file")
    refused(open_volume, path, "p", says="in a circle")
    refused(open_volume, path, "nothing", says="has no dataset 'nothing'")
    refused(open_volume, path, "g", says="has a group")


@pytest.mark.slow
def test_very_many_datasets_and_very_deep_groups_are_listed_in_time(tmp_path):
    with h5py.File(tmp_path / "many.h5", "w") as file:
        for number in range(20_000):
            h5py.h5d.create(file.id, b"d%d" % number, h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((2, 2, 2)))
        file["raw"] = VOLUME
    with h5py.File(tmp_path / "deep.h5", "w") as file:
        group = file.id
        for _ in range(3000):
            group = h5py.h5g.create(group, b"g")
        h5py.Group(group)["raw"] = VOLUME
    start = time.process_time()
    report = inspect(str(tmp_path / "many.h5"))
    assert (report["total"], len(report["datasets"])) == (20_001, 1000)
    assert "and 19001 more datasets, 20001 in all" in text_of(report)
    assert (open_volume(tmp_path / "many.h5", kind="image")[...] == VOLUME).all()  # a usual name is found among them
    assert inspect(f"{tmp_path / 'many.h5'}:d19999")["datasets"][0]["shape"] == [2, 2, 2]
    assert len(list_datasets(tmp_path / "many.h5").names) == 20_001
    assert inspect(str(tmp_path / "deep.h5"))["datasets"][0]["sample"]["max"] == VOLUME.max()
    assert time.process_time() - start < 20


def test_a_chunk_that_unpacks_to_more_than_its_size_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "SMALL_CHUNK", 1000)
    path = tmp_path / "a.h5"
    bomb = zlib.compress(bytes(4 << 20), 9)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("main", (4, 64, 64), "uint8", chunks=(2, 64, 64), compression="gzip")
        data[2:] = 7
        data.id.write_direct_chunk((0, 0, 0), bomb)
    volume = open_volume(path)
    assert (volume[2:] == 7).all()
    refused(volume.__getitem__, slice(1, 3), says="unpacks to more than twice the 8192 bytes")
    noise = np.random.default_rng(1).integers(0, 256, (4, 900, 900), np.uint8)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("main", data=noise, chunks=(2, 800, 800), compression="gzip", shuffle=True, fletcher32=True)
    assert (open_volume(tmp_path / "b.h5")[1:3, 5:] == noise[1:3, 5:]).all()  # chunks above the limit for looking


def test_sizes_that_no_file_has_are_refused_before_memory_is_taken(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.create_dataset("wide", (2, 2**20, 2**20), "uint8", chunks=(1, 2**16, 2**15 + 1))
        file.create_dataset("twice", data=VOLUME, chunks=(4, 5, 6), compression="gzip")
        file.create_dataset("heavy", data=VOLUME).attrs["big"] = np.zeros(5 << 20)
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((2, 2, 2))
        properties.set_deflate(1), properties.set_deflate(1)
        h5py.h5d.create(file.id, b"nested", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((2, 2, 2)), properties)
    for name, text in (("wide", "more than 2 GB each"), ("heavy", "claims 41943040 bytes"), ("nested", "than once")):
        refused(open_volume, tmp_path / "a.h5", name, says=text)


@linux
def test_names_that_are_no_utf8_are_shown_and_found(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/r\xe4w.h5"))
    with h5py.File(path, "w") as file:
        h5py.h5d.create(h5py.h5g.create(file.id, b"gr\xfcn"), b"r\xf6h", h5py.h5t.NATIVE_UINT8,
                        h5py.h5s.create_simple((2, 3, 4)))
        h5py.h5a.create(file.id, b"\xe4", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((1,))).write(np.zeros(1, "u1"))
    report = inspect(str(path))
    name = report["datasets"][0]["dataset"]
    assert os.fsencode(name) == b"gr\xfcn/r\xf6h"
    assert open_volume(path, name).shape == open_volume(path).shape == (2, 3, 4)
    text_of(report).encode()
    done = subprocess.run([sys.executable, "-m", "emcore", "inspect", os.fsencode(path), b"missing\xff.h5"], cwd=ROOT,
                          capture_output=True, timeout=120)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"Traceback" not in done.stderr


def test_strips_and_chunks_of_other_formats_are_not_unpacked_without_a_limit(tmp_path, monkeypatch):
    tifffile, zarr, numcodecs = (pytest.importorskip(name) for name in ("tifffile", "zarr", "numcodecs"))
    from emcore.volumes import tiff, zarr_format

    bombs = {"gzip": gzip, "zlib": zlib, "bz2": bz2, "lzma": lzma}
    for codec in ("gzip", "zlib", "bz2", "lzma", "zstd", None):
        path = tmp_path / f"{codec}.zarr"
        array = zarr.create_array(str(path), shape=(4, 50, 60), dtype="uint8", chunks=(2, 50, 60), zarr_format=2,
                                  compressors=codec and numcodecs.get_codec({"id": codec}))
        array[...] = np.arange(12000).reshape(4, 50, 60) % 251
        expected = array[...]
        chunk = next(file for file in path.rglob("*") if file.name.startswith("1"))
        if codec == "zstd":
            chunk.write_bytes(numcodecs.Zstd().encode(bytes(4 << 20)))
        elif codec:
            chunk.write_bytes(bombs[codec].compress(bytes(4 << 20)))
        monkeypatch.setattr(zarr_format, "SMALL_CHUNK", 1000)
        assert (open_volume(path)[:2] == expected[:2]).all()
        if codec:
            refused(open_volume(path).__getitem__, 3, says="unpacks to more than twice what it should hold")

    for compression, packed in (("zlib", zlib.compress(bytes(4 << 20))), ("lzma", lzma.compress(bytes(40 << 20)))):
        path = tmp_path / f"{compression}.tif"
        code = {"zlib": 8, "lzma": 34925}[compression]
        tifffile.imwrite(path, np.random.default_rng(1).integers(0, 256, (1, 200, 200), np.uint8), compression="zlib")
        data = path.read_bytes()
        with tifffile.TiffFile(path) as file:
            tags = file.pages[0].tags
            places = {name: tags[name].valueoffset for name in ("Compression", "StripOffsets", "StripByteCounts")}
        changed = bytearray(data + packed)
        changed[places["Compression"]:places["Compression"] + 2] = code.to_bytes(2, "little")
        changed[places["StripOffsets"]:places["StripOffsets"] + 4] = len(data).to_bytes(4, "little")
        changed[places["StripByteCounts"]:places["StripByteCounts"] + 4] = len(packed).to_bytes(4, "little")
        path.write_bytes(changed)
        monkeypatch.setattr(tiff, "SMALL_STRIP", dict.fromkeys(tiff.SMALL_STRIP, 1000))
        refused(open_volume(path).__getitem__, 0, says="unpacks to more than the 40000 bytes")


# ---- pipes, devices and other things that are no files


@linux
@pytest.mark.parametrize("name", ["a.h5", "a.npy", "a.tif", "a.zarr/.zarray", "a.precomputed/info", "slices/0.tif"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_volume_that_is_a_pipe_or_a_device_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    volume = path if path.parent == tmp_path else path.parent
    code = ("import sys; from emcore.errors import run_command; from emcore.volumes.inspect import main\n"
            f"sys.exit(run_command(main, [{str(volume)!r}]))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@linux
def test_a_chunk_that_is_a_pipe_is_refused_at_once(tmp_path):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 5, 6), dtype="uint8", chunks=(2, 5, 6), zarr_format=2)
    array[...] = VOLUME
    volume = open_volume(tmp_path / "a.zarr")
    chunk = next(file for file in (tmp_path / "a.zarr").rglob("*") if file.name.startswith("1"))
    chunk.unlink()
    os.mkfifo(chunk)
    refused(volume.__getitem__, 3, says="is a pipe")
    assert (volume[:2] == VOLUME[:2]).all()


def test_what_is_no_path_is_refused(tmp_path):
    for name in (f"{tmp_path}/a\0b.h5", f"{tmp_path}/{'a' * 300}.h5", f"{tmp_path}/{'a' * 300}.h5:raw"):
        refused(open_volume, name)
    refused(open_regular, tmp_path, says="is a folder")


# ---- npy, zarr


@pytest.mark.parametrize("header", [
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5, 6)", b"{'descr': '|u1', 'fortran_order'",
    b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (4, 5, 6), }", b"(" * 3000, b"{'descr': b'\\xff'}",
    b"{'descr': '<M8[ns]', 'fortran_order': 1, 'shape': (4,), }", b"{1: 2, None: []}", b"-" * 5000 + b"1", b"\0" * 40,
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -5, 6), }",
    b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 40 + b",5,6), }", b"'''", b"{'descr': '|u1'\\",
])
def test_a_damaged_npy_header_is_one_sentence(tmp_path, header):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + VOLUME.tobytes())
    refused(open_volume, path)


def test_an_npz_or_a_pickle_named_npy_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", main=VOLUME)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    refused(open_volume, tmp_path / "a.npy", says="cannot be read as npy")


@pytest.mark.parametrize("attributes, says", [
    ({"resolution": [10**400, 1, 1]}, "must be three positive numbers"),
    ({"resolution": [1e308, 1, 1], "units": "m"}, "must be three positive numbers"),
    ({"resolution": [5e-324, 1, 1], "units": "pm"}, "must be three positive numbers"),
    ({"offset": [-1e308, 1, 1], "units": ["cm"] * 3}, "must be three numbers"),
    ({"pixelResolution": {"dimensions": [10**400, 1, 1], "unit": "um"}}, "must be three positive numbers"),
    ({"more": json.loads("[" * 300 + "]" * 300)}, "nested deeper than 50"),
])
def test_metadata_beyond_what_a_number_holds_are_refused(tmp_path, attributes, says):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 5, 6), dtype="uint8", zarr_format=2)
    (tmp_path / "a.zarr" / ".zattrs").write_text(json.dumps(attributes))
    refused(open_volume, tmp_path / "a.zarr", says=says)
    np.save(tmp_path / "a.npy", VOLUME)
    (tmp_path / "a.npy.json").write_text(json.dumps(attributes))
    refused(open_volume, tmp_path / "a.npy", says=says)


@pytest.mark.parametrize("change, says", [
    ({"emcore": {"offset": [1e308, 0, 0]}, "resolution": [1e-300] * 3}, None),
    ({"voxel_offset": [2**39, 0, 0], "resolution": [1e300] * 3}, "voxel_offset times resolution"),
])
def test_an_info_whose_numbers_have_no_product_is_read_or_refused(tmp_path, change, says):
    from emcore.volumes import create_volume

    path = tmp_path / "a.precomputed"
    with create_volume(path, (4, 5, 6), "uint8", (40, 4, 4)) as out:
        out[...] = VOLUME
    info = json.loads((path / "info").read_text())
    info["emcore"].update(change.pop("emcore", {}))
    info["scales"][0].update(change)
    (path / "info").write_text(json.dumps(info))
    if says:
        refused(open_volume, path, says=says)
    else:
        assert (open_volume(path)[...] == VOLUME).all()


def test_very_many_arrays_of_a_group_and_links_in_a_circle_are_listed_in_time(tmp_path):
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "a.zarr"
    zarr.open_group(str(path), mode="w", zarr_format=2).create_array("d0", shape=(2, 2, 2), dtype="uint8")
    about = (path / "d0" / ".zarray").read_text()
    for number in range(1, 1500):
        (path / f"d{number}").mkdir()
        (path / f"d{number}" / ".zarray").write_text(about)
    (path / "circle").symlink_to(".")
    listing = list_datasets(path)
    assert (len(listing), len(listing.names)) == (1000, 1500)


# ---- settings


@pytest.mark.parametrize("text, says", [
    ("a = " + "[" * 1000 + "]" * 1000, "nested"), (".".join(["a"] * 3000) + " = 1", "nested deeper than 40"),
    ("seed = " + "9" * 5000, "not valid TOML"), ("name = 'a'\nseed = 0x" + "f" * 5000, "at most 64 bits"),
    ("name = 'a'\n[train.optimizer]\nlr = 1" + "0" * 400, "at most 64 bits"),
    ("#" * (1 << 20) + "\n", "larger than 1 MiB"),
    ('base = "/dev/zero"', "is a device"), ('base = "."', "is a folder"), ("base = 'a\\u0000b'", "no config file"),
    ('base = "a\\u0000b"', "is no name of a file"), ("base = true", "must be the name"),
    (b"name = '\xff'", "is not UTF-8"),
    ("a" * 5000 + " = 1", "unknown setting aaa"), ("name = [" + "1, " * 3000 + "]", "name must be str"),
])
def test_toml_that_no_config_needs_is_refused(tmp_path, text, says):
    path = tmp_path / "a.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(config.load, Settings, path, says=says)


def test_overrides_and_chains_of_bases_are_bounded(tmp_path):
    refused(config.load, Settings, None, ["name=a", "seed=" + "[" * 3000], says="seed must be int")
    for number in range(60):
        (tmp_path / f"{number}.toml").write_text(f'base = "{number + 1}.toml"\n')
    refused(config.load, Settings, tmp_path / "0.toml", says="more than 50 files")


@pytest.mark.parametrize("text, says", [
    ("_base_: true", "_base_ must name files; got True"), ("_base_: 5", "got 5"), ("_base_: {a: b}", "got {'a': 'b'}"),
    ("_base_: [b.yaml, 3]", "got 3"), ("_base_: '.'", "is a folder"), ("_base_: /dev/zero", "is a device"),
    ('_base_: "a\\0b"', "must name files"), ("a: !!bool x", "no valid YAML"), ("a: !!timestamp x", "no valid YAML"),
    ("a: !!int x", "no valid YAML"), ("a: 2024-01-01T00:00:00+99:99", "no valid YAML"),
    ("a: " + "1" * 5000, "no valid YAML"), ("a: 1" + ":59" * 5000, "no valid YAML"),
    ("a: " + "[" * 500_000, "nested too deep"), ("- " * 500_000, "nested too deep"), (b"a: \xff", "is not UTF-8"),
    ("\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12))]),
     "no valid YAML"),
])
def test_yaml_that_no_config_needs_is_refused(tmp_path, text, says):
    pytest.importorskip("yaml")
    from emcore.systems.pytc.yaml_files import read_chain

    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(read_chain, path, says=says)


def test_references_of_yaml_cannot_multiply_without_end():
    from emcore.systems.pytc.yaml_files import filled

    words = {f"a{n}": f"${{a{n + 1}}}" * 100 for n in range(6)} | {"a6": "x" * 100}
    refused(filled, words, words, says="so often")
    tables = {"t": {str(n): "${t}" for n in range(100)}}
    refused(filled, tables, tables, says="so often")


# ---- the page


def test_a_log_and_scores_that_are_damaged_are_one_sentence(tmp_path):
    log = tmp_path / "log.csv"
    assert read_log(log) == {}
    for data, says in ((b"step,loss\n1,\xff\n", "is not UTF-8"), (b"a,b\n1,2\n", "has no column step"),
                       (b"step,loss\n1," + b"9" * 200_000, "cannot be read as the log")):
        log.write_bytes(data)
        refused(read_log, log, says=says)
    log.write_bytes(b"step,loss\r\n1,0.5\r\n2\r\n3,0.25,9,9\r\n4,x\n")
    assert [value for _, value in read_log(log)["loss"]][:2] == [0.5, 0.25]
    log.unlink()
    log.mkdir()
    refused(read_log, log, says="is a folder")
    scores = tmp_path / "scores.json"
    for text in ("[]", '{"a": 1}', '{"a": {"scores": [{"score": 1}]}}', '{"a": {"scores": [], "notes": 3}}', "[" * 9000,
                 '{"a": {"scores": [], "curve": [1]}}', '{"a": {"scores": [], "curve": {"threshold": ["x"]}}}'):
        scores.write_text(text)
        refused(read_scores, scores, says="scores.json")


@pytest.mark.parametrize("values", [[0, 1e12], [-1e299, 1e299], [1e-300, 1e299], [5, 5]])
def test_a_curve_of_any_numbers_is_drawn_in_time(values):
    start = time.process_time()
    assert "<svg" in plot({"loss": [(0, values[0]), (1, values[1])]}, "step", "loss", may_be_logarithmic=values[0] != 0)
    assert time.process_time() - start < 5


def test_checkpoints_that_are_a_file_are_told_before_the_training():
    pytest.importorskip("torch")
    from emcore.engine import checkpoint

    for action in (checkpoint.all_steps, checkpoint.newest):
        refused(action, Path(__file__), says="is no folder, but the checkpoints go there")
    assert checkpoint.all_steps(ROOT / "nothing there") == []


# ---- archives


def archive(path, *members, change=None):
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members:
            item = zipfile.ZipInfo("x")
            item.filename = name
            if change:
                change(item)
            target.writestr(item, content)
    return path


@pytest.mark.parametrize("name", [".", "..", "../x", "/x", "a/../../x", "a/./x", "a//x", "C:x", "a\\x", "a\nx"])
def test_members_that_lead_elsewhere_are_refused_and_nothing_is_written(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "a.zip", ("good", b"1"), (name, b"2"))
    refused(unpack, path, says="leads out of its folder")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "in", path]


def test_members_that_cannot_be_trusted_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    for members, says in (([("a.zip", b"1")], "its own name"), ([("a.zip.source.json", b"1")], "its own name")):
        refused(unpack, archive(path, *members), says=says)
    with pytest.warns(UserWarning, match="Duplicate"):
        archive(path, ("x", b"1"), ("x", b"2"))
    refused(unpack, path, says="twice")
    refused(unpack, archive(path, ("x", b"y"), change=lambda item: setattr(item, "external_attr", 0o120777 << 16)),
            says="is a link")
    for place, value, says in ((6, 1, "is encrypted"), (8, 99, "method 99")):  # in the local and the central header
        data = bytearray(archive(path, ("x", b"y")).read_bytes())
        data[place], data[data.index(b"PK\1\2") + place + 2] = value, value
        path.write_bytes(data)
        refused(unpack, path, says=says)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_planted_link_is_not_written_through_and_a_wrong_file_is_replaced(tmp_path):
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir(), outside.mkdir()
    path = archive(folder / "a.zip", ("d/x", b"new"), ("y", b"new"))
    (folder / "d").symlink_to(outside)
    refused(unpack, path, says="leads out of its folder")
    (folder / "d").unlink()
    (outside / "kept").write_bytes(b"old")
    (folder / ".y.partial").symlink_to(outside / "kept")
    (folder / "y").write_bytes(b"bad")  # the length of the right one
    assert [file.read_bytes() for file in unpack(path)] == [b"new", b"new"]
    assert (outside / "kept").read_bytes() == b"old"
