"""What python -m bench.data prints: ours and a peer in turns, mean milliseconds and samples a second."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One line: seconds a sample."""

    work: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    goal: str = ""
    note: str = ""


def in_turns(work: str, ours: Callable[[int], object], peer: Callable[[int], object] | None, repeats: int, samples: int,
             goal: str = "", peer_name: str = "") -> Result:
    """Mean seconds of a sample: blocks of samples in turns, the median block; every block draws other samples."""
    times = {ours: [], peer: []}
    for function in filter(None, times):
        function(0)
    for block in range(repeats):
        for function in filter(None, times):
            gc.collect()
            start = time.perf_counter()
            for number in range(block * samples, (block + 1) * samples):
                function(number)
            times[function].append((time.perf_counter() - start) / samples)
    median = {function: statistics.median(runs) for function, runs in times.items() if runs}
    return Result(work, median[ours], peer_name if peer else "", median.get(peer), goal)


def print_head(title: str) -> None:
    print(f"\n{title}\n{'':<46}{'ours ms':>10}{'a second':>10}{'peer ms':>10}{'a second':>10}{'ratio':>8}  peer, goal")


def print_result(result: Result) -> None:
    line = f"{result.work:<46}{result.ours * 1e3:>10.2f}{1 / result.ours:>10.1f}"
    if result.peer is not None:
        line += f"{result.peer * 1e3:>10.2f}{1 / result.peer:>10.1f}{result.peer / result.ours:>8.2f}"
    else:
        line += " " * 28
    told = ", ".join(filter(None, (result.peer_name, result.goal, result.note)))
    print(f"{line}  {told}".rstrip(), flush=True)
