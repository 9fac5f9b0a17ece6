"""Which checkpoint predicts, which of its weights, and the digest that tells them from all others."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emcore.cards import checkpoint_file
from emcore.config import from_table, to_table
from emcore.engine import checkpoint
from emcore.engine.best import best_checkpoint
from emcore.errors import InputError
from emcore.settings.model import Model


def taken(run: Path, choice: str) -> tuple[Path, dict[str, Any], str]:
    """The checkpoint of a choice: a file, a name, "best" of what the run monitored, or "", the last.

    Returns its path, its content and the digest of its bytes.
    """
    if choice:
        path = best_checkpoint(run) if choice == "best" else checkpoint_file(choice)
        return path, *checkpoint.read_with_digest(path)
    found = checkpoint.first_sound(run / "checkpoints", checkpoint.read_with_digest)
    if found is None:
        raise InputError(f"{run / 'checkpoints'} has no checkpoint: run train.py first, or name one by --checkpoint")
    return found[0], *found[1]


def described(content: Mapping[str, Any], path: Path, choice: str, model: nn.Module, file: str) -> dict[str, Any]:
    """What a record says of weights: their digest, which of the file's they are, its step and its path.

    With the digest of the file and the choice the weights are known again without reading them (results.known_weights).
    """
    _, used = checkpoint.choose_weights(content, choice, path)
    return {"digest": digest(model), "used": used, "step": checkpoint.step_of(content), "checkpoint": str(path),
            "file": file, "choice": choice}


def net_table(content: Mapping[str, Any]) -> dict[str, Any]:
    """The table [model] of a checkpoint with every setting, those that are newer than the file by their defaults."""
    return to_table(from_table(Model, content["config"]["model"], "model"))


def digest(model: nn.Module) -> str:
    """A digest of the names, shapes and values of all tensors of a net."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
