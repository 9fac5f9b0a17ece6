"""The stages of a tune on processes: one that takes too long ends with its process, and the others go on."""

import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection, get_context, parent_process, process
from threading import Thread
from typing import Any, NamedTuple

from emcore.decode.tune_store import STOPPED, Row
from emcore.errors import InputError
from emcore.progress import Progress
from emcore.threads import take_share

TOO_LONG = 1  # the exit code of a process whose stage took too long


class Stage(NamedTuple):
    """A stage for one process: what it calls, and the points that this finds something of, each by its key."""

    kind: str
    function: Callable[..., list]
    arguments: tuple
    points: list[tuple[str, dict[str, Any]]]

    def rows(self, found: list | None, seconds: float) -> list[Row]:
        """A row for every point; found: what of each, or None where the stage was given up."""
        if found is None:
            return [Row(key, STOPPED, decode, {}, seconds) for key, decode in self.points]
        return [Row(key, self.kind, decode, values, seconds / len(found))
                for (key, decode), values in zip(self.points, found)]


class Worker(NamedTuple):
    """A process that does one job after the other, on its share of the cores."""

    share: int
    process: process.BaseProcess
    pipe: connection.Connection


def run(jobs: list[Stage], processes: int, deadline: float | None, limit: float | None,
        progress: Progress) -> Iterator[Row]:
    """The rows of every job as it ends; no job is begun after the deadline, and none takes more seconds than the limit.

    With a limit even a single process is one of its own, so that it can be ended within a kernel.
    """
    waiting, processes = list(reversed(jobs)), min(processes, len(jobs))
    shares, idle, busy = list(range(processes)), [], {}

    def may_begin() -> bool:
        return bool(waiting) and (deadline is None or time.monotonic() < deadline)

    while limit is None and processes == 1 and may_begin():
        job = waiting.pop()
        yield from job.rows(*timed(job.function, *job.arguments))
        progress.add()
    try:
        while busy or may_begin():
            while may_begin() and (idle or shares):
                worker, job = idle.pop() if idle else begin(shares.pop(0), processes, limit), waiting.pop()
                worker.pipe.send((job.function, job.arguments))
                busy[worker.pipe] = worker, job, time.monotonic()
            for pipe in connection.wait(list(busy)):
                worker, job, sent = busy.pop(pipe)
                found = received(worker, limit is not None and time.monotonic() - sent >= limit)
                if found is None:
                    shares.append(worker.share)
                else:
                    idle.append(worker)
                if isinstance(found, Exception):
                    raise found
                yield from job.rows(*(found or (None, limit)))
                progress.add()
    finally:
        for worker in [*idle, *(entry[0] for entry in busy.values())]:
            worker.process.kill()
            worker.process.join()
    if waiting:
        print(f"the budget is spent with {len(waiting)} of {len(jobs)} stages left: the same command goes on with them")


def begin(share: int, shares: int, limit: float | None) -> Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    started = context.Process(target=serve, args=(theirs, share, shares, limit), daemon=True)
    started.start()
    theirs.close()
    return Worker(share, started, ours)


def received(worker: Worker, is_late: bool) -> tuple[Any, float] | Exception | None:
    """What a job found and its seconds, or how it failed, or None if it took too long."""
    try:
        return worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        if is_late and worker.process.exitcode == TOO_LONG:
            return None
        raise InputError(f"a process of the tune was ended from outside (exit code {worker.process.exitcode}), "
                         "perhaps for want of memory: the same command goes on with what is left; fewer "
                         "tune.processes need less") from None


def serve(pipe: connection.Connection, share: int, shares: int, limit: float | None) -> None:
    """What a worker does, until the process that began it ends."""
    take_share(share, shares)

    def end_with_parent() -> None:
        parent_process().join()
        os._exit(2)

    Thread(target=end_with_parent, daemon=True).start()
    with open(os.devnull, "w") as nowhere:
        while True:
            function, arguments = pipe.recv()
            if limit is not None:  # this clock ends the process even within a kernel that keeps all other threads out
                faulthandler.dump_traceback_later(limit, exit=True, file=nowhere)
            try:
                found = timed(function, *arguments)
            except Exception as error:
                found = error
            faulthandler.cancel_dump_traceback_later()
            pipe.send(found)


def timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    start = time.monotonic()
    return function(*arguments), time.monotonic() - start
