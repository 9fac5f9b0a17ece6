"""A small work for tests of engines: numbers at the leaves of a tree are summed in pairs up to one, then handed down.

What a task does beside that is asked for by files in the folder `asked`: `STAGE-NUMBER` holds the name of a function
below, which is called before the task is carried out.
"""

import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emcore.blocks import store
from emcore.blocks.work import Stage, Work
from emcore.errors import InputError

LEAVES = 16


@dataclass(frozen=True)
class Sums(Work):
    leaves: int = LEAVES
    seconds: float = 0.0  # that each task takes

    def stages(self):
        counts = [self.leaves]
        while counts[-1] > 1:
            counts.append(-(-counts[-1] // 2))
        up = [Stage(f"sums {level}", count, f"sums/{level}") for level, count in enumerate(counts)]
        return [*up, Stage("shares", self.leaves, "shares")]

    def run(self, stage, number):
        self.misbehave(stage, number)
        time.sleep(self.seconds)
        stages = self.stages()
        if stage.name == "sums 0":
            values = np.random.default_rng(number).integers(0, 1000, 500)
        elif stage.name == "shares":
            total, = store.read(self.path(stages[-2], 0), "values")
            own, = store.read(self.path(stages[0], number), "values")
            values = own / total.sum()
        else:
            below = stages[stages.index(stage) - 1]
            parts = [store.read(self.path(below, child), "values")[0] for child in (2 * number, 2 * number + 1)
                     if child < below.count]
            values = np.sum(parts, axis=0)
        store.write(self.path(stage, number), {"values": values})

    def where(self, stage, number):
        return f"leaf {number}" if stage.count == self.leaves else super().where(stage, number)

    def misbehave(self, stage, number):
        path = self.folder / "asked" / f"{stage.name}-{number}"
        if path.exists():
            globals()[path.read_text()](path)

    # ---- for tests

    def ask(self, stage: str, number: int, what: str) -> None:
        (self.folder / "asked").mkdir(exist_ok=True)
        (self.folder / "asked" / f"{stage}-{number}").write_text(what)

    def files(self) -> dict[str, bytes]:
        """Every file of the stages; also what a writer has left."""
        return {str(path.relative_to(self.folder)): path.read_bytes() for name in ("sums", "shares")
                for path in sorted((self.folder / name).rglob("*")) if path.is_file()}

    def told(self) -> list[int]:
        """The processes that wrote down that they were here."""
        return [int(path.name) for path in (self.folder / "processes").glob("*")]


def say_process(path: Path) -> None:
    folder = path.parent.parent / "processes"
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()


def wait_once(path: Path) -> None:
    """Says which process it is, and takes long enough to be killed; the next try is quick."""
    path.unlink()
    say_process(path)
    time.sleep(30)


def die(path: Path) -> None:
    print("about to die", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: Path) -> None:
    path.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def fail(path: Path) -> None:
    raise RuntimeError("this block is cursed")


def fail_once(path: Path) -> None:
    path.unlink()
    raise RuntimeError("this block is cursed")


def refuse(path: Path) -> None:
    raise InputError("the prediction cannot be read")


def fill_disk(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
