"""Other systems: what Windows and macOS lack is taken away, and the decoder works all the same; Apple's GPUs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from emcore.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
POSIX = {"fcntl", "grp", "posix", "pwd", "pty", "resource", "syslog", "termios", "tty"}

# a process in which the modules and functions that only POSIX systems have are gone, for everybody but Python itself
ELSEWHERE = """
import os, signal, sys, subprocess, tempfile, threading, ctypes
import numpy as np, h5py, numba
for name in MODULES:
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "sched_setaffinity", "sysconf", "sync",
             "posix_fallocate", "pwrite", "mkfifo", "getpgid", "killpg", "nice", "statvfs", "O_NONBLOCK", "O_NOCTTY"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGPIPE", "SIGUSR1", "SIGKILL", "SIGHUP"):
    if hasattr(signal, name):
        delattr(signal, name)
sys.platform = PLATFORM
from pathlib import Path

import emcore
from emcore import create_volume, open_volume, segment, system
from emcore.decode import decode
from emcore.locks import NoLocks, alone, only_training
from emcore.memory import check_memory
from emcore.settings.decode import AffinityDecode
from emcore.threads import allotted_cores, take_share

folder = Path(tempfile.mkdtemp(dir=FOLDER))
assert allotted_cores() >= 1
take_share(0, 2)
check_memory(1 << 20, "a test", "do nothing")
affinities = np.ones((3, 8, 20, 20), np.float32)
affinities[:, :, 9:11] = 0
with create_volume(folder / "a_prediction.h5:main", affinities.shape, "float32", (40, 4, 4), attributes={
        "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}) as out:
    out[...] = affinities
labels = segment.segment(segment.Affinities(affinities, [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]), 0.5)
assert len(np.unique(labels[labels > 0])) == 2, np.unique(labels)
decode(open_volume(folder / "a_prediction.h5"), AffinityDecode(), folder / "a_labels.h5")
assert (open_volume(folder / "a_labels.h5:labels")[...] > 0).any()
with alone(folder / "lock"), only_training(folder / "run"):
    try:
        assert system.lock(os.open(folder / "lock", os.O_RDONLY), wait=False) is False
    except NoLocks:
        assert "fcntl" in MODULES
print("done")
"""


@pytest.mark.parametrize("platform,modules", [("win32", sorted(POSIX - {"posix"})), ("darwin", [])])
def test_the_decoder_works_where_modules_and_functions_are_missing(tmp_path, platform, modules):
    code = (ELSEWHERE.replace("MODULES", repr(modules)).replace("PLATFORM", repr(platform))
            .replace("FOLDER", repr(str(tmp_path))))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr


def test_modules_of_one_system_are_imported_in_one_file_and_not_before_they_are_needed():
    found = set()
    for path in [*(ROOT / "emcore").rglob("*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else {
                node.module} if isinstance(node, ast.ImportFrom) else set()
            if names & POSIX:
                found.add((path.name, node.col_offset > 0))
    assert found == {("system.py", True)}


@pytest.fixture
def apple(monkeypatch):
    """A torch that finds the GPU of an Apple processor."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    return torch


def test_the_gpu_of_an_apple_processor_is_taken_where_torch_has_it(apple, monkeypatch):
    from emcore.engine.ranks import choose_device

    assert (choose_device().type, choose_device("mps").type, choose_device("cpu").type) == ("mps", "mps", "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device().type == "cpu"
    with pytest.raises(InputError, match="serves one process"):
        choose_device("mps")
    monkeypatch.setattr(apple.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="finds none: set device=cpu"):
        choose_device("mps")


def test_it_computes_in_plain_fp32_without_compiling_or_measuring(apple, monkeypatch):
    from emcore.engine.arithmetic import mode, net, prediction, probe
    from emcore.settings.predict import Infer
    from emcore.settings.train import Train

    monkeypatch.setattr(mode, "multiplies_bf16", lambda: True)
    assert mode.fast_precision("auto", "mps") == "fp32"
    assert not prediction.wants_compiling(Infer(), "mps", 10**6)
    assert net.widest(apple.device("mps")) == apple.float32
    modes = probe.candidates(Train(), "mps")
    assert [(one.device, one.precision, one.layout, one.compile) for one in modes] == [
        ("mps", "fp32", "contiguous", False)]
    assert probe._settled(modes, Train())
    found = {"mode": modes[0], "seconds": 0.0, "compiled": None}
    assert not probe._wants_compiling(found, Train(), 10**6)
    assert not probe._decide(found, Train(), 10**6).compile
