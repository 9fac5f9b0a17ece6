"""Resolution and offset (nm; z, y, x) in every spelling in use, and attributes as plain Python values."""

import json
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from emcore.errors import InputError

Triple = tuple[float, float, float]

NANOMETRES = {
    "pm": 1e-3, "picometer": 1e-3, "å": 0.1, "angstrom": 0.1, "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "\\u00b5m": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3,
    "micrometre": 1e3, "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "cm": 1e7, "centimeter": 1e7,
    "centimetre": 1e7, "m": 1e9, "meter": 1e9, "metre": 1e9, "inch": 2.54e7,
}  # fmt: skip
DEEPEST = 50  # levels of lists and tables in an attribute
# The attributes that say where voxels lie; read here, and never passed on beside the two that we write.
GRID_NAMES = ("resolution", "voxel_size", "pixelResolution", "element_size_um", "offset", "units", "unit")


def plain(value: Any, depth: int = 0) -> Any:
    """An attribute of HDF5, zarr or TIFF as Python numbers, strings, lists and dicts (numpy-free, JSON-able)."""
    if depth > DEEPEST:
        raise InputError(f"an attribute is nested deeper than {DEEPEST} levels, which no volume needs")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        if value[:1] in ("{", "["):  # a dict has no other way into an HDF5 attribute
            try:
                return bounded(json.loads(value), 0)
            except (ValueError, RecursionError):
                return value
        return value
    if isinstance(value, np.ndarray):
        return [plain(item, depth + 1) for item in value.tolist()] if value.ndim else plain(value.item(), depth + 1)
    if isinstance(value, np.generic):
        return plain(value.item(), depth + 1)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def bounded(value: Any, depth: int) -> Any:
    """What JSON gave; a ValueError where it is nested too deep to be passed on."""
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        bounded(item, depth + 1)
    return value


def nanometres(unit: Any) -> float | None:
    """How many nm the named unit is; None for pixels and anything unknown."""
    return NANOMETRES.get(str(unit).strip().lower())


def triple(value: Any, what: str, positive: bool = False) -> Triple:
    """Three finite numbers z, y, x from a list of three, a number for all axes, or four with the channel first."""
    numbers_given = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value] * 3
    if len(numbers_given) == 4:
        numbers_given = numbers_given[1:]
    valid = len(numbers_given) == 3 and all(
        is_finite(item) and (float(item) > 0 or not positive) for item in numbers_given
    )
    if not valid:
        kind = "positive numbers" if positive else "numbers"
        raise InputError(f"{what} must be three {kind} in nm (z, y, x); got {shortened(repr(value))}")
    z, y, x = (float(item) for item in numbers_given)
    return z, y, x


def is_finite(item: Any) -> bool:
    """Whether a number of any kind is one that a float can hold."""
    try:
        return isinstance(item, numbers.Real) and math.isfinite(float(item))
    except OverflowError:
        return False


