"""Volumes: opening, slicing, metadata, and writing of HDF5 and npy."""

import importlib.util
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile

import h5py
import numpy as np
import pytest

from emcore.errors import InputError
from emcore.volumes import check_labels, create_volume, list_datasets, open_volume, placement, split_reference

FORMATS = ["v.h5", "v.h5:volumes/labels", "v.npy"]
EXTRAS = [("tifffile", "v.tif"), ("zarr", "v.zarr:a/b")]


def random_volume(shape=(7, 9, 11), dtype="uint16", seed=0):
    return np.random.default_rng(seed).integers(0, 200, shape).astype(dtype)


def write_h5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name.replace("__", "/")] = data
    return path


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "bool", "int16", "uint32", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 9, 11), (3, 2, 5, 4)])
def test_what_is_written_block_by_block_is_read_back(tmp_path, name, dtype, shape):
    data = random_volume(shape, dtype)
    with create_volume(f"{tmp_path}/{name}", shape, dtype, (40, 4, 4.6), (80, -4, 0)) as writer:
        for z in range(0, shape[0], 2):
            writer[z : z + 2] = data[z : z + 2]
    volume = open_volume(f"{tmp_path}/{name}")
    assert volume.shape == shape
    assert volume.dtype == np.dtype(dtype)
    assert volume[...].dtype == np.dtype(dtype)
    assert (volume[...] == data).all()
    assert (np.asarray(volume) == data).all()
    assert volume.resolution == (40, 4, 4.6)
    assert volume.offset == (80, -4, 0)
    assert (volume.ndim, volume.size, volume.nbytes, len(volume)) == (data.ndim, data.size, data.nbytes, len(data))


@pytest.mark.parametrize("name", FORMATS)
def test_slices_are_numpy_s_and_belong_to_the_caller(tmp_path, name):
    data = random_volume((4, 6, 5, 7))
    with create_volume(f"{tmp_path}/{name}", data.shape, data.dtype) as writer:
        writer[...] = data
    read_only = data.copy()
    read_only.setflags(write=False)
    volumes = [open_volume(f"{tmp_path}/{name}"), open_volume(read_only), open_volume(np.asfortranarray(data))]
    rng = np.random.default_rng(1)
    for volume in volumes:
        for _ in range(100):
            index = []
            for length in data.shape[: rng.integers(0, 5)]:
                start, stop = rng.integers(-length - 2, length + 3, 2)
                choices = [
                    slice(start, stop, rng.integers(1, 4)),
                    int(rng.integers(-length, length)),
                    slice(None, stop),
                ]
                index.append(choices[rng.integers(3)])
            if rng.integers(2):
                index.insert(rng.integers(len(index) + 1), ...)
            index = tuple(index)
            block = volume[index]
            assert block.shape == data[index].shape
            assert (block == data[index]).all()
            if block.ndim:  # otherwise a number
                block[...] = 0
        assert (volume[...] == data).all()
        for wrong in [(5,), (0, 0, 0, 7), (slice(None, None, -1),), (True,), (np.zeros(3, int),), (0,) * 5, (..., ...)]:
            with pytest.raises(IndexError):
                volume[wrong]


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_may_be_written_in_any_order_and_the_rest_is_zero(tmp_path, name):
    rng = np.random.default_rng(2)
    for _ in range(20):
        shape = tuple(rng.integers(1, 9, rng.integers(3, 5)).tolist())
        expected = np.zeros(shape, "uint32")
        with create_volume(f"{tmp_path}/{name}", shape, "uint32") as writer:
            for _ in range(8):
                start = rng.integers(0, shape)
                stop = rng.integers(start, shape) + 1
                box = tuple(slice(a, b) for a, b in zip(start.tolist(), stop.tolist()))
                block = rng.integers(0, 2**32, stop - start, dtype=np.uint32)
                writer[box] = expected[box] = block
            writer[0, ..., 0] = expected[0, ..., 0] = 7
            writer[-1] = expected[-1] = rng.integers(0, 9, shape[1:])[::-1].astype("uint8")
        assert (open_volume(f"{tmp_path}/{name}")[...] == expected).all()


