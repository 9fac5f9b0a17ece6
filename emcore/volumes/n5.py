"""What the metadata of N5 say; it counts the axes x, y, z, in its grids too."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emcore.errors import InputError
from emcore.volumes import metadata
from emcore.volumes.address import Address
from emcore.volumes.scales import Level

ABOUT = "attributes.json"
MOST_LEVELS = 20
OWN = ("dimensions", "blockSize", "dataType", "compression", "n5", "transform", "downsamplingFactors", "multiscales",
       "scales")
Read = Callable[[Sequence[tuple[Address, str]]], Mapping[tuple[str, str], bytes]]


def levels(address: Address, files: Mapping[str, bytes], read: Read) -> list[Level]:
    """The array at an address, or those of a group: the levels of an image, s0, s1 and so on."""
    about = table(files[ABOUT], f"{address}/{ABOUT}")
    if "dimensions" in about:
        found = read([(address.at(".."), ABOUT)])
        above = next(({**table(data, str(address))} for data in found.values()), {})
        return [level(address, address.path.rpartition("/")[2], about, above)]
    said = about.get("multiscales")
    names = [str(entry["path"]) for entry in said[0]["datasets"]] if said else [f"s{n}" for n in range(MOST_LEVELS)]
    if any(not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)*", name) or ".." in name.split("/") for name in names):
        raise InputError(f"{address}/{ABOUT} names a level outside of its folder")
    places = {name: address.at(name) for name in names[:MOST_LEVELS]}
    found = read([(place, ABOUT) for place in places.values()])
    tables = {name: table(found[place.path, ABOUT], str(place)) for name, place in places.items()
              if (place.path, ABOUT) in found}
    return [level(places[name], name, own, about) for name, own in tables.items()]


def table(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{where} is not a JSON object")
    return metadata.plain(found)


def level(address: Address, name: str, own: dict[str, Any], above: dict[str, Any]) -> Level:
    if not isinstance(own.get("dimensions"), list) or len(own["dimensions"]) not in (3, 4):
        raise InputError(f"{address} has the dimensions {str(own.get('dimensions'))[:80]}; a volume has three, x y z, "
                         "or four with channels last")
    resolution, offset = grid(own, above, str(address))
    attributes = {key: value for key, value in metadata.without_grid(own).items() if key not in OWN}
    return Level(name, address, {"driver": "n5"}, resolution, offset, attributes)


def grid(own: dict[str, Any], above: dict[str, Any], title: str) -> tuple[metadata.Triple | None, metadata.Triple]:
    """Resolution and offset in nm, z y x; a coarser level gives the factors by which it is coarser."""
    if isinstance(said := own.get("transform"), dict):  # names its axes
        order = [said["axes"].index(axis) for axis in "zyx"]
        units = said.get("units") or ["nm"] * len(said["axes"])
        factors = [metadata.nanometres(units[place]) or 1.0 for place in order]
        scale, shift = (metadata.triple([said[part][place] for place in order], f"{part} of {title}")
                        for part in ("scale", "translate"))
        return (metadata.scaled(scale, factors, f"scale of {title}", True),
                metadata.scaled(shift, factors, f"translate of {title}"))
    reversed_tables = [{key: list(reversed(value[:3])) if isinstance(value, list) and key != "pixelResolution" and
                        len(value) >= 3 else value for key, value in one.items()} for one in (own, above)]
    resolution, offset = metadata.read_grid(reversed_tables, title)
    coarser = own.get("downsamplingFactors")
    if resolution is not None and coarser is not None:
        what = f"downsamplingFactors of {title}"
        resolution = metadata.scaled(resolution, metadata.triple(coarser[:3], what, True)[::-1], what, True)
    return resolution, offset
