"""Which checkpoints of a run are its best, by the value that the run monitors."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emcore.engine import checkpoint
from emcore.errors import InputError
from emcore.settings.train import Save

HIGHER_IS_BETTER = {"jaccard/val"}


class Best:
    """The best checkpoints so far by the monitored value, best first; travels in the checkpoint itself.

    The training loss of a step is noise, so the mean of the last steps (train.save.window) is ranked. It follows from
    the step alone, not from when others were saved, so that a resumed run ranks as one that was never stopped.
    """

    def __init__(self, save: Save):
        self.save, self.steps = save, {}
        self.losses: deque[float] = deque(maxlen=max(1, save.window))
        self.validates = save.monitor != "loss/train" and save.best > 0  # only a validated step can be ranked

    def learned(self, loss: float) -> None:
        """Takes the training loss of one more step."""
        self.losses.append(loss)

    def consider(self, step: int, values: Mapping[str, float]) -> None:
        """Ranks the checkpoint of a step; values: of its validation, if there was one."""
        value = sum(self.losses) / len(self.losses) if self.save.monitor == "loss/train" else (
            values.get(self.save.monitor))
        if value is None or value != value:
            return
        self.steps = dict(ranking({**self.steps, step: float(value)}, self.save.monitor)[:max(0, self.save.best)])

    def state(self) -> dict[str, Any]:
        return {"best": {str(step): value for step, value in self.steps.items()},
                "losses": torch.tensor(list(self.losses), dtype=torch.float64)}

    def load(self, content: Mapping[str, Any]) -> None:
        """From a checkpoint; those of older versions hold no losses."""
        before = monitor_of(content)
        if before == self.save.monitor:
            self.steps = {int(step): value for step, value in content["best"].items()}
        elif content["best"]:
            checkpoint.tell(f"the best checkpoints so far, of steps {', '.join(content['best'])}, were ranked by "
                            f"{before}; now {self.save.monitor} ranks, so they are kept no longer")
        self.losses.extend(content["losses"].tolist() if "losses" in content else ())

    @property
    def keep(self) -> set[int]:
        return set(self.steps) | set(self.save.at)


def ranking(values: Mapping[int, float], monitor: str) -> list[tuple[int, float]]:
    """Steps and values, the best first; of equal ones the earliest."""
    sign = -1 if monitor in HIGHER_IS_BETTER else 1
    return sorted(values.items(), key=lambda item: (sign * item[1], item[0]))


def monitor_of(content: Mapping[str, Any]) -> str:
    """The value by which the run of a checkpoint ranks."""
    return content["config"]["train"]["save"]["monitor"]


def best_checkpoints(folder: Path) -> list[tuple[int, float, Path]]:
    """(step, value, path) of the best checkpoints of a run that are still there, best first; folder: outputs/<name>."""
    found = checkpoint.read_newest(folder / "checkpoints")
    if found is None:
        return []
    newest, content = found
    with checkpoint.refused(newest, "tells nothing of the best checkpoints"):
        ranked = ranking({int(step): float(value) for step, value in content["best"].items()}, monitor_of(content))
    paths = dict(checkpoint.all_steps(folder / "checkpoints"))
    return [(step, value, paths[step]) for step, value in ranked if step in paths]


def best_checkpoint(folder: Path) -> Path:
    """The best checkpoint of a run; folder: outputs/<name>."""
    found = best_checkpoints(folder)
    if not found:
        raise InputError(f"{folder} has no best checkpoint: none was ranked by train.save.monitor, or train.save.best "
                         "is 0; take the newest one, or name a file by --checkpoint")
    return found[0][2]
