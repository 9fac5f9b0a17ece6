"""How fast arithmetic is chosen: precision, memory layout, compilation, by trying the real step in child processes.

Some builds of torch crash the whole process in bf16 convolutions on some processors (their weight gradients, for many
shapes), and which layout is fastest depends on the machine. So each candidate runs the step of this net at this size
once in a child; one that dies is passed over. What was measured is kept for new runs, by everything that changes it.
verdict.py keeps the choice of a run.

Nothing here imports torch before the verdict: the instruction set must be limited before torch first computes.
"""

import ctypes
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from emcore.cache import cache_folder
from emcore.config import from_table, to_table
from emcore.errors import InputError
from emcore.files import machine, write_text
from emcore.locks import take
from emcore.settings.model import Model
from emcore.settings.train import Train
from emcore.threads import allotted_cores

LIMIT = "ONEDNN_MAX_CPU_ISA"  # read when torch first computes a convolution
SAFE = "AVX512_CORE_BF16"  # the instruction sets up to this one have not been seen to crash
PATIENCE = 240.0  # seconds for one candidate
BUDGET = 600.0  # seconds for all of them
LATE = 124  # the code of a child that was ended because it took too long: it may be sound
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
SHORT = 200  # steps of a run on a CPU that is too short to try the compiler for


@dataclass(frozen=True)
class Mode:
    device: Literal["cpu", "cuda"]
    precision: Literal["bf16", "fp16", "fp32"]
    layout: Literal["channels_last", "contiguous"]
    compile: bool
    instructions: str = ""  # limit of the instruction sets, empty for none
    reason: str = ""  # one line for the log
    torch: str = ""  # version with which it was chosen
    processor: str = ""  # on which it was chosen
    threads: int = 0  # with which it was chosen: sums over threads differ in their last bits


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


