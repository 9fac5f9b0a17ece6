"""How far a long piece of work is: a live line on a terminal, plain lines now and then in a log file."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from emcore.system import pages_of_process

SECONDS_BETWEEN_LIVE_LINES = 1.0
SECONDS_BETWEEN_LOG_LINES = 30.0
SECONDS_WITHOUT_A_LINE = 5.0


class Progress:
    """A context in which `add(amount)` counts work done; prints rate, remaining time and resident memory.

    The last line always comes; after an exception only where earlier lines wait for their end, so that a mistake found
    at once stays one sentence. `add` may be called from any thread.
    """

    def __init__(self, total: int | None, what: str, unit: str = "", stream: TextIO | None = None,
                 every: float = SECONDS_BETWEEN_LOG_LINES, clock: Callable[[], float] = time.monotonic):
        self.total, self.what, self.unit, self.clock = total, what, unit, clock
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.between = SECONDS_BETWEEN_LIVE_LINES if self.live else max(every, SECONDS_BETWEEN_LIVE_LINES)
        self.done = self.found = self.failures = 0
        self.lock = threading.Lock()

    def __enter__(self) -> "Progress":
        self.started = self.printed = self.clock()
        return self

    def add(self, amount: int = 1, found: bool = False) -> None:
        """Counts `amount` more units as done, and prints a line when one is due; found: they were done before."""
        with self.lock:
            self.done += amount
            self.found += amount if found else 0
            now = self.clock()
            if now - self.printed >= self.between:
                self.printed = now
                self._print(self.line(now))

    def fail(self) -> None:
        """Counts a failure, which the lines tell."""
        with self.lock:
            self.failures += 1

    def __exit__(self, kind, error, trace) -> None:
        if kind and self.printed == self.started:
            return
        elapsed = self.clock() - self.started
        state = "stopped after" if kind else "in"
        self._print(f"{self._so_far(elapsed)}, {state} {duration(elapsed)}{memory_text()}", last=True)

    def line(self, now: float) -> str:
        """The line for the time `now`; the remaining time supposes the mean rate since the start."""
        elapsed = now - self.started
        remaining = ""
        if self.total is not None and self.done > self.found:
            remaining = f", {duration(elapsed * max(0, self.total - self.done) / (self.done - self.found))} left"
        return f"{self._so_far(elapsed)}{remaining}{memory_text()}"

    def _so_far(self, elapsed: float) -> str:
        share = f" {100 * self.done // self.total}%" if self.total else ""
        of = f" of {quantity(self.total)}" if self.total is not None else ""
        rate = f", {with_unit((self.done - self.found) / elapsed, self.unit)}/s" if elapsed > 0 else ""
        failed = f", {self.failures} failed" if self.failures else ""
        return f"{self.what}:{share} {quantity(self.done)}{of} {self.unit}".rstrip() + rate + failed

    def _print(self, text: str, last: bool = False) -> None:
        if self.live:
            # a line longer than the terminal would wrap and could not be overwritten
            text = "\r" + text[:shutil.get_terminal_size().columns - 1] + "\x1b[K" + ("\n" if last else "")
        else:
            text += "\n"
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            pass  # a closed terminal or a full log disk must not end a day of work


class Working:
    """A context for work that cannot count what is done: while it goes on, lines tell its step, time and memory.

    The first line comes after five seconds, so short work stays silent. On a terminal the line vanishes at the end.
    """

    def __init__(self, what: str, stream: TextIO | None = None, after: float = SECONDS_WITHOUT_A_LINE,
                 every: float = SECONDS_BETWEEN_LOG_LINES):
        self.what, self.step = what, ""
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.after, self.every = after, SECONDS_BETWEEN_LIVE_LINES if self.live else every
        self.ended = threading.Event()

    def __enter__(self) -> "Working":
        self.started = time.monotonic()
        self.teller = threading.Thread(target=self._tell, daemon=True)
        self.teller.start()
        return self

    def now(self, step: str) -> None:
        """Names the step that begins."""
        self.step = step

    def _tell(self) -> None:
        wait, told = self.after, False
        while not self.ended.wait(wait):
            wait, told = self.every, True
            step = f", {self.step}" if self.step else ""
            self._write(f"{self.what}{step}: {duration(time.monotonic() - self.started)} so far{memory_text()}")
        if told and self.live:
            self._write("")

    def _write(self, text: str) -> None:
        if self.live:
            text = "\r" + text[:shutil.get_terminal_size().columns - 1] + "\x1b[K"
        with suppress(OSError):  # a closed terminal must not end the work
            self.stream.write(text if self.live else text + "\n")
            self.stream.flush()

    def __exit__(self, kind, error, trace) -> None:
        self.ended.set()
        self.teller.join()


def quantity(value: float) -> str:
    """Three significant digits with a thousands letter: 950, 12.3k, 4.56M."""
    for letter in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or letter == "T":
            break
        value /= 1000
    if not letter and float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.{0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2}f}{letter}"


def with_unit(value: float, unit: str) -> str:
    """A quantity and its unit: 12.3M voxels."""
    return f"{quantity(value)} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Hours and minutes, minutes and seconds, or seconds: 2h05m, 3m20s, 4.2s."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def memory_text() -> str:
    resident = resident_bytes()
    return f", memory {quantity(resident)}B" if resident else ""


def resident_bytes() -> int:
    """The resident memory of this process now, or 0 where the system does not tell."""
    return pages_of_process(resident=True)
