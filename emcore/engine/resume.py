"""How a run goes on: whether the config is still the same, what a checkpoint holds, and how it is put back."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcore import config
from emcore.engine import checkpoint
from emcore.engine.best import ranking
from emcore.engine.ranks import Ranks
from emcore.errors import InputError
from emcore.files import write_text
from emcore.results import BEST_FILE
from emcore.settings import Settings

# settings that may change between the pieces of a run: how long, how fast, what is written
FREE = ("train.steps", "train.save", "train.validate", "train.log_steps", "train.preview_steps", "train.precision",
        "train.compile", "train.layout", "data.workers", "data.prefetch", "data.storage", "data.folder", "data.test",
        "data.remote_cache", "data.remote_disk", "device", "outputs", "infer", "decode", "blocks", "evaluate",
        "tune")


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
        "rng": {"seed": settings.seed},  # all random numbers follow from it and the step
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
