"""Which memory layout of the weights predicts faster: measured once a result folder, so that a restart repeats it."""

import json
import os
import time
from pathlib import Path

import torch
from torch import nn

from emcore.engine.arithmetic import autocast

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def lay_out(model: nn.Module, choice: str, window: tuple[int, int, int], channels: int, precision: str,
            folder: Path) -> str:
    """The layout that the model now has: as chosen, as an earlier or another process found it, or measured."""
    if choice == "auto":
        record = folder / "layout.json"
        if not record.exists():
            _keep(record, measure(model, window, channels, precision))
        choice = json.loads(record.read_text())["layout"]
    model.to(memory_format=FORMATS[choice])
    return choice


def _keep(record: Path, found: dict) -> None:
    """Writes the record whole, unless another process was faster."""
    temporary = record.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found))
    try:
        os.link(temporary, record)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


@torch.inference_mode()
def measure(model: nn.Module, window: tuple[int, int, int], channels: int, precision: str) -> dict:
    """{"layout": the faster one, "seconds": of a quarter of a window in each, of a whole one if the net wants that}."""
    half = (window[0], window[1] // 2, window[2] // 2)
    seconds = {}
    for name, memory_format in FORMATS.items():
        model.to(memory_format=memory_format)
        try:
            seconds[name] = _time(model, half, channels, precision)
        except (RuntimeError, ValueError):
            half = window  # a net of one size, or one that divides by more
            seconds[name] = _time(model, window, channels, precision)
    return {"layout": min(seconds, key=seconds.get), "seconds": seconds}


def _time(model: nn.Module, window: tuple[int, int, int], channels: int, precision: str) -> float:
    """Seconds of the fastest of three passes, or of as many as fit into half a second."""
    device = next(model.parameters()).device
    image = torch.rand(1, channels, *window, device=device)
    times = []
    while len(times) < 3 and sum(times) < 0.5:
        start = time.perf_counter()
        with autocast(precision, device.type):
            model(image)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
