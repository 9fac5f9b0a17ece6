"""How fast a run goes: a line now and then, and speed.csv with what may differ from run to run."""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from emcore.files import append, csv_text, write_text
from emcore.models.build import build_model
from emcore.progress import duration, quantity
from emcore.settings import Settings

SECONDS = 30.0  # between lines in a log file; a terminal gets one a second at most


class Speed:
    def __init__(self, settings: Settings, ranks, folder: Path):
        self.settings, self.ranks = settings, ranks
        self.voxels = settings.train.batch
        for length in settings.data.patch:
            self.voxels *= length
        self.flops = flops_of_step(settings) if ranks.leads else 0
        self.live = sys.stdout.isatty()
        self.waited, self.steps, self.start = 0.0, 0, time.perf_counter()
        self.file = None
        if ranks.leads:
            path = folder / "speed.csv"
            if not path.exists():
                write_text(path, csv_text([["time", "step", "seconds", "waiting", "voxels_per_second", "tflops"]]))
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open for the length of the run)

    @contextmanager
    def waiting(self):
        """Around what waits for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def step(self, loss: float, step: int, rate: float) -> None:
        """Counts a step; says where the run is when a line is due."""
        self.steps += 1
        elapsed = time.perf_counter() - self.start
        last = step + 1 == self.settings.train.steps
        if self.file is None or not (last or elapsed > (1.0 if self.live else SECONDS)):
            return
        seconds, share = elapsed / self.steps, self.waited / elapsed
        speed, tflops = self.voxels / seconds, self.flops / seconds / 1e12
        left = duration(seconds * (self.settings.train.steps - step - 1))
        text = (f"step {step + 1} of {self.settings.train.steps}: loss {loss:.4f}, lr {rate:.2e}, {seconds:.2f} s a "
                f"step, {quantity(speed)} voxels/s, {tflops:.2f} TFLOP/s, {100 * share:.0f}% waiting for data, "
                f"{left} left")
        print(f"\r{text}\x1b[K" if self.live and not last else text, end="" if self.live and not last else "\n",
              flush=True)
        append(self.file, csv_text([[int(time.time()), step + 1, f"{seconds:.4f}", f"{share:.4f}", f"{speed:.0f}",
                                  f"{tflops:.4f}"]]).encode())
        self.waited, self.steps, self.start = 0.0, 0, time.perf_counter()


def flops_of_step(settings: Settings) -> float:
    """Multiplications and additions of a step (forward, and twice that backward), counted without computing."""
    if settings.pretrain is not None:
        return 0.0
    with torch.device("meta"):
        net = build_model(settings.model, settings.data.patch)
        image = torch.empty(1, settings.model.in_channels, *settings.data.patch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(image)
    return 3.0 * counter.get_total_flops() * settings.train.batch