def test_sections_written_one_by_one_are_packed_as_often_as_whole_blocks(tmp_path):
    """A chunk that leaves the cache half full is unpacked and packed again, and leaves holes in the file."""
    labels = np.random.default_rng(0).integers(0, 9, (64, 8, 192)).astype("uint32").repeat(64, axis=1)
    for name, step in (("sections.h5", 1), ("blocks.h5", 64)):
        with create_volume(tmp_path / name, labels.shape, labels.dtype) as writer:
            for z in range(0, 64, step):
                writer[z : z + step] = labels[z : z + step]
    sections, blocks = ((tmp_path / name).stat().st_size for name in ("sections.h5", "blocks.h5"))
    assert sections == blocks


def test_a_writer_refuses_blocks_that_do_not_fit(tmp_path):
    with create_volume(tmp_path / "a.h5", (4, 5, 6), "uint8") as writer:
        for index, block, text in [
            (slice(0, 2), np.zeros((3, 5, 6), "uint8"), "does not fit"),
            (0, np.zeros((4, 6), "uint8"), "does not fit"),
            (0, np.zeros((5, 6)), "would lose values"),
            (slice(0, 4, 2), np.zeros((2, 5, 6), "uint8"), "step"),
        ]:
            with pytest.raises(InputError, match=text):
                writer[index] = block


@pytest.mark.parametrize("name", ["a.h5", "a.npy"])
def test_attributes_are_kept_and_the_grid_is_written_in_one_spelling(tmp_path, name):
    given = {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]], "source": "sample", "nested": {"a": [1, {"b": None}]}}
    foreign = {"voxel_size": np.array([30, 6, 6]), "units": "nm"}
    with create_volume(tmp_path / name, (3, 2, 2, 2), "float32", attributes={**given, **foreign}) as writer:
        writer[...] = 1
    volume = open_volume(tmp_path / name)
    assert volume.attrs == given
    assert volume.resolution == (30, 6, 6)
    assert volume.offset == (0, 0, 0)
    if name == "a.h5":
        with h5py.File(tmp_path / name) as file:
            assert set(file["main"].attrs) == {*given, "resolution", "offset"}


@pytest.mark.parametrize(
    "attributes, resolution, offset",
    [
        ({"resolution": [40, 4, 4], "offset": [120.0, 8, 8]}, (40, 4, 4), (120, 8, 8)),
        ({"voxel_size": [40, 4, 4]}, (40, 4, 4), (0, 0, 0)),
        ({"voxel_size": [0.04, 0.004, 0.004], "units": "um"}, (40, 4, 4), (0, 0, 0)),
        ({"resolution": 8}, (8, 8, 8), (0, 0, 0)),
        ({"resolution": [1, 40, 4, 4], "offset": [0, 40, 4, 4]}, (40, 4, 4), (40, 4, 4)),
        ({"pixelResolution": [4, 5, 40]}, (40, 5, 4), (0, 0, 0)),
        ({"pixelResolution": '{"dimensions": [0.004, 0.005, 0.04], "unit": "µm"}'}, (40, 5, 4), (0, 0, 0)),
        ({"element_size_um": [0.04, 0.004, 0.005]}, (40, 4, 5), (0, 0, 0)),
        ({}, None, (0, 0, 0)),
    ],
)
def test_resolution_and_offset_are_read_in_every_spelling(tmp_path, attributes, resolution, offset):
    for place in ("a/b", "a", "/"):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["a/b"] = np.zeros((2, 2, 2), "uint8")
            file[place].attrs.update(attributes)
        volume = open_volume(tmp_path / "a.h5")
        assert volume.resolution == (resolution and pytest.approx(resolution))
        assert volume.offset == offset


