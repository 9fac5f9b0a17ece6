"""Label files as the score commands take them: (z, y, x), which may be the only channel of what is stored."""

from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.volumes import Volume, check_labels, open_path, open_volume, split_reference
from emcore.volumes.address import is_address


def open_labels(reference: Any, side: str) -> Volume:
    """Labels as (z, y, x), which may be the only channel of what is stored."""
    path = isinstance(reference, str | PathLike) and not is_address(reference)
    volume = open_path(*split_reference(reference), "labels") if path else open_volume(reference)
    return check_labels(one_channel(volume, side))


@dataclass(frozen=True)
class OnlyChannel:
    """The voxels of a volume of one channel."""

    volume: Volume

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return self.volume[(0, *box)]


def one_channel(volume: Volume, side: str) -> Volume:
    """The volume as (z, y, x); what has several channels is refused."""
    if volume.ndim == 3:
        return volume
    if volume.ndim != 4 or volume.shape[0] != 1:
        raise InputError(f"the {side} {volume.name} has the shape {volume.shape}; score takes (z, y, x), or one "
                         "channel (1, z, y, x)")
    return replace(volume, shape=volume.shape[1:], chunks=volume.chunks and volume.chunks[1:],
                   connect=partial(OnlyChannel, volume))


def described(volume: Volume) -> dict[str, Any]:
    return {"name": volume.name, "shape": list(volume.shape), "dtype": str(volume.dtype),
            "resolution": volume.resolution, "offset": volume.offset}


def listed(result: dict[str, Any], compared: str, meanings: dict[str, str], *more: str) -> list[str]:
    """Lines of what was compared, and of each score and what it is, with its convention where there are several."""
    lines = [*sides(result), f"compared   {compared}", ""]
    several = len({entry["convention"] for entry in result["scores"]}) > 1
    for entry in result["scores"]:
        value, rule = entry["value"], f" ({entry['convention']})" if several else ""
        shown = "undefined" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)
        lines.append(f"{entry['score']:<25}{shown:>12}  {meanings[entry['score']]}{rule}")
    return [*lines, *more, *([""] if result["notes"] else []), *result["notes"]]


def sides(result: dict[str, Any]) -> list[str]:
    """What was compared with what."""
    return [f"{side:<11}{result[side]['name']}" + (f"  {tuple(result[side]['shape'])} {result[side]['dtype']}"
                                                   if "shape" in result[side] else "")
            for side in ("prediction", "truth")]
