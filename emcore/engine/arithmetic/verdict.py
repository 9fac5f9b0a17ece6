"""The arithmetic of a run: one rank decides it, all take it, the run folder keeps it, and a resume takes it from there.

Nothing here imports torch before the verdict, except to tell it to other ranks.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from emcore.config import from_table
from emcore.engine.arithmetic.machine import LIMIT, check_device, multiplies_bf16, processor, surroundings
from emcore.engine.arithmetic.mode import Mode, apply_limit
from emcore.engine.arithmetic.probe import announce, choose_mode, remembered_mode, work_of
from emcore.errors import InputError
from emcore.files import write_text
from emcore.settings import Settings

FILE = "arithmetic.json"


def agree(settings: Settings) -> Mode:
    """The mode in which every rank of this start computes; its limit of instruction sets is put to work."""
    folder = Path(settings.outputs) / settings.name
    leads, several = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1")) > 1
    choose = settle(settings, folder) if leads else None
    if several:
        from emcore.engine import ranks  # imports torch, which takes a while: everything was said before

        mode = from_table(Mode, ranks.from_lead(choose and (lambda: asdict(choose()))))
    else:
        mode = choose()
    apply_limit(mode)
    comply(mode, settings, f"as {folder / FILE} says" if leads else "as rank 0 decided")
    return mode


def keep(folder: Path, mode: Mode) -> None:
    """Stores the mode of a run; the lead calls it when the run has its folder."""
    write_text(folder / FILE, json.dumps(asdict(mode), indent=1) + "\n")


def stored(folder: Path) -> Mode | None:
    """The mode in which a run was computed so far, if it says so."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return from_table(Mode, json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}, which says in which arithmetic the run was computed, cannot be read ({error}): "
                         "put it back from a copy, or remove it to have the arithmetic chosen anew") from None


def settle(settings: Settings, folder: Path) -> Callable[[], Mode]:
    """How to get the mode: chosen for a new run, kept for one that has checkpoints, unless it is told to change.

    What is unusual about it, or will take its time, is printed at once.
    """
    check_device(settings.device)
    train, device = settings.train, settings.device
    world = int(os.environ.get("WORLD_SIZE", "1"))
    samples = max(1, train.batch // (world * train.accumulate))
    work = work_of(settings.model, settings.data.patch, samples, settings.pretrain is not None)
    resumes = any((folder / "checkpoints").glob("step_*.pt"))
    before = stored(folder) if resumes else None
    changed = changes(settings, before) if before else []
    if before and not changed:
        print_differences(before, remembered_mode(work, train, device, train.steps), folder)
        return lambda: before
    if resumes and before is None:
        print(f"{folder} does not say in which arithmetic it was computed: precision and layout are chosen now, and "
              "kept from now on", flush=True)
    if changed:
        print(f"{folder} was computed in {before} so far; by {', '.join(changed)} it goes on otherwise",
              flush=True)
    if before and device in ("auto", before.device):  # what is not told to change stays
        device = before.device
        train = replace(train, layout=before.layout if train.layout == "auto" else train.layout,
                        precision=before.precision if train.precision == "auto" else train.precision,
                        compile="off" if train.compile == "auto" and not before.compile else train.compile)
    announce(work, train, device, train.steps)
    return partial(choose_mode, work, train, device, train.steps)


def changes(settings: Settings, before: Mode) -> list[str]:
    """The settings of this start that do not allow the mode in which the run was computed."""
    train, limit = settings.train, os.environ.get(LIMIT, "")
    found = [f"{key} = {value}" for key, value, was in (
        ("device", settings.device, before.device), ("train.precision", train.precision, before.precision),
        ("train.layout", train.layout, before.layout),
        ("train.compile", train.compile, "on" if before.compile else "off"),
    ) if value not in ("auto", was)]
    if before.device == "cpu" and limit not in ("", before.instructions):
        found.append(f"{LIMIT} = {limit}")
    return found


def print_differences(before: Mode, now: Mode | None, folder: Path) -> None:
    """What would be otherwise if this machine chose anew, as far as it is known without measuring."""
    if now is not None and str(now) != str(before):
        print(f"{folder} goes on in {before} as it began; this machine would now choose {now}", flush=True)
    other = [f"{name} {value or '?'} instead of {was or '?'}" for name, value in surroundings().items()
             if (was := getattr(before, name)) != value and (before.device == "cpu" or name == "torch")]
    if other:
        print(f"{folder} was begun under other conditions: here is {', '.join(other)}, so its last bits may differ "
              "from those of a run that went on under those", flush=True)


def comply(mode: Mode, settings: Settings, source: str) -> None:
    """Stops a process that cannot compute in the mode of the run."""
    import torch

    from emcore.engine.arithmetic.net import has_mps, why_not_compiled

    decided = f"this run computes in {mode}, {source}, but here"
    if mode.device == "cuda" and settings.device == "auto" and not torch.cuda.is_available():
        raise InputError(f"{decided} torch {torch.__version__} finds no usable GPU: start it where there is one, or "
                         "set device=cpu for all its processes")
    if mode.device == "mps" and settings.device == "auto" and not has_mps():
        raise InputError(f"{decided} torch {torch.__version__} finds no Apple GPU: start it where there is "
                         "one, or set device=cpu")
    if mode.device == "cpu" and os.environ.get(LIMIT, "") != mode.instructions:
        raise InputError(f"{decided} {LIMIT} is {os.environ.get(LIMIT)}: unset it, or set it for all processes")
    bf16 = mode.device == "cpu" and mode.precision == "bf16"
    if bf16 and settings.train.precision == "auto" and not multiplies_bf16():
        raise InputError(f"{decided} is a processor without instructions for bf16 ({processor()}): start it where all "
                         "have them, or set train.precision to fp32 (or to bf16, which is slow here)")
    if mode.compile and (why := why_not_compiled(mode.device)):
        raise InputError(f"{decided} torch.compile fails ({why}): install a compiler, or set train.compile=off for all "
                         "its processes")
