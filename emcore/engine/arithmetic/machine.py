"""What of this machine decides which arithmetic is fast, and what changes the last bits of it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emcore.errors import InputError
from emcore.threads import allotted_cores

LIMIT = "ONEDNN_MAX_CPU_ISA"  # read when torch first computes a convolution


def processor() -> str:
    """Model and features that decide which arithmetic is fast."""
    lines = _processor_lines()
    flags = [flag for flag in lines.get("flags", lines.get("Features", "")).split()
             if flag.startswith(("avx512", "amx", "avx2", "bf16", "i8mm", "sve"))]
    name = lines.get("model name") or platform.processor() or platform.machine()
    return f"{name} {' '.join(sorted(flags))}".strip()


def _processor_lines() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16; without them torch computes it many times slower."""
    return any(flag in processor().split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def surroundings() -> dict[str, Any]:
    """What besides the mode changes the last bits of a run on a CPU."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {"torch": version("torch"), "processor": processor(),
            "threads": int(threads) if threads.isdecimal() else allotted_cores()}


def graphics() -> list[str]:
    """The models of the GPUs, and which of them may be used."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model")]
    return [*models, os.environ.get("CUDA_VISIBLE_DEVICES", "all")] if Path("/dev/nvidiactl").exists() else models


def check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise InputError(f"device must be auto, cpu, cuda or mps; got {device!r}")
