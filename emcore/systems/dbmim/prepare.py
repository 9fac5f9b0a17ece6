"""python -m emcore prepare isbi2012|snemi|fullem: public data as dbMiM pretrains on it, HDF5 with a manifest."""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.files import write_text
from emcore.progress import Progress
from emcore.systems.dbmim.fullem import prepare_full, told
from emcore.volumes import create_volume, open_volume

MANIFEST = "public_em_manifest.json"
BLOCK_BYTES = 64 << 20


class Set(NamedTuple):
    """A public data set: what its stacks are called, and what they become."""

    stacks: dict[str, str]  # name of the file that is given -> name of the one that is written, without .h5
    resolution: tuple[float, float, float]  # nm, z y x
    source: str


SETS = {
    "isbi2012": Set({"train-volume.tif": "isbi2012_train_raw", "test-volume.tif": "isbi2012_test_raw"},
                    (50.0, 4.0, 4.0), "ISBI 2012 challenge, imagej.net/events/isbi-2012-segmentation-challenge"),
    "snemi": Set({"train-input.tif": "snemi3d_train_raw", "test-input.tif": "snemi3d_test_raw"},
                 (30.0, 6.0, 6.0), "SNEMI3D, zenodo.org/record/7142003, snemi.zip"),
}


def prepare(name: str, folder: Path, target: Path) -> list[dict[str, Any]]:
    """The manifest's entries of the set's stacks, found in the folder or its folder image, and written to target."""
    chosen = SETS[name]
    found = {given: stack_in(folder, given, chosen) for given in chosen.stacks}
    volumes = {given: open_volume(path) for given, path in found.items()}
    for given, volume in volumes.items():
        if volume.ndim != 3 or volume.dtype != np.uint8:
            raise InputError(f"{found[given]} must be one stack (z, y, x) of 8 bits; it has the shape {volume.shape} "
                             f"and the type {volume.dtype}")
    before = read_manifest(target / MANIFEST)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {target}: {error.strerror}") from None
    entries = []
    for given, volume in volumes.items():
        path = target / f"{chosen.stacks[given]}.h5"
        attributes = {"source": chosen.source, "axis_order": "zyx"}
        step = max(1, BLOCK_BYTES // (volume.shape[1] * volume.shape[2]))
        with (Progress(volume.size, f"{found[given]} -> {path}", "voxels") as progress,
              create_volume(f"{path}:raw", volume.shape, np.uint8, chosen.resolution, attributes=attributes,
                            compression="gzip") as out):
            for z in range(0, volume.shape[0], step):
                block = volume[z:z + step]
                out[z:z + step] = block
                progress.add(block.size)
        entries.append({"name": chosen.stacks[given], "source": chosen.source, "input": str(found[given]),
                        "path": str(path), "key": "raw", "shape": list(volume.shape), "dtype": "uint8",
                        "axis_order": "zyx", "bytes": path.stat().st_size, "sha256": digest(path)})
    kept = [entry for entry in before if entry["name"] not in {new["name"] for new in entries}]
    write_text(target / MANIFEST, json.dumps(kept + entries, indent=1) + "\n")
    return entries


def stack_in(folder: Path, given: str, chosen: Set) -> Path:
    for path in (folder / given, folder / "image" / given):
        if path.is_file():
            return path
    there = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else None
    held = "there is no such folder" if there is None else f"it holds {', '.join(there) or 'nothing'}"
    raise InputError(f"{folder} has no {given}, nor has its folder image; {held}: download {chosen.source}, and unpack "
                     "it there")


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """The entries of an older manifest, for those of another set to be added."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(entry["name"], str) for entry in entries):
            return entries
    except (OSError, ValueError, TypeError, KeyError):
        pass
    raise InputError(f"{path} is not a manifest that this command wrote: move it away")


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore prepare", description=(
        "Put a public data set where the recipes of masked pretraining look for it, as HDF5 with a manifest: the image "
        "stacks of isbi2012 and snemi (dataset raw, gzip), or the archives of fullem, unpacked."))
    parser.add_argument("set", choices=[*SETS, "fullem"], help="which data set")
    parser.add_argument("folder", type=Path, help="where its TIFF files, or the archives of fullem, lie")
    parser.add_argument("--target", type=Path, help="folder to write to: data/public_em, of fullem "
                                                    "data/EM_pretrain_data, by default")
    options = parser.parse_args(arguments)
    if options.set == "fullem":
        print(told(prepare_full(options.folder, options.target or Path("data/EM_pretrain_data"))))
        return 0
    for entry in prepare(options.set, options.folder, options.target or Path("data/public_em")):
        print(f"{entry['path']}: {tuple(entry['shape'])}, {entry['bytes']} bytes")
    return 0