@pytest.mark.parametrize(
    "attributes, text",
    [
        ({"resolution": [40, 4]}, "must be three positive numbers"),
        ({"resolution": [40, 0, 4]}, r"\[40, 0, 4\]"),
        ({"voxel_size": "unknown"}, "voxel_size"),
        ({"offset": [np.nan, 0, 0]}, "offset .* must be three numbers"),
    ],
)
def test_a_resolution_that_is_none_is_refused(tmp_path, attributes, text):
    write_h5(tmp_path / "a.h5", raw=np.zeros((2, 2, 2)))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["raw"].attrs.update(attributes)
    with pytest.raises(InputError, match=text):
        open_volume(tmp_path / "a.h5")


def test_the_usual_datasets_are_found_by_kind(tmp_path):
    raw, labels = np.zeros((4, 5, 6), "uint8"), np.ones((2, 3, 4), "uint64")
    cremi = write_h5(
        tmp_path / "sample_A_20160501.hdf",
        volumes__raw=raw,
        volumes__labels__neuron_ids=labels,
        volumes__labels__clefts=labels,
        annotations__locations=np.zeros((9, 3)),
        annotations__types=np.array([b"presynaptic"]),
    )
    assert open_volume(cremi, kind="image").name.endswith(":volumes/raw")
    assert open_volume(cremi).name.endswith(":volumes/raw")
    assert open_volume(cremi, kind="labels").name.endswith(":volumes/labels/neuron_ids")
    assert open_volume(f"{cremi}:volumes/labels/clefts", kind="labels").shape == (2, 3, 4)
    assert open_volume(cremi, "/volumes/labels/clefts").shape == (2, 3, 4)
    only = write_h5(tmp_path / "only.h5", anything=labels, table=np.zeros((3, 2)))
    assert open_volume(only, kind="labels").name.endswith("anything")
    many = write_h5(tmp_path / "many.h5", one=raw, two=labels)
    with pytest.raises(InputError, match=r"one \(4, 5, 6\) uint8, two \(2, 3, 4\) uint64"):
        open_volume(many)
    with pytest.raises(InputError, match=r"no dataset 'raw'; it has: one \(4, 5, 6\) uint8"):
        open_volume(f"{many}:raw")
    with pytest.raises(InputError, match="a group, not a dataset"):
        open_volume(f"{cremi}:volumes/labels")
    assert [(item.name, item.shape) for item in list_datasets(many)] == [("one", (4, 5, 6)), ("two", (2, 3, 4))]


def test_cremi_labels_are_placed_in_raw_by_their_offset(tmp_path):
    path = write_h5(
        tmp_path / "a.hdf",
        volumes__raw=np.zeros((9, 20, 20), "uint8"),
        volumes__labels__neuron_ids=np.ones((3, 4, 5), "uint64"),
    )
    with h5py.File(path, "a") as file:
        file["volumes/raw"].attrs["resolution"] = file["volumes/labels/neuron_ids"].attrs["resolution"] = (40.0, 4, 4)
        file["volumes/labels/neuron_ids"].attrs["offset"] = (80.0, 12, 16)
    raw, labels = open_volume(path, kind="image"), open_volume(path, kind="labels")
    assert placement(labels, raw) == (slice(2, 5), slice(3, 7), slice(4, 9))
    with pytest.raises(InputError, match="covers the voxels"):
        placement(raw, labels)
    with pytest.raises(InputError, match="not a whole number"):
        placement(open_volume(Located((3, 4, 5), (40, 4, 4), (80, 13, 16))), raw)
    with pytest.raises(InputError, match="must agree"):
        placement(open_volume(Located((3, 4, 5), (40, 8, 8), (80, 16, 16))), raw)


class Located:
    """A program's own array with a place in the world."""

    dtype = np.dtype("uint8")

    def __init__(self, shape, resolution, offset):
        self.shape, self.resolution, self.offset = shape, resolution, offset

    def __getitem__(self, index):
        return np.zeros(self.shape, self.dtype)[index]


