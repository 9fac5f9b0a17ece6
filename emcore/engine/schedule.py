"""Learning rates as functions of the step, so that a resumed run cannot restart them."""

import math

from emcore.settings.train import (
    ConstantSchedule,
    CosineSchedule,
    PlateauSchedule,
    StableDecaySchedule,
    WarmedUp,
    WarmupCosineSchedule,
)


def learning_rate(schedule: ConstantSchedule | CosineSchedule | WarmupCosineSchedule | StableDecaySchedule, lr: float,
                  step: int, steps: int) -> float:
    """The learning rate of a step, for every kind but plateau (which depends on the losses, see Plateau)."""
    if isinstance(schedule, ConstantSchedule):
        return lr
    i, last = step // schedule.every, max(1, steps // schedule.every)
    if isinstance(schedule, WarmedUp):
        warmup = schedule.warmup // schedule.every
        lr *= 1.0 if i >= warmup else schedule.warmup_factor * (1 - i / warmup) + i / warmup
    if isinstance(schedule, StableDecaySchedule):
        left = min(1.0, max(0.0, (last - i) / max(1.0, schedule.decay * last)))
        return schedule.least + (lr - schedule.least) * left
    return schedule.least + (lr - schedule.least) * 0.5 * (1 + math.cos(math.pi * min(1.0, i / last)))


class Plateau:
    """Lowers the learning rate when the mean loss of a window has not improved for `patience` windows."""

    def __init__(self, schedule: PlateauSchedule, lr: float):
        self.schedule, self.lr = schedule, lr
        self.best, self.waited, self.total, self.count = math.inf, 0, 0.0, 0

    def update(self, loss: float) -> float:
        """The learning rate after one more step's loss."""
        self.total, self.count = self.total + loss, self.count + 1
        if self.count >= self.schedule.window:
            mean, self.total, self.count = self.total / self.count, 0.0, 0
            if mean < self.best * (1 - 1e-4):
                self.best, self.waited = mean, 0
            else:
                self.waited += 1
            if self.waited > self.schedule.patience:
                self.lr, self.waited = max(self.schedule.least, self.lr * self.schedule.factor), 0
        return self.lr

    def state(self) -> dict[str, float]:
        return {"lr": self.lr, "best": self.best, "waited": self.waited, "total": self.total, "count": self.count}

    def load(self, state: dict[str, float]) -> None:
        self.lr, self.best, self.waited = state["lr"], state["best"], int(state["waited"])
        self.total, self.count = state["total"], int(state["count"])
