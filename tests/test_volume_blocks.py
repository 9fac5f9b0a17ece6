"""Volumes written as blocks by many processes and joined at the end."""

import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore.errors import InputError
from emcore.files import assembled
from emcore.volumes import create_volume, list_datasets, open_volume
from emcore.volumes.blocks import Damaged, is_whole, join_blocks, read_block, write_block
from emcore.volumes.convert import boxes
from emcore.volumes.hdf5_virtual import MOST_PARTS

ROOT = Path(__file__).resolve().parent.parent
SHAPE, CORE = (150, 100, 130), (70, 64, 50)
GRID = {"resolution": (40.0, 4.0, 4.0), "offset": (400.0, 8.0, 12.0)}
ATTRIBUTES = {"record": {"command": ["decode"], "nothing": None}, "high": 0.5, "offsets": [[-1, 0, 0], [0, -1, 0]]}


def labels(shape=SHAPE, dtype=np.uint64, seed=0):
    return np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)


def block_name(box):
    return "A_labels.blocks/" + "_".join(str(span.start) for span in box) + ".h5"


def write_one(folder, box, values):
    write_block(folder / block_name(box), values)


def joined(folder, values, left_out=None):
    """Writes values as blocks, joined by folder/A_labels.h5:labels."""
    (folder / "A_labels.blocks").mkdir()
    kept = [box for box in boxes(values.shape, CORE[-values.ndim:]) if box != left_out]
    for box in kept:
        write_one(folder, box, values[box])
    with assembled(folder / "A_labels.h5") as path:
        join_blocks(path, "labels", values.shape, values.dtype, ((box, block_name(box)) for box in kept),
                    **GRID, attributes=ATTRIBUTES)
    return folder / "A_labels.h5"


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "emcore", *map(str, arguments)], capture_output=True, text=True,
                          cwd=ROOT, timeout=300)


def test_the_same_work_makes_the_same_bytes_at_any_time(tmp_path):
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        files.append(joined(tmp_path / name, labels((70, 64, 60))))
        time.sleep(1.1)  # HDF5 would keep the second at which a dataset is made
    first, second = ([file.read_bytes(), *(path.read_bytes() for path in sorted(file.parent.rglob("*/*.h5")))]
                     for file in files)
    assert len(first) > 2
    assert first == second


# ---- blocks


@pytest.mark.parametrize("dtype", ["uint64", "uint32", "uint8", "int16", "float32", "float16", "bool"])
def test_a_block_is_read_as_it_was_written(tmp_path, dtype):
    for number, shape in enumerate([(70, 64, 50), (1, 1, 1), (3, 2, 300), (2, 9, 8, 7)]):
        values, path = labels(shape, dtype, number), tmp_path / f"{number}.h5"
        write_block(path, values, {"record": {"a": [1, None]}})
        found = read_block(path, shape, dtype)
        assert (found.dtype, found.shape) == (values.dtype, shape)
        assert (found == values).all()
        assert is_whole(path, shape, np.dtype(dtype).newbyteorder(">"))
        volume = open_volume(path)
        assert (volume[...] == values).all()
        assert volume.attrs["record"] == {"a": [1, None]}


def test_any_layout_of_the_array_in_memory_is_written(tmp_path):
    values = labels((8, 9, 10), "uint32")
    for number, given in enumerate([np.asfortranarray(values), values.astype(">u4"), np.repeat(values, 2, 2)[:, :, ::2],
                                    values[::-1][::-1]]):
        write_block(tmp_path / f"{number}.h5", given)
        assert (read_block(tmp_path / f"{number}.h5", (8, 9, 10), "uint32") == values).all()
    assert len({open_volume(tmp_path / f"{number}.h5").attrs["crc32"] for number in range(4)}) == 1


def test_another_shape_or_type_is_not_what_was_written(tmp_path):
    write_block(tmp_path / "a.h5", labels((8, 9, 10), "uint32"))
    for shape, dtype in (((8, 9, 11), "uint32"), ((10, 9, 8), "uint32"), ((8, 90), "uint32"), ((8, 9, 10), "int32"),
                         ((8, 9, 10), "uint64")):
        assert not is_whole(tmp_path / "a.h5", shape, dtype)
        with pytest.raises(Damaged, match=r"\A[^\n]*a.h5 holds a block of shape \(8, 9, 10\) and type uint32[^\n]*\Z"):
            read_block(tmp_path / "a.h5", shape, dtype)


