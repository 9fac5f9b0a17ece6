"""Arithmetic put to work on a net: its layout, autocast around it, its compiled form, the seconds of a step."""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from emcore.engine.arithmetic.mode import Mode

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def autocast(precision: str, device: str):
    """The context in which forward passes run; device: cpu, cuda or mps."""
    return torch.autocast(device, dtype=TYPES[precision]) if precision in TYPES else nullcontext()


def has_mps() -> bool:
    """Whether torch can use the GPU of an Apple processor here."""
    return torch.backends.mps.is_available()


def widest(device: torch.device) -> torch.dtype:
    """The floats in which values are summed: 64 bits, which Apple's GPUs do not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def place(net: nn.Module, mode: Mode) -> nn.Module:
    """The net in the mode's layout, compiled if it says so (the parameters stay the same objects)."""
    if mode.layout == "channels_last":
        net = net.to(memory_format=FORMATS[mode.layout])
    if mode.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return torch.compile(net, dynamic=False) if mode.compile else net


def run(net: nn.Module, x: Tensor, precision: str) -> Tensor:
    """Logits of a batch in fp32; of a net with several heads, all their channels."""
    with autocast(precision, x.device.type):
        out = net(x)
    if isinstance(out, dict):
        out = out["output"] if "output" in out else torch.cat(list(out.values()), 1)
    return out.float()


def seconds_of(step: Callable[[], None], device: str, most: int, enough: float,
               between: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """Seconds of the first step, and of the fastest of those after it.

    most: how many are taken; enough: seconds after the first one from which no other is begun; between: what is done
    after each of them and not counted.
    """
    times: list[float] = []
    while len(times) < 2 or (len(times) < most and sum(times[1:]) < enough):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        elif device == "mps":
            torch.mps.synchronize()
        times.append(time.perf_counter() - start)
        between()
    return times[0], min(times[1:])


# ---- the compiler


def compiled(model: nn.Module, shape: tuple[int, ...], precision: str) -> nn.Module:
    """The compiled net, after its first batch."""
    runner = torch.compile(model, dynamic=False)
    with torch.inference_mode():
        run(runner, torch.zeros(shape, device=next(model.parameters()).device), precision)
    return runner


def compiles_here(model: nn.Module, shape: tuple[int, ...], precision: str) -> bool:
    """Whether the compiled net takes a batch of this shape; if not, the reason is printed."""
    try:
        compiled(model, shape, precision)
    except Exception as error:  # no compiler, or one that stumbles: of any kind, and the net itself still runs
        print(f"not compiled: {first_line(error)}", flush=True)
        return False
    return True


def why_not_compiled(device: str) -> str:
    """The error of the compiler at a tiny step, empty where it works."""
    tiny = torch.compile(lambda x: (x * 2 + 1).relu().sum(), options={"force_disable_caches": True})
    try:
        tiny(torch.ones(64, device=device, requires_grad=True)).backward()
    except Exception as error:  # no compiler, or one that stumbles: of any kind
        return first_line(error)
    return ""


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
