"""In which arithmetic a prediction is computed: decided once a result, then taken by every process that works on it.

    arithmetic = decide(settings, model, windows)    # the process that begins a result; it records asdict(arithmetic)
    model = comply(arithmetic, settings, model)      # this process, and every other that joins or continues
"""

import torch
from torch import nn

from emcore.engine import ranks
from emcore.engine.arithmetic.machine import multiplies_bf16, processor
from emcore.engine.arithmetic.mode import Arithmetic, fast_precision
from emcore.engine.arithmetic.net import FORMATS, compiles_here, has_mps, run, seconds_of
from emcore.errors import InputError
from emcore.settings import Settings
from emcore.settings.predict import Infer

ENOUGH = 2000  # windows from which compiling for a minute pays
FEW = 8  # windows under which measuring layouts takes longer than it saves
BRIEF = 0.3  # seconds of a pass under which another is timed
Triple = tuple[int, int, int]


def decide(settings: Settings, model: nn.Module, windows: int) -> Arithmetic:
    """What the settings and this machine make best; windows: how many there are to predict (windows.passes)."""
    device = ranks.choose_device(settings.device)
    precision = fast_precision(settings.train.precision, device.type)
    window, channels, infer = window_of(settings), model.in_channels, settings.infer
    model.to(device)
    layout = infer.layout
    if layout == "auto":
        plain = windows < FEW or device.type == "mps"
        layout = "contiguous" if plain else faster_layout(model, window, channels, precision)
    model.to(memory_format=FORMATS[layout])
    batch = (batch_size(infer, device.type), channels, *window)
    compiles = wants_compiling(infer, device.type, windows) and compiles_here(model, batch, precision)
    return Arithmetic(device.type, precision, layout, compiles)


def comply(arithmetic: Arithmetic, settings: Settings, model: nn.Module) -> nn.Module:
    """The model on the device and in the layout of the result, or why this process cannot compute it."""
    decided = f"this prediction is computed in {arithmetic}"
    for key, wanted, has in (("device", settings.device, arithmetic.device),
                             ("train.precision", settings.train.precision, arithmetic.precision),
                             ("infer.layout", settings.infer.layout, arithmetic.layout)):
        if wanted not in ("auto", has):
            raise InputError(f"{decided}, but here {key} is {wanted}: set it to auto or {has}, or predict anew with "
                             "the other setting")
    if arithmetic.compile and settings.infer.compile == "off":
        raise InputError(f"{decided}, but here infer.compile is off: set it to auto or on, or predict anew without")
    if arithmetic.device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{decided}, but here torch {torch.__version__} finds no usable GPU: go on where there is "
                         "one, or predict anew here")
    if arithmetic.device == "mps" and not has_mps():
        raise InputError(f"{decided}, but here torch {torch.__version__} finds no Apple GPU: go on where there is "
                         "one, or predict anew here")
    bf16 = arithmetic.device == "cpu" and arithmetic.precision == "bf16"
    if bf16 and settings.train.precision == "auto" and not multiplies_bf16():
        raise InputError(f"{decided}, but here is a processor without instructions for bf16 ({processor()}): go on "
                         "where there are some, set train.precision=bf16, which is slow here, or predict anew here")
    return model.to(ranks.choose_device(arithmetic.device)).to(memory_format=FORMATS[arithmetic.layout])


def window_of(settings: Settings) -> Triple:
    return tuple(settings.infer.window or settings.data.patch)


def batch_size(infer: Infer, device: str) -> int:
    """Windows in one pass; on a CPU several at once are no faster, and take as many times the memory."""
    return infer.batch or (4 if device == "cuda" else 1)


def wants_compiling(infer: Infer, device: str, windows: int) -> bool:
    """Whether the net is to be compiled: if asked for, or by itself on a GPU where there is enough to do."""
    return infer.compile == "on" or (infer.compile == "auto" and device == "cuda" and windows >= ENOUGH)


@torch.inference_mode()
def faster_layout(model: nn.Module, window: Triple, channels: int, precision: str) -> str:
    """The layout that takes less time for a quarter of a window, or for a whole one if the net wants that."""
    print("measuring which memory layout predicts faster here, in the time of about one window", flush=True)
    part = (window[0], window[1] // 2, window[2] // 2)
    seconds = {}
    for name, memory_format in FORMATS.items():
        model.to(memory_format=memory_format)
        try:
            seconds[name] = _seconds(model, part, channels, precision)
        except (RuntimeError, ValueError):
            part = window  # a net of one size, or one that divides by more
            seconds[name] = _seconds(model, window, channels, precision)
    return min(seconds, key=seconds.get)


def _seconds(model: nn.Module, window: Triple, channels: int, precision: str) -> float:
    """Seconds of a pass after one that is not counted; short ones are timed twice."""
    device = next(model.parameters()).device
    image = torch.rand(1, channels, *window, device=device)
    return seconds_of(lambda: run(model, image, precision), device.type, 3, BRIEF)[1]
