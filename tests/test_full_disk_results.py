"""infer.py and evaluate.py on disks that fill up at any place: one sentence, nothing half-written, and the same command
goes on when there is room."""

import json
import os
import shutil

import numpy as np
import pytest

from tests.disks import disk, resize
from tests.scripts import run_script
from tests.test_kills import (  # noqa: F401 (fixtures)
    check_same_volumes,
    data,
    files_of,
    names_in,
    trained,
    undisturbed_prediction,
)

LARGE = 200 << 20
STORMS = [pytest.param(seed, marks=pytest.mark.long if seed else pytest.mark.slow, id=f"{seed}" if seed else "one disk")
          for seed in range(7)]
DISKS = 2  # a storm fills so many
RESULTS = ("outputs", "tiny", "results_step=2")


def run(script, place):
    return run_script(script, "--cfg", "run.toml", place=place, timeout=500)


def used(place):
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def check_full(done, place):
    """A run that found no room says so in one sentence and leaves no temporary."""
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, done.stderr
        assert "the disk is full" in errors[0], errors[0]
    assert not [name for name in names_in(place) if name.endswith((".partial", ".tmp", ".old"))]


@pytest.mark.parametrize("seed", STORMS)
def test_infer_on_a_disk_that_fills_says_so_and_goes_on_when_there_is_room(trained, undisturbed_prediction,  # noqa: F811
                                                                          seed):
    whole, _ = undisturbed_prediction
    needed = 2.5 * sum(path.stat().st_size for path in whole.joinpath(*RESULTS).rglob("*"))  # and what is moved
    random = np.random.default_rng((11, seed))
    for _ in range(DISKS if seed else 1):
        with disk(LARGE) as mounted:
            place = mounted / "place"
            shutil.copytree(trained, place)
            resize(mounted, used(place) + int(random.random() * needed))
            done = run("infer.py", place)
            check_full(done, place)
            for name in ("large_prediction.h5", "large_labels.h5"):
                if (made := place.joinpath(*RESULTS, name)).exists():
                    check_same_volumes(whole.joinpath(*RESULTS, name), made)
            resize(mounted, LARGE)
            done = run("infer.py", place)
            assert done.returncode == 0, done.stderr
            assert files_of(place) == files_of(whole)
            for name in ("large_prediction.h5", "large_labels.h5"):
                check_same_volumes(whole.joinpath(*RESULTS, name), place.joinpath(*RESULTS, name))


@pytest.fixture(scope="module")
def undisturbed_scores(undisturbed_prediction, tmp_path_factory):  # noqa: F811
    place = tmp_path_factory.mktemp("scored") / "place"
    shutil.copytree(undisturbed_prediction[0], place)
    done = run("evaluate.py", place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize("seed", STORMS)
def test_evaluate_on_a_disk_that_fills_says_so_and_scores_the_same_when_there_is_room(undisturbed_prediction,  # noqa: F811
                                                                                     undisturbed_scores, seed):
    whole = undisturbed_scores
    new = set(files_of(whole)) - set(files_of(undisturbed_prediction[0]))
    needed = sum((whole / name).stat().st_size + 4096 for name in new)
    random = np.random.default_rng((12, seed))
    scores = whole.joinpath(*RESULTS, "scores.json")
    for _ in range(DISKS if seed else 1):
        with disk(LARGE) as mounted:
            place = mounted / "place"
            shutil.copytree(undisturbed_prediction[0], place)
            resize(mounted, used(place) + int(random.random() * needed))
            check_full(run("evaluate.py", place), place)
            if (made := place.joinpath(*RESULTS, "scores.json")).exists():
                assert json.loads(made.read_text()) == json.loads(scores.read_text())
            resize(mounted, LARGE)
            done = run("evaluate.py", place)
            assert done.returncode == 0, done.stderr
            assert files_of(place) == files_of(whole)
            assert json.loads(place.joinpath(*RESULTS, "scores.json").read_text()) == json.loads(scores.read_text())