def test_an_object_with_shape_dtype_and_slicing_is_a_volume(tmp_path):
    volume = open_volume(Located((3, 4, 5), (40, 4, 4), (80, 12, 16)))
    assert volume.resolution == (40, 4, 4)
    assert volume.offset == (80, 12, 16)
    assert volume[1:, 0].shape == (2, 5)
    assert open_volume(volume) is volume
    write_h5(tmp_path / "a.h5", raw=np.ones((2, 3, 4)))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["raw"].attrs["resolution"] = (40, 4, 4)
        assert open_volume(file["raw"]).resolution == (40, 4, 4)
    for wrong in (3, None, [1, 2]):
        with pytest.raises(InputError, match="a path or an object with shape, dtype and slicing"):
            open_volume(wrong)


def test_flyem_labels_are_read_as_bodies_unless_the_stack_is_named(tmp_path):
    stack = random_volume((3, 4, 5), "uint32") % 6
    table = np.array([[5, 50], [1, 10], [3, 2**40]], "uint64")
    path = write_h5(tmp_path / "groundtruth.h5", stack=stack, transforms=table)
    expected = stack.astype("uint64")
    for supervoxel, body in table:
        expected[stack == supervoxel] = body
    labels = open_volume(path, kind="labels")
    assert labels.dtype == np.uint64
    assert (labels[...] == expected).all()
    assert (labels[1, 2:3] == expected[1, 2:3]).all()
    assert (open_volume(f"{path}:stack", kind="labels")[...] == stack).all()
    assert (open_volume(path)[...] == stack).all()


def test_big_endian_data_comes_in_the_byte_order_of_the_machine(tmp_path):
    data = random_volume((3, 4, 5), ">u2")
    np.save(tmp_path / "a.npy", data)
    write_h5(tmp_path / "a.h5", raw=data)
    for reference in (tmp_path / "a.npy", tmp_path / "a.h5", data):
        volume = open_volume(reference)
        assert volume.dtype.isnative
        assert volume[1].dtype.isnative
        assert (volume[...] == data).all()


def test_a_path_with_a_colon_is_a_path(tmp_path):
    (tmp_path / "a:b").mkdir()
    np.save(tmp_path / "a:b" / "c:d.npy", np.ones((2, 2, 2)))
    assert split_reference(tmp_path / "a:b" / "c:d.npy") == (tmp_path / "a:b" / "c:d.npy", None)
    assert split_reference("missing.h5:volumes/raw")[1] == "volumes/raw"
    assert open_volume(tmp_path / "a:b" / "c:d.npy").shape == (2, 2, 2)


def corrupt(tmp_path, what):
    """A file with one thing wrong with it."""
    path = tmp_path / "x.h5"
    if what == "text":
        path.write_text("resolution: 40 4 4\n")
    elif what == "empty":
        path.touch()
    elif what == "truncated":
        write_h5(path, raw=random_volume((40, 40, 40)))
        path.write_bytes(path.read_bytes()[:30000])
    elif what == "header only":
        write_h5(path, raw=random_volume((4, 4, 4)))
        path.write_bytes(path.read_bytes()[:60])
    elif what == "zero size":
        write_h5(path, raw=np.zeros((0, 4, 4)))
    elif what == "5-D":
        write_h5(path, raw=np.zeros((1, 1, 2, 2, 2)))
    elif what == "2-D":
        write_h5(path, raw=np.zeros((2, 2)))
    elif what == "complex":
        write_h5(path, raw=np.zeros((2, 2, 2), complex))
    elif what == "unknown format":
        path = tmp_path / "x.dm3"
        path.write_bytes(bytes(100))
    elif what == "npy with objects":
        path = tmp_path / "x.npy"
        np.save(path, np.array([[[None]]]), allow_pickle=True)
    elif what == "npy beyond its file":
        path = tmp_path / "x.npy"
        np.save(path, np.zeros((4, 4, 4)))
        path.write_bytes(path.read_bytes().replace(b"(4, 4, 4)", b"(4000000, 4, 4)")[:600])
    elif what == "npy header cut":
        path = tmp_path / "x.npy"
        np.save(path, np.zeros((4, 4, 4)))
        path.write_bytes(path.read_bytes()[:20])
    elif what == "folder":
        path = tmp_path / "folder"
        path.mkdir()
    return path


