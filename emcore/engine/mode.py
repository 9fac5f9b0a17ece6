"""How fast arithmetic is chosen: precision, memory layout, compilation, by trying the real step in child processes.

Some builds of torch crash the whole process in bf16 convolutions on some processors (their weight gradients, for many
shapes), and which layout is fastest depends on the machine. So each candidate runs the step of this net at this size
once in a child; one that dies is passed over. The verdict is kept, by torch, nets, processor and shapes.

Nothing here imports torch before the verdict: the instruction set must be limited before torch is loaded.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emcore.cache import cache_folder
from emcore.config import to_table
from emcore.errors import InputError
from emcore.files import write_text
from emcore.settings.model import Model
from emcore.settings.train import Train

LIMIT = "ONEDNN_MAX_CPU_ISA"  # read by torch when it is loaded
SAFE = "AVX512_CORE_BF16"  # the instruction sets up to this one have not been seen to crash
PATIENCE = 240.0  # seconds for one candidate


@dataclass(frozen=True)
class Mode:
    device: str  # cpu or cuda
    precision: str  # bf16, fp16 or fp32
    layout: str  # channels_last or contiguous
    compile: bool
    instructions: str = ""  # limit of the instruction sets, empty for none
    reason: str = ""  # one line for the log


def processor() -> str:
    """Model and features that decide which arithmetic is fast."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return platform.processor()
    lines = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = [flag for flag in lines.get("flags", "").split() if flag.startswith(("avx512", "amx", "avx2"))]
    return f"{lines.get('model name', '')} {' '.join(sorted(flags))}"


