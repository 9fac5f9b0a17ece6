"""python -m emcore inspect FILE...: what is in volumes, without reading more of each than a sample."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.progress import quantity
from emcore.volumes import Volume, list_datasets, open_volume, split_reference
from emcore.volumes.address import is_address, parsed, without_secrets
from emcore.volumes.formats import format_of
from emcore.volumes.metadata import shortened
from emcore.volumes.remote import list_address
from emcore.volumes.volume import MOST_LISTED, Listed, is_volume

RECORD = "record"  # the attribute of results that says what made them
SAMPLE = (16, 512, 512)
SAMPLE_BYTES = 32 << 20
MOST_CHUNK_BYTES = 1 << 30


def inspect(reference: str) -> dict[str, Any]:
    """What a file holds: its format, and for each dataset its facts and the values of a sample, JSON-able."""
    if is_address(reference):
        return inspect_address(reference)
    path, dataset = split_reference(reference)
    found = format_of(path)
    whole = list_datasets(path)
    listing = [item for item in whole if dataset in (None, item.name)]
    if dataset and not listing:  # beyond what is listed; or not there, which the sentence explains
        volume = open_volume(path, dataset)
        listing = [Listed(dataset, volume.shape, volume.dtype, volume.chunks)]
    entries = []
    for item in listing:
        entry = {"dataset": item.name, "shape": list(item.shape), "dtype": str(item.dtype),
                 "chunks": list(item.chunks) if item.chunks else None}
        entry |= {"encoding": item.encoding} if item.encoding else {}
        if is_volume(item.shape, item.dtype):
            try:
                entry |= facts(open_volume(path, item.name or None))
            except InputError as error:  # one broken dataset must not hide the others
                entry["error"] = str(error)
        entries.append(entry)
    more = {} if dataset or len(whole.names) <= MOST_LISTED else {"total": len(whole.names)}
    return {"path": str(path), "format": found.name, "datasets": entries, **more}


def inspect_address(reference: str) -> dict[str, Any]:
    """What stands at an address: its scales with how they are stored; voxels only of one that the address names."""
    address, (kind, listing) = parsed(reference), list_address(reference)
    entries = []
    for item in listing:
        volume = open_volume(reference, scale=item.name, cache_bytes=0)
        about = facts(volume) if address.scale else {
            "resolution": volume.resolution, "offset": volume.offset, "attributes": volume.attrs}
        begin = [round(place / size) for place, size in zip(volume.offset, volume.resolution or (1.0, 1.0, 1.0))]
        entries.append({"dataset": item.name, "shape": list(item.shape), "dtype": str(item.dtype),
                        "chunks": list(item.chunks), "encoding": item.encoding, **about,
                        "bounds": [[low, low + length] for low, length in zip(begin, item.shape[-3:])]})
    return {"path": str(address._replace(scale=None)), "format": kind, "datasets": entries}


def facts(volume: Volume) -> dict[str, Any]:
    """Chunks, resolution, offset and attributes of a volume, and the values of a sample at its centre."""
    chunk = math.prod(volume.chunks or ()) * volume.dtype.itemsize
    if chunk > MOST_CHUNK_BYTES:
        raise InputError(f"not sampled, because one chunk of {volume.chunks} takes {quantity(chunk)}B of memory")
    box = central_box(volume)
    block = volume[box]
    return {"chunks": list(volume.chunks) if volume.chunks else None, "resolution": volume.resolution,
            "offset": volume.offset, "attributes": volume.attrs,
            "sample": {"box": [[span.start, span.stop] for span in box], **values(block)}}


def central_box(volume: Volume) -> tuple[slice, ...]:
    """A box at the centre of a volume, of at most SAMPLE_BYTES."""
    size = [min(limit, length) for limit, length in zip((volume.shape[0], *SAMPLE)[-volume.ndim:], volume.shape)]
    while math.prod(size) * volume.dtype.itemsize > SAMPLE_BYTES:
        size[size.index(max(size))] //= 2
    return tuple(slice((length - part) // 2, (length - part) // 2 + part) for length, part in zip(volume.shape, size))


def values(block: np.ndarray) -> dict[str, Any]:
    """The range of a sample, for integers also how many distinct non-zero values it has and its share of zeros."""
    if block.dtype.kind == "f":
        finite = block[np.isfinite(block)]
        if not finite.size:
            return {"min": None, "max": None, "mean": None, "not_finite": block.size}
        return {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean(dtype=np.float64)),
                "not_finite": block.size - finite.size}
    distinct = np.unique(block)
    return {"min": int(distinct[0]), "max": int(distinct[-1]), "mean": float(block.mean(dtype=np.float64)),
            "distinct": int(np.count_nonzero(distinct)), "zeros": float((block == 0).mean())}


def text_of(report: dict[str, Any]) -> str:
    """The report for people: a line for the file, and two or three for each dataset."""
    lines = [f"{printable(report['path'])}: {report['format']}"]
    for entry in report["datasets"]:
        shape = " x ".join(map(str, entry["shape"])) or "scalar"
        name = printable(entry["dataset"])
        lines.append(f"  {name + '  ' if name else ''}{shape} {entry['dtype']}" + (
            f", chunks {' x '.join(map(str, entry['chunks']))}" if entry["chunks"] else "") + (
            f", {printable(entry['encoding'])}" if entry.get("encoding") else ""))
        if "error" in entry:
            lines.append(f"    {printable(entry['error'])}")
        elif "resolution" in entry:
            lines.append(f"    {grid_text(entry)}")
            if "bounds" in entry:
                lines.append("    voxels " + ", ".join(f"{axis} {low}:{high}" for axis, (low, high) in zip(
                    "zyx", entry["bounds"])) + " from the origin")
            lines += [f"    {sample_text(entry)}"] if "sample" in entry else []
            for name, value in entry["attributes"].items():
                if name == RECORD and isinstance(value, dict):
                    lines += ["    what made it:", *(f"      {printable(line)}" for line in told(value))]
                else:
                    lines.append(f"    {printable(name)} = {printable(shortened(json.dumps(value)))}")
    if "total" in report:
        lines.append(f"  and {report['total'] - len(report['datasets'])} more datasets, {report['total']} in all; "
                     "inspect one as PATH:DATASET")
    return "\n".join(lines)


def told(table: dict[str, Any], where: str = "") -> list[str]:
    """A table of tables, a line for each of the innermost."""
    plain = {name: value for name, value in table.items() if not isinstance(value, dict)}
    lines = [f"{where or 'program'}: {json.dumps(plain)}"] if plain else []
    for name, value in table.items():
        if isinstance(value, dict):
            lines += told(value, f"{where}.{name}" if where else name)
    return lines


def grid_text(entry: dict[str, Any]) -> str:
    if entry["resolution"] is None:
        return "resolution unknown"
    offset = f", offset {numbers(entry['offset'])} nm" if any(entry["offset"]) else ""
    extent = [length * size / 1000 for length, size in zip(entry["shape"][-3:], entry["resolution"])]
    return f"resolution {numbers(entry['resolution'])} nm (z, y, x), {numbers(extent)} um{offset}"


def sample_text(entry: dict[str, Any]) -> str:
    sample = entry["sample"]
    size = " x ".join(str(stop - start) for start, stop in sample["box"])
    where = "all voxels" if [stop - start for start, stop in sample["box"]] == entry["shape"] else f"central {size}"
    if sample["min"] is None:
        return f"{where}: no finite value"
    text = f"{where}: {sample['min']:.6g} to {sample['max']:.6g}, mean {sample['mean']:.4g}"
    if "distinct" not in sample:
        return text + (f", {sample['not_finite']} not finite" if sample["not_finite"] else "")
    text = f"{where}: {sample['min']} to {sample['max']}"
    if np.dtype(entry["dtype"]).itemsize > 1:  # bytes are mostly images
        return f"{text}, {quantity(sample['distinct'])} labels, {sample['zeros']:.1%} background"
    return f"{text}, mean {sample['mean']:.4g}, {sample['distinct']} values besides 0, {sample['zeros']:.1%} zeros"


def numbers(triple: Sequence[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in triple)


def printable(text: str) -> str:
    """The text without control characters: names in files must not steer the terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore inspect",
                                     description="List what files and addresses hold: HDF5, npy, TIFF, zarr, N5, "
                                                 "precomputed.")
    parser.add_argument("files", nargs="+", metavar="FILE",
                        help="path, or path:dataset; or a folder of slices; or an address, https://, gs://, s3://")
    parser.add_argument("--json", action="store_true", help="print one JSON list, an entry for each file")
    settings = parser.parse_args(arguments)
    reports, mistakes = [], []
    for reference in settings.files:
        try:
            reports.append(inspect(reference))
            if not settings.json:
                print(text_of(reports[-1]), flush=True)
        except InputError as error:
            mistakes.append(error)
            path = without_secrets(reference) if is_address(reference) else str(Path(reference))
            reports.append({"path": path, "error": str(error)})
            print(f"error: {error}", file=sys.stderr)
    if settings.json:
        print(json.dumps(jsonable(reports), indent=1, allow_nan=False))
    return 2 if mistakes else 0


def jsonable(value: Any) -> Any:
    """The value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
