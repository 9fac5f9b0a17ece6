"""A disk of a given size, for tests of what happens when it is full."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


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


def resize(folder: Path, size: int) -> None:
    """Gives a disk another size, with what is on it."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
