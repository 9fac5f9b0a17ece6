"""A decoding at once as a work: one task, carried out by one of the processes that want its labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emcore.blocks import share
from emcore.blocks.work import Stage, Work
from emcore.files import remove

FOLDER = ".decoding"  # what the name of the folder ends in that is there meanwhile


@dataclass(frozen=True)
class WholeWork(Work):
    """One task, which is done when the labels are those that are wanted."""

    make: Callable[[], None]
    is_made: Callable[[], bool]

    needs_less = "blocks.size decodes the volume in blocks, which need less"

    def stages(self) -> list[Stage]:
        return [Stage("decoding", 1, "whole")]

    def run(self, stage: Stage, number: int) -> None:
        self.make()

    def is_done(self, stage: Stage, number: int) -> bool:
        return self.is_made()


def make_once(labels: Path, make: Callable[[], None], is_made: Callable[[], bool]) -> None:
    """Returns when the labels are made, by whichever of the ranks or jobs came first."""
    work = WholeWork(labels.with_suffix(FOLDER), make, is_made)
    share.run(work, *share.place())
    remove(work.folder)
