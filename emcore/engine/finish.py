"""How a run is continued and ended: same config or not, what a checkpoint holds, which are kept, who asks to stop."""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcore import config
from emcore.engine import checkpoint
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.train import Save

# settings that may change between the pieces of a run: how long, how fast, what is written
FREE = ("train.steps", "train.save", "train.validate", "train.log_steps", "train.preview_steps", "train.precision",
        "train.compile", "train.layout", "data.workers", "data.prefetch", "data.storage", "data.folder", "data.test",
        "device", "outputs", "infer", "decode", "evaluate", "tune")


def check_same_run(folder: Path, settings: Settings) -> None:
    """Refuses to continue a run with a config that would have made it another run."""
    path = folder / "config.toml"
    if not checkpoint.all_steps(folder / "checkpoints"):
        return
    table = _whole_table(path)
    if table is None:
        newest = checkpoint.newest(folder / "checkpoints")
        if newest is None:
            return
        print(f"note: {path} is missing or damaged; the config in {newest.name} holds instead", file=sys.stderr)
        table = checkpoint.read(newest).get("config", {})
    try:
        stored = config.from_table(Settings, table)  # settings newer than the run have their defaults
    except InputError as error:
        raise InputError(f"{path}, the config of the run so far, does not fit this version: {error}") from None
    before, now = (_flat(config.to_table(one)) for one in (stored, settings))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
               and not any(key == free or key.startswith(f"{free}.") for free in FREE)]
    if changed:
        told = "; ".join(f"{key} was {before.get(key, 'not set')!r}, is {now.get(key, 'not set')!r}"
                         for key in changed[:5])
        raise InputError(f"{folder} holds a run of another config: {told}. Use another name, or remove that folder")


def _whole_table(path: Path) -> dict[str, Any] | None:
    """The table of a config.toml as train.py writes it; None where it is missing or cut off, as by a full disk once."""
    try:
        return config.read_toml(path) if path.read_bytes().endswith(b"\n") else None
    except (OSError, InputError):
        return None


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in table.items():
        key = f"{where}.{name}" if where else name
        flat.update(_flat(value, key) if isinstance(value, Mapping) else {key: value})
    return flat


class Best:
    """The best checkpoints so far by the monitored value, lowest first; travels in the checkpoint itself."""

    def __init__(self, save: Save):
        self.save, self.steps = save, {}

    def consider(self, step: int, values: Mapping[str, float]) -> None:
        value = values.get(self.save.monitor)
        if value is None or value != value:
            return
        self.steps[step] = float(value)
        ranked = sorted(self.steps, key=lambda s: (self.steps[s], s))
        self.steps = {s: self.steps[s] for s in ranked[:max(0, self.save.best)]}

    @property
    def keep(self) -> set[int]:
        return set(self.steps) | set(self.save.at)


def keep(folder: Path, step: int, settings: Settings, parts: Mapping[str, Any], window: Mapping[str, float]) -> None:
    """Writes the checkpoint of a step and deletes those no longer wanted.

    parts: task, optimizer, average, plateau, scaler, best as in train.py, None where there is none.
    """
    task, average, plateau = parts["task"], parts["average"], parts["plateau"]
    content = {
        "step": step,
        "model": task.net.state_dict(),
        "ema": average.state() if average else None,
        "optimizer": parts["optimizer"].state_dict(),
        "scaler": parts["scaler"].state_dict(),
        "schedule": plateau.state() if plateau else None,
        "balance": task.plan.state_dict() if hasattr(task, "plan") else None,
        "policy": task.policy.state_dict() if getattr(task, "policy", None) is not None else None,
        "best": {str(at): value for at, value in parts["best"].steps.items()},
        "window": dict(window),
        "rng": {"seed": settings.seed},  # with the step, all random numbers follow from it
        "config": config.to_table(settings),
    }
    checkpoint.save(folder / "checkpoints" / f"step_{step:09d}.pt", content)
    checkpoint.prune(folder / "checkpoints", settings.train.save.last, parts["best"].keep)


def restore(path: Path, parts: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """Puts a checkpoint back into the parts of a run; the next step and the sums of the current log window."""
    content, task = checkpoint.read(path), parts["task"]
    try:
        checkpoint.load_weights(task.net, content["model"], str(path))
        parts["optimizer"].load_state_dict(content["optimizer"])
        parts["scaler"].load_state_dict(content["scaler"])
        for name, part in (("ema", parts["average"]), ("schedule", parts["plateau"])):
            if part is not None and content[name] is not None:
                part.load(content[name])
        for name, module in (("balance", getattr(task, "plan", None)), ("policy", getattr(task, "policy", None))):
            if module is not None and content[name] is not None:
                module.load_state_dict(content[name])
        parts["best"].steps = {int(step): value for step, value in content["best"].items()}
        return int(content["step"]), dict(content["window"])
    except KeyError as missing:
        raise InputError(f"{path} lacks {missing}: it was not written by train.py; to start from its weights set "
                         "train.start_from") from None
    except ValueError as error:
        raise InputError(f"{path} does not fit this run's optimizer: {error}") from None


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
