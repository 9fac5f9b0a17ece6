"""Runs a function in a process of its own and watches what that and the processes it starts take."""

import multiprocessing
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

EVERY = 0.05  # seconds between two looks


class Watched(NamedTuple):
    """What a call took; bytes are those of processes as they are, with Python and its libraries in them."""

    begun: float  # when the call began, by time.time; the process and its modules were there
    seconds: float
    cpu: float  # seconds of cores, of all processes
    largest: int  # the most that one process held
    together: int  # the most that all processes held at a time; pages that they share count once


def watch(function: Callable, *arguments) -> Watched:
    """Calls function(*arguments), which a module must hold by name; a failure of it is raised."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_call, args=(there, function, arguments))
    process.start()
    there.close()
    ended = threading.Event()
    peaks = {"largest": 0, "together": 0}
    thread = threading.Thread(target=_look, args=(process.pid, ended, peaks))
    thread.start()
    try:
        begun, seconds, cpu = here.recv()
    except EOFError:
        raise SystemExit(f"{function.__name__} failed") from None
    finally:
        ended.set()
        thread.join()
        process.join()
    return Watched(begun, seconds, cpu, **peaks)


def killed_after(seconds: float, function: Callable, *arguments) -> None:
    """Calls function(*arguments) in a process that is killed after so many seconds."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join(seconds)
    if process.exitcode is not None:
        raise SystemExit(f"{function.__name__} ended by itself, with exit code {process.exitcode}, before its kill")
    process.kill()
    process.join()


def _call(pipe, function: Callable, arguments: tuple) -> None:
    begun, start, before = time.time(), time.perf_counter(), _cpu()
    function(*arguments)
    pipe.send((begun, time.perf_counter() - start, _cpu() - before))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _look(parent: int, ended: threading.Event, peaks: dict[str, int]) -> None:
    while not ended.wait(EVERY):
        together = 0
        for process in _family(parent):
            with suppress(OSError, IndexError):  # it has ended
                peaks["largest"] = max(peaks["largest"], _bytes(process, "status", "VmHWM"))
                together += _bytes(process, "smaps_rollup", "Pss")
        peaks["together"] = max(peaks["together"], together)


def _family(parent: int) -> list[int]:
    """A process and all that descend from it."""
    found = [parent]
    for process in found:
        with suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _bytes(process: int, file: str, field: str) -> int:
    for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
