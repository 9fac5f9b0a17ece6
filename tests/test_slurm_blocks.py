"""infer.py in blocks in a real SLURM (tests/slurm_node.py), as jobs of Dask and as arrays, whose jobs are cancelled."""

import shutil
import time

import numpy as np
import pytest

from emcore.blocks.alive import Signs
from emcore.prediction.begun import folder_of
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


def said_by(process):
    return "".join(path.read_text() for path in process.streams if path.exists())


def test_jobs_wait_for_a_tile_of_a_process_that_lives_take_it_over_once_it_is_gone_and_decode_together(place):  # noqa: F811
    prediction = RESULTS / "a_prediction.h5"
    prediction.unlink()
    folder = folder_of(prediction)
    with Signs(folder) as another:
        another.say("prediction", 2)
        jobs = [Started("infer.py", "--cfg", "run.toml", SIZE, "infer.tile=[6,0,0]", "decode.threshold=0.9",
                        SLURM_ARRAY_TASK_COUNT="2",
                        SLURM_ARRAY_TASK_ID=str(number)) for number in range(2)]
        others = {f"00000{number}.h5" for number in (0, 1, 3)}
        wait_until(lambda: {path.name for path in folder.glob("tiles-*/*.h5")} >= others
                   or not any(job.alive() for job in jobs), "all tiles but one are there")
        time.sleep(3)
        assert {path.name for path in folder.glob("tiles-*/*.h5")} == others
        assert [(job.alive(), said_by(job).count("4 tiles of ")) for job in jobs] == [(True, 1), (True, 1)]
    for job in jobs:
        job.ended()
    assert {path.name for path in folder.glob("tiles-*/*")} == {*others, "000002.h5"}
    in_blocks = open_volume(LABELS, "labels")[...]
    assert blocks_folder().exists()
    LABELS.unlink()
    shutil.rmtree(blocks_folder())
    run("infer.py", "decode.threshold=0.9")
    assert np.array_equal(open_volume(LABELS, "labels")[...], in_blocks)
