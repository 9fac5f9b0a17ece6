"""What there is to choose: device, precision, memory layout, compilation; a training also limits instruction sets."""

import os
from dataclasses import asdict, dataclass
from typing import Literal

from emcore.engine.arithmetic.machine import LIMIT, multiplies_bf16
from emcore.record import told_arithmetic


@dataclass(frozen=True)
class Arithmetic:
    """In which a net computes; a prediction records it."""

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["bf16", "fp16", "fp32"]
    layout: Literal["channels_last", "contiguous"]  # how weights and images lie in memory
    compile: bool  # the net is compiled

    def __str__(self) -> str:
        return told_arithmetic(asdict(self))


@dataclass(frozen=True)
class Mode(Arithmetic):
    """The arithmetic of a training, and under which conditions it was chosen."""

    instructions: str = ""  # limit of the instruction sets, empty for none
    reason: str = ""  # one line for the log
    torch: str = ""  # version with which it was chosen
    processor: str = ""  # on which it was chosen
    threads: int = 0  # the number when it was chosen: sums over threads differ in their last bits

    def __str__(self) -> str:
        return super().__str__() + (f", {LIMIT} = {self.instructions}" if self.instructions else "")


def apply_limit(mode: Mode) -> None:
    """Sets what must stand before torch first computes."""
    if mode.instructions:
        os.environ.setdefault(LIMIT, mode.instructions)


def fast_precision(precision: str, device: str) -> str:
    """The precision of prediction: bf16 where the hardware has it, as no forward pass has been seen to crash."""
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" or (device == "cpu" and multiplies_bf16()) else "fp32"
