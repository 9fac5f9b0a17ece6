"""Processes of this machine as workers: one that dies is replaced, and its task is tried again."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from emcore.blocks.attempts import Outcome, share_of
from emcore.blocks.work import Stage, Work
from emcore.blocks.worker import START
from emcore.errors import InputError
from emcore.files import sweep_folder
from emcore.threads import allotted_cores

# libraries that start threads read these when they are loaded
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


class Processes:
    """A context in which tasks are carried out by processes; each is begun when there is a task for it."""

    def __init__(self, work: Work, workers: int):
        self.work, self.window = work, workers
        self.tasks: queue.SimpleQueue = queue.SimpleQueue()
        self.found: queue.SimpleQueue = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self.running: dict[int, Process] = {}
        self.folders: set = set()
        self.ended = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> "Processes":
        return self

    def submit(self, stage: Stage, number: int) -> None:
        self.folders.add(self.work.path(stage, number).parent)
        self.tasks.put((stage, number))
        if len(self.threads) < min(self.window, stage.count):
            thread = threading.Thread(target=self._tend, args=(len(self.threads),), daemon=True)
            self.threads.append(thread)
            thread.start()

    def next(self) -> Outcome:
        outcome = self.found.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def __exit__(self, kind, error, trace) -> None:
        self.ended.set()
        with self.lock:
            for process in self.running.values():
                process.end()
        for _ in self.threads:
            self.tasks.put(None)
        for thread in self.threads:
            thread.join()
        if kind is not None:
            for folder in self.folders:  # what the processes were writing
                sweep_folder(folder)

    def _tend(self, worker: int) -> None:
        """Hands tasks to the process number `worker`, and begins another one when it has died."""
        while (task := self.tasks.get()) is not None and not self.ended.is_set():
            stage, number = task
            try:
                process = self._process(worker)
                outcome = process.ask((stage, number, share_of(stage, number, worker, self.window)))
            except Exception as error:
                self.found.put(error)
                return
            if outcome is None:
                with self.lock:
                    del self.running[worker]
                outcome = Outcome(number, failed=process.last_words())
            self.found.put(outcome)

    def _process(self, worker: int) -> "Process":
        if worker not in self.running:
            with self.lock:
                if self.ended.is_set():
                    raise InputError("the run has ended")
                self.running[worker] = Process(self.work, max(1, allotted_cores() // self.window))
        return self.running[worker]


class Process:
    """One worker, with its pipes."""

    def __init__(self, work: Work, threads: int):
        known = {**os.environ, **dict.fromkeys(THREADS, str(threads))}
        try:
            self.process = subprocess.Popen([sys.executable, "-c", START, *map(os.path.abspath, sys.path)], env=known,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise InputError(f"a process cannot be started: {error.strerror or error}; fewer blocks.workers need "
                             "less") from None
        self.line = ""
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        self._send(work)

    def ask(self, task: tuple) -> Outcome | None:
        """What came of a task; None where the process has died."""
        self._send(task)
        try:
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            self.process.kill()
            return None

    def last_words(self) -> str:
        """How a process that has died did so, and the last line that it wrote."""
        code = self.process.wait()
        self.listener.join(10)
        how = f"ended with exit code {code}"
        if code < 0:
            with suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        return f"its process {how}" + (f", after {self.line!r}" if self.line else "")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _send(self, what: Any) -> None:
        with suppress(OSError):  # a process that has died is noticed where its answer is read
            self.process.stdin.write(pickle.dumps(what))
            self.process.stdin.flush()

    def _listen(self) -> None:
        """Hands on what the process writes, and remembers the last line of it."""
        for line in self.process.stderr:
            text = line.decode(errors="replace")
            self.line = text.strip() or self.line
            sys.stderr.write(text)
