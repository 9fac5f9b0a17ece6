"""The copies of volumes that the processes of a node share: never older than their files, nobody else's to write."""

import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from emcore.data import sources
from emcore.data.sampler import Sampler
from emcore.data.sources import open_sources
from emcore.errors import InputError
from emcore.settings.data import Data, VolumeFiles
from emcore.volumes import create_volume, open_volume
from tests.disks import disk

SHAPE = (12, 40, 48)
WHOLE = tuple(slice(0, length) for length in SHAPE)
LABELS = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint32) // 100 + 1


def written(path, labels=LABELS):
    if path.suffix:
        with create_volume(path, SHAPE, labels.dtype, chunks=(4, 16, 16) if path.suffix != ".npy" else None) as out:
            out[...] = labels
        return path
    path.mkdir()
    for z, section in enumerate(labels):
        with create_volume(path / f"{z}.tif", (1, *SHAPE[1:]), labels.dtype) as out:
            out[...] = section[None]
    return path


def opened(reference):
    volume = VolumeFiles(str(reference), str(reference))
    return open_sources(Data(train=(volume,), patch=(4, 8, 8)), "train")


def rewrite_in_place(path):
    """Other labels in one chunk file, of the same size, as a program does that edits the volume where it stands."""
    inside = [file for file in path.rglob("*") if file.is_file() and file.suffix not in (".json",)
              and file.name not in ("info", ".zarray", ".zattrs", ".zgroup")]
    above = path.stat()
    other = path.with_name(f"other{path.suffix}")
    written(other, LABELS[::-1].copy())
    for file in inside:
        twin = other / file.relative_to(path)
        if not twin.exists():
            twin = next(inner for inner in other.rglob(file.name) if inner.parent.name == file.parent.name)
        if twin.read_bytes() != file.read_bytes():
            with open(file, "r+b") as out:
                out.truncate(0)
                out.write(twin.read_bytes())
            break
    else:
        raise AssertionError("nothing differs")
    os.utime(path, ns=(above.st_atime_ns, above.st_mtime_ns))


def copies(folder=None):
    return sorted(path.name for path in (folder or sources.copies_folder("memory")).glob("*.npy"))


