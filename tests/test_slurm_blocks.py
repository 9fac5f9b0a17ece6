"""infer.py in blocks in a real SLURM (tests/slurm_node.py), as jobs of Dask and as arrays, whose jobs are cancelled."""

import contextlib
import shutil
import time

import numpy as np
import pytest

from emcore.prediction.parts import claimed, folder_of
from emcore.volumes import open_volume
from tests.test_blocks_runs import (  # noqa: F401 (made, place, plain and undisturbed are fixtures)
    LABELS,
    RESULTS,
    Started,
    blocks_folder,
    count,
    made,
    place,
    plain,
    run,
    undisturbed,
    words_of,
)
from tests.test_slurm import said, submit, wait_until  # noqa: F401 (submit is a fixture)

SIZE = "blocks.size=[6,20,20]"
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


def jobs_at_work(place):
    """The jobs whose worker has found its scheduler."""
    return [path.stem.rpartition("-")[2] for path in (place / "logs").glob("*.err") if "Registered to" in path.read_text()]


@pytest.mark.slow
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


# ---- arrays


WAITS = "waiting for the processes that finish it"


def said_by(process):
    return "".join(path.read_text() for path in process.streams if path.exists())


@contextlib.contextmanager
def held(part):
    """A part of a prediction that another process seems to be at."""
    part.parent.mkdir(parents=True)
    with claimed(part) as mine:
        assert mine
        yield


def test_jobs_that_wait_for_a_part_of_the_prediction_take_it_over_once_and_decode_together(place):  # noqa: F811
    prediction = RESULTS / "a_prediction.h5"
    prediction.unlink()
    parts = folder_of(prediction)
    with held(parts / "000000_000006.lock"):
        jobs = [Started("infer.py", "--cfg", "run.toml", SIZE, "decode.threshold=0.9", SLURM_ARRAY_TASK_COUNT="2",
                        SLURM_ARRAY_TASK_ID=str(number)) for number in range(2)]
        wait_until(lambda: all(WAITS in said_by(job) or not job.alive() for job in jobs), "both jobs wait")
        time.sleep(3)
        assert len(list(parts.glob("*.npy"))) == 3
        assert [(job.alive(), said_by(job).count("4 parts; ")) for job in jobs] == [(True, 1), (True, 1)]
    wait_until(prediction.exists, "the prediction is there")
    first = prediction.stat()
    for job in jobs:
        job.ended()
    assert prediction.stat() == first, "a prediction that is there was made again"
    assert sum("4 parts; " in said_by(job).partition(WAITS)[2] for job in jobs) in (1, 2)
    in_blocks = open_volume(LABELS, "labels")[...]
    assert blocks_folder().exists()
    LABELS.unlink()
    shutil.rmtree(blocks_folder())
    run("infer.py", "decode.threshold=0.9")
    assert np.array_equal(open_volume(LABELS, "labels")[...], in_blocks)
