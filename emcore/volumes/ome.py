"""What the metadata of zarr say of an array or a group at an address, from the text of its files alone."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from emcore.errors import InputError
from emcore.volumes import metadata
from emcore.volumes.address import Address
from emcore.volumes.scales import Level

Read = Callable[[Sequence[tuple[Address, str]]], Mapping[tuple[str, str], bytes]]
HIGHEST = 3  # groups above an array that are asked for its grid
MOST_ARRAYS = 100  # A group with more is refused, or listed in part.
NEW, OLD = "zarr.json", ".zattrs"  # where attributes stand since version 3, and before


def levels_of_zarr(address: Address, files: Mapping[str, bytes], read: Read) -> list[Level]:
    """The array at an address; of a group the levels of its image, or all arrays that its metadata list."""
    node = json_of(files, NEW, address)
    attributes = attributes_of(files, address)
    if ".zarray" in files or node.get("node_type") == "array":
        above = [address.at("..")]
        while len(above) < HIGHEST and above[-1].path.strip("/"):
            above.append(above[-1].at(".."))
        found = read([(place, name) for place in above for name in (NEW, OLD)])
        groups = [(place, attributes_of({name: data for (path, name), data in found.items() if path == place.path},
                                        place)) for place in above]
        return [level(address, address.path.rpartition("/")[2], bool(node), attributes, groups)]
    image = image_of(attributes)
    if image is not None:
        names = [str(entry["path"]) for entry in image["datasets"]]
        if len(names) > MOST_ARRAYS:
            raise InputError(f"{address} names {len(names)} levels; more than {MOST_ARRAYS} are not read")
    else:
        names = arrays_of(node, json_of(files, ".zmetadata", address))
    for name in names:
        if not re.fullmatch(r"[^/\0]+(/[^/\0]+)*", name) or {".", ".."} & set(name.split("/")):
            raise InputError(f"{address} names an array outside of its folder: {name[:80]!r}")
    places = {name: address.at(name) for name in names}
    found = read([(place, file) for place in places.values() for file in (NEW, OLD)])
    return [level(place, name, bool(node), attributes_of(
        {file: found[place.path, file] for file in (NEW, OLD) if (place.path, file) in found}, place),
        [(address, attributes)])._replace(unrelated=image is None) for name, place in places.items()]


def level(place: Address, name: str, is_new: bool, own: dict[str, Any],
          groups: Sequence[tuple[Address, dict[str, Any]]]) -> Level:
    """One array; the groups are those above it, the nearest first."""
    axes, grid = [], {}
    for group, attributes in groups:
        image = image_of(attributes)
        entry = next((entry for entry in (image or {}).get("datasets", ()) if
                      group.at(str(entry["path"])).path == place.path), None)
        if entry is not None:
            ndim = len(image.get("axes") or ()) or 3
            axes, grid = metadata.ome_grid(str(place), image, entry, ndim)
            break
    resolution, offset = metadata.read_grid([own, grid, *(attributes for _, attributes in groups)], str(place))
    driver = {"driver": "zarr3" if is_new else "zarr"}
    return Level(name, place, driver, resolution, offset, metadata.without_grid(own), axes=tuple(axes),
                 whole=metadata.is_whole(own))


def json_of(files: Mapping[str, bytes], name: str, address: Address) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        found = json.loads(files[name])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{address.at(name)} is not a JSON object")
    return found


def attributes_of(files: Mapping[str, bytes], address: Address) -> dict[str, Any]:
    found = json_of(files, NEW, address).get("attributes", {}) if NEW in files else json_of(
        files, OLD, address)
    if not isinstance(found, dict):
        raise InputError(f"the attributes of {address} are not a JSON object")
    return metadata.plain(found)


def image_of(attributes: dict[str, Any]) -> dict[str, Any] | None:
    """The first multiscale image: at the top of the attributes until OME-Zarr 0.4, under `ome` from 0.5."""
    found = attributes.get("ome", attributes).get("multiscales")
    return found[0] if found else None


def arrays_of(node: dict[str, Any], consolidated: dict[str, Any]) -> list[str]:
    """The arrays below a group, where its metadata list them; nobody can list a folder behind http."""
    listed = (node.get("consolidated_metadata") or {}).get("metadata") or {}
    names = [name for name, one in listed.items() if one.get("node_type") == "array"]
    names += [name.removesuffix("/.zarray") for name in consolidated.get("metadata") or {} if name.endswith("/.zarray")]
    return sorted(names)[:MOST_ARRAYS]
