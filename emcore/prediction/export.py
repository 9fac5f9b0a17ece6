"""A trained net as one file that torch.export.load reads in a program without emcore's model code."""

import json
from pathlib import Path

import torch
from torch import nn

from emcore.errors import InputError
from emcore.files import replaced, reported

NOTES = "emcore.json"  # the extra file inside that says how to use the net


def export_model(model: nn.Module, path: Path, window: tuple[int, int, int], channels: int, notes: dict) -> Path:
    """Writes the net for windows of one size and any batch; what was written is compared with the net first."""
    if path.suffix != ".pt2":
        raise InputError(f"an exported net is a .pt2 file (or .pt: the weights alone); got {path.name}")
    model = model.cpu().eval()
    image = torch.rand(2, channels, *window)
    with torch.no_grad():
        batch = {0: torch.export.Dim("batch", min=1, max=4096)}
        program = torch.export.export(model, (image,), dynamic_shapes=(batch,), strict=False)
    with replaced(path) as temporary:
        with reported(path), open(temporary, "xb") as file:
            torch.export.save(program, file, extra_files={NOTES: json.dumps({"window": list(window), **notes})})
        with open(temporary, "rb") as file:
            again = torch.export.load(file).module()
        image = torch.rand(3, channels, *window)
        with torch.no_grad():
            ours, theirs = model(image), again(image)
        for one, other in zip(*(list(out.values()) if isinstance(out, dict) else [out] for out in (ours, theirs))):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    return path


def load_exported(path: str | Path) -> tuple[nn.Module, dict]:
    """The net of an exported file and its notes; needs torch and nothing of emcore.models."""
    extra = {NOTES: ""}
    program = torch.export.load(str(path), extra_files=extra)
    return program.module(), json.loads(extra[NOTES] or "{}")
