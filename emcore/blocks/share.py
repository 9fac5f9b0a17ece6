"""Processes that share nothing but the files: the ranks of torchrun, or the jobs of an array of SLURM.

Each one carries out its own share of a stage, and then what is left of the others' shares, unless a process that gives
signs of life is at it. There is no lock and no server, and nobody is waited for who is dead: any one of them finishes
alone. A task that two of them carry out gives the same bytes twice.
"""

import io
import os
import random
import time

from emcore.blocks.alive import Signs
from emcore.blocks.attempts import attempt, is_good
from emcore.blocks.work import Stage, Work
from emcore.errors import InputError
from emcore.progress import Progress

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds between two looks at what is there
SPREAD = 0.5  # seconds within which processes that have nothing to do take tasks of others, so that not all take one


def place() -> tuple[int, int]:
    """Which process this one is, and of how many: of torchrun, else of an array of jobs, else the only one."""
    known = os.environ
    try:
        if "WORLD_SIZE" in known:
            return int(known.get("RANK", "0")), int(known["WORLD_SIZE"])
        first, step, count = (int(known.get(f"SLURM_ARRAY_TASK_{name}", usual))
                              for name, usual in (("MIN", "0"), ("STEP", "1"), ("COUNT", "1")))
        return (int(known.get("SLURM_ARRAY_TASK_ID", "0")) - first) // step % count, count
    except (ValueError, ZeroDivisionError):
        raise InputError("which process this is of how many is told by RANK and WORLD_SIZE under torchrun, and by "
                         "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT in an array of jobs; these are no "
                         "numbers here") from None


def is_quiet() -> bool:
    """Whether another rank on this terminal says how far the work is."""
    return "LOCAL_RANK" in os.environ and place()[0] > 0


def run(work: Work, rank: int, world: int, signs: Signs | None = None) -> None:
    """Returns when every task of every stage is done, by whomever."""
    with signs or Signs(work.folder) as signs:
        for stage in work.stages():
            with Progress(stage.count, stage.name, "blocks", io.StringIO() if is_quiet() else None) as progress:
                share = Share(work, stage, signs, progress)
                for number in range(rank, stage.count, world):
                    share.look(LONGEST_PAUSE)
                    if number not in share.taken:
                        share.carry_out(number)
                share.finish()


class Share:
    """A stage as one of its processes sees it."""

    def __init__(self, work: Work, stage: Stage, signs: Signs, progress: Progress):
        self.work, self.stage, self.signs, self.progress = work, stage, signs, progress
        self.left = {number: work.path(stage, number) for number in range(stage.count)}  # tasks that have no file
        self.taken: set[int] = set()  # tasks that others are at
        self.tries: dict[int, int] = {}
        known = os.environ
        self.cores = (int(known["LOCAL_RANK"]), int(known["LOCAL_WORLD_SIZE"])) if "LOCAL_WORLD_SIZE" in known else None
        self.looked = -LONGEST_PAUSE
        progress.add(self.look(), found=True)

    def look(self, pause: float = 0.0) -> int:
        """Sees what is done and what others are at, unless it did a moment ago; how many tasks are done anew.

        Names are listed, and no file is opened: whether one is valid is found out by those who read it.
        """
        if time.monotonic() - self.looked < pause:
            return 0
        before = len(self.left)
        listed = {folder: names_in(folder) for folder in {path.parent for path in self.left.values()}}
        self.left = {number: path for number, path in self.left.items() if path.name not in listed[path.parent]}
        self.taken = self.signs.others(self.stage.name)
        self.looked = time.monotonic()
        return before - len(self.left)

    def carry_out(self, number: int) -> None:
        """Carries out a task, which is asked first whether its file is valid."""
        self.signs.say(self.stage.name, number)
        while not is_good(self.work, self.stage, attempt(self.work, self.stage, number, self.cores), self.tries,
                          self.progress):
            pass
        if self.left.pop(number, None):
            self.progress.add()

    def finish(self) -> None:
        """Returns when no task is left: takes what nobody is at, and waits for the rest."""
        pause = SHORTEST_PAUSE
        self.signs.say(self.stage.name, None)
        while self.left:
            done = self.look()
            self.progress.add(done)
            free = sorted(self.left.keys() - self.taken)
            if free:
                time.sleep(random.uniform(0, SPREAD))
                self.progress.add(self.look())
                if free := sorted(self.left.keys() - self.taken):
                    self.carry_out(random.choice(free))
                    self.signs.say(self.stage.name, None)
                continue
            pause = SHORTEST_PAUSE if done else min(LONGEST_PAUSE, 1.5 * pause)
            time.sleep(pause)


def names_in(folder: os.PathLike) -> set[str]:
    """The names in a folder that may not be there yet."""
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()
