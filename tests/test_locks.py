"""emcore.locks: one training a run folder, held by a process and by nothing that outlives it."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emcore import locks
from emcore.errors import InputError
from emcore.smoke import smoke
from tests.test_train import command, environment, place, refused, rows, train, wait_for_rows  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parent.parent


def holding(folder, forks=False):
    """A process that holds a run folder, and where it forks, one that outlives it."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        with open(reading) as told:
            return process, int(told.readline())
    try:
        with locks.only_training(folder):
            child = os.fork() if forks else 0
            if forks and child == 0:
                time.sleep(60)
            os.write(writing, f"{child}\n".encode())
            os.close(writing)
            time.sleep(60)
    finally:
        os._exit(0)


def test_the_second_training_names_the_first_until_that_is_killed(tmp_path):
    folder = tmp_path / "outputs" / "tiny"
    first, child = holding(folder, forks=True)
    try:
        before = (folder / "run.lock").read_bytes()
        with pytest.raises(InputError, match=rf"{folder} is being trained by process {first} of {platform.node()} "
                                             rf"since 20.*: wait for its end, end it by `touch {folder}/STOP`, or"), \
                locks.only_training(folder):
            pass
        assert (folder / "run.lock").read_bytes() == before
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    with locks.only_training(folder):  # at once, though the process that it forked lives
        os.kill(child, 0)
        assert json.loads((folder / "run.lock").read_text())["process"] == os.getpid()
    os.kill(child, signal.SIGKILL)


def test_a_smoke_test_holds_its_folder_before_it_is_emptied(tmp_path):
    folder = tmp_path / "out" / "smoke" / "demo"
    first, _ = holding(folder)
    (folder / "mine").write_text("")
    try:
        with pytest.raises(InputError, match=f"is being trained by process {first}"):
            smoke(str(ROOT / "configs" / "demo.toml"), [f"outputs={tmp_path / 'out'}"])
        assert sorted(path.name for path in folder.iterdir()) == ["mine", "run.lock"]
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)


def test_where_there_are_no_locks_the_last_one_is_asked_for_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    folder = tmp_path / "tiny"
    first, _ = holding(folder)
    with pytest.raises(InputError, match=f"is being trained by process {first}"), locks.only_training(folder):
        pass
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    other = {**json.loads((folder / "run.lock").read_text()), "machine": "00000000", "host": "node7"}
    (folder / "run.lock").write_text(json.dumps(other))
    with locks.only_training(folder):
        told = capsys.readouterr().err
        assert told.startswith(f"note: {folder} cannot be locked (this system has no locks): make sure that no other "
                               f"machine trains it (the last one: process {first} of node7 since 20")
        assert told.endswith("), or set outputs to a file system with locks\n")
    with locks.only_training(folder):  # the last one ended, and said so
        assert "the last one" not in capsys.readouterr().err


def test_what_killed_trainings_left_goes_with_the_next_one(tmp_path):
    left = [tmp_path / inside / f".{name}.{locks.machine()}-1-1-abcdef.partial" for inside, name in
            ((".", "config.toml"), ("checkpoints", "step_000000007.pt"), ("previews", "step_000000007.png"))]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    with locks.only_training(tmp_path):
        assert not [path for path in left if path.exists()]


@pytest.mark.slow
def test_a_second_training_of_one_name_stops_before_it_writes_anything(place):  # noqa: F811 (the fixture)
    first = subprocess.Popen(command("train.steps=100000", ranks=2), cwd=place, env=environment(),
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = place / "outputs" / "tiny"
    try:
        wait_for_rows(place)
        before = {path: path.stat().st_mtime_ns for path in (folder / "config.toml", folder / "environment.json")}
        holder = json.loads((folder / "run.lock").read_text())["process"]
        refused(place, rf"outputs/tiny is being trained by process {holder} of \S+ since", "train.steps=5")
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert first.poll() is None
        (folder / "STOP").touch()
        assert first.wait(timeout=120) == 0
    finally:
        if first.poll() is None:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    steps = [int(row[0]) for row in rows(place)[1:]]
    assert steps == list(range(2, steps[-1] + 1, 2)), "no row is lost"
    assert train(place, f"train.steps={steps[-1] + 2}").returncode == 0
