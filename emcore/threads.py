"""Slabs on threads: how every kernel uses the cores that this process was given."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from emcore.errors import InputError
from emcore.system import allotted_cores, cores, keep_to

Result = TypeVar("Result")


@cache
def _cores_at_first() -> tuple[int, ...]:
    return cores()


def take_share(share: int, shares: int) -> None:
    """Keeps this thread, and those that it starts, to its share of the cores that this process had at first."""
    if first := _cores_at_first():
        keep_to(first[share % len(first) :: shares] or first)


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
