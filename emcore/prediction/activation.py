"""From logits to values, each by itself: the same bits wherever a voxel lies, and whatever is computed beside it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from emcore.errors import InputError
from emcore.settings.predict import Infer

# On a processor the last values of an array, which do not fill its vector registers, are computed by other
# instructions, and where the parts of its threads end there are more of them. Pieces of this length have none.
PIECE = 2**14


def activate(logits: Tensor, activations: Sequence[tuple[slice, str]]) -> Tensor:
    """Values of (n, c, ...) logits; activations: channels and what turns them into values."""
    out = logits.clone()
    for channels, kind in activations:
        part = logits[:, channels]
        if kind == "sigmoid":
            out[:, channels] = in_pieces(torch.sigmoid, part.reshape(1, -1)).view(part.shape)
        elif kind == "tanh":
            out[:, channels] = in_pieces(torch.tanh, part.reshape(1, -1)).view(part.shape)
        elif kind == "softmax":
            moved = part.movedim(1, 0)
            values = in_pieces(softmax, moved.reshape(len(moved), -1))
            out[:, channels] = values.view(moved.shape).movedim(0, 1)
    return out


def check_vector(infer: Infer, name: str) -> None:
    """Refuses to write vectors in nm of a volume without a resolution, as the file would say that a voxel has 1 nm."""
    if any(one.kind == "vector" for one in infer.activation):
        raise InputError(f"infer.activation has vectors, which are in nm, but {name} does not say its resolution: set "
                         "data.resolution")


def in_pieces(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A function of (channel, voxel) values; on a processor of full pieces, the last one filled up with zeros."""
    if values.device.type != "cpu":
        return function(values)
    out = torch.empty(values.shape, dtype=values.dtype)
    for start in range(0, values.shape[1], PIECE):
        piece = values[:, start:start + PIECE]
        length = piece.shape[1]
        full = piece.contiguous() if length == PIECE else torch.nn.functional.pad(piece, (0, PIECE - length))
        out[:, start:start + length] = function(full)[:, :length]
    return out


def softmax(values: Tensor) -> Tensor:
    """The softmax of (channel, voxel) logits; it runs on one thread, as torch would cut even a short piece anywhere."""
    threads = torch.get_num_threads()
    if values.device.type != "cpu" or threads == 1:
        return values.softmax(0)
    torch.set_num_threads(1)
    try:
        return values.softmax(0)
    finally:
        torch.set_num_threads(threads)
