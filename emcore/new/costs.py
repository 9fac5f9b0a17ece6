"""What a recipe costs: a step and a window are timed here, the work is counted for a GPU, memory goes by rules."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from emcore.data.augment import augment_batch, margin, on_device
from emcore.data.sampler import Sampler
from emcore.data.sources import open_sources
from emcore.engine.arithmetic.mode import Mode, apply_limit
from emcore.engine.arithmetic.probe import announce, choose_mode, work_of
from emcore.engine.memory import keep_pages
from emcore.errors import InputError
from emcore.memory import memory_there
from emcore.settings import Settings

VALUES = 14  # numbers that a forward pass holds at a time for every channel and voxel of the finest level
LEARNING = 4  # times as much memory of a training step as of a forward pass
NUMBER = 2  # bytes of one of them
LEAST = 0.05  # seconds of a step on a GPU, at least
GPU = 1e13  # multiplications and additions a second that one GPU is taken to do for a net of this size
STEPS = 2  # steps that are timed, after one that is not
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Costs:
    step: float  # seconds of one training step here
    voxel: float  # seconds of the net for one voxel of a window here
    device: str
    operations: float  # a forward pass takes so many for each voxel of a window


def bytes_of(settings: Settings, voxels: int, learning: bool) -> int:
    """Memory that the net takes for so many voxels at a time, about."""
    sizes = settings.model.rsunet
    needed = VALUES * NUMBER * sizes.width[0] * voxels // math.prod(sizes.fold)
    return needed * (LEARNING if learning else 1)


def fitting(settings: Settings) -> Settings:
    """The settings with a batch of one where memory asks for it; refused where that does not fit, either."""
    there = memory_there()
    for batch in (settings.train.batch, 1):
        needed = bytes_of(settings, math.prod(settings.data.patch) * batch, True)
        if needed <= there // 2:
            return replace(settings, train=replace(settings.train, batch=batch))
    raise InputError(f"a training step takes about {needed / 2**30:.1f} GiB, and {there / 2**30:.1f} GiB are left to "
                     "this process, of which it may take half: end other programs, or go where there is more memory")


def window_of(settings: Settings, windows: tuple[Triple, ...], shape: Triple) -> Triple:
    """The largest window of which the net takes less than a quarter of the memory; no larger than the volume."""
    multiple, patch = settings.model.multiple, settings.data.patch
    for window in windows:
        size = tuple(min(wide, max(-(-length // unit) * unit, least))
                     for wide, length, unit, least in zip(window, shape, multiple, patch))
        if bytes_of(settings, math.prod(size), False) <= memory_there() // 4:
            return size
    return patch


def measure(settings: Settings) -> Costs:
    """Times training steps of the run itself, on its own volumes, and the net on its patch."""
    train = settings.train
    work = work_of(settings.model, settings.data.patch, max(1, train.batch // train.accumulate))
    announce(work, train, settings.device, train.steps)
    mode = choose_mode(work, train, settings.device, train.steps)  # kept, so that train.py does not measure it again
    apply_limit(mode)
    return timed(settings, mode)


def timed(settings: Settings, mode: Mode) -> Costs:
    import torch

    from emcore.engine.arithmetic.net import run
    from emcore.engine.optimizer import build_optimizer
    from emcore.engine.steps import Supervised
    from emcore.settings.train import NoPolicy

    keep_pages(mode.device)
    device, data = torch.device(mode.device), replace(settings.data, storage="lazy")
    sources = open_sources(data, "train")
    sampler = Sampler(sources, data, settings.seed, margin(settings.augment, data.patch))
    task = Supervised(settings, mode, sources[0].resolution).to(device)
    task.prepare()
    optimizer = build_optimizer(task, settings.train, NoPolicy())
    numbers = iter(range(settings.train.batch * (STEPS + 1)))

    def step() -> None:
        chosen = [next(numbers) for _ in range(settings.train.batch)]
        read = {name: torch.from_numpy(values) for name, values in sampler.batch(chosen).items()}
        loss, _ = task(augment_batch(on_device(read, device), settings.augment, data, settings.seed), 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    learning = quiet_seconds(step, mode.device, STEPS + 1)
    image = torch.rand(1, settings.model.in_channels, *data.patch, device=device)
    with torch.inference_mode():
        forward = quiet_seconds(lambda: run(task.net, image, mode.precision), mode.device, 2)
    return Costs(learning, forward / math.prod(data.patch), mode.device, operations(settings))


def quiet_seconds(step: Callable[[], None], device: str, most: int) -> float:
    """Seconds of a step; on a processor that others use, too, those that this process computed of them."""
    from emcore.engine.arithmetic.net import seconds_of

    busy, start = time.process_time(), time.perf_counter()
    _, seconds = seconds_of(step, device, most, math.inf)
    share = (time.process_time() - busy) / (time.perf_counter() - start)
    return seconds * min(1.0, share) if device == "cpu" else seconds


def operations(settings: Settings) -> float:
    """Multiplications and additions of a forward pass for each voxel, counted on tensors that take no memory."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from emcore.models.build import build_model

    with torch.device("meta"):
        net = build_model(settings.model, settings.data.patch)
        image = torch.empty(1, settings.model.in_channels, *settings.data.patch)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return counter.get_total_flops() / math.prod(settings.data.patch)


def steps_in(minutes: float, seconds: float) -> int:
    """Steps of so many minutes, in fifties."""
    return max(100, int(min(20_000.0, minutes * 60 / seconds)) // 50 * 50)


def computed(settings: Settings, shape: Triple) -> float:
    """Voxels that go through the net for a volume of this shape."""
    from emcore.prediction.windows import passes

    window = settings.infer.window or settings.data.patch
    return float(passes(shape, settings.infer, window)) * math.prod(window)
