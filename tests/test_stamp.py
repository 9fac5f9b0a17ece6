"""emcore.volumes.stamp: what tells that a volume is still the one that it was."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore.volumes import create_volume, open_volume, stamp

ROOT = Path(__file__).resolve().parent.parent
VOXELS = np.random.default_rng(0).integers(0, 250, (20, 70, 90)).astype(np.uint16)
FORMATS = ("a.h5", "a.npy", "a.tif", "a.zarr", "a.zarr:inside/raw", "a.precomputed", "slices")


def written(reference, voxels=VOXELS, chunks=None):
    if Path(reference).name == "slices":
        Path(reference).mkdir()
        for z, section in enumerate(voxels):
            with create_volume(f"{reference}/{z}.tif", section[None].shape, voxels.dtype) as writer:
                writer[...] = section[None]
        return str(reference)
    with create_volume(reference, voxels.shape, voxels.dtype, (40, 4, 4), chunks=chunks) as writer:
        writer[...] = voxels
    return str(reference)


def needs(name):
    for suffix, module in ((".zarr", "zarr"), (".tif", "tifffile"), ("slices", "tifffile")):
        if suffix in name:
            pytest.importorskip(module)


@pytest.mark.parametrize("name", FORMATS)
def test_a_stamp_follows_every_file_and_no_path(tmp_path, name):
    needs(name)
    top = tmp_path / name.partition(":")[0]
    reference = written(tmp_path / name)
    before = stamp.stamp(reference)
    copied = tmp_path / "elsewhere" / top.name
    copied.parent.mkdir()
    (shutil.copytree if top.is_dir() else shutil.copy2)(top, copied)
    if name == "a.npy":
        shutil.copy2(tmp_path / "a.npy.json", copied.parent)
    assert before is not None
    assert stamp.stamp(reference) == before
    assert stamp.stamp(copied.parent / name) == before
    for file in [path for path in (top, *top.rglob("*")) if path.is_file()][::7]:  # any file, the folder untouched
        status, above = file.stat(), top.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        os.utime(top, ns=(above.st_atime_ns, above.st_mtime_ns)) if top.is_dir() else None
        after = stamp.stamp(reference)
        assert after != before
        before = after
        with open(file, "ab") as longer:
            longer.write(b"0")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        after = stamp.stamp(reference)
        assert after != before
        before = after


def test_other_files_of_an_hdf5_file_belong_to_it(tmp_path):
    parts = [tmp_path / name for name in ("raw.bin", "part.h5", "linked.h5", "deep.h5")]
    parts[0].write_bytes(bytes(1000))
    for path in parts[1:]:
        with h5py.File(path, "w") as file:
            file["main"] = VOXELS[0]
    with h5py.File(parts[2], "a") as file:
        file["more"] = h5py.ExternalLink("deep.h5", "main")
    layout = h5py.VirtualLayout((2, 70, 90), "uint16")
    layout[0], layout[1] = (h5py.VirtualSource(source, "main", (70, 90)) for source in ("part.h5", "."))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["main"] = VOXELS[1]
        file.create_virtual_dataset("joined", layout)
        file.create_dataset("group/stored", (10, 10, 10), "uint8", external=[(str(parts[0]), 0, 1000)])
        file["linked"] = h5py.ExternalLink("linked.h5", "main")
    before = stamp.stamp(tmp_path / "a.h5:joined")
    assert before is not None
    for path in parts:
        os.utime(path, ns=(0, 0))
        after = stamp.stamp(tmp_path / "a.h5:joined")
        assert after not in (None, before), path
        before = after
    parts[1].unlink()
    assert stamp.stamp(tmp_path / "a.h5") is None


def test_the_attributes_beside_an_npy_file_belong_to_it(tmp_path):
    reference = written(tmp_path / "a.npy")
    before = stamp.stamp(reference)
    os.utime(tmp_path / "a.npy.json", ns=(0, 0))
    assert stamp.stamp(reference) != before


def test_a_dataset_of_a_zarr_group_has_a_stamp_of_its_own_and_its_groups(tmp_path):
    pytest.importorskip("zarr")
    one, other = (written(f"{tmp_path}/a.zarr:{name}") for name in ("volumes/raw", "volumes/labels"))
    before = stamp.stamp(one)
    os.utime(next(path for path in (tmp_path / "a.zarr/volumes/labels").rglob("*") if path.is_file()), ns=(0, 0))
    assert stamp.stamp(one) == before
    os.utime(tmp_path / "a.zarr/.zgroup", ns=(0, 0))
    assert stamp.stamp(one) != before
    assert stamp.stamp(one) == stamp.stamp(tmp_path / "a.zarr/volumes/raw")
    assert stamp.stamp(one) != stamp.stamp(other)


def test_no_stamp_where_it_cannot_be_told(tmp_path, monkeypatch):
    needs("slices")
    reference = written(tmp_path / "slices")
    assert stamp.stamp(tmp_path / "missing.h5") is None
    monkeypatch.setattr(stamp, "MOST_FILES", len(VOXELS))
    assert stamp.stamp(reference) is not None
    monkeypatch.setattr(stamp, "MOST_FILES", len(VOXELS) - 1)
    assert stamp.stamp(reference) is None


@pytest.mark.parametrize("block", [1, 70 * 90 * 2 * 3, 64 << 20])
def test_the_content_is_the_same_in_every_format_and_chunking(tmp_path, monkeypatch, block):
    monkeypatch.setattr(stamp, "BLOCK_BYTES", block)
    wanted = stamp.content(open_volume(VOXELS))
    box = [(3, 19), (5, 70), (1, 77)]
    inside = stamp.content(open_volume(np.ascontiguousarray(VOXELS[3:19, 5:, 1:77])))
    assert len({wanted, inside}) == 2
    for number, name in enumerate(FORMATS):
        needs(name)
        chunks = (7, 16, 33) if name in ("a.h5", "a.zarr:inside/raw", "a.precomputed") else None
        folder = tmp_path / str(number)
        folder.mkdir()
        volume = open_volume(written(folder / name, chunks=chunks))
        assert stamp.content(volume) == wanted, name
        assert stamp.content(volume, box) == inside, name


def test_every_voxel_the_shape_and_the_type_change_the_content():
    found = {stamp.content(open_volume(voxels)) for voxels in (
        VOXELS, VOXELS.astype(np.uint32), VOXELS.astype(np.int16), VOXELS[None], VOXELS.reshape(20, 90, 70),
        VOXELS.swapaxes(1, 2), VOXELS[::-1].copy(), np.stack([VOXELS, VOXELS]))}
    assert len(found) == 8
    assert stamp.content(open_volume(VOXELS.astype(">u2"))) == stamp.content(open_volume(VOXELS))
    changed = VOXELS.copy()
    changed[-1, -1, -1] += 1
    assert stamp.content(open_volume(changed)) != stamp.content(open_volume(VOXELS))


def test_channels_are_digested_one_after_the_other(tmp_path):
    voxels = np.stack([VOXELS, VOXELS + 1])
    written(tmp_path / "a.h5", voxels, (2, 4, 64, 64))
    assert stamp.content(open_volume(tmp_path / "a.h5")) == stamp.content(open_volume(voxels))
    box = [(2, 5), (0, 70), (3, 4)]
    assert stamp.content(open_volume(tmp_path / "a.h5"), box) == stamp.content(open_volume(voxels[:, 2:5, :, 3:4]))


@pytest.mark.slow
def test_reading_the_content_takes_little_memory():
    code = f"""if True:
        import resource, sys
        import numpy as np
        sys.path.insert(0, {str(ROOT)!r})
        from emcore.volumes import stamp
        from emcore.volumes.volume import Volume
        class Zeros:
            def __getitem__(self, box):
                return np.zeros([span.stop - span.start for span in box], np.uint8)
        peaks = []
        for length in (1, 1000):
            stamp.content(Volume("a", (400, 1000, length), np.dtype("u1"), None, (0, 0, 0), {{}}, None, Zeros))
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        print(peaks[1] - peaks[0])"""
    used = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert used < 200
