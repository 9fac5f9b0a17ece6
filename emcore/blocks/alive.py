"""Signs of life: small files in which the processes of a work say what they are at. Nothing depends on them but who
takes over what, so that a lost, late or false one costs time alone.
"""

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from emcore.files import born, machine, remove, reported, sweep_folder, temporary_name

FOLDER = "alive"
BEAT = 5.0  # seconds between two signs
SILENCE = 120.0  # seconds without one after which a process is taken to be dead: network file systems tell late
FORGOTTEN = 7 * 86400.0  # seconds after which the last sign of a process of another machine is removed
LONGEST_SIGN = 2000  # bytes


class Signs:
    """A context in which this process gives signs of life, and sees those of the others."""

    def __init__(self, folder: Path, beat: float = BEAT, silence: float = SILENCE):
        self.folder, self.beat, self.silence = folder, beat, silence
        self.path = folder / FOLDER / f"{machine()}-{os.getpid()}-{secrets.token_hex(3)}.json"
        self.born = born(os.getpid())
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Signs":
        with reported(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        sweep_folder(self.path.parent)
        for path, words, written in signs(self.folder):
            if is_dead(words) or time.time() - written > FORGOTTEN:
                remove(path)
        self.say("", None)
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.ended.set()
        self.thread.join()
        remove(self.path)

    def say(self, stage: str, number: int | None) -> None:
        """Says what this process is at, or that it waits."""
        words = {"host": platform.node(), "machine": machine(), "process": os.getpid(), "born": self.born,
                 "stage": stage, "number": number}
        draft = temporary_name(self.path, "partial")
        try:
            draft.write_text(json.dumps(words))
            os.replace(draft, self.path)
        except OSError:  # a full disk is told by what is written first
            remove(draft)

    def others(self, stage: str) -> set[int]:
        """The tasks of a stage that other living processes are at."""
        found = {path: (words, written) for path, words, written in signs(self.folder)}
        now = found.pop(self.path, ({}, time.time()))[1]
        return {words["number"] for words, written in found.values() if words["stage"] == stage
                and words["number"] is not None and now - written < self.silence and not is_dead(words)}

    def _beat(self) -> None:
        while not self.ended.wait(self.beat):
            with suppress(OSError):
                os.utime(self.path)  # by the clock of the file system, as those of two machines may differ


def is_dead(words: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; of another one only its silence tells."""
    return words["machine"] == machine() and born(words["process"]) != words["born"]


def signs(folder: Path) -> Iterator[tuple[Path, dict[str, Any], float]]:
    """What every process of a work said last, and when that was, also of those that are dead."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted((folder / FOLDER).glob("*.json")):
            with suppress(OSError, ValueError):
                with open(path, "rb") as file:
                    words = json.loads(file.read(LONGEST_SIGN))
                    written = os.fstat(file.fileno()).st_mtime
                if is_sign(words):
                    yield path, words, written


def is_sign(words: Any) -> bool:
    """Whether a file holds what `say` writes."""
    types = {"host": str, "machine": str, "process": int, "born": int, "stage": str, "number": int | None}
    return isinstance(words, dict) and all(name in words and isinstance(words[name], kind)
                                           for name, kind in types.items())


def living(folder: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """What every process of a work that lives said last, and when that was."""
    for _, words, written in signs(folder):
        if time.time() - written < SILENCE and not is_dead(words):
            yield words, written
