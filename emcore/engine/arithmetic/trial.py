"""The child process of probe.py: it takes the steps that the parent asks for on stdin, and prints their seconds."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from emcore.config import from_table
from emcore.engine.arithmetic.mode import Mode
from emcore.settings.model import Model
from emcore.system import end_with_parent

MOST, ENOUGH = 4, 60.0  # steps, and seconds of them; the first may have compiled for minutes, what counts is the next


def answer(work: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
    """The seconds of the step of a net: the first, and the fastest of the next."""
    import torch  # only now, when this process is sure to end with its parent

    from emcore.engine.arithmetic.net import autocast, has_mps, place, seconds_of
    from emcore.engine.memory import keep_pages
    from emcore.models.build import build_model

    if work.get("question") == "device":
        return {"device": "cuda" if torch.cuda.is_available() else "mps" if has_mps() else "cpu"}
    device = torch.device(mode.device)
    # masked pretraining tries the transformer alone: its arithmetic is that of the linear head
    model = from_table(Model, work["model"] | ({"name": "linear_head"} if work["masked"] else {}), "model")
    net = build_model(model, tuple(work["patch"])).to(device).train()
    image = torch.rand(work["samples"], model.in_channels, *work["patch"], device=device)

    def step(net) -> None:
        with autocast(mode.precision, mode.device):
            out = net(image)
        out = [out] if not isinstance(out, dict) else list(out.values())
        sum(value.float().square().mean() for value in out).backward()

    plain: list[float] = []
    if mode.compile:
        step(place(net, replace(mode, compile=False)))
        plain = gradient_lengths(net)
        net.zero_grad(set_to_none=True)
    keep_pages(mode.device)  # only now: pages of the plain step would stay beside those of the compiled one
    placed = place(net, mode)

    def check() -> None:
        if mode.compile and (wrong := wrong_gradients(plain, gradient_lengths(net))):
            sys.exit(f"{wrong} of {len(plain)} gradients of the compiled step are wrong")
        net.zero_grad(set_to_none=True)

    first, seconds = seconds_of(lambda: step(placed), mode.device, MOST, ENOUGH, check)
    return {"first": first, "seconds": seconds}


def gradient_lengths(net) -> list[float]:
    """Those of biases are left out: before a norm they are rounding alone."""
    return [0.0 if weight.grad is None else float(weight.grad.float().norm())
            for weight in net.parameters() if weight.dim() > 1]


def wrong_gradients(plain: Sequence[float], compiled: Sequence[float]) -> int:
    """How many weights have a gradient ten times shorter or longer in the compiled step, those of mere rounding aside.

    torch 2.13 leaves most gradients of an RSUNet in bf16 at zero on a CPU when it compiles; the loss still falls.
    """
    noise = 1e-3 * max(plain, default=0.0)
    return sum(a > noise and not a / 10 < b < 10 * a for a, b in zip(plain, compiled))


if __name__ == "__main__":
    end_with_parent()
    asked = json.loads(sys.stdin.read())
    print(json.dumps(answer(asked[0], Mode(**asked[1]))))
