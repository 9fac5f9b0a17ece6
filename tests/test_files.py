"""emcore.files: names that appear whole or not at all, and what dead writers leave behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emcore import files
from emcore.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from emcore.files import replaced
with replaced({path!r}) as temporary:
    {make}
    print(temporary, flush=True)
    {then}
"""


def start(path, make, then="os.kill(os.getpid(), signal.SIGKILL)"):
    code = KILLED.format(root=str(ROOT), path=str(path), make=make, then=then)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_an_error_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.writing(path) as file:  # noqa: PT012
        file.write(b"half of the n")
        raise KeyError
    assert path.read_text() == "old"
    files.write_text(path, "new\n")
    assert path.read_text() == "new\n"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_and_an_error_leaves_the_old_one(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    path = tmp_path / "a.zarr"
    for content in ("first", "second"):
        with files.replaced(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text("")
    with pytest.raises(KeyError), files.replaced(path) as temporary:  # noqa: PT012
        temporary.mkdir()
        raise KeyError
    assert names(path) == ["second"]
    assert names(tmp_path) == ["a.zarr"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names in one step")
def test_a_folder_always_has_its_name_while_it_is_replaced(tmp_path, monkeypatch):
    path, seen = tmp_path / "a.zarr", []
    path.mkdir()
    exchange = files.exchange
    monkeypatch.setattr(files, "exchange", lambda one, other: seen.append(path.is_dir()) or exchange(one, other))
    remove = files.remove
    monkeypatch.setattr(files, "remove", lambda temporary: seen.append(path.is_dir()) or remove(temporary))
    with files.replaced(path) as temporary:
        temporary.mkdir()
    assert len(seen) >= 2
    assert all(seen)


@pytest.mark.parametrize("make", ["temporary.write_text('')", "(temporary / 'b').mkdir(parents=True)"])
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path, make):
    path = tmp_path / "a.bin"
    killed = start(path, make)
    left = Path(killed.communicate()[0].strip())
    assert killed.returncode == -signal.SIGKILL
    assert left.exists()
    files.write_text(tmp_path / "b.bin", "another name sweeps nothing")
    assert left.exists()
    files.write_text(path, "")
    assert names(tmp_path) == ["a.bin", "b.bin"]


def test_what_a_living_writer_writes_is_not_touched(tmp_path):
    path = tmp_path / "a.bin"
    living = start(path, "temporary.write_text('slow')", "sys.stdin.read()")
    try:
        left = Path(living.stdout.readline().strip())
        os.kill(living.pid, signal.SIGSTOP)
        files.write_text(path, "fast")
        assert left.read_text() == "slow"
    finally:
        living.kill()
        living.wait()
    files.write_text(path, "again")
    assert names(tmp_path) == ["a.bin"]


def test_a_number_of_a_process_that_another_one_got_does_not_protect_it(tmp_path):
    machine, process, born = files.machine(), os.getpid(), files.born(os.getpid())
    stale = tmp_path / f".a.bin.{machine}-{process}-{born - 1}-abcdef.partial"
    living = tmp_path / f".a.bin.{machine}-{process}-{born}-abcdef.partial"
    for path in (stale, living):
        path.write_text("")
    files.write_text(tmp_path / "a.bin", "")
    assert living.exists()
    assert not stale.exists()


def test_temporaries_of_another_machine_go_after_a_week_without_change(tmp_path):
    foreign = tmp_path / ".a.bin.00000000-1-1-abcdef.partial"
    foreign.write_text("")
    files.write_text(tmp_path / "a.bin", "")
    assert foreign.exists()
    week = time.time() - 8 * 86400
    os.utime(foreign, (week, week))
    files.write_text(tmp_path / "a.bin", "")
    assert not foreign.exists()


def test_a_folder_that_a_killed_writer_had_moved_aside_comes_back(tmp_path):
    old = tmp_path / f".a.zarr.{files.machine()}-1-1-abcdef.old"
    old.mkdir()
    (old / "voxels").write_text("")
    with pytest.raises(KeyError), files.replaced(tmp_path / "a.zarr"):
        raise KeyError
    assert names(tmp_path / "a.zarr") == ["voxels"]
    assert names(tmp_path) == ["a.zarr"]


def test_a_failure_is_one_sentence_with_cause_and_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    for path, cause in ((tmp_path / "none" / "a", "its folder does not exist"),
                        (tmp_path / "file" / "a", "its folder is a file")):
        with pytest.raises(InputError, match=f"cannot write {path}: {cause}"):
            files.write_text(path, "")
    with pytest.raises(InputError, match="the disk is full; make room and run the same command again"), \
            files.writing(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == ["file"]


def test_a_name_as_long_as_a_file_system_allows_is_written(tmp_path):
    name = "ä" * 120  # 240 bytes
    files.write_text(tmp_path / name, "")
    assert names(tmp_path) == [name]


def test_room_is_taken_when_it_is_asked_for(tmp_path):
    with files.writing(tmp_path / "a") as file:
        files.allocate(file, 1 << 20)
    status = (tmp_path / "a").stat()
    assert status.st_size == 1 << 20
    assert status.st_blocks * 512 >= 1 << 20


def test_a_death_of_a_loader_that_comes_out_of_writing_is_told_as_what_it_is(tmp_path):
    """Torch raises it wherever the program is, and what writes may make another error of it."""
    def write():
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        except RuntimeError:
            raise RuntimeError("[enforce fail at inline_container.cc:859] . unexpected pos 64 vs 0")  # noqa: B904

    with pytest.raises(InputError, match=r"a process that reads patches died: DataLoader worker \(pid 7\) is killed"), (
            files.writing(tmp_path / "a.pt")):
        write()
    assert list(tmp_path.iterdir()) == []
