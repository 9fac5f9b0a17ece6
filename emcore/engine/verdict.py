"""The arithmetic of a run: one rank decides it, all take it, the run folder keeps it, and a resume takes it from there.

Nothing here imports torch before the verdict, except to tell it to other ranks: see mode.py.
"""

import json
import os
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from emcore.config import from_table
from emcore.engine.mode import (
    LIMIT,
    Mode,
    apply_mode,
    choose_mode,
    multiplies_bf16,
    processor,
    remembered_mode,
    work_of,
)
from emcore.errors import InputError
from emcore.files import write_text
from emcore.settings import Settings

FILE = "arithmetic.json"


def agree(settings: Settings) -> Mode:
    """The mode in which every rank of this start computes; its limit of instruction sets is put to work."""
    folder = Path(settings.outputs) / settings.name
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        mode = settle(settings, folder)
    else:
        from emcore.engine import ranks

        mode = from_table(Mode, ranks.from_lead(lambda: asdict(settle(settings, folder))))
    apply_mode(mode)
    comply(mode, settings, f"as {folder / FILE} says" if os.environ.get("RANK", "0") == "0" else "as rank 0 decided")
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


def settle(settings: Settings, folder: Path) -> Mode:
    """The mode of a new run is chosen; a run that has checkpoints goes on as it was computed, unless it is told not to.

    What is unusual about it is printed.
    """
    train, device = settings.train, settings.device
    world = int(os.environ.get("WORLD_SIZE", "1"))
    samples = max(1, train.batch // (world * train.accumulate))
    work = work_of(settings.model, settings.data.patch, samples, settings.pretrain is not None)
    if not any((folder / "checkpoints").glob("step_*.pt")):
        return choose_mode(work, train, device, train.steps)
    before = stored(folder)
    if before is None:
        print(f"{folder} does not say in which arithmetic it was computed: its precision and layout are chosen now, "
              "and kept from now on", flush=True)
        return choose_mode(work, train, device, train.steps)
    changed = changes(settings, before)
    if not changed:
        print_differences(before, remembered_mode(work, train, device, train.steps), folder)
        return before
    if device in ("auto", before.device):  # what is not told to change stays
        device = before.device
        train = replace(train, layout=before.layout if train.layout == "auto" else train.layout,
                        precision=before.precision if train.precision == "auto" else train.precision,
                        compile="off" if train.compile == "auto" and not before.compile else train.compile)
    mode = choose_mode(work, train, device, train.steps)
    print(f"{', '.join(changed)}: the run goes on in {told(mode)}; so far it was computed in {told(before)}",
          flush=True)
    return mode


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
    if now is not None and told(now) != told(before):
        print(f"{folder} goes on in {told(before)} as it began; this machine would now choose {told(now)}", flush=True)
    here = {"torch": version("torch"), "processor": processor()}
    other = [f"{name} {value or '?'} instead of {was or '?'}" for name, value in here.items()
             if (was := getattr(before, name)) != value and not (name == "processor" and before.device == "cuda")]
    if other:
        print(f"{folder} was begun elsewhere: here is {', '.join(other)}, so its last bits may differ from those of a "
              "run that stayed there", flush=True)


def told(mode: Mode) -> str:
    """One mode in words."""
    return (f"{mode.precision}, {mode.layout}, {'compiled' if mode.compile else 'not compiled'} on {mode.device}"
            + (f", {LIMIT} = {mode.instructions}" if mode.instructions else ""))


def comply(mode: Mode, settings: Settings, source: str) -> None:
    """Stops a process that cannot compute in the mode of the run."""
    import torch

    decided = f"this run computes in {told(mode)}, {source}, but here"
    if mode.device == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{decided} torch {torch.__version__} finds no usable GPU: start it where there is one, or "
                         "set device=cpu for all its processes")
    if mode.device == "cpu" and os.environ.get(LIMIT, "") != mode.instructions:
        raise InputError(f"{decided} {LIMIT} is {os.environ.get(LIMIT)}: unset it, or set it for all processes")
    bf16 = mode.device == "cpu" and mode.precision == "bf16"
    if bf16 and settings.train.precision == "auto" and not multiplies_bf16():
        raise InputError(f"{decided} is a processor without instructions for bf16 ({processor()}): start it where all "
                         "have them, or set train.precision to fp32 (or to bf16, which is slow here)")
    if mode.compile and (why := why_not_compiled(mode.device)):
        raise InputError(f"{decided} torch.compile fails ({why}): install a compiler, or set train.compile=off for all "
                         "its processes")


def why_not_compiled(device: str) -> str:
    """The error of the compiler at a tiny step, empty where it works."""
    import torch

    tiny = torch.compile(lambda x: (x * 2 + 1).relu().sum(), options={"force_disable_caches": True})
    try:
        tiny(torch.ones(64, device=device, requires_grad=True)).backward()
    except Exception as error:  # no compiler, or one that stumbles: of any kind
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return ""
