"""Advisory locks between processes: they end with the process that holds them, however it ends."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from emcore import system
from emcore.errors import InputError
from emcore.files import born, machine, sweep_folder
from emcore.system import NoLocks

RUN_LOCK = "run.lock"
_TRAINED: set[Path] = set()  # the run folders that this process has locked


def take(file: IO | int, shared: bool = False, wait: bool = True) -> bool:
    """Whether this process, and those it forks, hold the lock of an open file now; closing the file ends it."""
    return system.lock(file, shared, wait)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time; where there are no locks, all at once: for work that many may do but one does for all."""
    with open(path, "a") as file:
        with suppress(NoLocks):
            take(file)
        yield


@contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Makes this process the only one that trains in a run folder, or says in one sentence who does.

    The lock belongs to this process alone, not to those it forks: with it ends the claim, so a kill needs no cleaning.
    """
    path = folder / RUN_LOCK
    if path.resolve() in _TRAINED:  # a smoke test holds it around its training
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot write into the run folder {folder}: {error.strerror or error}") from None
    with file:
        if not claim(file, folder):
            raise InputError(f"{folder} is being trained by {holder(file)}: wait for its end, end it by `touch "
                             f"{folder / 'STOP'}`, or choose another name")
        file.truncate(0)
        mine = {"host": platform.node(), "process": os.getpid(), "machine": machine(), "born": born(os.getpid()),
                "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk is told by what is written first
            file.write(json.dumps(mine).encode())
        _TRAINED.add(path.resolve())
        try:
            for place in (folder, *(inside for inside in folder.iterdir() if inside.is_dir())):
                sweep_folder(place)
            yield
        finally:
            _TRAINED.discard(path.resolve())
            file.truncate(0)


def claim(file: IO, folder: Path) -> bool:
    """Whether the training of this folder is ours now; where there are no locks, what the last one wrote tells."""
    try:
        return system.lock(file, wait=False, process=True)
    except NoLocks as error:
        last = written(file)
        if last.get("machine") == machine() and born(int(last["process"])) == last["born"]:
            return False
        told = f" (the last one: {holder(file)})" if last else ""
        print(f"note: {folder} cannot be locked ({error.strerror or error}): make sure that no other machine trains it"
              f"{told}, or set outputs to a file system with locks", file=sys.stderr)
        return True


def written(file: IO) -> dict:
    """What the holder of a run folder wrote into its lock."""
    file.seek(0)
    try:
        found = json.loads(file.read())
        return found if {"host", "process", "machine", "born", "since"} <= found.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def holder(file: IO) -> str:
    """Who trains, in words; it may have the lock and not yet have written who it is."""
    for _ in range(20):
        if found := written(file):
            return f"process {found['process']} of {found['host']} since {found['since']}"
        time.sleep(0.05)
    return "another process"
