"""The stages of a tune on processes: a stage that takes too long is ended with its process, and the others go on."""

import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import Any, NamedTuple

from emcore.decode.tune_store import Row
from emcore.errors import InputError
from emcore.progress import Progress


class Job(NamedTuple):
    """A piece of work for one process, and how its result and its seconds become rows; the result None: given up."""

    function: Callable
    arguments: tuple
    rows: Callable[[Any, float], list[Row]]


class Worker:
    """A process that does one job at a time, begun anew after it had to be ended."""

    def __init__(self, number: int, processes: int):
        self.number, self.processes = number, processes
        self.job: Job | None = None
        self.end = float("inf")  # when the job is given up
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, number, processes), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, job: Job) -> None:
        self.job, self.end = job, float("inf")  # its time begins when the process says so: it may still be starting
        self.pipe.send((job.function, job.arguments))

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise InputError(f"a process of the tune was ended from outside (exit code {self.process.exitcode}), "
                             "perhaps for want of memory: the same command goes on with what is left; fewer "
                             "tune.processes need less") from None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run(jobs: list[Job], processes: int, deadline: float | None, limit: float | None,
        progress: Progress) -> Iterator[Row]:
    """The rows of every job as it ends; no job is begun after the deadline, and none takes more seconds than the limit.

    With a limit even a single process is one of its own, so that it can be ended within a kernel.
    """
    waiting = list(reversed(jobs))

    def may_begin() -> bool:
        return bool(waiting) and (deadline is None or time.monotonic() < deadline)

    if limit is None and (processes <= 1 or len(jobs) <= 1):
        while may_begin():
            job = waiting.pop()
            yield from job.rows(*timed(job.function, *job.arguments))
            progress.add()
    elif jobs:
        processes = min(processes, len(jobs))
        workers = [Worker(number, processes) for number in range(processes)] if may_begin() else []
        try:
            while may_begin() or any(worker.job for worker in workers):
                for place, worker in enumerate(workers):
                    if worker.job is not None and time.monotonic() >= worker.end:
                        worker.stop()
                        workers[place] = Worker(worker.number, processes)
                        yield from worker.job.rows(None, limit)
                        progress.add()
                for worker in workers:
                    if worker.job is None and may_begin():
                        worker.send(waiting.pop())
                yield from finished(workers, limit, progress)
        finally:
            for worker in workers:
                worker.stop()
    if waiting:
        print(f"the budget is spent with {len(waiting)} of {len(jobs)} stages left: the same command goes on with them")


def finished(workers: list[Worker], limit: float | None, progress: Progress) -> Iterator[Row]:
    """The rows of the jobs that end next, if any ends before one has to be given up."""
    busy = {worker.pipe: worker for worker in workers if worker.job is not None}
    soonest = min((worker.end for worker in busy.values()), default=0.0)
    for pipe in connection.wait(list(busy), None if soonest == float("inf") else max(0.0, soonest - time.monotonic())):
        worker = busy[pipe]
        what, value = worker.receive()
        if what == "begun":
            worker.end = float("inf") if limit is None else time.monotonic() + limit
        elif what == "failed":
            raise value
        else:
            job, worker.job = worker.job, None
            yield from job.rows(*value)
            progress.add()


def serve(pipe: Any, number: int, processes: int) -> None:
    """What a worker does: its share of the cores, one job after the other, until the one that started it ends."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: processes] or cores)

    def end_with_parent() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=end_with_parent, daemon=True).start()
    while True:
        function, arguments = pipe.recv()
        pipe.send(("begun", None))
        try:
            found = "done", timed(function, *arguments)
        except Exception as error:
            found = "failed", error
        pipe.send(found)


def timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    start = time.monotonic()
    return function(*arguments), time.monotonic() - start