@pytest.mark.parametrize(
    "what, text",
    [
        ("missing", "there is no file .*x.h5"),
        ("text", r"x.h5 is not an HDF5 file; it begins with b'resolution"),
        ("empty", "x.h5 is cut off"),
        ("truncated", "x.h5 is cut off"),
        ("header only", "x.h5"),
        ("zero size", r"x.h5:raw is empty: its shape is \(0, 4, 4\)"),
        ("5-D", r"x.h5 holds no volume .*raw \(1, 1, 2, 2, 2\) float64"),
        ("2-D", "x.h5 holds no volume"),
        ("complex", "x.h5 holds no volume"),
        ("unknown format", "x.dm3 is in no format known here"),
        ("npy with objects", "x.npy"),
        ("npy beyond its file", "x.npy cannot be read as npy"),
        ("npy header cut", "x.npy cannot be read as npy"),
    ],
)
def test_a_broken_file_is_one_sentence_that_names_it(tmp_path, what, text):
    with pytest.raises(InputError, match=text) as caught:
        open_volume(corrupt(tmp_path, what))
    assert "\n" not in str(caught.value)


def test_a_named_dataset_that_is_no_volume_is_refused(tmp_path):
    path = write_h5(
        tmp_path / "a.h5", five=np.zeros((1, 1, 2, 2, 2)), text=np.array(b"x"), z=np.zeros((2, 2, 2), complex)
    )
    with pytest.raises(InputError, match="five has 5 axes"):
        open_volume(f"{path}:five")
    for name in ("text", "z"):
        with pytest.raises(InputError, match="not numbers"):
            open_volume(f"{path}:{name}")


def test_float_labels_are_refused():
    for array in (np.zeros((2, 2, 2), "float32"), np.zeros((3, 2, 2, 2), "uint8")):
        with pytest.raises(InputError, match="labels are"):
            open_volume(array, kind="labels")
    assert check_labels(open_volume(np.zeros((2, 2, 2), bool))).ndim == 3


def test_a_virtual_dataset_whose_parts_are_missing_is_refused(tmp_path):
    layout = h5py.VirtualLayout((4, 2, 2), "uint8")
    for part in range(2):
        write_h5(tmp_path / f"part{part}.h5", main=np.full((2, 2, 2), part + 1, "uint8"))
        layout[2 * part : 2 * part + 2] = h5py.VirtualSource(f"part{part}.h5", "main", (2, 2, 2))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("main", layout)
    assert (open_volume(tmp_path / "all.h5")[:, 0, 0] == [1, 1, 2, 2]).all()
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(InputError, match=r"joined from 2 files; missing: part1.h5"):
        open_volume(tmp_path / "all.h5")


def test_a_filter_that_is_missing_is_named_on_opening(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((2, 2, 2))
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL)
        space = h5py.h5s.create_simple((2, 2, 2))
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, properties)
    if h5py.h5z.filter_avail(32001):
        pytest.skip("this HDF5 has Blosc")
    with pytest.raises(InputError, match=r"filter 32001 .* h5repack"):
        open_volume(tmp_path / "a.h5")