def surroundings() -> dict[str, Any]:
    """What besides the mode changes the last bits of a run on a CPU."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {"torch": version("torch"), "processor": processor(),
            "threads": int(threads) if threads.isdecimal() else allotted_cores()}


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for bf16; without them torch computes it many times slower."""
    return any(flag in processor().split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda; got {device!r}")


def fast_precision(precision: str, device: str) -> str:
    """The precision of prediction: bf16 where the hardware has it; forward passes have not been seen to crash."""
    if precision != "auto":
        return precision
    return "bf16" if device == "cuda" or multiplies_bf16() else "fp32"


def work_of(model: Model, patch: Sequence[int], samples: int, masked: bool = False) -> dict[str, Any]:
    """The step that is tried; samples: of one micro-batch on one rank; masked: pretraining."""
    return {"model": to_table(model), "patch": list(patch), "samples": samples, "masked": masked}


def choose_mode(work: Mapping[str, Any], train: Train, device: str = "auto", steps: int = 1000) -> Mode:
    """The fastest mode that runs the step of this net; what the settings fix is not tried.

    steps: how many there are to save time in.
    """
    known = "cpu" if device == "auto" and version("torch").endswith("+cpu") else device
    if known != "auto" and _settled(modes := candidates(train, known), train):  # and nobody has to be waited for
        return _decide({"mode": modes[0], "seconds": 0.0, "compiled": None}, train, steps)
    store = _store(work, train, device)
    found = _read(store)
    if found is None or _wants_compiling(found, train, steps):
        with _alone_on_this_machine() as lock:
            deadline = time.monotonic() + BUDGET
            found = _read(store) or _measure(work, train, device, deadline, lock)
            mode = found["mode"]
            if found["seconds"] is None:
                return _stamped(mode, f"{mode.precision}, {mode.layout}, not measured: a step takes too long here")
            if _wants_compiling(found, train, steps):
                answer, code, error = _try(work, replace(mode, compile=True), deadline, lock)
                found["compiled"] = answer if code == 0 else {"fails": error}
            _write(store, found)
    return _decide(found, train, steps)


def announce(work: Mapping[str, Any], train: Train, device: str, steps: int) -> None:
    """Says at once that choose_mode is going to take its time, if it is."""
    devices = ["cpu", "cuda"] if device == "auto" else [device]
    tries = [candidates(train, one) for one in devices]
    if not all(_settled(modes, train) for modes in tries) and remembered_mode(work, train, device, steps) is None:
        longest = min(BUDGET, PATIENCE * (max(map(len, tries)) + (train.compile == "auto")))
        print(f"measuring how fast this net runs here, up to {longest:.0f} s", flush=True)


def remembered_mode(work: Mapping[str, Any], train: Train, device: str, steps: int) -> Mode | None:
    """What choose_mode would return where it had nothing to measure any more; None where it had."""
    found = _read(_store(work, train, device))
    return None if found is None or _wants_compiling(found, train, steps) else _decide(found, train, steps)


def apply_mode(mode: Mode) -> None:
    """Sets what must stand before torch first computes."""
    if mode.instructions:
        os.environ.setdefault(LIMIT, mode.instructions)


# ---- what is known already


def _store(work: Mapping[str, Any], train: Train, device: str) -> Path | None:
    """The file of what was measured for the same step with the same settings on the same hardware and software."""
    folder = cache_folder("modes")
    if folder is None:
        return None
    wanted = {"precision": train.precision, "layout": train.layout, "compile": train.compile, "device": device}
    here = [surroundings(), os.environ.get(LIMIT), _graphics(), _nets()]
    key = hashlib.sha256(json.dumps([work, wanted, here], sort_keys=True).encode()).hexdigest()[:24]
    return folder / f"{key}.json"


def _read(store: Path | None) -> dict[str, Any] | None:
    try:
        table = json.loads(store.read_text())
        return {"mode": from_table(Mode, table["mode"]), "seconds": float(table["seconds"]),
                "compiled": table["compiled"] if table["compiled"] is None else dict(table["compiled"])}
    except (AttributeError, OSError, ValueError, TypeError, KeyError):
        return None  # no such file, or one that another version wrote


def _write(store: Path | None, found: Mapping[str, Any]) -> None:
    if store is not None:
        with suppress(InputError):  # the run goes on without
            write_text(store, json.dumps({**found, "mode": asdict(found["mode"])}))


def _graphics() -> list[str]:
    """The models of the GPUs, and which of them may be used."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [line for file in files for line in file.read_text().splitlines() if line.startswith("Model")]
    return [*models, os.environ.get("CUDA_VISIBLE_DEVICES", "all")] if Path("/dev/nvidiactl").exists() else models


def _nets() -> str:
    """What changes with the code of the nets."""
    files = sorted((Path(__file__).resolve().parents[1] / "models").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# ---- what is measured


def candidates(train: Train, device: str) -> list[Mode]:
    """What to try, likely best first."""
    layouts = ["channels_last", "contiguous"] if train.layout == "auto" else [train.layout]
    if device == "cuda":
        precision = "bf16" if train.precision == "auto" else train.precision
        return [Mode(device, precision, layout, train.compile == "on") for layout in layouts]
    precisions = [train.precision] if train.precision != "auto" else ["bf16", "fp32"] if multiplies_bf16() else ["fp32"]
    found = []
    for precision in precisions:
        limits = ["", SAFE] if precision == "bf16" and multiplies_bf16() else [""]
        if os.environ.get(LIMIT):  # the user's own
            limits = [os.environ[LIMIT]]
        found += [Mode(device, precision, layout, train.compile == "on", limit)
                  for limit in limits for layout in layouts]
    return found


def _settled(modes: Sequence[Mode], train: Train) -> bool:
    """Nothing to choose, and fp32 has not been seen to crash."""
    return len(modes) == 1 and modes[0].precision == "fp32" and train.compile == "off"


@contextmanager
def _alone_on_this_machine() -> Iterator[int | None]:
    """Waits until no other process of this user measures here: two would disturb each other and fill the memory.

    Yields the descriptor of the lock; a child that inherits it keeps the lock when its parent is killed.
    """
    folder = cache_folder("modes")
    with ExitStack() as opened:
        try:
            file = opened.enter_context(open(folder / f"{machine()}.lock", "a"))
            if not take(file, wait=False):
                print("another run is measuring on this machine; waiting for it", flush=True)
                take(file)
            lock = file.fileno()
        except (OSError, TypeError):  # no folder, or no locks
            lock = None
        yield lock


def _measure(work: Mapping[str, Any], train: Train, device: str, deadline: float, lock: int | None) -> dict[str, Any]:
    """{"mode": the fastest, "seconds": of its step, None if all took too long, "compiled": None}"""
    modes = candidates(train, _device(deadline, lock) if device == "auto" else device)
    if _settled(modes, train):
        return {"mode": modes[0], "seconds": 0.0, "compiled": None}
    best, best_time, crashed, failures, slow = None, float("inf"), [], [], None
    for mode in modes:
        if any((mode.precision, mode.instructions) == other for other in crashed):
            continue  # the other layout of arithmetic that has just killed a process
        if mode.instructions and best is not None and best.precision == mode.precision and not best.instructions:
            continue  # the limit is for where the full set crashes
        answer, code, error = _try(work, mode, deadline, lock)
        if code != 0:
            failures.append(f"{mode.precision} {mode.layout}{' ' + mode.instructions if mode.instructions else ''}: "
                            f"{error}")
            if code < 0:
                crashed.append((mode.precision, mode.instructions))
            slow = mode if code == LATE else slow
            continue
        if answer["seconds"] < best_time:
            best, best_time = mode, answer["seconds"]
    if best is None and slow is not None:
        return {"mode": slow, "seconds": None, "compiled": None}
    if best is None:
        raise InputError(f"this net cannot take a step on {modes[0].device}: {failures[0]}")
    return {"mode": best, "seconds": best_time, "compiled": None}


def _device(deadline: float, lock: int | None) -> str:
    """What torch finds; the builds without CUDA need not be asked."""
    if version("torch").endswith("+cpu"):
        return "cpu"
    answer, _, _ = _try({"question": "device"}, Mode("cpu", "fp32", "contiguous", False), deadline, lock)
    return answer.get("device", "cpu")


def _wants_compiling(found: Mapping[str, Any], train: Train, steps: int) -> bool:
    """Whether the compiled step is still to be measured."""
    return (train.compile == "auto" and found["compiled"] is None
            and (found["mode"].device == "cuda" or steps > SHORT))


def _decide(found: Mapping[str, Any], train: Train, steps: int) -> Mode:
    """The mode for a run of so many steps by what was measured."""
    best, seconds, compiled = found["mode"], found["seconds"], found["compiled"]
    reason = f"{best.precision}, {best.layout}" + (f", {seconds:.2f} s a step" if seconds else "")
    if best.instructions == SAFE and not os.environ.get(LIMIT):
        reason += f", instruction sets limited to {best.instructions} because more crashes here"
    elif best.instructions:
        reason += f", instruction sets limited to {best.instructions}"
    if train.compile != "auto":
        return _stamped(best, reason + ("; compiled" if best.compile else ""))
    if compiled is None or (best.device != "cuda" and steps <= SHORT):
        return _stamped(best, f"{reason}; not compiled (only {steps} steps)")
    if "fails" in compiled:
        return _stamped(best, f"{reason}; not compiled (it fails here: {compiled['fails'][:120]})")
    gain = seconds - compiled["seconds"]
    if steps * gain > compiled["first"]:
        return _stamped(replace(best, compile=True), f"{reason}; {compiled['seconds']:.2f} s compiled")
    when = f"it pays from {int(compiled['first'] / gain) + 1} steps on" if gain > 0 else "no gain"
    return _stamped(best, f"{reason}; not compiled ({when})")


def _stamped(mode: Mode, reason: str) -> Mode:
    return replace(mode, reason=reason, **surroundings())


def _try(work: Mapping[str, Any], mode: Mode, deadline: float,
         lock: int | None = None) -> tuple[dict[str, Any], int, str]:
    """What the child answered, its exit code (negative for a signal) and the last line of its error."""
    environment = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        environment.pop(name, None)
    if mode.instructions:
        environment[LIMIT] = mode.instructions
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    patience = min(PATIENCE, deadline - time.monotonic())
    if patience <= 0:
        return {}, LATE, "no time was left to try it"
    try:
        done = subprocess.run([sys.executable, "-m", "emcore.engine.mode"], input=json.dumps([work, asdict(mode)]),
                              capture_output=True, text=True, timeout=patience, env=environment,
                              pass_fds=[] if lock is None else [lock])
    except subprocess.TimeoutExpired:
        return {}, LATE, f"took more than {patience:.0f} s"
    if done.returncode < 0:
        return {}, done.returncode, f"killed by signal {-done.returncode}"
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


def end_with_parent() -> None:
    """Has Linux kill this process with the one that started it: a run that is killed leaves no measurement behind."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


def child() -> None:
    """Takes one step after another as the parent asks and prints the seconds."""
    end_with_parent()
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
    device = torch.device(mode.device)
    # of masked pretraining the transformer alone: its arithmetic is that of the linear head
    model = from_table(Model, work["model"] | ({"name": "linear_head"} if work["masked"] else {}), "model")
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
    keep_pages(mode.device)  # only now: pages of the plain step would stay beside those of the compiled one
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
