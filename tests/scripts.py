"""Commands started as a user starts them, but from a process that has imported torch already.

A command gets a process of its own all the same, forked from a server that has done nothing but import: each start
saves two to four seconds. What a command is given and what it says are those of `python train.py ...` or
`python -m emcore ...`.
"""

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
# torch imports torch._dynamo, a third of its own time, with the first optimizer of a process
LOADED = ["numba", "h5py", "torch", "torch._dynamo", "emcore.prediction.validation", "emcore.report.page",
          "emcore.engine.resume", "emcore.data.loops", "emcore.engine.steps", "emcore.engine.optimizer",
          "emcore.losses", "emcore.models.rsunet", "emcore.report.preview", "emcore.report.scores",
          "emcore.systems.checkpoints"]
STREAMS = ("out", "error")


def environment() -> dict[str, str]:
    found = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {name: value for name, value in found.items() if not name.startswith(("RANK", "WORLD", "LOCAL_", "MASTER"))}


@cache
def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with patch.dict(os.environ, environment()):  # torch reads the number of threads when it is imported
        forkserver.ensure_running()
    return context


def run_python(words: Sequence[object], place: Path, timeout: float = 280) -> subprocess.CompletedProcess:
    """What `python WORDS` says and returns in the folder `place`; the words begin with a script or with -m."""
    return begin(words, place).ended(timeout)


def run_script(name: str, *arguments: str, place: Path, timeout: float = 280) -> subprocess.CompletedProcess:
    """What `python NAME ARGUMENTS` says and returns in the folder `place`."""
    return run_python([str(ROOT / name), *arguments], place, timeout)


def run_ranks(words: Sequence[object], place: Path, ranks: int, timeout: float = 280) -> subprocess.CompletedProcess:
    """The ranks of one run, each told its place as torchrun tells it; what they said, and the largest exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    begun = [begin(words, place, {**known, "RANK": rank, "LOCAL_RANK": rank}) for rank in range(ranks)]
    done = [rank.ended(timeout) for rank in begun]
    return subprocess.CompletedProcess(words, max(abs(one.returncode) for one in done),
                                       "".join(one.stdout for one in done), "".join(one.stderr for one in done))


@dataclass
class Begun:
    """A command that runs in a process of its own."""

    command: list[str]
    process: multiprocessing.process.BaseProcess
    folder: tempfile.TemporaryDirectory  # It holds what the command says.

    def ended(self, timeout: float) -> subprocess.CompletedProcess:
        """What it said and returned, once it has ended; a command that takes longer is killed."""
        self.process.join(timeout)
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        with self.folder as folder:
            out, error = (Path(folder, stream).read_text() for stream in STREAMS)
        if late:
            raise subprocess.TimeoutExpired(self.command, timeout, out, error)
        return subprocess.CompletedProcess(self.command, self.process.exitcode, out, error)


def begin(words: Sequence[object], place: Path, more: Mapping[str, object] | None = None) -> Begun:
    """Starts `python WORDS` in the folder `place`; more: variables of its environment beside the usual ones."""
    command, folder = [str(word) for word in words], tempfile.TemporaryDirectory()
    variables = environment() | {name: str(value) for name, value in (more or {}).items()}
    said = [os.path.join(folder.name, stream) for stream in STREAMS]
    for path in said:
        Path(path).touch()
    process = server().Process(target=run, args=(command, str(place), variables, said))
    process.start()
    return Begun(command, process, folder)


def run(command: list[str], place: str, variables: dict[str, str], said: list[str]) -> None:
    """In the new process: the command, with its arguments, folder and streams in place."""
    os.chdir(place)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them, but a command that a user starts runs them
