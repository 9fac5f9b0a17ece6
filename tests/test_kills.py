"""train.py and infer.py killed at random moments, every process at once, and started again by the same command.

In the end there is what an undisturbed run leaves: the same numbers to the bit, the same files, and no other file.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest

from emcore.engine import checkpoint
from emcore.volumes import list_datasets, open_volume
from tests.scripts import run_script
from tests.test_train import CONFIG, ROOT, command, environment, rows, same

KILLS = 5  # a storm has so many; four storms of each kind are marked long


def storms(*kinds):
    """One kill of the first kind for every day; one of the others and four storms of each for the long suite."""
    return [pytest.param(kind, seed, KILLS if seed else 1, id=f"{kind} {seed or 'one kill'}",
                         marks=pytest.mark.slow if seed == 0 and kind == kinds[0] else pytest.mark.long)
            for kind in kinds for seed in range(5)]


STEPS = 30
TEST = """
[[data.test]]
image = "large.h5:raw"
label = "large.h5:labels"
name = "large"
[infer]
tile = [16, 40, 1000]
layout = "contiguous"
[decode]
kind = "affinities"
low = 0.1
high = 0.9
"""
TIMED = {"speed.csv", "environment.json"}  # they tell how fast a run was, and where


def processes_with(mark):
    """The processes that were started with the mark in their environment, and their children."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_everything(mark):
    """SIGKILL to all processes of a run. torchrun gives each rank a session of its own, so its group is not enough."""
    deadline = time.monotonic() + 60
    while found := processes_with(mark):
        assert time.monotonic() < deadline, "processes that do not die"
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def killed(words, place, wait):
    """Starts a command, waits, kills all of it; whether it was still at work."""
    mark = f"EMCORE_TEST_RUN={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(words, cwd=place, env={**environment(), name: value}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait(process)
        alive = process.poll() is None
    finally:
        kill_everything(mark)
    _, errors = process.communicate(timeout=60)
    assert alive or process.returncode == 0, errors
    assert "Traceback" not in errors or alive, errors
    return alive


def finished(words, place):
    """The seconds of a command in a process like those that are killed."""
    start = time.monotonic()
    done = subprocess.run(words, cwd=place, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - start


def completed(place, script, *overrides):
    done = run_script(script, "--cfg", "run.toml", *overrides, place=place, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def sleep_while_running(process, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)


def files_of(folder):
    """Every file and folder below, hidden ones too, by its path; what a program of the system keeps is left out."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def random_moment(random, folder, seconds):
    """A wait that ends at a random moment: of the whole run, or soon after a new file appears in the folder."""
    early, share = random.random() < 0.4, random.random()

    def wait(process):
        if early:
            return sleep_while_running(process, share * seconds)
        before, deadline = names_in(folder), time.monotonic() + 4 * seconds + 60
        while process.poll() is None and not names_in(folder) - before and time.monotonic() < deadline:
            time.sleep(0.005)
        return sleep_while_running(process, share * min(1.0, seconds / 3))

    return wait


def names_in(folder):
    found = set()
    for _, folders, files in os.walk(folder):  # does not mind files that vanish meanwhile
        found |= {*folders, *files}
    return found


# ---- training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a config, a small volume to learn from and a larger one to predict."""
    place = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name, cells in (("vol", (4, 6, 6)), ("large", (14, 12, 12))):
        labels = np.kron(random.integers(1, 50, cells), np.ones((3, 6, 6), int))
        with h5py.File(place / f"{name}.h5", "w") as file:
            file["labels"] = labels.astype(np.uint32)
            file["raw"] = ((labels * 37) % 200 + 20 + random.integers(0, 30, labels.shape)).astype(np.uint8)
    (place / "run.toml").write_text(CONFIG + TEST)
    return place


def training(ranks):
    return command(f"train.steps={STEPS}", "train.save.steps=1", "train.save.best=2", "train.preview_steps=5",
                   "train.log_steps=1", ranks=ranks)


@pytest.fixture(scope="module")
def undisturbed_training(data, tmp_path_factory):
    """By the number of ranks: the folder of a run that nobody killed, and its seconds."""
    made = {}

    def get(ranks):
        if ranks not in made:
            place = tmp_path_factory.mktemp("undisturbed") / "place"
            shutil.copytree(data, place)
            made[ranks] = place, finished(training(ranks), place)
        return made[ranks]

    return get


@pytest.mark.parametrize("ranks, seed, kills", storms(1, 2))
def test_a_killed_training_goes_on_to_the_same_bits_and_leaves_nothing_behind(data, undisturbed_training, tmp_path,
                                                                             ranks, seed, kills):
    whole, seconds = undisturbed_training(ranks)
    random = np.random.default_rng((ranks, seed))
    place = tmp_path / "place"
    shutil.copytree(data, place)
    folder = place / "outputs" / "tiny"
    landed = sum(killed(training(ranks), place, random_moment(random, folder, seconds)) for _ in range(kills))
    print(f"{landed} of {kills} runs killed")
    finished(training(ranks), place)
    check_same_training(place, whole)


def check_same_training(place, whole):
    """The files of a run in `place` are those of the run in `whole`: the same names, the same bits."""
    assert rows(place) == rows(whole)
    folder, expected = (one / "outputs" / "tiny" for one in (place, whole))
    assert files_of(folder) == files_of(expected)
    for name in files_of(expected):
        if not (expected / name).is_file() or Path(name).name in TIMED:
            continue
        if name.endswith(".pt"):
            one, two = (checkpoint.read(where / name) for where in (expected, folder))
            assert one["best"] == two["best"]
            assert same(one, two), name
        else:
            assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


# ---- prediction and decoding


def predicting(*more):
    return [sys.executable, str(ROOT / "infer.py"), "--cfg", "run.toml", *more]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "place"
    shutil.copytree(data, place)
    completed(place, "train.py", "train.steps=2", "train.save.steps=2")
    return place


@pytest.fixture(scope="module")
def undisturbed_prediction(trained, tmp_path_factory):
    place = tmp_path_factory.mktemp("predicted") / "place"
    shutil.copytree(trained, place)
    return place, finished(predicting(), place)


@pytest.mark.parametrize("kind, seed, kills", storms("infer"))
def test_a_killed_prediction_goes_on_to_the_same_voxels_and_leaves_nothing_behind(trained, undisturbed_prediction,
                                                                                 tmp_path, kind, seed, kills):
    whole, seconds = undisturbed_prediction
    random = np.random.default_rng((7, seed))
    place = tmp_path / "place"
    shutil.copytree(trained, place)
    folder, expected = (one / "outputs" / "tiny" / "results_step=2" for one in (place, whole))
    landed = sum(killed(predicting(), place, random_moment(random, folder, seconds)) for _ in range(kills))
    print(f"{landed} of {kills} runs killed")
    completed(place, "infer.py")
    assert files_of(place) == files_of(whole)
    for name in ("large_prediction.h5", "large_labels.h5"):
        check_same_volumes(expected / name, folder / name)


def check_same_volumes(path, other):
    """Every dataset of two files, and what is told about it."""
    sets = [item.name for item in list_datasets(path)]
    assert sets == [item.name for item in list_datasets(other)]
    for item in sets:
        one, two = open_volume(path, item), open_volume(other, item)
        assert one.dtype == two.dtype
        assert np.array_equal(one[...], two[...]), (other, item)
        assert str(one.attrs) == str(two.attrs), (other, item)
