"""A disk of a given size, for tests of what happens when it is full."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from emcore.files import TEMPORARY
from tests.scripts import run_python


@contextmanager
def disk(size: int) -> Iterator[Path]:
    """A folder that is a disk of `size` bytes (rounded up to pages); skips the test where none can be mounted."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can mount a disk of a given size")
    folder = Path(tempfile.mkdtemp(prefix="emcore-disk-"))
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
                                 capture_output=True, text=True)
        if mounted.returncode:
            pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        folder.rmdir()


def run(words: Sequence[str], place: Path) -> subprocess.CompletedProcess:
    """What became of a command that ran in a folder."""
    return run_python(words, place, timeout=500)


def ended_well(done: subprocess.CompletedProcess, folder: Path) -> bool:
    """Whether a command on a disk that may be full did its work; else it must have said so in one sentence (of any
    rank) and have left nothing half-written."""
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception" not in done.stderr, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == (done.returncode == 2), done.stderr
    for line in errors:
        assert re.search(r"cannot write .*(the disk is full|database or disk is full).*make room", line), line
    assert not [path for path in folder.rglob("*") if TEMPORARY.fullmatch(path.name) or path.suffix == ".tmp"]
    return done.returncode == 0


def used(folder: Path) -> int:
    """Bytes of a disk that are taken."""
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def resize(folder: Path, size: int) -> None:
    """Gives a disk another size, with what is on it."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
