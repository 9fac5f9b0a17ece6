"""Checkpoints of any system that stands here, as the scripts and emcore.load_model take them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from emcore.engine import checkpoint
from emcore.systems.dbmim import published


def ours(content: Mapping[str, Any]) -> dict[str, Any]:
    """What was read from a checkpoint, with its config as a table of ours where we know the program that wrote it."""
    return published.translated(content)


def load_model(path: str | Path, device: str | torch.device = "cpu", choice: str = "auto") -> nn.Module:
    """The net of a checkpoint in eval mode; choice of weights as infer.weights."""
    return checkpoint.model_of(ours(checkpoint.read(path)), path, device, choice)
