"""A mode put to work: layout and compilation of a net, autocast around it."""

from contextlib import nullcontext

import torch
from torch import nn

from emcore.engine.mode import Mode

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: str):
    """The context in which forward passes run; device: cpu or cuda."""
    return torch.autocast(device, dtype=TYPES[precision]) if precision in TYPES else nullcontext()


def place(net: nn.Module, mode: Mode) -> nn.Module:
    """The net in the mode's layout, compiled if it says so (the parameters stay the same objects)."""
    if mode.layout == "channels_last":
        net = net.to(memory_format=torch.channels_last_3d)
    if mode.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return torch.compile(net, dynamic=False) if mode.compile else net
