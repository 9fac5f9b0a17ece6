"""The scales of a volume that is opened through tensorstore, and which of them somebody means."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.volumes.address import Address
from emcore.volumes.metadata import Triple, shortened
from emcore.volumes.volume import KEYS

NANOMETRES = re.compile(r"(\d+(?:\.\d+)?)(?:x(\d+(?:\.\d+)?)x(\d+(?:\.\d+)?))?\s*nm")


class Level(NamedTuple):
    """One array, before it is opened."""

    name: str
    address: Address  # the folder that tensorstore opens
    driver: dict[str, Any]
    resolution: Triple | None
    offset: Triple
    attributes: dict[str, Any]
    drops_channels: bool = False  # the only channel is no axis of the volume
    axes: tuple[str, ...] = ()  # names that the metadata give them
    whole: bool = False  # its writer said that every chunk is there
    unrelated: bool = False  # to the other arrays of its group, which are no scales of one image

    def title(self) -> str:
        """How the volume is called in sentences."""
        return str(self.address._replace(scale=self.name if "scale_index" in self.driver else None))


def chosen(scales: Sequence[Level], wanted: Any, kind: str | None, title: str) -> Level:
    """The scale of that name, number or resolution; for None the finest, or the usual name of an array of that kind."""
    names = ", ".join(scale.name + (f" ({'x'.join(f'{size:g}' for size in scale.resolution)} nm)"
                                    if scale.resolution else "") for scale in scales[:20])
    if not scales:
        raise InputError(f"{title} is a group that does not say what is in it; name an array below it")
    if wanted is None:
        return finest(scales, kind, title, names)
    found = [scale for scale in scales if scale.name == wanted]
    number = int(wanted) if isinstance(wanted, str) and re.fullmatch(r"\d{1,4}", wanted) else wanted
    if not found and isinstance(number, int | np.integer) and not isinstance(number, bool):
        found = list(scales[number:number + 1]) if number >= 0 else []
    elif not found and (sizes := nanometres(wanted)):
        found = [scale for scale in scales if scale.resolution and np.allclose(
            scale.resolution[-len(sizes):], sizes, rtol=0.01)]
    if not found:
        raise InputError(f"{title} has no scale {shortened(str(wanted))}; it has: {names}. A scale is its name, its "
                         "number from 0, or nm: of a voxel along y and x, or along z, y and x")
    return found[0]


def nanometres(wanted: Any) -> tuple[float, ...] | None:
    """The voxel that is meant, along y and x or along z, y and x."""
    if isinstance(wanted, str):
        match = NANOMETRES.fullmatch(wanted.strip())
        wanted = [float(size) for size in match.groups() if size] if match else None
    sizes = [wanted] if isinstance(wanted, float) else list(wanted or ())
    if not all(isinstance(size, int | float) and math.isfinite(size) for size in sizes):
        return None
    return tuple(sizes * 2) if len(sizes) == 1 else tuple(sizes) if len(sizes) == 3 else None


def finest(scales: Sequence[Level], kind: str | None, title: str, names: str) -> Level:
    if scales[0].unrelated and len(scales) > 1:
        usual = next((scale for key in KEYS[kind] for scale in scales if scale.name == key), None)
        if usual is None:
            raise InputError(f"{title} holds several volumes, name one by its address; it has: {names}")
        return usual
    known = [scale for scale in scales if scale.resolution]
    return min(known, key=lambda scale: math.prod(scale.resolution)) if len(known) == len(scales) else scales[0]
