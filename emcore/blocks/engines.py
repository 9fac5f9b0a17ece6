"""Who carries out a work: every stage after the one before it, every task until its file is valid.

    run(work, settings.blocks)

    local   processes of this machine (local.py), or this process alone
    dask    workers of Dask, here or on a cluster (on_dask.py)
    share   processes that share nothing but the files (share.py): torchrun, jobs of an array

A task that fails runs again, TRIES times in all; then the run ends with one sentence that says which block it is about.
A mistake of the user ends it at once. What is done stays, and the same command goes on with the rest.
"""

import os
from collections.abc import Iterator
from typing import Protocol

from emcore.blocks.attempts import Outcome, attempt, is_good
from emcore.blocks.work import Stage, Work
from emcore.progress import Progress
from emcore.settings.blocks import Blocks
from emcore.threads import allotted_cores


class Pool(Protocol):
    """Workers that carry out tasks side by side."""

    window: int  # tasks that it should have at a time

    def submit(self, stage: Stage, number: int) -> None:
        """Has a task carried out at some time."""

    def next(self) -> Outcome:
        """What came of one of the tasks that were submitted, when there is one."""


class Alone:
    """This process as the only worker."""

    window = 1

    def __init__(self, work: Work):
        self.work = work

    def submit(self, stage: Stage, number: int) -> None:
        self.task = stage, number

    def next(self) -> Outcome:
        return attempt(self.work, *self.task)


def run(work: Work, settings: Blocks) -> None:
    """Carries out all stages by the engine that the settings name, or that this process was started for."""
    engine = engine_of(settings)
    if engine == "share":
        from emcore.blocks import share

        share.run(work, *share.place())
    elif engine == "dask":
        from emcore.blocks import on_dask

        with on_dask.workers(work, settings) as pool:
            carry_out(work, pool)
    else:
        from emcore.blocks import local

        workers = settings.workers or allotted_cores()
        if workers == 1:
            carry_out(work, Alone(work))
            return
        with local.Processes(work, workers) as pool:
            carry_out(work, pool)


def engine_of(settings: Blocks) -> str:
    """local, dask or share."""
    if settings.engine != "auto":
        return settings.engine
    if settings.address or settings.cluster:
        return "dask"
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 or "SLURM_ARRAY_TASK_ID" in os.environ
    return "share" if several else "local"


def carry_out(work: Work, pool: Pool) -> None:
    """Every stage, with as many tasks under way as the pool wants to have."""
    for stage in work.stages():
        with Progress(stage.count, stage.name, "blocks") as progress:
            for outcome in outcomes(work, pool, stage, progress):
                progress.add(found=outcome.found)


def outcomes(work: Work, pool: Pool, stage: Stage, progress: Progress) -> Iterator[Outcome]:
    """The good outcome of every task of a stage, as it comes; one that fails is tried again."""
    waiting, under_way, tries = iter(range(stage.count)), 0, {}
    while True:
        while under_way < pool.window and (number := next(waiting, None)) is not None:
            pool.submit(stage, number)
            under_way += 1
        if not under_way:
            return
        outcome = pool.next()
        if is_good(work, stage, outcome, tries, progress):
            under_way -= 1
            yield outcome
        else:
            pool.submit(stage, outcome.number)