def shortened(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def scaled(stored: Triple, factors: Iterable[float], what: str, positive: bool = False) -> Triple:
    """Three numbers in nm; a unit may carry them beyond what a float holds."""
    return triple([value * factor for value, factor in zip(stored, factors)], what, positive)


def unit_factors(attributes: Mapping[str, Any]) -> list[float]:
    """nm per unit of the three axes, from `units` or `unit` beside a resolution; nm where nothing is said."""
    units = attributes.get("units", attributes.get("unit"))
    units = units if isinstance(units, list) else [units] * 3
    return [nanometres(unit) or 1.0 for unit in units[-3:]] if len(units) >= 3 else [1.0] * 3


def read_grid(levels: Iterable[Mapping[str, Any]], name: str) -> tuple[Triple | None, Triple]:
    """Resolution (None where not found) and offset of a volume, from its own plain attributes, then its parents'.

    pixelResolution is written by n5 tools in the order x, y, z; all the others are z, y, x.
    """
    resolution = offset = None
    for attributes in levels:
        factors = unit_factors(attributes)
        for key in ("resolution", "voxel_size"):
            if resolution is None and attributes.get(key) is not None:
                what = f"the attribute {key} of {name}"
                resolution = scaled(triple(attributes[key], what, positive=True), factors, what, positive=True)
        if resolution is None and attributes.get("element_size_um") is not None:
            what = f"the attribute element_size_um of {name}"
            resolution = scaled(triple(attributes["element_size_um"], what, positive=True), [1e3] * 3, what, True)
        if resolution is None and attributes.get("pixelResolution") is not None:
            stored = attributes["pixelResolution"]
            factor = 1.0
            if isinstance(stored, Mapping):
                factor = nanometres(stored.get("unit", "nm")) or 1.0
                stored = stored.get("dimensions")
            what = f"the attribute pixelResolution of {name}"
            stored = triple(stored, what, positive=True)
            resolution = scaled(stored[::-1], [factor] * 3, what, positive=True)
        if offset is None and attributes.get("offset") is not None:
            what = f"the attribute offset of {name}"
            offset = scaled(triple(attributes["offset"], what), factors, what)
    return resolution, offset or (0.0, 0.0, 0.0)


def ome_grid(
    title: str, scales: dict[str, Any] | None, level: dict[str, Any] | None, ndim: int
) -> tuple[list[str], dict[str, Any]]:
    """The names of the axes (none outside OME-Zarr), and resolution and offset in nm from scale and translation."""
    if scales is None or level is None:
        return [], {}
    axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in scales.get("axes", [])]
    names = [str(axis["name"]) for axis in axes]
    if names and (names[-3:] != ["z", "y", "x"] or len(names) != ndim):
        raise InputError(f"{title} has the axes {', '.join(names)}; the last three of a volume are z, y, x")
    scale, translation = transformed(scales, level, ndim)
    units = [axis.get("unit") for axis in axes[-3:]]
    finest = transformed(scales, scales["datasets"][0], ndim)[0]
    if not any(units) and (finest[-3:] == 1).all():
        return names, {}  # neither a unit nor a number: the writer did not know
    factors = [nanometres(unit) or 1.0 for unit in units or [None] * 3]
    return names, {"resolution": (scale[-3:] * factors).tolist(), "offset": (translation[-3:] * factors).tolist()}


def transformed(scales: dict[str, Any], level: dict[str, Any], ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """The scale and the translation of a level: its own transformations come first, then those of the whole image."""
    scale, translation = np.ones(ndim), np.zeros(ndim)
    for step in [*level.get("coordinateTransformations", []), *scales.get("coordinateTransformations", [])]:
        if step.get("type") == "scale":
            scale, translation = scale * step["scale"], translation * step["scale"]
        elif step.get("type") == "translation":
            translation = translation + step["translation"]
    return scale, translation


def is_whole(attributes: Mapping[str, Any]) -> bool:
    """Whether the attributes, which ome_zarr.py wrote, say that every chunk is there."""
    ours = attributes.get("emcore")
    return isinstance(ours, dict) and ours.get("whole") is True


def without_grid(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that say something other than where the voxels lie."""
    dropped = {*GRID_NAMES, "emcore"} if is_whole(attributes) else GRID_NAMES  # a copy may leave chunks out
    return {key: value for key, value in attributes.items() if key not in dropped}


def written(resolution: Any, offset: Any, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attributes to write: our one spelling of resolution and offset, and everything else as given.

    A resolution or offset missing from the arguments is taken from the attributes, in any spelling.
    """
    given = plain(dict(attributes or {}))
    found, placed = read_grid([given], "attributes=")
    if resolution is not None:
        found = triple(plain(resolution), "resolution", positive=True)
    if offset is not None:
        placed = triple(plain(offset), "offset")
    result = without_grid(given)
    if found is not None:
        result["resolution"] = list(found)
    if found is not None or any(placed):
        result["offset"] = list(placed)
    return result