def test_other_datasets_of_a_file_stay_when_one_is_written(tmp_path):
    path, raw = tmp_path / "a.h5", random_volume((20, 30, 40), "uint8")
    with create_volume(f"{path}:raw", raw.shape, raw.dtype, (40, 4, 4)) as writer:
        writer[...] = raw
    for value in (1, 2):
        with create_volume(f"{path}:labels", raw.shape, "uint32") as writer:
            writer[...] = value
            assert open_volume(path, kind="image")[0, 0, 0] == raw[0, 0, 0]
    assert (open_volume(f"{path}:raw")[...] == raw).all()
    assert open_volume(f"{path}:raw").resolution == (40, 4, 4)
    assert (open_volume(f"{path}:labels")[...] == 2).all()
    before = path.read_bytes()
    with pytest.raises(KeyError), create_volume(f"{path}:labels", raw.shape, "uint32") as writer:
        writer[...] = {}["wrong"]
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.h5"]
    with pytest.raises(InputError, match="stands in the way"), create_volume(f"{path}:raw/x", raw.shape, "uint8"):
        pass
    both = create_volume(f"{path}:b", (2, 2, 2), "uint8"), create_volume(f"{path}:c", (2, 2, 2), "uint8")
    with pytest.raises(InputError, match="changed by another process"), both[0], both[1]:
        pass
    (tmp_path / "notes.h5").write_text("mine")
    with pytest.raises(InputError, match="not an HDF5 file"), create_volume(tmp_path / "notes.h5", (2, 2, 2), "uint8"):
        pass
    assert (tmp_path / "notes.h5").read_text() == "mine"


@pytest.mark.parametrize("name", ["a.h5", "a.npy"])
def test_the_final_name_appears_when_the_block_ends_without_an_error(tmp_path, name):
    with create_volume(tmp_path / name, (4, 4, 4), "uint8", (1, 2, 3)) as writer:
        writer[...] = 1
        assert not (tmp_path / name).exists()
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    with pytest.raises(ZeroDivisionError), create_volume(tmp_path / name, (4, 4, 4), "uint8") as writer:
        writer[...] = 1 // 0
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["a.h5", "a.npy"])
def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, name):
    steps = []
    for step, function in {"fsync": os.fsync, "replace": os.replace}.items():
        monkeypatch.setattr(os, step, lambda *given, step=step, call=function: (steps.append(step), call(*given)))
    with create_volume(tmp_path / name, (4, 4, 4), "uint8") as writer:
        writer[...] = 1
    assert steps[-3:] == ["fsync", "replace", "fsync"]  # the file, then the folder
    assert steps.count("replace") == 1


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("nowhere/a.h5", (2, 2, 2), "uint8"), "cannot write .*a.h5: its folder does not exist"),
        (("file/a.h5", (2, 2, 2), "uint8"), "cannot write .*a.h5: its folder is a file"),
        (("nowhere/a.npy", (2, 2, 2), "uint8"), "cannot write .*a.npy: its folder does not exist"),
        (("a.mrc", (2, 2, 2), "uint8"), "no format to write"),
        (("a.h5", (2, 0, 2), "uint8"), "is empty"),
        (("a.h5", (2, 2), "uint8"), "2 axes"),
        (("a.h5", (2, 2, 2), complex), "not numbers"),
        (("a.npy:raw", (2, 2, 2), "uint8"), "single volume"),
        (("a.h5", (2, 2, 2), "uint8", (1, 2)), "resolution must be"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(tmp_path, arguments, text):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=text), create_volume(f"{tmp_path}/{arguments[0]}", *arguments[1:]):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


FULL = """
import resource, sys
import numpy as np
from emcore.errors import run_command
from emcore.volumes import create_volume
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
def main(arguments):
    with create_volume(arguments[0], (64, 128, 128), "uint8", chunks=eval(arguments[1])) as writer:
        for z in range(0, 64, 16):
            writer[z : z + 16] = np.random.default_rng(z).integers(0, 255, (16, 128, 128), "uint8")
sys.exit(run_command(main, sys.argv[1:]))
"""


@pytest.mark.parametrize("name, chunks", [("a.h5", "None"), ("a.h5:b/c", "(64, 128, 128)"), ("a.npy", "None")])
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(tmp_path, name, chunks):
    command = [sys.executable, "-c", FULL, f"{tmp_path}/{name}", chunks]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: cannot write {tmp_path}/a.")
    assert "file size limit" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("name", ["a.h5", "a.npy"])
