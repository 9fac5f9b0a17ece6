"""infer.py in blocks in a real SLURM (tests/slurm_node.py), as jobs of Dask and as arrays, whose jobs are cancelled."""

import shutil

import numpy as np
import pytest

from emcore.volumes import open_volume
from tests.test_blocks_runs import (  # noqa: F401 (made, place, plain and undisturbed are fixtures)
    LABELS,
    RESULTS,
    Started,
    blocks_folder,
    check,
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
