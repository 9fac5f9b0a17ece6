"""What an engine carries out: stages of numbered tasks. Nothing else is shared but files.

A task reads named files and writes one file, whole or not at all, and is done when that file is valid. It may run
twice, at the same time or after a kill, and writes the same bytes. Tasks of one stage do not depend on each other; a
stage begins when the one before it is done.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from emcore.blocks import store
from emcore.errors import InputError

MOST_REPAIRS = 3  # so often is one file repaired for one task


class Stage(NamedTuple):
    """Tasks 0 to count - 1 of one kind."""

    name: str  # the name that users read: fragments, merges 2, labels
    count: int
    folder: str  # holds its files; a digest in the name tells the settings that change them


@dataclass(frozen=True)
class Work(ABC):
    """The stages of one result; it may be pickled, and is small."""

    folder: Path  # where the files of all stages stand
    needs_less = "fewer blocks.workers or a smaller blocks.size need less"

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """All stages in their order; computed from the plan alone."""

    @abstractmethod
    def run(self, stage: Stage, number: int) -> None:
        """Carries out a task; a file that it needs and that is not valid raises store.Damaged."""

    def path(self, stage: Stage, number: int) -> Path:
        """The file that a task writes."""
        return self.folder / stage.folder / f"{number:06d}.columns"

    def is_done(self, stage: Stage, number: int) -> bool:
        """Whether the file of a task is there and valid; every byte is looked at."""
        return store.is_whole(self.path(stage, number))

    def maker(self, path: Path) -> tuple[Stage, int]:
        """The task that writes a file."""
        number = int(path.name.partition(".")[0])
        return next((stage, number) for stage in self.stages()
                    if self.path(stage, number) == path and number < stage.count)

    def where(self, stage: Stage, number: int) -> str:
        """Which voxels a task is about, in words, for a message about its failure."""
        return f"task {number} of {stage.count}"


def digest_of(*facts: Any) -> str:
    """Twelve digits that tell settings from others."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def run_inline(work: Work) -> None:
    """Every task that is not done, one after the other, in this process."""
    for stage in work.stages():
        for number in range(stage.count):
            if not work.is_done(stage, number):
                run_task(work, stage, number)


def run_task(work: Work, stage: Stage, number: int) -> list[str]:
    """Carries out a task, and before it those whose files are not valid any more; says what was made again."""
    made_again: list[str] = []
    times: Counter[Path] = Counter()
    while True:
        try:
            work.run(stage, number)
            return made_again
        except store.Damaged as damage:
            if times[damage.path] == MOST_REPAIRS:
                raise InputError(f"{damage}, though it was made {MOST_REPAIRS} times: the disk loses what is written, "
                                 "or another program changes it") from None
            times[damage.path] += 1
            earlier = work.maker(damage.path)
            made_again.append(f"{damage}; it is made again")
            made_again += run_task(work, *earlier)
