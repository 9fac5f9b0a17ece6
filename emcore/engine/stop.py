"""How a run ends before its last step: somebody asks for it, or the loss is not finite."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcore.engine import checkpoint
from emcore.errors import InputError


def dump_bad_batch(folder: Path, step: int, read: Mapping[str, Tensor], batch: Mapping[str, Tensor],
                   sources: Sequence[Any], rank: int, sums: Tensor) -> None:
    """Writes the batch of a loss that is not finite and ends the run, naming the samples."""
    bad = not torch.isfinite(sums).all()
    if not bad:
        raise InputError(f"the loss of step {step} is not finite on another rank; its message names the samples")
    path = folder / f"bad_batch_step_{step:09d}_rank_{rank}.pt"
    checkpoint.save(path, {"read": dict(read), "augmented": {name: value.cpu() for name, value in batch.items()}})
    places = ", ".join(f"{sources[volume].name} at {corner}" for volume, corner in
                       zip(read["volume"].tolist(), read["corner"].tolist()))
    raise InputError(f"the loss of step {step} is {sums[0].item()}; its samples were {places} (z, y, x of the corner); "
                     f"the batch is in {path}. No checkpoint after step {step - 1} was written")


class StopRequest:
    """Whether the run was asked to end: SIGTERM, SIGUSR1 or the file STOP in its folder."""

    def __init__(self, folder: Path):
        self.file, self.signalled = folder / "STOP", False
        for name in ("SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._signal)

    def _signal(self, number: int, frame: Any) -> None:
        self.signalled = True

    def asked(self) -> bool:
        return self.signalled or self.file.exists()

    def clear(self) -> None:
        """Takes the file away, so that the same command continues."""
        self.file.unlink(missing_ok=True)
