"""Checkpoints that survive being killed: written under another name, flushed, renamed; read as tensors only.

A file holds model, ema, optimizer, step, rng, config, version and what else the run needs, under the names of the
bare module. It rebuilds its net without the config file.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emcore.config import from_table
from emcore.engine.published import grid_of, is_published, published_tables
from emcore.errors import InputError
from emcore.models.build import build_model
from emcore.models.vit import transfer_encoder
from emcore.settings.model import Model

NAME = re.compile(r"step_(\d{9})\.pt")
VERSION = 1


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(f"cannot write the checkpoint {path}: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def is_complete(path: Path) -> bool:
    """Whether every byte that the file's own checksums cover is there."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, ValueError):
        return False


def all_steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints of a run, newest first, complete or not."""
    found = [(int(match[1]), path) for path in folder.glob("step_*.pt") if (match := NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole."""
    return next((path for _, path in all_steps(folder) if is_complete(path)), None)


def prune(folder: Path, last: int, keep: set[int]) -> None:
    """Deletes all but the newest `last` checkpoints and the steps to keep, and what killed writers left behind."""
    for step, path in all_steps(folder)[max(1, last):]:
        if step not in keep:
            path.unlink(missing_ok=True)
    for leftover in folder.glob(".step_*.tmp"):
        leftover.unlink(missing_ok=True)


def read(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a checkpoint; code inside it is never run."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} holds more than tensors and plain values, which could run code, so it is not read: "
                         f"{reason}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a whole checkpoint: {str(error).strip().splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names of the bare module, whatever wrapper wrote them."""
    clean = {}
    for name, value in state.items():
        for prefix in ("module.", "_orig_mod."):
            name = name.removeprefix(prefix)
        clean[name] = value
    return clean


def load_weights(net: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Loads all weights, or says which differ."""
    state, own = bare(state), net.state_dict()
    differ = sorted(state.keys() ^ own.keys()) or [
        f"{name} {tuple(state[name].shape)} against {tuple(own[name].shape)}" for name in own
        if tuple(state[name].shape) != tuple(own[name].shape)]
    if differ:
        raise InputError(f"{what} belongs to another net: {len(differ)} tensors differ, first {', '.join(differ[:5])}")
    net.load_state_dict(state)


def start_from(net: nn.Module, path: str | Path, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Takes the weights of another run, or a published file, that fit by name and shape; which were taken."""
    content = read(path)
    state = content.get("model", content.get("state_dict", content))
    if content.get("ema"):
        state = content["ema"]["weights"]
    taken = transfer_encoder(net, state, grid_of(content.get("config")), include, exclude)
    if not taken:
        raise InputError(f"no tensor of {path} fits this net by name and shape; it has {', '.join(list(state)[:5])}")
    return taken


def step_of(content: Mapping[str, Any]) -> int:
    """How many steps a checkpoint was trained, under our name or that of published files."""
    return int(content.get("step", content.get("global_step", 0)))


def final_weights(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The averaged weights where there are any."""
    return content["ema"]["weights"] if content.get("ema") else content["model"]


def save_weights(content: Mapping[str, Any], path: Path) -> None:
    """Writes only what prediction needs of a checkpoint: a quarter of its size, to be shared."""
    save(path, {"step": step_of(content), "model": final_weights(content), "config": content["config"]})


def load_model(checkpoint: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The net of a checkpoint in eval mode, with the averaged weights where there are any."""
    return model_of(read(checkpoint), checkpoint, device)


def model_of(content: Mapping[str, Any], checkpoint: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """The net in what was read from the file `checkpoint`."""
    try:
        config = content["config"]
        table, patch = published_tables(config) if is_published(config) else (config["model"], config["data"]["patch"])
        model, patch = from_table(Model, table, "model"), tuple(patch)
        weights = final_weights(content)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{checkpoint} does not say which net it belongs to (no model and config); it has: "
                         f"{', '.join(map(str, content)) or 'nothing'}") from None
    net = build_model(model, patch)
    load_weights(net, weights, f"the checkpoint {checkpoint}")
    return net.to(device).eval()


def named(folder: Path, choice: str) -> Path:
    """SHIM"""
    if choice:
        return Path(choice)
    path = newest(folder / "checkpoints")
    if path is None:
        raise InputError(f"{folder / 'checkpoints'} has no checkpoint: run train.py first, or name one by --checkpoint")
    return path


def net_of(content, path):
    from emcore.config import to_table
    config = content["config"]
    table, patch = published_tables(config) if is_published(config) else (config["model"], config["data"]["patch"])
    return to_table(from_table(Model, table, "model"))


def model_and_weights(content, path, choice):
    import hashlib
    model = model_of(content, path)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return model, {"digest": digest.hexdigest(), "used": "averaged" if content.get("ema") else "plain", "step": step_of(content), "checkpoint": str(path)}
