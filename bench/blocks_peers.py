"""Other systems' decoding in blocks beside emcore's: the part --peers of python -m bench.blocks.

Each gets the same affinities in the 8 bits that it reads, takes blocks of the same size by as many workers, and is
compared with its own result of a single block: how much of what it gives stems from where the blocks lie.
"""

import json
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.affinities import make_affinities
from bench.compare import Row, print_row
from bench.watch import Watched, watch
from emcore import metrics
from emcore.metrics.partitions import Voi
from emcore.volumes import open_volume

SCRIPT = Path(__file__).with_name("blocks_volara.py")
CONTEXT = 2  # voxels that blocks of volara see around them, as in its tutorial; 16 take longer and change little
PYTC = ("PyTC's large_decode is not run: it is a part of PyTC's fork of waterz, which is on no package index "
        "(the waterz there is another one, without large_decode)")


def version_of(python: str) -> str | None:
    """The version of volara in an environment, or None where it is not installed."""
    try:
        done = subprocess.run([python, "-c", "import volara, importlib.metadata as m; print(m.version('volara'))"],
                              capture_output=True, text=True)
    except OSError:  # there is no such interpreter
        return None
    return done.stdout.split()[-1] if done.returncode == 0 else None


def volara(python: str, what: str, folder: Path, *arguments: str) -> None:
    """Runs one part of the script of volara; what it says goes to a file."""
    log = folder / "log.txt"
    with open(log, "w") as out:
        done = subprocess.run([python, str(SCRIPT), what, str(folder), *arguments], stdout=out, stderr=out)
    if done.returncode:
        raise SystemExit(f"volara failed to {what}:\n" + "\n".join(log.read_text().splitlines()[-20:]))


class Volara:
    """Its files, in a folder of their own."""

    def __init__(self, python: str, folder: Path, labels: np.ndarray, workers: int):
        self.python, self.folder, self.workers = python, folder, workers
        folder.mkdir(exist_ok=True)
        np.save(folder / "affinities.npy", np.rint(make_affinities(labels) * 255).astype(np.uint8))
        volara(python, "store", folder)

    def decode(self, block: tuple[int, ...]) -> tuple[np.ndarray, Watched, dict[str, float]]:
        """Segments, what they took, and the seconds of the tasks."""
        sizes = (",".join(map(str, size)) for size in (block, (CONTEXT,) * 3))
        run = watch(volara, self.python, "decode", self.folder, *sizes, str(self.workers))
        volara(self.python, "export", self.folder)
        stages = json.loads((self.folder / "seconds.json").read_text())
        return np.load(self.folder / "segments.npy"), run._replace(seconds=sum(stages.values())), stages


def distance(one, other, ignored: tuple[int, ...] = ()) -> Voi:
    return metrics.voi(metrics.contingency(one, other, ignored))


def told(voi: Voi) -> str:
    """Split and merge."""
    return "0" if voi == (0, 0) else f"{voi.split:.3f} + {voi.merge:.3f}"


def compare_peers(decode: Callable, whole: Path, labels: np.ndarray, block: tuple[int, ...], repeats: int,
                  workers: int, python: str, folder: Path) -> None:
    """Prints a row for every peer that is there; decode() is emcore's decoding in blocks, whole its labels at once."""
    version = version_of(python)
    peer = Volara(python, folder / "volara", labels, workers) if version else None
    runs: dict[str, list[Watched]] = {"emcore": [], "volara": []}
    for _ in range(repeats):
        ours, run = decode()
        runs["emcore"].append(run)
        if peer:
            theirs, run, stages = peer.decode(block)
            runs["volara"].append(run)
    apart = distance(open_volume(whole, "labels"), open_volume(ours, "labels"))
    seconds = {name: statistics.median(run.seconds for run in done) for name, done in runs.items() if done}
    mib = {name: max(run.largest for run in done) / 2**20 for name, done in runs.items() if done}
    work = f"{'x'.join(map(str, labels.shape))}, blocks of {'x'.join(map(str, block))}"
    if peer:
        single, run, _ = peer.decode(labels.shape)
        print_row(Row(work, f"volara {version}", seconds["emcore"], seconds["volara"],
                      seconds["volara"] / seconds["emcore"], mib["emcore"], mib["volara"], "",
                      f"VOI to its own whole: ours {told(apart)}, peer {told(distance(single, theirs))}"))
    else:
        print_row(Row(work, "-", seconds["emcore"], None, None, mib["emcore"], None, "",
                      f"VOI to its own whole: ours {told(apart)}"))
        print(f"volara is not installed in {python}: ours alone (pip install volara into an environment of its own, "
              "and name its interpreter by --peer-python)")
    for name, done in runs.items():
        if done:
            wall = sorted(run.seconds for run in done)
            print(f"    {name}: {wall[0]:.2f} to {wall[-1]:.2f} s, {statistics.median(run.cpu for run in done):.2f} s "
                  f"of cores, together {max(run.together for run in done) / 2**20:.0f} MiB")
    if peer:
        print(f"    volara's tasks: {', '.join(f'{name} {took:.2f}' for name, took in stages.items())}; in one block "
              f"{run.seconds:.2f} s, largest process {run.largest / 2**20:.0f} MiB")
        print(f"    VOI of the wholes to the labels that the affinities were made of: emcore "
              f"{told(distance(labels, open_volume(whole, 'labels'), (0,)))}, volara "
              f"{told(distance(labels, single, (0,)))}")
    print(PYTC)
    if apart != (0, 0):
        raise SystemExit("blocks and the whole give different labels")