def test_a_missing_block_and_what_is_no_block_are_said(tmp_path):
    assert not is_whole(tmp_path / "a.h5", (2, 2, 2), "uint8")
    with pytest.raises(Damaged, match=r"block .*a.h5 is missing; write it again"):
        read_block(tmp_path / "a.h5", (2, 2, 2), "uint8")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("no HDF5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["raw"] = labels((2, 2, 2))
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["labels"] = labels((2, 2, 2))
    with h5py.File(tmp_path / "away.h5", "w") as file:
        file["labels"] = h5py.ExternalLink("whole.h5", "labels")
    write_block(tmp_path / "whole.h5", labels((2, 2, 2)))
    with h5py.File(tmp_path / "unsigned.h5", "w") as file:
        file.create_dataset("labels", data=labels((2, 2, 2)), chunks=(2, 2, 2))
    for name in ("folder", "empty", "text", "other", "plain", "away", "unsigned"):
        assert not is_whole(tmp_path / f"{name}.h5", (2, 2, 2), "uint64")
        with pytest.raises(Damaged, match=r"\A[^\n]+write it again\Z"):
            read_block(tmp_path / f"{name}.h5", (2, 2, 2), "uint64")


def test_a_block_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    write_block(tmp_path / "a.h5", labels((2, 2, 2)))
    monkeypatch.setattr("emcore.volumes.blocks.open_regular", refuse)
    with pytest.raises(InputError, match=r"a.h5 cannot be read: .*Too many open files") as caught:
        is_whole(tmp_path / "a.h5", (2, 2, 2), "uint64")
    assert not isinstance(caught.value, Damaged)


def refuse(path):
    raise OSError(24, "Too many open files")


def test_the_values_cannot_change_without_a_word(tmp_path):
    """What is changed by a sound writer, checksums of HDF5 and all, the digest still finds."""
    write_block(tmp_path / "a.h5", labels((8, 9, 10)))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["labels"][7, 8, 9] += 1
    with pytest.raises(Damaged, match=r"does not hold what was written, as its digest tells"):
        read_block(tmp_path / "a.h5", (8, 9, 10), "uint64")


def test_no_cut_and_no_flipped_bit_changes_a_value(tmp_path):
    """A damaged block is read as it was written, where its values are not met, or it is not whole."""
    rng, values, path = random.Random(0), labels((9, 10, 11), "uint32"), tmp_path / "a.h5"
    write_block(path, values)
    sound = path.read_bytes()
    outcomes = []
    for number in range(400):
        data = bytearray(sound)
        if number % 4 == 0:
            data = data[:rng.randrange(len(data))]
        else:
            for _ in range(rng.choice((1, 1, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            assert (read_block(path, values.shape, values.dtype) == values).all()
            outcomes.append("read")
        except Damaged as error:
            outcomes.append("damaged" if "\n" not in str(error) else "no sentence")
        assert is_whole(path, values.shape, values.dtype) == (outcomes[-1] == "read")
    assert outcomes[::4].count("damaged") == 100  # every cut is found
    assert {"read", "damaged"} == set(outcomes)


def test_a_flipped_bit_is_found_at_reading_even_without_the_digest(tmp_path):
    """The volume that is joined from the block reads it through HDF5's own checksum, and names it."""
    values = labels((70, 64, 50), "uint32")
    path = joined(tmp_path, values)
    block = tmp_path / block_name((slice(0, 70), slice(0, 64), slice(0, 50)))
    with h5py.File(block, "r") as file:
        about = file["labels"].id.get_chunk_info(0)
    data = bytearray(block.read_bytes())
    data[about.byte_offset + about.size // 2] ^= 4
    block.write_bytes(data)
    with pytest.raises(InputError, match=rf"\A[^\n]*joined from {block.name}:labels, which cannot be read: [^\n]*\Z"):
        open_volume(path)[...]


def test_a_block_that_fails_to_be_written_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*/gone/a.h5: its folder does not exist"):
        write_block(tmp_path / "gone" / "a.h5", labels((2, 2, 2)))
    write_block(tmp_path / "a.h5", labels((2, 2, 2)))
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(InputError, match=r"a.h5 .*not numbers"):
        write_block(tmp_path / "a.h5", np.full((2, 2, 2), "a"))
    assert (tmp_path / "a.h5").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.h5"]


# ---- joined


@pytest.mark.parametrize("dtype", ["uint64", "uint32"])
def test_a_joined_volume_is_the_one_that_create_volume_writes(tmp_path, dtype):
    values = labels(dtype=dtype)
    path = joined(tmp_path, values)
    with create_volume(tmp_path / "whole.h5:labels", SHAPE, dtype, **GRID, attributes=ATTRIBUTES) as out:
        out[...] = values
    found, whole = open_volume(path, kind="labels"), open_volume(tmp_path / "whole.h5", kind="labels")
    for name in ("shape", "dtype", "resolution", "offset", "attrs"):
        assert getattr(found, name) == getattr(whole, name), name
    with h5py.File(path) as one, h5py.File(tmp_path / "whole.h5") as other:
        assert dict(one["labels"].attrs).keys() == dict(other["labels"].attrs).keys()
        assert one["labels"].is_virtual
    assert found.chunks == open_volume(tmp_path / block_name((slice(0, 1),) * 3)).chunks
    assert (found[...] == values).all()
    rng = np.random.default_rng(1)
    for _ in range(20):
        low = rng.integers(0, SHAPE)
        box = tuple(slice(int(start), int(rng.integers(start, length + 1)), int(rng.integers(1, 4)))
                    for start, length in zip(low, SHAPE))
        np.testing.assert_array_equal(found[box], values[box])
    with h5py.File(path, "r", locking=False) as file:  # anyone else's reader
        assert (file["labels"][...] == values).all()


def test_the_commands_read_a_joined_volume(tmp_path):
    values = labels()
    path = joined(tmp_path, values)
    said = run("inspect", path)
    assert said.returncode == 0, said.stderr
    assert "labels  150 x 100 x 130 uint64, chunks 32 x 64 x 50" in said.stdout
    assert "error" not in said.stdout.lower()
    for target in ("out.zarr", "out.h5:labels", "out.npy"):
        done = run("convert", f"{path}:labels", tmp_path / target)
        assert done.returncode == 0, done.stderr
        shutil.move(path.parent / "A_labels.blocks", tmp_path / "elsewhere")  # the copy is a plain one
        copy = open_volume(tmp_path / target)
        assert (copy[...] == values).all()
        assert (copy.resolution, copy.offset) == (GRID["resolution"], GRID["offset"])
        assert copy.attrs["record"] == ATTRIBUTES["record"]
        shutil.move(tmp_path / "elsewhere", path.parent / "A_labels.blocks")
    with h5py.File(tmp_path / "out.h5") as file:
        assert not file["labels"].is_virtual


def test_what_no_block_covers_is_background(tmp_path):
    hole = (slice(70, 140), slice(64, 100), slice(50, 100))
    values = labels()
    found = open_volume(joined(tmp_path, values, hole))
    values[hole] = 0
    assert (found[...] == values).all()


def test_the_folder_can_be_moved_and_copied_but_not_the_file_alone(tmp_path):
    (tmp_path / "one").mkdir()
    values = labels((80, 70, 60))
    joined(tmp_path / "one", values)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "one").rename(tmp_path / "three")
    for folder in ("two", "three"):
        assert (open_volume(tmp_path / folder / "A_labels.h5")[...] == values).all()
    (tmp_path / "four").mkdir()
    shutil.copy(tmp_path / "two" / "A_labels.h5", tmp_path / "four")
    with pytest.raises(InputError, match=r"is joined from 8 files; missing: A_labels.blocks/0_0_0.h5"):
        open_volume(tmp_path / "four" / "A_labels.h5")


def test_a_missing_block_is_named(tmp_path):
    path = joined(tmp_path, labels((80, 70, 60)))
    volume = open_volume(path)
    assert volume[0, 0, 0] > 0
    (tmp_path / "A_labels.blocks" / "70_0_50.h5").unlink()
    with pytest.raises(InputError, match=r"\A[^\n]*missing: A_labels.blocks/70_0_50.h5\Z"):
        open_volume(path)
    with pytest.raises(InputError, match=r"\A[^\n]*joined from 70_0_50.h5, which is missing now\Z"):
        volume[...]
    assert "70_0_50.h5" in run("convert", path, tmp_path / "out.npy").stderr


def test_a_block_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    path = joined(tmp_path / "in", labels((80, 70, 60)))
    block = tmp_path / "in" / "A_labels.blocks" / "70_0_50.h5"
    block.rename(tmp_path / "away.h5")
    block.symlink_to(tmp_path / "away.h5")
    with pytest.raises(InputError, match=r"A_labels.blocks/70_0_50.h5, which lies outside of its folder"):
        open_volume(path)


def test_other_datasets_stand_beside_a_joined_one(tmp_path):
    values = labels((80, 70, 60))
    (tmp_path / "A_labels.blocks").mkdir()
    write_one(tmp_path, (slice(0, 80), slice(0, 70), slice(0, 60)), values)
    with assembled(tmp_path / "A_labels.h5") as path:
        with create_volume(f"{path}:before", (2, 2, 2), "uint8") as out:
            out[...] = 1
        parts = [((slice(0, 80), slice(0, 70), slice(0, 60)), "A_labels.blocks/0_0_0.h5")]
        join_blocks(path, "volumes/labels", values.shape, values.dtype, parts)
        with pytest.raises(InputError, match=r"volumes/labels is there already"):
            join_blocks(path, "volumes/labels", values.shape, values.dtype, parts)
        with create_volume(f"{path}:after", (2, 2, 2), "uint8") as out:
            out[...] = 2
    assert list_datasets(tmp_path / "A_labels.h5").names == ["after", "before", "volumes/labels"]
    assert (open_volume(tmp_path / "A_labels.h5:volumes/labels")[...] == values).all()
    assert os.listdir(tmp_path / "A_labels.blocks") == ["0_0_0.h5"]


@pytest.mark.parametrize("box, name, says", [
    ((slice(0, 9), slice(0, 8), slice(0, 8)), "a.h5", "no block of it lies at"),
    ((slice(0, 8), slice(0, 8)), "a.h5", "no block of it lies at"),
    ((slice(4, 4), slice(0, 8), slice(0, 8)), "a.h5", "no block of it lies at"),
    ((slice(-2, 4), slice(0, 8), slice(0, 8)), "a.h5", "no block of it lies at"),
    ((slice(0, 8, 2), slice(0, 8), slice(0, 8)), "a.h5", "no block of it lies at"),
    *(((slice(0, 8),) * 3, name, "joined from files below its own folder") for name in
      ("/a.h5", "../a.h5", "a/../../b.h5", "", ".", "a%b.h5", "a\\b.h5", "a\0b.h5")),
])
def test_a_block_that_could_not_be_read_is_not_joined(tmp_path, box, name, says):
    with pytest.raises(InputError, match=says), assembled(tmp_path / "a.h5") as path:
        join_blocks(path, "labels", (8, 8, 8), "uint32", [(box, name)])
    assert os.listdir(tmp_path) == []


def test_a_full_disk_while_joining_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot write /dev/full: the disk is full"):
        join_blocks(Path("/dev/full"), "labels", (8, 8, 8), "uint32", [((slice(0, 8),) * 3, "a.h5")])


def test_many_processes_write_the_blocks(tmp_path):
    values = labels(dtype="uint32")
    (tmp_path / "A_labels.blocks").mkdir()
    places = list(boxes(SHAPE, CORE))
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:  # each block twice, as after a retry
        for done in [pool.submit(write_one, tmp_path, box, values[box]) for box in places * 2]:
            done.result()
    assert len(os.listdir(tmp_path / "A_labels.blocks")) == len(places)
    with assembled(tmp_path / "A_labels.h5") as path:
        join_blocks(path, "labels", SHAPE, "uint32", ((box, block_name(box)) for box in places))
    assert (open_volume(tmp_path / "A_labels.h5")[...] == values).all()


@pytest.mark.parametrize("count", [10_000, pytest.param(MOST_PARTS, marks=pytest.mark.long)])
def test_very_many_blocks_are_joined_and_opened_in_time(tmp_path, monkeypatch, count):
    """They are all the same file, as so many would test the disk."""
    shape = (count // 500, 200, 20)
    values = np.arange(1, 9, dtype=np.uint32).reshape(2, 2, 2)
    write_block(tmp_path / "b.h5", values)
    start = time.process_time()
    with assembled(tmp_path / "a.h5") as path:
        join_blocks(path, "labels", shape, "uint32", ((box, "b.h5") for box in boxes(shape, (2, 2, 2))))
    volume = open_volume(tmp_path / "a.h5")
    assert volume[9:11, 150:152, 6:8].ravel().tolist() == [5, 6, 7, 8, 1, 2, 3, 4]
    assert time.process_time() - start < count / 1000
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["labels"].id.get_create_plist().get_virtual_count() == count
    monkeypatch.setattr("emcore.volumes.blocks.MOST_PARTS", 2)
    with pytest.raises(InputError, match="more than 2 blocks; choose larger ones"):
        join_blocks(tmp_path / "b.h5", "labels", (8, 2, 2), "uint32",
                    ((box, "b.h5") for box in boxes((8, 2, 2), (2, 2, 2))))