def test_an_unwritable_folder_is_one_sentence(name):
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        with create_volume(f"{folder}/{name}", (2, 2, 2), "uint8") as writer:
            writer[...] = 1
        os.chmod(folder, 0o555)
        os.seteuid(user or 65534)  # the superuser may write anywhere
        text = f"cannot write {folder}/{name}: permission denied"
        try:
            with pytest.raises(InputError, match=text), create_volume(f"{folder}/{name}", (2, 2, 2), "uint8"):
                pass
            assert (open_volume(f"{folder}/{name}")[...] == 1).all()
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


def test_python_ignores_the_signal_of_the_file_size_limit():
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN


def test_opening_reads_nothing_and_a_volume_pickles(tmp_path):
    data = random_volume()
    write_h5(tmp_path / "a.h5", raw=data)
    volume = open_volume(tmp_path / "a.h5")
    assert not volume.connection
    assert (volume[...] == data).all()
    copy = pickle.loads(pickle.dumps(volume))
    assert not copy.connection
    assert (copy[...] == data).all()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_another_process_reads_through_a_handle_of_its_own(tmp_path, start):
    data = random_volume((40, 50, 60))
    path = write_h5(tmp_path / "a.h5", raw=data, labels=data[::-1])
    raw, labels = open_volume(f"{path}:raw"), open_volume(f"{path}:labels")
    assert (raw[...] == data).all()
    assert (labels[...] == data[::-1]).all()
    context = multiprocessing.get_context(start)
    results = context.SimpleQueue()
    processes = [context.Process(target=sum_sections, args=(raw, labels, results)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        opened_by, process, sums = results.get()
        assert opened_by == process != os.getpid()
        assert sums == [int(data[z].sum()) + int(data[39 - z].sum()) for z in range(40)]
    for process in processes:
        process.join()
    assert (raw[...] == data).all()


def sum_sections(raw, labels, results):
    sums = [int(raw[z].sum()) + int(labels[z].sum()) for z in range(len(raw))]
    results.put((raw.connection[0], os.getpid(), sums))


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_four_workers_of_a_loader_read_what_one_process_reads(tmp_path, start):
    data = pytest.importorskip("torch.utils.data")
    volumes, arrays = [], []
    extras = [name for module, name in EXTRAS if importlib.util.find_spec(module)]
    for seed, name in enumerate([*FORMATS, *extras]):
        arrays.append(random_volume((24, 16, 16), "uint8", seed))
        with create_volume(f"{tmp_path}/{seed}{name}", (24, 16, 16), "uint8") as writer:
            writer[...] = arrays[-1]
        volumes.append(open_volume(f"{tmp_path}/{seed}{name}"))
        assert (volumes[-1][3] == arrays[-1][3]).all()  # the parent's handle is open before the workers start
    sections = data.ConcatDataset(volumes)
    loader = data.DataLoader(sections, batch_size=2, num_workers=4, multiprocessing_context=start)
    assert (np.concatenate([batch.numpy() for batch in loader]) == np.concatenate(arrays)).all()


WITHOUT_TORCH = """
import sys
import tempfile
sys.modules["torch"] = None
import numpy as np
import emcore
with emcore.create_volume(sys.argv[1], (2, 3, 4), "uint8") as writer:
    writer[...] = 5
assert (emcore.open_volume(sys.argv[1])[...] == 5).all()
assert not {"tifffile", "zarr"} & set(sys.modules)
import emcore.volumes, emcore.errors, emcore.threads
"""


def test_volumes_work_where_torch_is_missing(tmp_path):
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, f"{tmp_path}/a.h5"], check=True, timeout=60)


def test_importing_emcore_takes_less_than_a_third_of_a_second_and_no_torch():
    code = "import time, sys; t = time.time(); import emcore; print(time.time() - t, 'torch' in sys.modules)"
    times = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(3)
    ]
    assert min(float(seconds) for seconds, _ in times) < 0.3
    assert all(torch == "False" for _, torch in times)
