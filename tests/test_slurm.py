"""slurm/*.sbatch in a real SLURM (tests/slurm_node.py), whose jobs are queued again, cancelled and out of time."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import slurm_node
from tests.test_kills import (  # noqa: F401 (data, trained and undisturbed_prediction are fixtures)
    check_same_training,
    check_same_volumes,
    data,
    finished,
    names_in,
    processes_with,
    trained,
    undisturbed_prediction,
)
from tests.test_train import ROOT, command, environment, rows

PATIENCE = 600  # seconds for what takes ten on a machine with nothing else to do
STEPS = 150
SETTINGS = (f"train.steps={STEPS}", "train.save.steps=5", "train.log_steps=1")
OVER = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"}


def wait_until(true, what):
    deadline = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.1)
    return found


def said(*words, **more):
    done = subprocess.run(words, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}, text=True,
                          timeout=PATIENCE)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Job:
    """A script of slurm/ that was submitted from a folder, or one of an array of them."""

    def __init__(self, place, number):
        self.place, self.number = place, number

    def told(self):
        return dict(re.findall(r"(\S+?)=(\S*)", said("scontrol", "--oneliner", "show", "job", self.number)))

    def state(self):
        return self.told()["JobState"]

    def log(self):
        return "".join(path.read_text() for path in self.place.glob(f"emcore-*-{self.number}.log"))

    def signal(self, name, *whom):
        said("scancel", f"--signal={name}", *whom, self.number)

    def wait_for(self, state):
        found = wait_until(lambda: (now := self.state()) in {*OVER, state} and now, f"job {self.number} {state}")
        assert found == state, self.log()

    def wait_while_running(self, true, what):
        def happened():
            if not (found := true()) and self.state() in OVER:
                pytest.fail(f"no {what}\n{self.log()}")
            return found

        wait_until(happened, what)


@pytest.fixture
def submit(slurm, monkeypatch):
    """A function that submits a script; its jobs end with the test."""
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", slurm)

    def submit(place, script, *arguments, options=(), python=sys.executable):
        for name in ("train.py", "infer.py"):
            if not (place / name).exists():
                (place / name).symlink_to(ROOT / name)
        variables = {**environment(), "PYTHON": str(python), "TMPDIR": str(place)}
        return Job(place, said("sbatch", "--parsable", "--cpus-per-task=1", *options, str(ROOT / "slurm" / script),
                               "run.toml", *arguments, cwd=place, env=variables))

    yield submit
    said("scancel", "--full", "--user=root")
    wait_until(lambda: not said("squeue", "--noheader"), "the queue is empty")


# ---- training


@pytest.fixture(scope="module")
def undisturbed_training(data, tmp_path_factory):  # noqa: F811
    place = tmp_path_factory.mktemp("undisturbed") / "place"
    shutil.copytree(data, place)
    finished(command(*SETTINGS), place)
    return place


def held_in_the_middle(job):
    """Stops the clock of a training that has learned for some steps, so that what follows meets it in the middle."""
    log = job.place / "outputs" / "tiny" / "log.csv"
    job.wait_while_running(lambda: log.exists() and len(rows(job.place)) > 10, "rows in log.csv")
    job.signal("STOP")
    job.wait_for("STOPPED")


def be_asked_to_stop(job):
    job.signal("USR1", "--batch")
    wait_until((job.place / "outputs" / "tiny" / "STOP").exists, "the job asks the run to stop")
    job.signal("CONT")


def come_near_the_time_limit(job):
    """Nearer than the five minutes before the end at which train.sbatch wants to be warned."""
    hours, minutes, _ = map(int, job.told()["RunTime"].split(":"))
    said("scontrol", "update", f"JobId={job.number}", f"TimeLimit={hours}:{minutes + 5}:00")
    wait_until((job.place / "outputs" / "tiny" / "STOP").exists, "the job asks the run to stop")
    said("scontrol", "update", f"JobId={job.number}", "TimeLimit=1-0")  # the next start has time
    job.signal("CONT")


def be_preempted(job):
    said("scontrol", "requeue", job.number)


@pytest.mark.parametrize("event", [pytest.param(be_asked_to_stop, marks=pytest.mark.slow),
                                   pytest.param(come_near_the_time_limit, marks=pytest.mark.long),
                                   pytest.param(be_preempted, marks=pytest.mark.long)])
def test_a_training_that_is_queued_again_goes_on_to_the_same_bits(submit, data, undisturbed_training,  # noqa: F811
                                                                  tmp_path, event):
    place = tmp_path / "place"
    shutil.copytree(data, place)
    job = submit(place, "train.sbatch", *SETTINGS)
    held_in_the_middle(job)
    event(job)
    job.wait_while_running(lambda: job.told()["Restarts"] == "1", "second start")
    job.wait_for("COMPLETED")
    text = job.log()
    assert job.told()["Restarts"] == "1", "a finished run must not queue itself again"
    assert event is be_preempted or re.search(rf"stopped at step \d+ of {STEPS}", text), text
    assert re.search(rf"step \d+ of {STEPS}", text), text
    assert list(place.glob(f"emcore-*-{job.number}/numba")), "compiled code belongs on the node's disk"
    check_same_training(place, undisturbed_training)


@pytest.mark.long
def test_a_training_that_is_out_of_time_goes_on_when_it_is_submitted_again(submit, data,  # noqa: F811
                                                                           undisturbed_training, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(data, place)
    job = submit(place, "train.sbatch", *SETTINGS)
    held_in_the_middle(job)
    said("scontrol", "update", f"JobId={job.number}", "TimeLimit=0:01")  # which SLURM takes for a minute
    job.wait_for("TIMEOUT")
    assert job.told()["Restarts"] == "0"
    submit(place, "train.sbatch", *SETTINGS).wait_for("COMPLETED")
    check_same_training(place, undisturbed_training)


@pytest.mark.long
def test_a_job_that_is_asked_to_stop_before_its_training_begins_is_queued_again(submit, data, tmp_path):  # noqa: F811
    place = tmp_path / "place"
    shutil.copytree(data, place)
    slow = place / "python"
    slow.write_text('#!/bin/bash\ntouch begun\nwhile [ ! -e go ]; do sleep 0.1; done\n' f'exec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    job = submit(place, "train.sbatch", *SETTINGS, python=slow)
    job.wait_while_running((place / "begun").exists, "start of Python")
    job.signal("USR1", "--batch")
    time.sleep(1)  # a signal that ends the script has ended it
    (place / "go").touch()
    job.wait_while_running(lambda: job.told()["Restarts"] == "1", "second start")
    assert f"stopped at step 1 of {STEPS}" in job.log()


@pytest.mark.slow
def test_a_failing_job_is_not_queued_again(submit, data, tmp_path):  # noqa: F811
    shutil.copy(data / "run.toml", tmp_path)
    job = submit(tmp_path, "train.sbatch", "train.steps=none")
    job.wait_for("FAILED")
    assert "train.steps" in job.log()
    assert job.told()["Restarts"] == "0"


# ---- prediction


@pytest.mark.slow
def test_an_array_of_which_one_is_cancelled_predicts_everything_once(submit, trained,  # noqa: F811
                                                                     undisturbed_prediction, tmp_path):  # noqa: F811
    whole, _ = undisturbed_prediction
    place = tmp_path / "place"
    shutil.copytree(trained, place)
    folder, expected = (one / "outputs" / "tiny" / "results_step=2" for one in (place, whole))
    array = submit(place, "infer.sbatch", options=["--array=0-2"])
    tasks = [Job(place, f"{array.number}_{index}") for index in range(3)]
    tasks[0].wait_while_running(lambda: any(name.endswith(".seconds") for name in names_in(folder)), "tile")
    array.signal("STOP", "--batch")
    wait_until(lambda: {task.state() for task in tasks} <= {"STOPPED", *OVER}, "no task runs")
    at_work = [task for task in tasks if task.state() == "STOPPED" and "tiles of" in task.log()]
    assert at_work, "".join(task.log() for task in tasks)
    said("scancel", at_work[0].number)
    at_work[0].wait_for("CANCELLED")
    array.signal("CONT", "--batch")
    for task in tasks:
        if task is not at_work[0]:
            task.wait_for("COMPLETED")
    assert names_in(folder) == names_in(expected)
    for name in ("large_prediction.h5", "large_labels.h5"):
        check_same_volumes(expected / name, folder / name)
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


# ---- workers of dask


@pytest.mark.long
def test_workers_of_dask_go_on_when_the_job_of_one_is_cancelled(submit, monkeypatch, tmp_path):
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    distributed = pytest.importorskip("distributed")

    def square(number):
        time.sleep(0.5)
        return number * number, os.environ["SLURM_JOB_ID"]

    with dask_jobqueue.SLURMCluster(interface="lo", queue="cpu", cores=1, memory="1GB", python=sys.executable,
                                    local_directory=str(tmp_path), log_directory=str(tmp_path)) as cluster:
        cluster.scale(2)
        with distributed.Client(cluster) as client:
            client.wait_for_workers(2, timeout=PATIENCE)
            futures = client.map(square, range(40), pure=False)
            wait_until(lambda: sum(future.done() for future in futures) >= 6, "some work is done")
            jobs = said("squeue", "--noheader", "--format=%i", "--states=RUNNING").split()
            assert len(jobs) == 2
            said("scancel", jobs[0])
            found = client.gather(futures)
    assert [number for number, _ in found] == [number * number for number in range(40)]
    assert {job for _, job in found} <= set(jobs)


# ---- folders of jobs


@pytest.mark.parametrize("script", ["train.sbatch", "infer.sbatch"])
@pytest.mark.parametrize("planted", ["nothing", "open to all", "a link", "another user's"])
def test_compiled_code_is_kept_where_nobody_else_can_put_any(tmp_path, script, planted):
    """Without SLURM, so that it happens everywhere: two lines of shell stand for its commands."""
    folder = tmp_path
    commands = folder / "bin"
    commands.mkdir()
    for name, line in (("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"'), ("scontrol", "echo localhost")):
        (commands / name).write_text(f"#!/bin/bash\n{line}\n")
        (commands / name).chmod(0o755)
    python = folder / "python"  # runs the small programs of the scripts, and tells the folder instead of running ours
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "kept in $NUMBA_CACHE_DIR"\n')
    python.chmod(0o755)
    variables = {**environment(), "PATH": f"{commands}:{os.environ['PATH']}", "PYTHON": str(python), "USER": "someone",
                 "SLURM_JOB_ID": "4711", "TMPDIR": str(folder)}
    guessed = folder / "emcore-someone-4711"
    if planted == "a link":
        (folder / "elsewhere").mkdir(mode=0o700)
        guessed.symlink_to(folder / "elsewhere")
    elif planted != "nothing":
        guessed.mkdir()
        guessed.chmod(0o777 if planted == "open to all" else 0o700)
        if planted == "another user's":
            if os.getuid() != 0:
                pytest.skip("only root can give a folder to another user")
            os.chown(guessed, 12345, 12345)
    (folder / "run.toml").write_text('name = "tiny"')
    text = said("bash", str(ROOT / "slurm" / script), "run.toml", cwd=folder, env=variables, stderr=subprocess.STDOUT)
    kept = Path(re.search("kept in (.*)", text)[1])
    assert kept.parent.parent == folder
    assert (kept.parent == guessed) == (planted == "nothing")
    assert kept.parent.name.startswith("emcore-someone-4711")
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert ("a new folder is used" in text) == (planted != "nothing")


# ---- the node of the tests


OWNER = """
import os, subprocess, time
from pathlib import Path
from tests import slurm_node

with slurm_node.running() as configuration:
    begun = Path(configuration).with_name("begun")
    job = f"setsid sleep 1000 & touch {begun}; sleep 1000"
    subprocess.run(["sbatch", "--output=/dev/null", f"--wrap={job}"], check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "SLURM_CONF": configuration})
    while not begun.exists():
        time.sleep(0.1)
    print(configuration, flush=True)
    time.sleep(1000)
"""


@pytest.mark.long
def test_nothing_stays_of_a_node_whose_owner_is_killed():
    if reason := slurm_node.missing():
        pytest.skip(reason)
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    configuration = owner.stdout.readline().strip()
    assert processes_with(f"SLURM_CONF={configuration}")
    owner.kill()
    owner.wait()
    wait_until(lambda: not processes_with(f"SLURM_CONF={configuration}"), "no process is left")
    wait_until(lambda: not Path(configuration).parent.exists(), "no folder is left")