def choose_mode(model: Model, train: Train, patch: tuple[int, int, int], samples: int, device: str = "auto",
                steps: int = 1000, masked: bool = False) -> Mode:
    """The fastest mode that runs the step of this net; what the settings fix is not tried.

    samples: of one micro-batch on one rank; steps: how many steps there are to save time in; masked: pretraining.
    """
    work = {"model": to_table(model), "patch": list(patch), "samples": samples, "masked": masked}
    wanted = {"precision": train.precision, "layout": train.layout, "compile": train.compile, "device": device}
    key = hashlib.sha256(json.dumps([work, wanted, version("torch"), processor(), _gpu(), steps > 200, _nets()],
                                    sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_folder("modes")
    if folder is None:
        return _measure(work, train, device, steps)
    verdict = folder / f"{key}.json"
    if verdict.is_file():
        try:
            return Mode(**json.loads(verdict.read_text()))
        except (ValueError, TypeError):
            pass  # written by another version
    mode = _measure(work, train, device, steps)
    write_text(verdict, json.dumps(asdict(mode)))
    return mode


def fast_precision(precision: str, device: str) -> str:
    """The precision of prediction: bf16 where the hardware has it; forward passes have not been seen to crash."""
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" or any(flag in processor() for flag in ("avx512_bf16", "amx_bf16")) else "fp32"


def apply_mode(mode: Mode) -> None:
    """Sets what must stand before torch is loaded."""
    if mode.instructions and "torch" not in sys.modules:
        os.environ.setdefault(LIMIT, mode.instructions)


def _gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all") if Path("/dev/nvidiactl").exists() else ""


def _nets() -> str:
    """What changes with the code of the nets."""
    files = sorted((Path(__file__).resolve().parents[1] / "models").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def candidates(train: Train, device: str) -> list[Mode]:
    """What to try, likely best first."""
    layouts = ["channels_last", "contiguous"] if train.layout == "auto" else [train.layout]
    if device == "cuda":
        precision = "bf16" if train.precision == "auto" else train.precision
        return [Mode(device, precision, layout, train.compile == "on") for layout in layouts]
    precisions = ["bf16", "fp32"] if train.precision == "auto" else [train.precision]
    found = []
    for precision in precisions:
        limits = ["", SAFE] if precision == "bf16" and not os.environ.get(LIMIT) else [""]
        found += [Mode(device, precision, layout, train.compile == "on", limit)
                  for limit in limits for layout in layouts]
    return found


def _measure(work: Mapping[str, Any], train: Train, device: str, steps: int) -> Mode:
    if device == "auto":
        device = _try({"question": "device"}, Mode("cpu", "fp32", "contiguous", False))[0].get("device", "cpu")
    modes = candidates(train, device)
    if len(modes) == 1 and modes[0].precision == "fp32" and train.compile == "off":
        return modes[0]  # nothing to choose, and fp32 has not been seen to crash
    best, best_time, crashed, failures = None, float("inf"), [], []
    for mode in modes:
        if any((mode.precision, mode.instructions) == other for other in crashed):
            continue  # the other layout of arithmetic that has just killed a process
        if mode.instructions and best is not None and best.precision == mode.precision:
            continue  # the limit is for where the full set crashes
        answer, code, error = _try(work, mode)
        if code != 0:
            failures.append(f"{mode.precision} {mode.layout}{' ' + mode.instructions if mode.instructions else ''}: "
                            f"{'killed by signal ' + str(-code) if code < 0 else error}")
            if code < 0:
                crashed.append((mode.precision, mode.instructions))
            continue
        if answer["seconds"] < best_time:
            best, best_time = mode, answer["seconds"]
    if best is None:
        raise InputError(f"this net cannot take a step on {device}: {failures[0]}")
    reason = f"{best.precision}, {best.layout}, {best_time:.2f} s a step"
    if best.instructions:
        reason += f", instruction sets limited to {best.instructions} because more crashes here"
    if train.compile == "auto" and (device == "cuda" or steps > 200):
        compiled = Mode(device, best.precision, best.layout, True, best.instructions)
        answer, code, error = _try(work, compiled)
        if code == 0 and answer["first"] + steps * answer["seconds"] < steps * best_time:
            best, reason = compiled, f"{reason}; {answer['seconds']:.2f} s compiled"
        else:
            reason += f"; not compiled ({'no gain' if code == 0 else f'it fails here: {error[:120]}'})"
    return Mode(**{**asdict(best), "reason": reason})


def _try(work: Mapping[str, Any], mode: Mode) -> tuple[dict[str, Any], int, str]:
    """What the child answered, its exit code (negative for a signal) and the last line of its error."""
    environment = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        environment.pop(name, None)
    if mode.instructions:
        environment[LIMIT] = mode.instructions
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    try:
        done = subprocess.run([sys.executable, "-m", "emcore.engine.mode"], input=json.dumps([work, asdict(mode)]),
                              capture_output=True, text=True, timeout=PATIENCE, env=environment)
    except subprocess.TimeoutExpired:
        return {}, 1, f"took more than {PATIENCE:.0f} s"
    lines = done.stderr.strip().splitlines() or [""]
    try:
        answer = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    except (ValueError, IndexError):
        return {}, 1, "gave no answer"
    return answer, done.returncode, lines[-1]


def wrong_gradients(plain: Sequence[float], compiled: Sequence[float]) -> int:
    """How many weights have a gradient ten times shorter or longer in the compiled step, those of mere rounding aside.

    torch 2.13 leaves most gradients of an RSUNet in bf16 at zero on a CPU when it compiles; the loss still falls.
    """
    noise = 1e-3 * max(plain, default=0.0)
    return sum(a > noise and not a / 10 < b < 10 * a for a, b in zip(plain, compiled))


def child() -> None:
    """Takes one step after another as the parent asks and prints the seconds."""
    work, mode = json.loads(sys.stdin.read())
    import torch

    if work.get("question") == "device":
        print(json.dumps({"device": "cuda" if torch.cuda.is_available() else "cpu"}))
        return
    from emcore.config import from_table
    from emcore.engine.arithmetic import autocast, place
    from emcore.engine.pages import keep_pages
    from emcore.models.build import build_model

    mode = Mode(**mode)
    keep_pages(mode.device)
    device = torch.device(mode.device)
    model = from_table(Model, work["model"], "model")
    if work["masked"]:  # the transformer alone: its arithmetic is that of the linear head
        model = replace(model, name="linear_head")
    net = build_model(model, tuple(work["patch"])).to(device).train()
    image = torch.rand(work["samples"], model.in_channels, *work["patch"], device=device)

    def step(net) -> None:
        with autocast(mode.precision, mode.device):
            out = net(image)
        out = [out] if not isinstance(out, dict) else list(out.values())
        sum(value.float().square().mean() for value in out).backward()

    def gradient_lengths() -> list[float]:
        """Those of biases are left out: before a norm they are rounding alone."""
        return [0.0 if weight.grad is None else float(weight.grad.float().norm())
                for weight in net.parameters() if weight.dim() > 1]

    if mode.compile:
        step(place(net, replace(mode, compile=False)))
        plain = gradient_lengths()
        net.zero_grad(set_to_none=True)
    net, times = place(net, mode), []
    for _ in range(4):
        start = time.perf_counter()
        step(net)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if mode.compile and (wrong := wrong_gradients(plain, gradient_lengths())):
            sys.exit(f"{wrong} of {len(plain)} gradients of the compiled step are wrong")
        net.zero_grad(set_to_none=True)
        if sum(times[1:]) > 60:  # the first step may have compiled for minutes; what counts is the next
            break
    print(json.dumps({"first": times[0], "seconds": min(times[1:])}))


if __name__ == "__main__":
    child()
