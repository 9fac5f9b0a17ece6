"""Processes that carry out the parts of one job: python -c START, then pickles through pipes."""

import itertools
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, Protocol

from emcore.errors import InputError
from emcore.system import end_with_parent

# a script without a guard of its main part is not run again, as multiprocessing would
START = "import sys; sys.path[:] = sys.argv[1:]; from emcore.volumes.processes import serve; serve()"


class Job(Protocol):
    """What can be pickled and does one part after the other, in any order."""

    def do(self, part: Any) -> Any: ...


def serve() -> None:
    """Takes the job and then parts from the standard input until it ends; answers each with what the job gives."""
    end_with_parent()  # or it would still write where a new process has taken the lock
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The process that started this one ends it, not the terminal.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a part prints is no answer
    with suppress(EOFError):
        job = pickle.load(sys.stdin.buffer)
        while True:
            part = pickle.load(sys.stdin.buffer)
            try:
                answer = job.do(part)
            except InputError as error:  # all others are defects: their traceback is printed, and this process ends
                answer = InputError(str(error))
            pickle.dump(answer, answers)
            answers.flush()


class Helper:
    """One process; `do` waits for its answer."""

    def __init__(self, job: Job):
        self.process = subprocess.Popen([sys.executable, "-c", START, *sys.path], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.send(job)

    def send(self, value: Any) -> None:
        try:
            pickle.dump(value, self.process.stdin)
            self.process.stdin.flush()
        except OSError as error:
            raise self.died() from error

    def do(self, part: Any) -> Any:
        self.send(part)
        try:
            answer = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise self.died() from error
        if isinstance(answer, InputError):
            raise answer
        return answer

    def died(self) -> InputError:
        return InputError(f"a process that writes died ({self.process.wait()}), perhaps because memory ran out: run "
                          "the same command again, which goes on where this one ended, with fewer --workers")

    def close(self) -> None:
        with suppress(OSError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Helpers:
    """A context in which `each` gives parts to processes, which start when more than one part waits."""

    def __init__(self, job: Job, count: int):
        self.job, self.count = job, count
        self.idle: queue.SimpleQueue[Helper] = queue.SimpleQueue()
        self.stack = ExitStack()
        self.started = False

    def __enter__(self) -> "Helpers":
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def each(self, parts: Iterable[Any]) -> Iterator[Any]:
        """What the job gives for each part, in their order; after an error no other part is begun.

        Of the parts a few are taken at a time: there may be millions of them.
        """
        parts = iter(parts)
        first = list(itertools.islice(parts, 2))
        parts = itertools.chain(first, parts)
        if self.count == 1 or len(first) < 2:
            yield from map(self.job.do, parts)
            return
        if not self.started:
            self.started = True
            for _ in range(self.count):
                helper = Helper(self.job)
                self.stack.callback(helper.close)
                self.idle.put(helper)
        begun: deque[Future] = deque()
        with ThreadPoolExecutor(self.count) as pool:
            try:
                for part in parts:
                    begun.append(pool.submit(self.one, part))
                    if len(begun) > 2 * self.count:
                        yield begun.popleft().result()
                while begun:
                    yield begun.popleft().result()
            finally:
                for future in begun:
                    future.cancel()

    def one(self, part: Any) -> Any:
        helper = self.idle.get()
        try:
            return helper.do(part)
        finally:
            self.idle.put(helper)
