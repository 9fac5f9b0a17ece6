"""How fast arithmetic is chosen: precision, memory layout, compilation, by trying the real step in child processes.

Some builds of torch crash the whole process in bf16 convolutions on some processors (their weight gradients, for many
shapes), and which layout is fastest depends on the machine. So each candidate runs the step of this net at this size
once in a child (trial.py); one that dies is passed over. What was measured is kept for new runs, by everything that
changes it. verdict.py keeps the choice of a run.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emcore.cache import cache_folder
from emcore.config import from_table, to_table
from emcore.engine.arithmetic.machine import LIMIT, graphics, multiplies_bf16, surroundings
from emcore.engine.arithmetic.mode import Mode
from emcore.errors import InputError
from emcore.files import machine, write_text
from emcore.locks import take
from emcore.settings.model import Model
from emcore.settings.train import Train

ROOT = Path(__file__).resolve().parents[3]  # the folder of the package emcore
SAFE = "AVX512_CORE_BF16"  # the instruction sets up to this one have not been seen to crash
PATIENCE = 240.0  # seconds for one candidate
BUDGET = 600.0  # seconds for all of them
LATE = 124  # the code of a child that was ended because it took too long: it may be sound
SHORT = 200  # steps of a run on a CPU that is too short to try the compiler for


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


# ---- what is known already


def _store(work: Mapping[str, Any], train: Train, device: str) -> Path | None:
    """The file of what was measured for the same step with the same settings on the same hardware and software."""
    folder = cache_folder("modes")
    if folder is None:
        return None
    wanted = {"precision": train.precision, "layout": train.layout, "compile": train.compile, "device": device}
    here = [surroundings(), os.environ.get(LIMIT), graphics(), _nets()]
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


def _nets() -> str:
    """What changes with the code of the nets."""
    files = sorted((ROOT / "emcore" / "models").glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# ---- what is measured


def candidates(train: Train, device: str) -> list[Mode]:
    """What to try, likely best first."""
    layouts = ["channels_last", "contiguous"] if train.layout == "auto" else [train.layout]
    if device == "cuda":
        precision = "bf16" if train.precision == "auto" else train.precision
        return [Mode(device, precision, layout, train.compile == "on") for layout in layouts]
    if device == "mps":  # plain, unless somebody asks for more
        precision, layout = ("fp32" if train.precision == "auto" else train.precision), layouts[-1]
        return [Mode(device, precision, layout, train.compile == "on")]
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
    return len(modes) == 1 and modes[0].precision == "fp32" and (train.compile == "off" or (
        train.compile == "auto" and modes[0].device == "mps"))


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
    return (train.compile == "auto" and found["compiled"] is None and found["mode"].device != "mps"
            and (found["mode"].device == "cuda" or steps > SHORT))


def _decide(found: Mapping[str, Any], train: Train, steps: int) -> Mode:
    """The mode for a run of so many steps by what was measured."""
    best, seconds, compiled = found["mode"], found["seconds"], found["compiled"]
    reason = f"{best.precision}, {best.layout}" + (f", {seconds:.2f} s a step" if seconds else "")
    if best.instructions == SAFE and not os.environ.get(LIMIT):
        reason += f", instruction sets limited to {best.instructions} because more crashes here"
    elif best.instructions:
        reason += f", instruction sets limited to {best.instructions}"
    if train.compile != "auto" or best.device == "mps":
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
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    patience = min(PATIENCE, deadline - time.monotonic())
    if patience <= 0:
        return {}, LATE, "no time was left to try it"
    try:
        done = subprocess.run([sys.executable, "-m", "emcore.engine.arithmetic.trial"],
                              input=json.dumps([work, asdict(mode)]), capture_output=True, text=True, timeout=patience,
                              env=environment, pass_fds=[] if lock is None else [lock])
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
