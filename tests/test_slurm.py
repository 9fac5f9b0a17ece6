"""slurm/*.sbatch run as SLURM would run them, with srun and scontrol played by two lines of shell."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_train import ROOT, environment, place, train, wait_for_rows  # noqa: F401 (place is a fixture)

SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/bash\nif [ "$1" = show ]; then echo localhost; else echo "$@" >> "$SCONTROL_LOG"; fi\n'


@pytest.fixture
def cluster(place):  # noqa: F811 (the fixture)
    commands = place / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    for name in ("train.py", "infer.py"):
        (place / name).symlink_to(ROOT / name)
    found = {**environment(), "PATH": f"{commands}:{os.environ['PATH']}", "SCONTROL_LOG": str(place / "scontrol.log"),
             "PYTHON": sys.executable, "SLURM_JOB_ID": "4711", "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "1",
             "SLURM_NNODES": "1", "TMPDIR": str(place)}
    return place, found


def submit(cluster, script, *arguments):
    folder, found = cluster
    return subprocess.Popen(["bash", str(ROOT / "slurm" / script), "run.toml", *arguments], cwd=folder, env=found,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_job_whose_time_is_up_saves_and_queues_itself_and_the_next_one_finishes(cluster):
    folder, _ = cluster
    job = submit(cluster, "train.sbatch", "train.steps=100000")
    wait_for_rows(folder)
    job.send_signal(signal.SIGUSR1)
    text, _ = job.communicate(timeout=60)
    assert job.returncode == 0, text
    stopped = int(re.search(r"stopped at step (\d+) of 100000", text)[1])
    assert (folder / "scontrol.log").read_text() == "requeue 4711\n"
    job = submit(cluster, "train.sbatch", f"train.steps={stopped + 2}")
    text, _ = job.communicate(timeout=90)
    assert job.returncode == 0, text
    assert f"step {stopped} of {stopped + 2}" in text
    assert (folder / "scontrol.log").read_text() == "requeue 4711\n", "a finished run must not queue itself again"
    assert list(folder.glob("emcore-*-4711/numba")), "compiled code belongs on the node's disk"


@pytest.mark.slow
def test_a_failing_job_is_not_queued_again(cluster):
    folder, _ = cluster
    job = submit(cluster, "train.sbatch", "train.steps=none")
    text, _ = job.communicate(timeout=90)
    assert job.returncode != 0
    assert "train.steps" in text
    assert not (folder / "scontrol.log").exists()


@pytest.mark.parametrize("script", ["train.sbatch", "infer.sbatch"])
@pytest.mark.parametrize("planted", ["nothing", "open to all", "a link", "another user's"])
def test_compiled_code_is_kept_where_nobody_else_can_put_any(cluster, script, planted):
    folder, found = cluster
    python = folder / "python"  # runs the small programs of the scripts, and tells the folder instead of running ours
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "kept in $NUMBA_CACHE_DIR"\n')
    python.chmod(0o755)
    found |= {"PYTHON": str(python), "USER": "someone"}
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
    text, _ = submit(cluster, script).communicate(timeout=120)
    kept = Path(re.search("kept in (.*)", text)[1])
    assert kept.parent.parent == folder
    assert (kept.parent == guessed) == (planted == "nothing")
    assert kept.parent.name.startswith("emcore-someone-4711")
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert ("a new folder is used" in text) == (planted != "nothing")


@pytest.mark.slow
def test_an_array_of_jobs_predicts_everything_once(cluster):
    folder, _ = cluster
    done = train(folder)
    assert done.returncode == 0, done.stderr
    (folder / "run.toml").write_text((folder / "run.toml").read_text() + """
[[data.test]]
image = "vol.h5:raw"
[infer]
slab = 4
""")
    jobs = [submit(cluster, "infer.sbatch") for _ in range(2)]
    for job in jobs:
        text, _ = job.communicate(timeout=120)
        assert job.returncode == 0, text
    assert [path.name for path in (folder / "outputs" / "tiny" / "results_step=20").glob("*.h5")] \
        == ["test_im_prediction.h5"]
