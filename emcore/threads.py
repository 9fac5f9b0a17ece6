"""Slabs on threads: how every kernel uses the cores that this process was given."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from emcore.errors import InputError

Result = TypeVar("Result")


def allotted_cores() -> int:
    """The number of cores this process may use (a SLURM or container allotment, not the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _cores_at_first() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def take_share(share: int, shares: int) -> None:
    """Keeps this thread, and those that it starts, to its share of the cores that this process had at first."""
    if hasattr(os, "sched_setaffinity"):
        cores = _cores_at_first()
        os.sched_setaffinity(0, cores[share % len(cores) :: shares] or cores)


def thread_count(threads: int | None) -> int:
    """threads as given, or the allotted cores for None."""
    if threads is None:
        return allotted_cores()
    if threads < 1:
        raise InputError(f"threads must be at least 1; got {threads}")
    return int(threads)


def slabs(length: int, parts: int) -> list[tuple[int, int]]:
    """At most `parts` non-empty [start, stop) ranges of nearly equal size that cover range(length)."""
    parts = max(1, min(parts, length))
    edges = [length * i // parts for i in range(parts + 1)]
    return [(edges[i], edges[i + 1]) for i in range(parts) if edges[i + 1] > edges[i]]


def run_parallel(function: Callable[..., Result], jobs: Iterable[tuple], threads: int) -> list[Result]:
    """function(*job) for every job, on threads (the function releases the GIL); results in order of the jobs."""
    jobs = list(jobs)
    if threads == 1 or len(jobs) <= 1:
        return [function(*job) for job in jobs]
    with ThreadPoolExecutor(min(threads, len(jobs))) as pool:
        return list(pool.map(lambda job: function(*job), jobs))
