"""How a run is continued and ended: same config or not, what a checkpoint holds, which are kept, who asks to stop."""

import json
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcore import config
from emcore.engine import checkpoint
from emcore.engine.ranks import Ranks
from emcore.errors import InputError
from emcore.files import write_text
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


HIGHER_IS_BETTER = {"jaccard/val"}
BEST_FILE = "best.json"  # for the page, which reads no checkpoint


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


def best(folder: Path) -> Path:
    """The best checkpoint of a run; folder: outputs/<name>."""
    found = best_checkpoints(folder)
    if not found:
        raise InputError(f"{folder} has no best checkpoint: none was ranked by train.save.monitor, or train.save.best "
                         "is 0; take the newest one, or name a file by --checkpoint")
    return found[0][2]


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
        **parts["best"].state(),
        "window": dict(window),
        "rng": {"seed": settings.seed},  # with the step, all random numbers follow from it
        "config": config.to_table(settings),
    }
    checkpoint.save(folder / "checkpoints" / f"step_{step:09d}.pt", content)
    ranked = ranking(parts["best"].steps, settings.train.save.monitor)
    write_text(folder / BEST_FILE, json.dumps({"monitor": settings.train.save.monitor, "best": ranked}) + "\n")
    checkpoint.prune(folder / "checkpoints", step, settings.train.save.last, parts["best"].keep)


def resume(folder: Path, parts: Mapping[str, Any], ranks: Ranks) -> tuple[Path, int, dict[str, float]] | None:
    """Puts the newest whole checkpoint of a run back into its parts, if there is one.

    Gives its path, the next step and the sums of the current log window.
    """
    found = checkpoint.read_newest(folder / "checkpoints")
    step, total = restore(*found, parts) if found else (0, {})
    steps = torch.tensor([step, -step], device=ranks.device)
    if not torch.equal(ranks.largest(steps), steps):
        raise InputError(f"the ranks do not find the same newest checkpoint in {folder}: rank {ranks.rank} has step "
                         f"{step}; they need one file system with the same files")
    return (found[0], step, total) if found else None


def restore(path: Path, content: Mapping[str, Any], parts: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """Puts the content of a checkpoint back into the parts of a run."""
    task, optimizer = parts["task"], parts["optimizer"]
    missing = [name for name in ("model", "optimizer", "scaler", "ema", "schedule", "balance", "policy", "best", "step",
                                 "window", "config") if name not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: it was not written by train.py; to start from its "
                         "weights set train.start_from")
    with checkpoint.refused(path, "does not fit this run"):
        checkpoint.load_weights(task.net, content["model"], str(path))
        load_optimizer(optimizer, content["optimizer"])
        parts["scaler"].load_state_dict(content["scaler"])
        for name, part in (("ema", parts["average"]), ("schedule", parts["plateau"])):
            if part is not None and content[name] is not None:
                part.load(content[name])
        for name, module in (("balance", getattr(task, "plan", None)), ("policy", getattr(task, "policy", None))):
            if module is not None and content[name] is not None:
                module.load_state_dict(content[name])
        parts["best"].load(content)
        return int(content["step"]), dict(content["window"])


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Its state, if every moment has the shape of the weight that it belongs to; torch would find out in the step."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, weight in zip(numbers, weights):
        for name, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != weight.shape:
                raise InputError(f"its optimizer has {name} of shape {tuple(value.shape)} for a weight of shape "
                                 f"{tuple(weight.shape)}")
    optimizer.load_state_dict(state)


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
