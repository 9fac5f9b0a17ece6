"""python -m emcore import-checkpoint last.ckpt -o ours.pt --cfg X.toml: the RSUNet of a Lightning file.

Nothing of the file is run: torch's safe loader reads it, and for objects that are no tensors (configs, paths) an inert
stand-in takes the place of their class.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from emcore import config
from emcore.engine import checkpoint
from emcore.errors import InputError
from emcore.models.build import build_model
from emcore.settings import Settings
from emcore.settings.model import RSUNetModel

PREFIXES = ("model.", "module.", "_orig_mod.", "net.")
# inside a block of convolutions: its name there, its name here
BLOCK = (("pre.0.norm.", "pre.0."), ("pre.0.act.", "pre.1."), ("pre.1.", "pre.2."),
         ("res.norm_act1.norm.", "residual.0.0."), ("res.norm_act1.act.", "residual.0.1."),
         ("res.conv1.", "residual.0.2."), ("res.norm_act2.norm.", "residual.1.0."),
         ("res.norm_act2.act.", "residual.1.1."), ("res.conv2.", "residual.1.2."), ("post.0.norm.", "post.0."),
         ("post.0.act.", "post.1."), ("post.1.", "post.2."))
ENDS = (("final_norm.norm.", "tail.0."), ("final_norm.act.", "tail.1."), ("output_head.", "tail.2."),
        ("ds_heads.", "supervised."))


class Inert:
    """Stands for an object of a class that is not looked at."""

    def __init__(self, *_: Any, **__: Any):
        """Takes any arguments and keeps none."""

    def __setstate__(self, _: Any) -> None:
        """Takes any state and keeps none."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore import-checkpoint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="the Lightning file")
    parser.add_argument("-o", "--out", required=True, help="file to write, such as ours.pt")
    parser.add_argument("--cfg", required=True, help="TOML file with the [model] of the net, as of import-config")
    options = parser.parse_args(arguments)
    settings = config.load(Settings, options.cfg)
    content = import_checkpoint(options.checkpoint, settings)
    checkpoint.save(Path(options.out), content)
    averaged = f"averaged over {content['ema']['updates']} updates" if content["ema"] else "without averaged weights"
    print(f"{options.out}: {len(content['model'])} tensors of step {content['step']}, {averaged}")
    return 0


def import_checkpoint(path: str | Path, settings: Settings) -> dict[str, Any]:
    """Our checkpoint: model, ema, step and config."""
    if not isinstance(settings.model, RSUNetModel):
        raise InputError(f"import-checkpoint knows the key names of RSUNet alone; model.name is {settings.model.name}")
    sizes = settings.model.rsunet
    if sizes.up != "bilinear_yx" and any(factor[0] != 1 for factor in sizes.down):
        raise InputError(f"model.rsunet.down has a factor along z, where the published net of {path} adds sections up: "
                         f"set model.rsunet.up = \"bilinear_yx\"; it is {sizes.up}")
    content = checkpoint.read(path, stand_in=Inert)
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise InputError(f"{path} is no Lightning checkpoint: it has no state_dict; it has {_first(content)}")
    levels = len(settings.model.rsunet.width)
    net = build_model(settings.model, settings.data.patch)
    own = net.state_dict()
    with checkpoint.refused(path, "is no Lightning checkpoint"):
        weights = matched(translated(state, levels), own, f"{path}")
        average = None
        found = averaged_of(content.get("callbacks"))
        if found is not None:
            shadow, updates = found
            shadow = {**weights, **translated(shadow, levels)}
            average = {"updates": updates, "weights": matched(shadow, own, f"the averaged weights of {path}")}
    step = content.get("global_step", 0)
    return {"step": step if isinstance(step, int) else 0, "model": weights, "ema": average, "optimizer": None,
            "config": config.to_table(settings)}


def averaged_of(callbacks: Any) -> tuple[dict[str, Tensor], int] | None:
    """The averaged weights in the state of a callback whose name has EMA in it, and how often they were updated."""
    for name, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if "ema" not in str(name).lower() or not isinstance(state, Mapping):
            continue
        tables = [value for value in (state, *state.values()) if isinstance(value, Mapping)
                  and sum(isinstance(item, Tensor) for item in value.values()) > 1]
        if tables:
            updates = [value for key, value in state.items() if "update" in str(key) and isinstance(value, int)]
            tensors = {str(key): value for key, value in tables[0].items() if isinstance(value, Tensor)}
            return tensors, updates[0] if updates else 0
    return None


def translated(state: Mapping[str, Any], levels: int) -> dict[str, Tensor]:
    """Weights under our names; what has no name here keeps its own, without the wrappers' prefixes."""
    out = {}
    for name, value in state.items():
        name = str(name)
        while name.startswith(PREFIXES):
            name = name.split(".", 1)[1]
        if isinstance(value, Tensor) and not re.match(r"up_blocks\.\d+\.up\.", name):  # the fixed bilinear kernel
            out[our_name(name, levels)] = value
    return out


def our_name(name: str, levels: int) -> str:
    """A parameter of the published RSUNet as ours calls it."""
    for theirs, ours in ENDS:
        if name.startswith(theirs):
            return ours + name[len(theirs):]
    match = re.fullmatch(r"(?:input_conv|(down|up)_blocks\.(\d+)\.(conv|proj))\.(.*)", name)
    if not match:
        return name
    side, number, part, rest = match.groups()
    level = int(number or 0)
    if side is None:
        place = "encoder.0"
    elif side == "down":
        place = f"encoder.{level + 1}"
    else:  # the published decoder counts from the deepest level
        place = f"{'lateral' if part == 'proj' else 'decoder'}.{levels - 2 - level}"
    for theirs, ours in BLOCK:
        if rest.startswith(theirs):
            return f"{place}.{ours}{rest[len(theirs):]}"
    return f"{place}.{rest}"


def matched(state: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensors of our net, all of them, or the first that differ."""
    state = dict(state)
    for name, value in own.items():
        # their instance norm has no scale and shift: 1 and 0, as ours begins
        if name not in state and value.dim() == 1 and name.endswith((".0.weight", ".0.bias")) and not any(
                other.endswith("running_mean") for other in own):
            state[name] = value
    differ = [f"{name} is missing" for name in own if name not in state]
    differ += [f"{name} is not of this net" for name in state if name not in own]
    differ += [f"{name} {tuple(state[name].shape)} against {tuple(own[name].shape)}" for name in own
               if name in state and state[name].shape != own[name].shape]
    if differ:
        raise InputError(f"{what} belongs to another net than [model] of the config: {len(differ)} tensors differ, "
                         f"first {', '.join(differ[:5])}")
    return {name: state[name].detach().clone().contiguous() for name in own}


def _first(content: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(content)[:5])) or "nothing"
