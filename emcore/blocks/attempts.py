"""What every engine does: hands out tasks, tries those again that fail, and ends the run where that would not help.

A task that fails runs again, TRIES times in all; then the run ends with one sentence that says which block it is about.
A mistake of the user ends it at once. What is done stays, and the same command goes on with the rest.
"""

import sys
import traceback
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from emcore.blocks.work import Stage, Work, run_task
from emcore.errors import InputError
from emcore.progress import Progress
from emcore.threads import take_share

TRIES = 3


class Outcome(NamedTuple):
    """What came of a task."""

    number: int
    found: bool = False  # it was done before
    made_again: tuple[str, ...] = ()  # damaged files, and what was done about them
    refused: str = ""  # the sentence of a user's mistake
    failed: str = ""  # the last line of another failure
    trace: str = ""  # where in the program that was
    tries: int = 1  # this outcome stands for so many tries


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


def is_good(work: Work, stage: Stage, outcome: Outcome, tries: dict[int, int], progress: Progress) -> bool:
    """Whether a task is done; says what was made again or failed, and raises where another try would not help."""
    for line in outcome.made_again:
        print(f"note: {line}", file=sys.stderr, flush=True)
    if outcome.refused:
        raise InputError(outcome.refused)
    if not outcome.failed:
        return True
    progress.fail()
    tries[outcome.number] = tries.get(outcome.number, 0) + outcome.tries
    told = f"{stage.name}, {work.where(stage, outcome.number)}"
    if tries[outcome.number] < TRIES:
        print(f"note: {told} failed and runs again: {outcome.failed}", file=sys.stderr, flush=True)
        return False
    sys.stderr.write(outcome.trace)
    raise InputError(f"{told} failed {tries[outcome.number]} times, at last by: {outcome.failed}. What is done stays: "
                     f"the same command goes on with the rest; where memory ran out, {work.needs_less}")


def attempt(work: Work, stage: Stage, number: int, share: tuple[int, int] | None = None) -> Outcome:
    """Carries out a task, unless it is done, on a share of this machine's cores; a failure is an outcome, too."""
    try:
        if share is not None:
            take_share(*share)
        if work.is_done(stage, number):
            return Outcome(number, found=True)
        path = work.path(stage, number)
        damaged = [f"{path} is damaged; it is made again"] if path.exists() else []
        return Outcome(number, made_again=(*damaged, *run_task(work, stage, number)))
    except InputError as error:
        return Outcome(number, refused=str(error))
    except Exception as error:
        return Outcome(number, failed=last_line(error), trace=traceback.format_exc())


def last_line(error: BaseException) -> str:
    """An exception as the last line of its traceback."""
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def share_of(stage: Stage, number: int, worker: int, workers: int) -> tuple[int, int]:
    """Which part of the cores a task gets that one of several workers carries out; few tasks get larger parts."""
    return (worker, workers) if stage.count >= workers else (number, stage.count)
