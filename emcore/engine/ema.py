"""A moving average of the weights, kept on the bare module."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from emcore.errors import InputError
from emcore.settings.train import Ema


class MovingAverage:
    """decay * average + (1 - decay) * weights after every step; a copy during warm-up; buffers are always copied."""

    def __init__(self, net: nn.Module, ema: Ema):
        self.decay, self.warmup, self.updates = ema.decay, ema.warmup, 0
        self.weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
        self.learned = {name for name, _ in net.named_parameters()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        self.updates += 1
        state = net.state_dict()
        warm = self.updates > self.warmup
        averaged = [name for name in self.weights if warm and name in self.learned]
        copied = [name for name in self.weights if not (warm and name in self.learned)]
        # all tensors of a list at once: on a GPU that is a handful of kernels, whatever the number of tensors
        if averaged:
            torch._foreach_lerp_([self.weights[name] for name in averaged], [state[name] for name in averaged],
                                 1 - self.decay)
        if copied:
            torch._foreach_copy_([self.weights[name] for name in copied], [state[name] for name in copied])

    @contextmanager
    def swapped(self, net: nn.Module):
        """The net with the averaged weights, for the length of a with block."""
        kept = {name: value.detach().clone() for name, value in net.state_dict().items()}
        net.load_state_dict(self.weights)
        try:
            yield net
        finally:
            net.load_state_dict(kept)

    def state(self) -> dict[str, Tensor | int]:
        return {"updates": self.updates, "weights": self.weights}

    def load(self, state: dict) -> None:
        theirs = state["weights"]
        differ = sorted(self.weights.keys() ^ theirs.keys()) or [
            name for name, value in self.weights.items() if value.shape != theirs[name].shape]
        if differ:
            raise InputError(f"the moving average of the checkpoint is of another net; {len(differ)} tensors differ, "
                             f"first {', '.join(differ[:5])}")
        self.updates = int(state["updates"])
        for name, value in self.weights.items():
            value.copy_(theirs[name])
