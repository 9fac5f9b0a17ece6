"""Chunks of remote volumes on this disk: no second request, never too many, never damaged, never of an earlier run."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from emcore.data import sources
from emcore.settings.data import Data, VolumeFiles
from emcore.volumes import kept, open_volume
from emcore.volumes.stamp import stamp
from tests.served import served

pytest.importorskip("tensorstore", reason="the extra remote is not installed")
pytest.importorskip("fcntl", reason="this system has no locks")

from tests.test_remote import BOXES, SHAPE, precomputed, quick_tries, sample  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
CHILD = f"""import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from emcore.volumes import kept, open_volume
address, stamped, top = sys.argv[1:4]
volume = kept.kept_on_disk(open_volume(address, cache_bytes=0), stamped, Path(top), 1 << 24)
print(int(volume[...].sum(dtype="uint64")), flush=True)
if len(sys.argv) > 4:
    os._exit(9)  # it ends like a killed process and tidies nothing up
"""


@pytest.fixture
def top(tmp_path):
    (tmp_path / "top").mkdir()
    yield tmp_path / "top"
    for process, folder in list(kept._JOINED):
        kept.leave(folder, process)


def opened(address: str, top: Path, most_bytes: int = 1 << 24):
    return kept.kept_on_disk(open_volume(address, cache_bytes=0), stamp(address), top, most_bytes)


def files_of(top: Path) -> list[Path]:
    return list(top.glob("*/*/*"))


def chunks_asked(server) -> int:
    return sum("4_8_40" in path for path in server.requests)


@pytest.mark.parametrize("dtype,encoding,sharded", [
    ("uint8", "raw", False), ("uint64", "compressed_segmentation", True)])
def test_what_was_read_once_is_not_asked_for_again(tmp_path, top, dtype, encoding, sharded):
    values = sample(dtype)
    precomputed(tmp_path / "a", values, encoding, sharded)
    with served(tmp_path) as server:
        volume = opened(f"{server.address}/a", top)
        np.testing.assert_array_equal(volume[...], values)
        asked = len(server.requests)
        for box in BOXES:
            found = volume[box]
            np.testing.assert_array_equal(found, values[box])
            assert found.flags.owndata or found.base.flags.owndata
        assert len(server.requests) == asked
    assert len(files_of(top)) == 2 * 3 * 3


def test_several_channels_are_kept(tmp_path, top):
    values = sample("uint16", (3, *SHAPE))
    precomputed(tmp_path / "a", values)
    with served(tmp_path) as server:
        volume = opened(f"{server.address}/a", top)
        for _ in range(2):
            np.testing.assert_array_equal(volume[:, 3:20, 5:, ::3], values[:, 3:20, 5:, ::3])


def test_no_more_is_kept_than_is_stated(tmp_path, top):
    values = sample("uint8", (64, 64, 64))
    precomputed(tmp_path / "a", values)
    most = 10 * (16**3 + 4)
    with served(tmp_path) as server:
        volume, random = opened(f"{server.address}/a", top, most), np.random.default_rng(0)
        for _ in range(40):
            low = random.integers(0, 48, 3)
            box = tuple(slice(int(start), int(start) + 16) for start in low)
            np.testing.assert_array_equal(volume[box], values[box])
            assert sum(path.stat().st_size for path in files_of(top)) <= most
        assert 9 <= len(files_of(top)) <= 10  # a tenth is free after room was made
        box = (slice(0, 16),) * 3
        np.testing.assert_array_equal(volume[box], values[box])
        server.requests.clear()
        np.testing.assert_array_equal(volume[box], values[box])  # what was used last stays
        assert not server.requests
        small = opened(f"{server.address}/a", top, 100)
        np.testing.assert_array_equal(small[...], values)


def test_a_damaged_chunk_is_fetched_again(tmp_path, top):
    values = sample("uint64")
    precomputed(tmp_path / "a", values)
    random = np.random.default_rng(3)
    with served(tmp_path) as server:
        volume = opened(f"{server.address}/a", top)
        assert (volume[...] == values).all()
        for damage in ("flip", "cut", "empty", "longer"):
            for path in files_of(top):
                data = bytearray(path.read_bytes())
                data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
                path.write_bytes({"flip": data, "cut": data[:len(data) // 2], "empty": b"",
                                  "longer": path.read_bytes() + b"0"}[damage])
            before = chunks_asked(server)
            np.testing.assert_array_equal(volume[...], values)
            assert chunks_asked(server) == before + 18
            before = chunks_asked(server)
            np.testing.assert_array_equal(volume[...], values)
            assert chunks_asked(server) == before


def test_processes_share_what_one_of_them_fetched_and_the_last_one_removes_it(tmp_path, top):
    values = sample("uint8")
    precomputed(tmp_path / "a", values)
    with served(tmp_path) as server:
        address = f"{server.address}/a"
        volume, command = opened(address, top), [sys.executable, "-c", CHILD, address, stamp(address), top]
        assert (volume[...] == values).all()
        before = chunks_asked(server)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.stdout.split() == [str(int(values.sum(dtype="uint64")))], done.stderr
        assert chunks_asked(server) == before
        assert len(files_of(top)) == 18  # this process still reads them
        kept.leave(volume.connect.args[1], os.getpid())
        assert not [path for path in top.iterdir() if path.is_dir()]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        told = [child.communicate(timeout=120)[0].split() for child in children]
        assert told == [[str(int(values.sum(dtype="uint64")))]] * 3
        assert not [path for path in top.iterdir() if path.is_dir()]


def test_nothing_is_taken_from_a_run_that_was_killed(tmp_path, top):
    values = sample("uint8")
    precomputed(tmp_path / "a", values)
    with served(tmp_path) as server:
        address = f"{server.address}/a"
        same = stamp(address)
        done = subprocess.run([sys.executable, "-c", CHILD, address, same, top, "killed"], capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 9, done.stderr
        assert len(files_of(top)) == 18
        precomputed(tmp_path / "new", values + 1)  # behind the same stamp: no server tells this cheaply
        for path in (tmp_path / "new" / "4_8_40").iterdir():
            path.replace(tmp_path / "a" / "4_8_40" / path.name)
        volume = kept.kept_on_disk(open_volume(address, cache_bytes=0), same, top, 1 << 24)
        np.testing.assert_array_equal(volume[...], values + 1)


def test_training_reads_through_the_folder_that_the_settings_state(tmp_path, top, monkeypatch):
    monkeypatch.setattr(sources, "private_place", lambda name: top)
    values = sample("uint64") >> np.uint64(60)
    precomputed(tmp_path / "em", sample("uint8"))
    precomputed(tmp_path / "ids", values, "compressed_segmentation", True)
    with served(tmp_path) as server:
        files = VolumeFiles(f"{server.address}/em", f"{server.address}/ids")
        source = sources.open_source(Data(storage="lazy", remote_disk=0.01, remote_cache=0.0), files, "train")
        wrong = []

        def read() -> None:
            for _ in range(3):
                wrong.extend(name for name, array, real in (("image", source.arrays["image"], sample("uint8")),
                                                            ("label", source.arrays["label"], values))
                             if not np.array_equal(array[2:20, 5:30, 7:40], real[2:20, 5:30, 7:40]))

        threads = [threading.Thread(target=read) for _ in range(4)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        assert not wrong
        asked = len(server.requests)
        read()
        assert len(server.requests) == asked
        assert not source.arrays["image"].forks
        before = len(files_of(top))
        plain = sources.open_source(Data(storage="lazy"), files, "train")
        assert (plain.arrays["image"][...] == sample("uint8")).all()
        assert len(files_of(top)) == before


def test_without_locks_the_volume_is_read_as_it_is(tmp_path, top, monkeypatch, capsys):
    def refuses(*_, **__):
        raise kept.NoLocks("no locks here")

    monkeypatch.setattr(kept, "take", refuses)
    precomputed(tmp_path / "a", sample("uint8"))
    with served(tmp_path) as server:
        volume = opened(f"{server.address}/a", top)
        assert (volume[...] == sample("uint8")).all()
    assert "is not kept on disk" in capsys.readouterr().err
    assert not files_of(top)


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path, capsys):
    values = sample("uint8")
    precomputed(tmp_path / "a", values)
    with served(tmp_path) as server:
        volume = opened(f"{server.address}/a", tmp_path / "gone")
        assert np.array_equal(volume[...], values)
    assert "is not kept on disk" in capsys.readouterr().err
