"""ELU of bf16 numbers on a CPU: there are only 65,536 of them, so each is looked up instead of computed."""

from functools import cache

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emcore.cache import compiled
from emcore.threads import run_parallel, slabs

PIECE = 2**16  # numbers from which a thread pays


@compiled(numba.void(numba.uint16[::1], numba.types.Array(numba.uint16, 1, "C", readonly=True)))
def _look_up(values, table):
    for i in range(len(values)):
        values[i] = table[values[i]]


@cache
def _table() -> np.ndarray:
    """What torch's ELU makes of every bf16 number, by its bits."""
    every = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).roll(2**15).view(torch.bfloat16)
    return functional.elu(every).view(torch.int16).numpy().view(np.uint16)


def _replace(x: Tensor) -> None:
    """ELU in place, of dense numbers in any order."""
    flat = x.detach().as_strided((x.numel(),), (1,)).view(torch.int16).numpy().view(np.uint16)
    pieces = slabs(len(flat), min(torch.get_num_threads(), len(flat) // PIECE + 1))
    run_parallel(_look_up, [(flat[start:stop], _table()) for start, stop in pieces], len(pieces))


class _Tabulated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        _replace(x)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.ops.aten.elu_backward(gradient, 1.0, 1.0, 1.0, True, *ctx.saved_tensors)


def elu_(x: Tensor) -> Tensor:
    """functional.elu in place, the same bits; x is dense bf16 on the CPU."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Tabulated.apply(x)
    _replace(x)
    return x
