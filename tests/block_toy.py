"""A small work for tests of engines: numbers at the leaves of a tree are summed in pairs up to one, then handed down.

What a task does beside that is asked for by files in the folder `asked`: `STAGE-NUMBER` holds the name of a function
below, which is called before the task is carried out.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emcore.blocks import engines, share, store
from emcore.blocks.alive import Signs
from emcore.blocks.work import Stage, Work
from emcore.errors import InputError, run_command
from emcore.settings.blocks import Blocks

ROOT = Path(__file__).resolve().parent.parent
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
        (self.folder / "asked").mkdir(parents=True, exist_ok=True)
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
    say_process(path)
    path.unlink()
    time.sleep(30)


def wait_a_little(path: Path) -> None:
    say_process(path)
    path.unlink()
    time.sleep(1)


def die(path: Path) -> None:
    print("about to die", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(path: Path) -> None:
    path.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def end_job(path: Path) -> None:
    os.killpg(0, signal.SIGKILL)


def end_job_once(path: Path) -> None:
    path.unlink()
    end_job(path)


def fail(path: Path) -> None:
    raise RuntimeError("this block is cursed")


def fail_once(path: Path) -> None:
    path.unlink()
    raise RuntimeError("this block is cursed")


def refuse(path: Path) -> None:
    raise InputError("the prediction cannot be read")


def fill_disk(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def damage(path: Path) -> None:
    """Cuts off one file that the task needs, and changes a byte of the other."""
    path.unlink()
    one, other = (path.parent.parent / "sums" / "1" / f"00000{number}.columns" for number in (2, 3))
    one.write_bytes(one.read_bytes()[:-1])
    change_byte(other)


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


# ---- a command that carries it out: python -c "from tests.block_toy import drive; drive()" FOLDER '{"engine": ...}'


def drive() -> None:
    # a suite that runs in the background has interrupts ignored, and so would this process
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run_command(main, sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    given = json.loads(arguments[1])
    work = Sums(Path(arguments[0]), seconds=given.pop("seconds", 0.0))
    if "silence" in given:
        share.run(work, *share.place(), Signs(work.folder, 0.1, given["silence"]))
    else:
        engines.run(work, Blocks(**given))
    return 0


def started(work: Sums, more: Mapping[str, str] | None = None, **given: Any) -> subprocess.Popen:
    """The command in a process of its own; more: variables of its environment."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "WORLD", "RANK"))}
    known = {**outside, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(more or {})}
    code = "from tests.block_toy import drive; drive()"
    return subprocess.Popen([sys.executable, "-c", code, str(work.folder), json.dumps(given)], env=known,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