def killed_with(work):
    """The path of the copy that a process leaves which is killed once it has done its work."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            work()
            os.write(writing, "\n".join(map(str, sources._SHARED)).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    with open(reading) as told:
        lines = told.read().split("\n")
    os.waitpid(process, 0)
    return Path(lines[-1])


@pytest.fixture(autouse=True)
def forgotten(tmp_path, monkeypatch):
    """Copies in a folder of this test; what it maps counts as unused at its end."""
    folder = tmp_path / "copies"
    monkeypatch.setattr(sources, "copies_folder", lambda storage: sources.private_folder(folder))
    monkeypatch.setattr(sources, "_SHARED", {})
    return folder


@pytest.mark.parametrize("name", ["a.zarr", "a.precomputed", "slices", "a.h5", "a.npy"])
def test_a_volume_written_again_in_place_is_copied_again_after_a_kill(tmp_path, name):
    pytest.importorskip({"a.zarr": "zarr", "slices": "tifffile"}.get(name, "numpy"))
    path = written(tmp_path / name)
    left = killed_with(lambda: opened(path))
    assert left.exists()
    assert left.stat().st_mode & 0o777 == 0o600
    assert left.parent.stat().st_mode & 0o777 == 0o700
    before = left.stat().st_ino
    assert killed_with(lambda: opened(path)) == left
    assert left.stat().st_ino == before, "nothing has changed, so the copy is taken as it is"
    if path.is_dir():
        rewrite_in_place(path)
    else:
        written(path, LABELS[::-1].copy())
    wanted = open_volume(path)[...]
    assert (wanted != LABELS).any()
    sample = Sampler(opened(path), Data(train=(VolumeFiles(str(path), str(path)),), patch=SHAPE), 0)[0]
    assert (np.asarray(sample["label"]).reshape(SHAPE) == wanted).all()
    assert not left.exists(), "the copy of the old labels goes"


def test_two_volumes_of_one_name_size_and_time_have_copies_of_their_own(tmp_path):
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        path = written(tmp_path / place / "a.npy", LABELS + (place == "other"))
        os.utime(path, ns=(0, 0))
    first, second = (opened(tmp_path / place / "a.npy")[0].arrays["label"] for place in ("one", "other"))
    assert (second == first + 1).all()


def test_a_volume_that_changes_while_it_is_copied_is_refused(tmp_path, forgotten):
    path = written(tmp_path / "a.npy")
    volume = open_volume(path)

    class Changing:
        name, shape, dtype = volume.name, volume.shape, volume.dtype

        def __getitem__(self, box):
            os.utime(path, ns=(0, 0))
            return volume[box]

    with pytest.raises(InputError, match="was changed while it was copied: start again"):
        sources.shared_copy(Changing(), WHOLE, sources.copies_folder("memory"), (str(path), "labels"))
    assert [item.name for item in forgotten.iterdir()] == ["lock"]


@pytest.mark.parametrize("why", ["no stamp", "no locks", "an array"])
def test_what_cannot_be_shared_is_copied_for_this_process_and_leaves_nothing(tmp_path, forgotten, monkeypatch, capsys,
                                                                            why):
    path = written(tmp_path / "a.npy")
    volume = open_volume(np.stack([LABELS, LABELS + 1]))
    if why == "no stamp":
        monkeypatch.setattr(sources, "stamp", lambda reference: None)
    if why == "no locks":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    origin = LABELS if why == "an array" else str(path)
    copy = sources.shared_copy(volume, (slice(None), *WHOLE), sources.copies_folder("memory"), (origin, "image"))
    assert (copy == volume[...]).all()
    assert copies(forgotten) == []
    assert ("is copied for each process of this node" in capsys.readouterr().err) == (why != "an array")


def test_a_folder_that_another_user_made_or_may_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.undo()
    shared = tmp_path / "shm"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(sources.os.path, "isdir", lambda path: path != "/dev/shm" and os.path.exists(path))
    monkeypatch.setenv("TMPDIR", str(shared))
    monkeypatch.setattr(sources.tempfile, "tempdir", None)
    planted = shared / f"emcore-{os.getuid()}"
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.raises(InputError, match=r'is not a folder that you alone can write .* data.storage = "lazy"'):
        sources.copies_folder("memory")
    if os.getuid() == 0:
        planted.chmod(0o700)
        os.chown(planted, 12345, 12345)
        with pytest.raises(InputError, match="is not a folder that you alone can write"):
            sources.copies_folder("memory")
    planted.rmdir()
    assert sources.copies_folder("memory") == planted / "copies"
    shutil.rmtree(planted)
    planted.symlink_to(tmp_path)
    with pytest.raises(InputError, match="is not a folder that you alone can write"):
        sources.copies_folder("memory")


def test_copies_that_killed_runs_left_make_room_for_another(tmp_path, forgotten):
    with disk(2 << 20) as folder:
        copies_there = sources.private_folder(folder / "copies")
        large = np.zeros((8, 300, 512), np.uint8)
        for number in range(2):
            path = tmp_path / f"{number}.npy"
            np.save(path, large + number)
            box = tuple(slice(0, length) for length in large.shape)
            killed_with(partial(sources.shared_copy, open_volume(path), box, copies_there, (str(path), "image")))
            assert len(copies(copies_there)) == 1


def test_a_disk_that_fills_while_a_copy_is_written_is_one_sentence(tmp_path, monkeypatch):
    path = written(tmp_path / "a.npy", LABELS)
    with disk(64 << 10) as folder:
        monkeypatch.setattr(sources.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))  # a moment before
        with pytest.raises(InputError, match=r"cannot write .*: the disk is full; make room"):
            sources.shared_copy(open_volume(path), WHOLE, sources.private_folder(folder / "copies"),
                                (str(path), "labels"))
        assert [item.name for item in (folder / "copies").iterdir()] == ["lock"]
