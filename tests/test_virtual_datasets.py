"""Datasets joined from those of other files: HDF5's own reading, with every part at hand, is the oracle."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore.errors import InputError
from emcore.volumes import hdf5_virtual, open_volume

ROOT = Path(__file__).resolve().parent.parent
SLICES = [(slice(None),) * 3, (slice(1, 9, 3), slice(None), slice(2, None)), (4, slice(0, 7), slice(None, None, 2)),
          (slice(3, 8), 5, 6), (slice(0, 1), slice(2, 11, 4), slice(5, 6))]


def write(path, values, **options):
    with h5py.File(path, "w") as file:
        file.create_dataset("main", data=values, **options)


def pattern(rng, length, voxels):
    """A start, stride, count and block on an axis of that length, which take that many voxels; None if none does."""
    block = int(rng.choice([size for size in range(1, voxels + 1) if voxels % size == 0]))
    count, stride = voxels // block, block + int(rng.integers(0, 3))
    room = length - ((count - 1) * stride + block)
    return (int(rng.integers(0, room + 1)), stride, count, block) if room >= 0 else None


def patterns(rng, shape, voxels):
    while None in (found := [pattern(rng, length, size) for length, size in zip(shape, voxels)]):
        pass
    return tuple(zip(*found))


def random_join(folder, rng, fill):
    """Writes the file of a virtual dataset of a few parts that may overlap; strided, lower in rank, whole, nested."""
    shape, kind = tuple(int(length) for length in rng.integers(8, 14, 3)), rng.choice(["uint8", ">u4", "float32"])
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.VIRTUAL)
    properties.set_fill_value(np.array(fill, kind))
    for number in range(int(rng.integers(1, 7))):
        voxels = [int(size) for size in rng.integers(1, 5, 3)]
        place = h5py.h5s.create_simple(shape)
        start, stride, count, block = patterns(rng, shape, voxels)
        place.select_hyperslab(start, count, stride, block)
        kept = [size for size in voxels if size > 1 or rng.random() < 0.5]  # axes of one voxel may be missing there
        if rng.random() < 0.3:
            kept.insert(int(rng.integers(0, len(kept) + 1)), 1)
        kept = kept or [1]
        whole, nested = rng.random() < 0.4, rng.random() < 0.3
        size = kept if whole else [4 * length for length in kept]
        values = rng.integers(0, 200, size).astype(kind if nested else rng.choice([kind, "uint8", "<i8", "float64"]))
        write(folder / f"{number}.h5", values, chunks=tuple(max(1, length // 2) for length in size),
              **({"compression": "gzip"} if rng.random() < 0.5 else {}))
        if nested:
            (folder / f"{number}.h5").rename(folder / f"inner{number}.h5")
            layout = h5py.VirtualLayout(tuple(size), kind)
            layout[...] = h5py.VirtualSource(f"inner{number}.h5", "main", tuple(size))
            with h5py.File(folder / f"{number}.h5", "w") as file:
                file.create_virtual_dataset("main", layout)
        source = h5py.h5s.create_simple(tuple(size))
        if not whole:
            start, stride, count, block = patterns(rng, size, kept)
            source.select_hyperslab(start, count, stride, block)
        properties.set_virtual(place, f"{number}.h5".encode(), b"main", source)
    with h5py.File(folder / "v.h5", "w") as file:
        h5py.h5d.create(file.id, b"main", h5py.h5t.py_create(np.dtype(kind)), h5py.h5s.create_simple(shape), properties)
    return folder / "v.h5"


def by_hdf5(path):
    with h5py.File(path, "r") as file:
        return file["main"][...]


@pytest.mark.parametrize("seed", range(60))
def test_any_regular_pattern_is_read_as_hdf5_reads_it(tmp_path, seed):
    rng = np.random.default_rng(seed)
    path = random_join(tmp_path, rng, fill=seed % 3)
    expected, volume = by_hdf5(path), open_volume(path)
    assert len(np.unique(expected)) > 1
    for box in SLICES:
        found = volume[box]
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected[box])


def test_values_are_turned_into_another_type_as_hdf5_does(tmp_path):
    write(tmp_path / "a.h5", np.array([-5, 7, 255, 300]).reshape(1, 2, 2))
    layout = h5py.VirtualLayout((1, 2, 2), "uint8")
    layout[...] = h5py.VirtualSource("a.h5", "main", (1, 2, 2))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("main", layout)
    found = open_volume(tmp_path / "v.h5")[...]
    assert found.ravel().tolist() == by_hdf5(tmp_path / "v.h5").ravel().tolist() == [0, 7, 255, 255]


def tower(folder, count, high=2):
    """A virtual dataset of sections of its own value each, `high` from each file, every file in a folder `parts`."""
    (folder / "parts").mkdir(exist_ok=True)
    layout = h5py.VirtualLayout((count * high, 4, 5), "uint16")
    for part in range(count):
        write(folder / "parts" / f"{part}.h5", np.full((high, 4, 5), part + 1, "uint16"), chunks=(1, 4, 5))
        layout[part * high:part * high + high] = h5py.VirtualSource(f"parts/{part}.h5", "main", (high, 4, 5))
    with h5py.File(folder / "v.h5", "w") as file:
        file.create_virtual_dataset("main", layout)
    return folder / "v.h5"


def test_parts_of_parts_are_read(tmp_path):
    tower(tmp_path, 6)
    for level in range(4):
        source = "v.h5" if level == 0 else f"v{level}.h5"
        layout = h5py.VirtualLayout((12, 4, 5), "uint16", maxshape=None)
        layout[...] = h5py.VirtualSource(source, "main", (12, 4, 5))
        with h5py.File(tmp_path / f"v{level + 1}.h5", "w") as file:
            file.create_virtual_dataset("main", layout)
    volume = open_volume(tmp_path / "v4.h5")
    assert volume.chunks == (1, 4, 5)
    assert volume[3:10:2, 0, 0].tolist() == [2, 3, 4, 5]
    (tmp_path / "parts" / "4.h5").unlink()
    assert volume[:8, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    with pytest.raises(InputError, match=r"joined from 4.h5, which is missing now"):
        volume[7:9]


# a limit of open files that leaves fewer than there are parts, and then one that leaves none at all
FEW_FILES = """
import os, resource, sys
import numpy as np
from emcore.errors import InputError
from emcore.volumes import open_volume
volume = open_volume(sys.argv[1])
opened = len(os.listdir("/proc/self/fd"))
for spare in (int(sys.argv[2]), 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for part in (slice(None), slice(2, 5), slice(300, 600)):
        try:
            print(spare, int((volume[part] != np.arange(1, 301).repeat(2)[part, None, None]).sum()))
        except InputError as error:
            print(spare, "refused:", error)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the open files as Linux does")
@pytest.mark.parametrize("spare", [0, 5, *(pytest.param(spare, marks=pytest.mark.long)
                                            for spare in (1, 17, 25))])
def test_too_many_open_files_never_read_as_zeros(tmp_path, spare):
    path = tower(tmp_path, 300)
    done = subprocess.run([sys.executable, "-c", FEW_FILES, str(path), str(spare)], capture_output=True, text=True,
                          cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(spare)] * 3 + ["40"] * 3
    for number, said in lines:
        if int(number) >= 25:
            assert said == "0"
        else:
            assert said == "0" or ("Too many open files" in said and said.startswith("refused:")), said
    if spare <= 1:
        assert all("Too many open files" in said for _, said in lines[:3])


def test_no_more_than_a_few_files_are_open_and_none_stays_open_on_opening(tmp_path):
    path = tower(tmp_path, 100)
    before = len(os.listdir("/proc/self/fd"))
    volume = open_volume(path)
    assert len(os.listdir("/proc/self/fd")) == before
    volume[...]
    assert len(os.listdir("/proc/self/fd")) <= before + hdf5_virtual.MOST_OPEN
    del volume
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_small_box_opens_only_the_parts_that_it_meets(tmp_path, monkeypatch):
    volume = open_volume(tower(tmp_path, 100))
    opened, original = [], hdf5_virtual.Joined.opened
    monkeypatch.setattr(hdf5_virtual.Joined, "opened", lambda self, part, now: opened.append(part.name)
                        or original(self, part, now))
    assert volume[101:104, 0, 0].tolist() == [51, 52, 52]
    assert volume[101:104:2, 0, 0].tolist() == [51, 52]
    assert opened == ["50.h5:main", "51.h5:main"]


def test_every_file_must_be_there_on_opening_and_a_damaged_one_is_found_when_it_is_read(tmp_path):
    path = tower(tmp_path, 40)
    whole = (tmp_path / "parts" / "30.h5").read_bytes()
    (tmp_path / "parts" / "30.h5").write_bytes(whole[:len(whole) // 2])
    volume = open_volume(path)
    assert (volume[:60, 0, 0] == np.arange(60) // 2 + 1).all()
    for _ in range(2):
        with pytest.raises(InputError, match=r"joined from 30.h5:main, which cannot be read: .*truncated"):
            volume[...]
    (tmp_path / "parts" / "30.h5").write_bytes(whole)
    assert (volume[:, 0, 0] == np.arange(80) // 2 + 1).all()
    (tmp_path / "parts" / "30.h5").write_bytes(whole[:-10])  # while it is held open
    with pytest.raises(InputError, match=r"joined from 30.h5:main, which cannot be read"):
        volume[...]
    (tmp_path / "parts" / "30.h5").unlink()
    with pytest.raises(InputError, match=r"joined from 30.h5, which is missing now"):
        volume[59:61]
    with pytest.raises(InputError, match=r"joined from 40 files; missing: parts/30.h5"):
        open_volume(path)


def test_a_part_that_becomes_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    path = tower(tmp_path / "in", 20)
    write(tmp_path / "secret.h5", np.full((2, 4, 5), 7, "uint16"))
    volume = open_volume(path)
    assert volume[36, 0, 0] == 19
    (tmp_path / "in" / "parts" / "18.h5").unlink()
    (tmp_path / "in" / "parts" / "18.h5").symlink_to(tmp_path / "secret.h5")
    with pytest.raises(InputError, match=r"18.h5, which leads out of its folder now"):
        volume[36]
    with pytest.raises(InputError, match=r"parts/18.h5, which lies outside of its folder"):
        open_volume(path)


def test_a_file_of_the_same_name_in_the_working_folder_is_not_taken(tmp_path, monkeypatch):
    """HDF5 looks there, too, and in the folder that an environment variable names."""
    (tmp_path / "here").mkdir(), (tmp_path / "there").mkdir()
    path = tower(tmp_path / "there", 1)
    tower(tmp_path / "here", 2)
    write(tmp_path / "here" / "parts" / "0.h5", np.full((2, 4, 5), 9, "uint16"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HDF5_VDS_PREFIX", str(tmp_path / "here"))
    assert (open_volume(path)[...] == 1).all()


def test_what_is_no_regular_pattern_is_refused_in_one_sentence(tmp_path):
    write(tmp_path / "a.h5", np.arange(60, dtype="uint16").reshape(3, 4, 5))

    def virtual(name, place, source):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.VIRTUAL)
        properties.set_virtual(place, b"a.h5", b"main", source)
        with h5py.File(tmp_path / name, "w") as file:
            h5py.h5d.create(file.id, b"main", h5py.h5t.NATIVE_UINT16, h5py.h5s.create_simple((3, 4, 5)), properties)
        return tmp_path / name

    corners = h5py.h5s.create_simple((3, 4, 5))
    corners.select_hyperslab((0, 0, 0), (1, 2, 2))
    corners.select_hyperslab((1, 2, 2), (1, 1, 3), op=h5py.h5s.SELECT_OR)
    with pytest.raises(InputError, match=r"\A[^\n]*no regular pattern[^\n]*h5repack[^\n]*\Z"):
        open_volume(virtual("corners.h5", corners, corners))
    row = h5py.h5s.create_simple((3, 4, 5))
    row.select_hyperslab((0, 0, 0), (1, 4, 5))
    column = h5py.h5s.create_simple((3, 4, 5))
    column.select_hyperslab((0, 0, 0), (2, 2, 5))
    with pytest.raises(InputError, match=r"\A[^\n]*whose voxels take another shape[^\n]*\Z"):
        open_volume(virtual("turned.h5", row, column))
    layout = h5py.VirtualLayout((3, 4, 5), "uint16", maxshape=(None, 4, 5))
    layout[:h5py.h5s.UNLIMITED] = h5py.VirtualSource("a.h5", "main", (3, 4, 5), maxshape=(None, 4, 5))[
        :h5py.h5s.UNLIMITED]
    with h5py.File(tmp_path / "open.h5", "w") as file:
        file.create_virtual_dataset("main", layout)
    with pytest.raises(InputError, match=r"\A[^\n]*parts of open size[^\n]*\Z"):
        open_volume(tmp_path / "open.h5")


@pytest.mark.parametrize("axis", [(0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 2, 1), (0, 2, 2, 3)])
def test_a_pattern_that_a_file_claims_and_that_cannot_be_is_refused(axis):
    class Space:
        def get_select_type(self):
            return h5py.h5s.SEL_HYPERSLABS

        def get_regular_hyperslab(self):
            return tuple((value,) * 3 for value in axis)

    with pytest.raises(InputError, match="no regular pattern"):
        hdf5_virtual.patterns_of("a.h5:main", Space())


def test_a_section_of_the_same_file_can_be_a_part(tmp_path):
    layout = h5py.VirtualLayout((2, 4, 5), "uint8")
    layout[1] = h5py.VirtualSource(".", "section", (4, 5))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["section"] = np.arange(20, dtype="uint8").reshape(4, 5)
        file.create_virtual_dataset("main", layout, fillvalue=3)
    volume = open_volume(tmp_path / "v.h5")
    assert (volume[0] == 3).all()
    assert volume[1, 1:, ::2].tolist() == [[5, 7, 9], [10, 12, 14], [15, 17, 19]]


def test_threads_share_a_joined_volume(tmp_path):
    from emcore.threads import run_parallel

    volume = open_volume(tower(tmp_path, 60))
    volume[0]
    wrong = []

    def read(z):
        if volume[z, 0, 0] != z // 2 + 1:
            wrong.append(z)

    run_parallel(read, [(z,) for z in range(120)] * 3, 8)
    assert wrong == []


def test_a_joined_volume_says_the_chunks_of_its_parts(tmp_path):
    assert open_volume(tower(tmp_path, 3)).chunks == (1, 4, 5)
