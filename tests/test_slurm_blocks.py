"""infer.py in blocks in a real SLURM (tests/slurm_node.py), as jobs of Dask and as arrays, whose jobs are cancelled."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from emcore import config, record
from emcore.blocks import choice
from emcore.blocks.alive import Signs, signs
from emcore.blocks.grid import Grid
from emcore.blocks.run import decode_in_blocks, read_plan
from emcore.errors import InputError
from emcore.prediction.begun import folder_of
from emcore.settings import Settings
from emcore.settings.blocks import Blocks
from emcore.settings.decode import AffinityDecode
from emcore.volumes import open_volume
from tests.test_blocks_runs import (  # noqa: F401 (made, place, plain and undisturbed are fixtures)
    LABELS,
    RESULTS,
    SHAPE,
    Started,
    blocks_folder,
    contents,
    count,
    made,
    place,
    plain,
    run,
    undisturbed,
    words_of,
)
from tests.test_slurm import OVER, Job, said, submit, wait_until  # noqa: F401 (submit is a fixture)

SIZE = "blocks.size=[6,20,20]"
THRESHOLD = "decode.threshold=0.5"  # at which the net of these tests makes a hundred labels
TABLE = """
[blocks.slurm]
jobs = 2
queue = "cpu"
cores = 1
memory = "1GB"
interface = "lo"
walltime = "00:30:00"
local_directory = "space"
log_directory = "logs"
"""


# ---- jobs of Dask


def jobs_at_work(place):  # noqa: F811
    """The jobs whose worker has found its scheduler."""
    return [path.stem.rpartition("-")[2] for path in (place / "logs").glob("*.err")
            if "Registered to" in path.read_text()]


@pytest.mark.long
def test_jobs_of_dask_go_on_when_one_is_cancelled_and_none_stays(submit, place, undisturbed):  # noqa: F811
    pytest.importorskip("dask_jobqueue")
    with open("run.toml", "a") as file:
        file.write(TABLE)
    driver = Started(*words_of(SIZE))
    wait_until(lambda: count() >= 3 or not driver.alive(), "files of blocks")
    at_work = jobs_at_work(place)
    assert at_work, driver.ended()
    said("scancel", at_work[0])
    assert driver.alive()
    driver.ended()
    wait_until(lambda: not said("squeue", "--noheader"), "the queue is empty")
    assert len(jobs_at_work(place)) >= 2
    assert blocks_folder().exists()
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]


# ---- memory


def test_what_a_worker_may_take_is_its_part_of_its_own_job(monkeypatch):
    monkeypatch.setattr(choice, "memory_there", lambda: int(100e9))
    monkeypatch.setattr(choice, "allotted_cores", lambda: 4)
    task = choice.Task((2000, 2000, 2000), 3, 1, AffinityDecode())
    job = {"jobs": 10, "cores": 2, "memory": "4GB"}
    for settings, variables, workers, block in (
            (Blocks(engine="local"), {}, 4, 512),
            (Blocks(slurm=job), {}, 20, 384),  # not what the login node has
            (Blocks(slurm=job, memory="1GB"), {}, 20, 256),
            (Blocks(slurm={"jobs": 10, "queue": "cpu"}), {}, 4, 512),  # the rest is told to dask_jobqueue elsewhere
            (Blocks(), {"SLURM_ARRAY_TASK_COUNT": "9"}, 1, 512)):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        chosen = choice.choose(task, settings)
        assert (chosen.workers, chosen.grid.block) == (workers, (block,) * 3)
    monkeypatch.setattr(choice, "memory_there", lambda: int(6e9))
    for ranks, block in ((1, 512), (8, 256)):  # all of its job is for one task at a time, or for one in each rank
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert choice.choose(task, Blocks(engine="share")).grid.block == (block,) * 3
    with pytest.raises(InputError, match=r"set memory in \[blocks.slurm\] higher, or cores lower"):
        choice.choose(task, Blocks(slurm={"cores": 8, "memory": "500MB"}))


def test_jobs_with_unlike_memory_work_in_the_blocks_of_the_one_that_began(place, undisturbed):  # noqa: F811
    prediction, settings = RESULTS / "a_prediction.h5", config.load(Settings, "run.toml")
    made_of = record.of_labels(settings, prediction)
    for block in ((12, 20, 20), (24, 20, 40)):  # both chosen when nothing was there
        LABELS.unlink(missing_ok=True)
        decode_in_blocks(prediction, settings.decode, LABELS, choice.Choice(Grid(SHAPE, block), 1, ""),
                         Blocks(workers=1), made_of)
        assert read_plan(blocks_folder())["block"] == [12, 20, 20]
        assert contents() == undisturbed


# ---- arrays


def said_by(process):
    return "".join(path.read_text() for path in process.streams if path.exists())


@pytest.mark.slow
def test_jobs_wait_for_a_tile_of_a_process_that_lives_take_it_over_once_it_is_gone_and_decode_together(place):  # noqa: F811
    prediction = RESULTS / "a_prediction.h5"
    prediction.unlink()
    folder = folder_of(prediction)
    with Signs(folder) as another:
        another.say("prediction", 2)
        jobs = [Started("infer.py", "--cfg", "run.toml", SIZE, "infer.tile=[6,0,0]", THRESHOLD,
                        SLURM_ARRAY_TASK_COUNT="2",
                        SLURM_ARRAY_TASK_ID=str(number)) for number in range(2)]
        others = {f"00000{number}" for number in (0, 1, 3)}  # tiles, which have a folder each
        wait_until(lambda: {path.parent.name for path in folder.glob("tiles-*/*/*.h5")} >= others
                   or not any(job.alive() for job in jobs), "all tiles but one are there")
        time.sleep(3)
        assert {path.parent.name for path in folder.glob("tiles-*/*/*.h5")} == others
        assert [(job.alive(), said_by(job).count("4 tiles of ")) for job in jobs] == [(True, 1), (True, 1)]
    for job in jobs:
        job.ended()
    assert {path.name for path in folder.glob("tiles-*/*")} == {*others, "000002"}
    in_blocks = open_volume(LABELS, "labels")[...]
    assert blocks_folder().exists()
    LABELS.unlink()
    shutil.rmtree(blocks_folder())
    run("infer.py", THRESHOLD)
    assert np.array_equal(open_volume(LABELS, "labels")[...], in_blocks)


def at_once(place, tmp_path_factory):  # noqa: F811
    """The labels of the same command without blocks, in another folder."""
    elsewhere = tmp_path_factory.mktemp("at_once") / "place"
    shutil.copytree(place, elsewhere)
    with contextlib.chdir(elsewhere):
        run("infer.py", THRESHOLD)
        assert not blocks_folder().exists()
        return open_volume(LABELS, "labels")[...]


def stopped_at_work(*jobs):
    """The one of the jobs whose process says first that it is at a block, once three files are there; it is stopped."""
    by_number = {job.number.encode(): job for job in jobs}

    def at_work():
        for _, words, _ in signs(blocks_folder()) if count() >= 3 else ():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{words['process']}/environ").read_bytes().split(b"\0")
                known = dict(line.split(b"=", 1) for line in lines if b"=" in line)
                job = by_number[b"%s_%s" % (known[b"SLURM_ARRAY_JOB_ID"], known[b"SLURM_ARRAY_TASK_ID"])]
                if words["number"] is not None:
                    os.kill(words["process"], signal.SIGSTOP)
                    return job
        if {job.state() for job in jobs} <= OVER:
            pytest.fail("".join(job.log() for job in jobs))
        return None

    return wait_until(at_work, "a job is at a block")


@pytest.mark.long
def test_an_array_of_which_one_is_cancelled_and_one_comes_late_predicts_and_decodes(submit, place,  # noqa: F811
                                                                                    tmp_path_factory):
    (RESULTS / "a_prediction.h5").unlink()
    wanted = at_once(place, tmp_path_factory)
    assert wanted.max() > 5
    words = "infer.sbatch", SIZE, THRESHOLD
    array = submit(place, *words, options=["--array=0-2%2"])  # the third begins when one of the others has ended
    tasks = [Job(place, f"{array.number}_{index}") for index in range(3)]
    cancelled = stopped_at_work(*tasks)
    assert not LABELS.exists()
    said("scancel", cancelled.number)
    cancelled.wait_for("CANCELLED")
    for task in tasks:
        if task is not cancelled:
            task.wait_for("COMPLETED")
    assert np.array_equal(open_volume(LABELS, "labels")[...], wanted)
    stamp = LABELS.stat()
    again = submit(place, *words, options=["--array=5-6"])
    for number in (5, 6):
        task = Job(place, f"{again.number}_{number}")
        task.wait_for("COMPLETED")
        for path in (RESULTS / "a_prediction.h5", LABELS):
            assert f"{path}: already there" in task.log()
    assert LABELS.stat() == stamp


@pytest.mark.long
def test_a_job_that_is_out_of_time_in_the_middle_of_blocks_goes_on_when_it_is_submitted_again(
        submit, place, tmp_path_factory):  # noqa: F811
    (RESULTS / "a_prediction.h5").unlink()
    wanted = at_once(place, tmp_path_factory)
    words = "infer.sbatch", SIZE, THRESHOLD, "blocks.engine=share"
    job = submit(place, *words, options=["--array=0"])
    task = Job(place, f"{job.number}_0")
    stopped_at_work(task)
    assert not LABELS.exists()
    before = {path: path.stat().st_mtime_ns for path in blocks_folder().rglob("*.columns")}
    said("scontrol", "update", f"JobId={task.number}", "TimeLimit=0:01")  # which SLURM takes for a minute
    task.wait_for("TIMEOUT")
    again = Job(place, f"{submit(place, *words, options=['--array=0', '--gpus=0']).number}_0")
    again.wait_for("COMPLETED")
    assert np.array_equal(open_volume(LABELS, "labels")[...], wanted)
    after = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    assert after.items() <= before.items(), "a file that was there was written again"
    assert len(after) >= 3
