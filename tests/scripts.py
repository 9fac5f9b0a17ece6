"""The three scripts started as a user starts them, but from a process that has imported torch already.

A script gets a process of its own all the same, forked from a server that has done nothing but import: each start saves
two seconds. What a script is given and what it says are those of `python train.py ...`.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
LOADED = ["numba", "h5py", "torch", "emcore.prediction.validation", "emcore.report.page", "emcore.engine.resume"]


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


def run_script(name: str, *arguments: str, place: Path, timeout: float = 280) -> subprocess.CompletedProcess:
    """What `python NAME ARGUMENTS` says and returns in the folder `place`."""
    command = [str(ROOT / name), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        said = [os.path.join(folder, stream) for stream in ("out", "error")]
        process = server().Process(target=run, args=(command, str(place), environment(), said))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        out, error = (Path(path).read_text() for path in said)
    return subprocess.CompletedProcess(command, process.exitcode, out, error)


def run(command: list[str], place: str, variables: dict[str, str], said: list[str]) -> None:
    """In the new process: the script, with its arguments, folder and streams in place."""
    os.chdir(place)
    os.environ.clear()
    os.environ.update(variables)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
