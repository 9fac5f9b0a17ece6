"""Times two callables in turns, with the peak memory each takes on top of its inputs, and prints ratios."""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.affinities import load_labels


@dataclass(frozen=True)
class Row:
    """One line of a benchmark; times are medians in seconds, memory is MiB above what was resident before."""

    work: str
    peer: str
    ours_s: float
    peer_s: float | None
    ratio: float | None  # peer / ours: above 1 we are faster
    ours_mib: float
    peer_mib: float | None
    goal: str
    agreement: str


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def measure(function: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds, peak MiB above the start, and the result of one call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that memory kept by the allocator is not taken for an input
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
    before = _status("VmRSS")
    start = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - start
    return seconds, max(0, _status("VmHWM") - before) / 2**20, result


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what compiled code prints away from standard output."""
    kept, silence = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(silence)


def compare(work: str, ours: Callable[[], object], peer_name: str, peer: Callable[[], object] | None,
            repeats: int = 5, goal: str = "", agree: Callable[[object, object], str] | None = None) -> Row:
    """One row: ours and the peer in turns, after one uncounted call of each (compilation, page faults)."""
    ours_first = measure(ours)[2]
    peer_first = measure(peer)[2] if peer else None
    agreement = agree(ours_first, peer_first) if agree and peer else ""
    del ours_first, peer_first
    ours_runs, peer_runs = [], []
    for _ in range(repeats):
        ours_runs.append(measure(ours)[:2])
        if peer:
            peer_runs.append(measure(peer)[:2])
    ours_s = statistics.median(run[0] for run in ours_runs)
    peer_s = statistics.median(run[0] for run in peer_runs) if peer else None
    return Row(work, peer_name, ours_s, peer_s, peer_s / ours_s if peer else None,
               max(run[1] for run in ours_runs), max(run[1] for run in peer_runs) if peer else None, goal, agreement)


def print_header() -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}")
    print(f"{'work':<46}{'peer':<16}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'ours MiB':>10}{'peer MiB':>10}"
          "  goal, agreement")


def print_row(row: Row) -> None:
    def cell(value, width, digits):
        return f"{value:>{width}.{digits}f}" if value is not None else f"{'-':>{width}}"

    print(f"{row.work:<46}{row.peer:<16}{row.ours_s:>9.3f}{cell(row.peer_s, 9, 3)}{cell(row.ratio, 8, 2)}"
          f"{row.ours_mib:>10.0f}{cell(row.peer_mib, 10, 0)}  {row.goal}{'; ' if row.goal and row.agreement else ''}"
          f"{row.agreement}", flush=True)


def rows_command(description: str, rows: Callable[[int, np.ndarray], Iterator[Row]]) -> None:
    """Prints the rows of one part on --labels, or on synthetic ones, of --size."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--labels", help="HDF5 file with a dataset labels (z, y, x); synthetic without")
    arguments = parser.parse_args()
    print_header()
    for row in rows(arguments.size, load_labels(arguments.labels, arguments.size)):
        print_row(row)


def write_json(rows: list[Row], path: str) -> None:
    Path(path).write_text(json.dumps([asdict(row) for row in rows], indent=1))
