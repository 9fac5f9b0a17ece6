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
    """Builds the net of a checkpoint in eval mode, with its weights.

    Args:
        path: a checkpoint of a run, a file of weights, or the name of weights that come with emcore
            (`python -m emcore models` lists them).
        device: where the net goes; "cpu" by default.
        choice: which weights: "auto" (the default) takes the averaged ones where there are some (see infer.weights in
            `python -m emcore config infer`).

    Returns:
        A torch.nn.Module that maps (n, c, z, y, x) float32 to logits.

    Raises:
        InputError: the file is damaged, or no checkpoint of a program that is known here.

    Cost:
        The file is read once; the net takes the memory of its weights.

    Examples:
        >>> import emcore
        >>> net = emcore.load_model("fib25_neurons")
        >>> sum(tensor.numel() for tensor in net.parameters()) > 1_000_000
        True
    """
    return checkpoint.model_of(ours(checkpoint.read(path)), path, device, choice)
