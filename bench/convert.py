"""HDF5 to precomputed and back: seconds and peak memory of each command, and whether every voxel came back.

    python -m bench.convert --gigabytes 3 --folder /scratch
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emcore.volumes import create_volume, open_volume
from emcore.volumes.convert import blocks

# The peak of a process begins with that of the one which forked it; this one is small, we may not be.
WATCH = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


class Step(NamedTuple):
    """One command: from, to, how long, and the most memory it held."""

    source: str
    target: str
    seconds: float
    peak_bytes: int


def check_round_trip(folder: Path, gigabytes: float, dtype: str = "uint8") -> list[Step]:
    """The two conversions of a random volume; raises where a voxel, the resolution or the offset differs."""
    sections = max(1, round(gigabytes * 1e9 / 2048**2 / np.dtype(dtype).itemsize))
    first, middle, last = folder / "a.h5", folder / "b.precomputed", folder / "c.h5"
    random = np.random.default_rng(0)
    with create_volume(first, (sections, 2048, 2048), dtype, (30, 6, 6), (60, 0, 12), compression=None) as writer:
        for z in range(sections):
            writer[z] = random.integers(0, 200, (2048, 2048), dtype=dtype)
    steps = [measured(first, middle), measured(middle, last)]
    one, other = open_volume(first), open_volume(last)
    for fact in ("shape", "dtype", "resolution", "offset"):
        assert getattr(one, fact) == getattr(other, fact), fact
    for box in blocks(one.shape, one.chunks, other.chunks, 1 << 25):
        assert np.array_equal(one[box], other[box]), box
    return steps


def measured(source: Path, target: Path) -> Step:
    """Runs the command in a process of its own, whose peak memory the system counts."""
    start = time.perf_counter()
    command = [sys.executable, "-c", WATCH, sys.executable, "-m", "emcore", "convert", source, target]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return Step(source.name, target.name, time.perf_counter() - start, int(done.stdout) * unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--dtype", default="uint8")
    parser.add_argument("--folder", help="where three times that much space is free")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        for step in check_round_trip(Path(folder), settings.gigabytes, settings.dtype):
            print(f"{step.source} -> {step.target}: {step.seconds:.1f} s, peak memory {step.peak_bytes / 1e6:.0f} MB")
        print(f"{settings.gigabytes} GB of {settings.dtype}: bit-equal")


if __name__ == "__main__":
    main()
