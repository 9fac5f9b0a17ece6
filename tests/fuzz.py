"""Every reader of foreign files against damaged ones: make fuzz, or python -m tests.fuzz [READER ...] --each 300

Each reader gets files that it should read, with seeded damage. A child process reads one after the other below limits
of time and memory; one that crashes or hangs is counted and replaced. A reader may read what it is given, or refuse
it by an InputError of one line; a traceback, a crash and a hang are defects.
"""

import argparse
import io
import json
import os
import random
import re
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emcore.errors import InputError

SECONDS = 20.0  # for one file
START_SECONDS = 300.0  # for a child to import what it needs
MEMORY = 2 << 30  # bytes above what the imports take
LONGEST_SENTENCE = 2000
MOST_READ = 64 << 20  # bytes of a volume that are read whole, beside the sample of inspect
TEXT = (".json", ".toml", ".yaml", ".csv", ".swc", ".nml", ".zarray", ".zattrs", ".zgroup", "info")


@dataclass(frozen=True)
class Reader:
    """make writes files or folders into a folder and returns them; read reads one of them, or what is left of it."""

    make: Callable[[Path], list[Path]]
    read: Callable[[Path], None]


@dataclass
class Tally:
    """What became of the damaged files of one reader."""

    name: str
    counts: Counter = field(default_factory=Counter)
    defects: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = ", ".join(f"{self.counts[kind]} {kind}" for kind in ("refused", "read", "crash", "hang", "traceback"))
        return f"{self.name}: {sum(self.counts.values())} mutations, {shown}"


# ---- the files


def volume() -> np.ndarray:
    return (np.arange(6 * 20 * 24).reshape(6, 20, 24) % 251).astype(np.uint8)


def make_hdf5(folder: Path) -> list[Path]:
    import h5py

    paths = [folder / name for name in ("old.h5", "new.h5", "joined.h5")]
    for path, version in zip(paths, ("earliest", "latest")):
        with h5py.File(path, "w", libver=version) as file:
            raw = file.create_dataset("volumes/raw", data=volume(), chunks=(2, 8, 8), compression="gzip", shuffle=True)
            raw.attrs["resolution"], raw.attrs["offset"], raw.attrs["text"] = (40.0, 4.0, 4.0), (0, 0, 0), '{"a": 1}'
            file.create_dataset("volumes/labels/neuron_ids", data=volume().astype(np.uint64))
            file["ids"] = np.arange(12, dtype=">i4")
            file["names"] = np.array([b"pre", b"post"])
            file.create_dataset("checked", data=volume().astype(np.float32), chunks=(6, 20, 24), fletcher32=True)
            file["soft"], file["hard"] = h5py.SoftLink("/volumes/raw"), file["volumes"]
            file["volumes"].attrs["voxel_size"] = [40, 4, 4]
            file["stack"], file["transforms"] = volume()[:2].astype(np.uint64), np.array([[1, 2], [3, 4]], np.uint64)
    layout = h5py.VirtualLayout((12, 20, 24), "uint8")
    for part in range(2):
        layout[6 * part:6 * part + 6] = h5py.VirtualSource("new.h5" if part else "old.h5", "volumes/raw", (6, 20, 24))
    with h5py.File(paths[2], "w") as file:
        file.create_virtual_dataset("main", layout)
        file["away"] = h5py.ExternalLink("old.h5", "/volumes/raw")
    return paths


def block_values() -> dict[str, np.ndarray]:
    """The blocks by the names of their files."""
    numbers = np.arange(70 * 20 * 24, dtype=np.uint64).reshape(70, 20, 24)
    return {"ids.h5": numbers // 97, "plain.h5": volume(), "scores.h5": (numbers[:9] / 7).astype(np.float32)}


def make_blocks(folder: Path) -> list[Path]:
    from emcore.volumes.blocks import write_block

    for name, values in block_values().items():
        write_block(folder / name, values, {"made": {"by": [1, 2.5, "a"]}})
    return [folder / name for name in block_values()]


def make_tiff(folder: Path) -> list[Path]:
    import tifffile

    tifffile.imwrite(folder / "imagej.tif", volume(), imagej=True, metadata={"spacing": 40, "unit": "nm"})
    tifffile.imwrite(folder / "packed.tif", volume().astype(">u2"), compression="zlib", byteorder=">", bigtiff=True,
                     predictor=True)
    tifffile.imwrite(folder / "image.ome.tif", volume(), metadata={"axes": "ZYX", "PhysicalSizeX": 4.0})
    tifffile.imwrite(folder / "shaped.tif", volume().astype(np.float32), rowsperstrip=3)
    slices = folder / "slices"
    slices.mkdir()
    for number, section in enumerate(volume()[:3]):
        tifffile.imwrite(slices / f"{number}.tif", section, tile=(16, 16), compression="zlib")
    return [*sorted(folder.glob("*.tif")), slices]


def make_packed_tiff(folder: Path) -> list[Path]:
    import imagecodecs  # noqa: F401 (tifffile needs it for these)
    import tifffile

    for name in ("lzw", "zstd", "jpeg", "packbits"):
        tifffile.imwrite(folder / f"{name}.tif", volume(), compression=name, photometric="minisblack",
                         **({} if name == "packbits" else {"tile": (16, 16)}))
    return sorted(folder.glob("*.tif"))


def make_images(folder: Path) -> list[Path]:
    import imagecodecs

    kinds = {"png": imagecodecs.png_encode, "jpg": imagecodecs.jpeg8_encode}
    for suffix, encode in kinds.items():
        (folder / suffix).mkdir()
        for number, section in enumerate(volume()):
            (folder / suffix / f"{number}.{suffix}").write_bytes(encode(section))
        (folder / f"one.{suffix}").write_bytes(encode(volume()[0]))
    (folder / "deep.png").write_bytes(imagecodecs.png_encode(volume()[0].astype(np.uint16) * 200))
    return [folder / name for name in (*kinds, "one.png", "one.jpg", "deep.png")]


def make_mrc(folder: Path) -> list[Path]:
    import mrcfile

    for dtype in ("int8", "int16", "float32", "uint16", "float16"):
        with mrcfile.new(folder / f"{dtype}.mrc") as file:
            file.set_data((volume() // 2).astype(dtype))
            file.voxel_size = (40, 40, 300)
            file.set_extended_header(np.zeros(40, "V1"))
    return sorted(folder.glob("*.mrc"))


def make_npy(folder: Path) -> list[Path]:
    paths = [folder / "a.npy", folder / "b.npy"]
    np.save(paths[0], volume())
    with open(paths[1], "wb") as file:
        np.lib.format.write_array(file, np.asfortranarray(volume().astype(">f4")), version=(2, 0))
    (folder / "a.npy.json").write_text('{"resolution": [40, 4, 4], "offset": [0, 0, 0], "more": {"a": [1, "x"]}}')
    return paths


def make_zarr(folder: Path, version: int) -> list[Path]:
    import zarr

    group = zarr.open_group(str(folder / "a.zarr"), mode="w", zarr_format=version)
    transform = {"coordinateTransformations": [{"type": "scale", "scale": [40.0, 4.0, 4.0]},
                                               {"type": "translation", "translation": [0, 4, 4]}], "path": "s0"}
    scales = [{"version": "0.4", "datasets": [transform],
               "axes": [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]}]
    group.attrs.update({"multiscales": scales} if version == 2 else {"ome": {"multiscales": scales}})
    for name, dtype in (("s0", "uint8"), ("labels/ids", "uint64")):
        array = group.create_array(name, shape=(6, 20, 24), dtype=dtype, chunks=(3, 10, 12))
        array[...] = volume()
        array.attrs["resolution"], array.attrs["units"] = [40, 4, 4], "nm"
    alone = zarr.create_array(str(folder / "b.zarr"), shape=(6, 20, 24), dtype="float32", chunks=(6, 20, 24),
                              zarr_format=version, compressors=None,
                              **({"shards": (6, 20, 24)} if version == 3 else {}))
    alone[...] = volume()
    return [folder / "a.zarr", folder / "b.zarr"]


def make_precomputed(folder: Path) -> list[Path]:
    import gzip

    from emcore.volumes import create_volume

    for name in ("a", "b"):
        with create_volume(folder / f"{name}.precomputed", (6, 20, 24), "uint8", (40, 4, 4), (80, 4, 8),
                           {"more": [1]}, (3, 10, 12)) as out:
            out[...] = volume()
    for chunk in (folder / "b.precomputed").glob("*/*"):
        chunk.with_name(chunk.name + ".gz").write_bytes(gzip.compress(chunk.read_bytes()))
        chunk.unlink()
    return [folder / "a.precomputed", folder / "b.precomputed"]


def make_packed(folder: Path) -> list[Path]:
    """Precomputed chunks that are packed, and in shards, as tensorstore writes them."""
    import tensorstore

    shards = {"@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 1, "hash": "identity", "minishard_bits": 1,
              "shard_bits": 1, "minishard_index_encoding": "gzip", "data_encoding": "gzip"}
    packings = {"a": {"encoding": "png"}, "b": {"encoding": "raw", "sharding": shards},
                "c": {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [4, 4, 4]}}
    for name, packing in packings.items():
        dtype = "uint64" if name == "c" else "uint8"
        scale = {"size": [24, 20, 6], "resolution": [4, 4, 40], "voxel_offset": [1, 2, 3], "chunk_size": [12, 10, 3]}
        store = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/{name}/",
                                  "create": True, "scale_metadata": scale | packing, "multiscale_metadata": {
                                      "type": "image", "data_type": dtype, "num_channels": 1}}).result()
        store[..., 0].write(volume().T.astype(dtype)).result()
    return [folder / name for name in packings]


def make_n5(folder: Path) -> list[Path]:
    import tensorstore

    for name, packing in (("s0", "gzip"), ("s1", "bzip2")):
        about = {"dimensions": [24, 20, 6], "blockSize": [12, 10, 3], "dataType": "uint8", "compression": {
            "type": packing}}
        store = tensorstore.open({"driver": "n5", "kvstore": f"file://{folder}/a.n5/{name}/", "create": True,
                                  "metadata": about}).result()
        store.write(volume().T).result()
        path = folder / "a.n5" / name / "attributes.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "downsamplingFactors": [1, 1, 1], "transform": {
            "axes": ["z", "y", "x"], "scale": [40, 4, 4], "translate": [0, 0, 8], "units": ["nm"] * 3}}))
    (folder / "a.n5" / "attributes.json").write_text(json.dumps({
        "n5": "2.0.0", "resolution": [4, 4, 40], "pixelResolution": {"unit": "um", "dimensions": [1, 1, 2]},
        "multiscales": [{"datasets": [{"path": "s0"}, {"path": "s1"}]}]}))
    return [folder / "a.n5", folder / "a.n5" / "s1"]


def make_toml(folder: Path) -> list[Path]:
    (folder / "base.toml").write_text('name = "a"\nseed = 3\n[train.optimizer]\nlr = 1e-3\n[model]\nname = "rsunet"\n')
    (folder / "a.toml").write_text(
        'base = "base.toml"\n[data]\npatch = [18, 160, 160]\nworkers = 2\n[[data.train]]\nimage = "a.h5:raw"\n'
        'label = "a.h5:ids"\n[augment.flip]\nprobability = [0.5, 0.5, 0.5]\n[train]\nsteps = 20\nbatch = 2\n')
    return [folder / "a.toml"]


def make_yaml(folder: Path) -> list[Path]:
    (folder / "base.yaml").write_text("default:\n  model: {arch: rsunet, filters: [8, 16]}\nanchor: &a {x: 1, y: [2]}\n"
                                      "more: {<<: *a, z: *a}\n")
    (folder / "a.yaml").write_text(
        "_base_: base.yaml\nexperiment_name: cleft\ndefault:\n  system: {num_gpus: 1, seed: 42}\n  model:\n"
        "    out_channels: 1\n    input_size: [18, 160, 160]\n  data:\n    dataloader: {batch_size: 4}\n"
        "train:\n  optimization: {max_steps: 100, optimizer: {name: AdamW, lr: 1e-3}}\n"
        "test:\n  data: {test: {image: [a.h5], label: '${train.name}'}}\n  inference: {overlap: 0.5}\n")
    return [folder / "a.yaml", folder / "base.yaml"]


def make_checkpoint(folder: Path) -> list[Path]:
    import torch

    from emcore import config
    from emcore.models.build import build_model
    from emcore.settings import Settings

    settings = config.load(Settings, None, ["name=a", "model.rsunet.width=[4,6]", "data.patch=[4,16,16]"])
    net = build_model(settings.model, settings.data.patch)
    content = {"version": 1, "step": 3, "model": net.state_dict(), "config": config.to_table(settings)}
    torch.save(content, folder / "a.pt")
    torch.save(content, folder / "b.pt", _use_new_zipfile_serialization=False)
    return [folder / "a.pt", folder / "b.pt"]


def make_zip(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for place, method in enumerate((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):
            archive.writestr(zipfile.ZipInfo(f"d{place}/im_{place}.h5"), volume().tobytes(), method)
    return [folder / "a.zip"]


def make_page(folder: Path) -> list[Path]:
    run = folder / "run"
    (run / "results_step=3").mkdir(parents=True)
    (run / "config.toml").write_text('name = "a"\n')
    (run / "log.csv").write_text("step,lr,loss/train,f1\n1,0.1,0.5,\n2,0.1,0.4,0.25\n3,0.1,nan,0.5\n")
    (run / "best.json").write_text('{"monitor": "loss/val", "best": [[3, 0.5]]}')
    (run / "environment.json").write_text('{"torch": "2.13", "packages": ["a", "b"]}')
    row = {"score": "voi", "value": 0.5, "convention": "bits"}
    curve = {"threshold": [0.1, 0.2], "voi_split": [1.0, 0.5], "rand_error": [0.5, 0.25], "chosen": 0.1,
             "best": {"voi": {"threshold": 0.2, "value": 0.5}}}
    scores = {"a": {"scores": [row], "notes": ["a note"], "curve": curve}}
    (run / "results_step=3" / "scores.json").write_text(json.dumps(scores))
    return [run]


NML = """<?xml version="1.0" encoding="utf-8"?>
<things><parameters><scale x="11.24" y="11.24" z="25" unit="nm"/></parameters><thing id="2" name="a"><nodes>
<node id="1" radius="1.5" x="10" y="20" z="30"/><node id="4" x="11" y="20" z="30"/></nodes>
<edges><edge source="1" target="4"/></edges></thing></things>"""


def make_edits(folder: Path) -> list[Path]:
    """Edits as CSV, and a mapping of webknossos."""
    from emcore.segment import Edit, write_edits
    from emcore.segment.agglomerates import write_mapping

    write_edits(folder / "a.csv", [Edit("join", (1, 2, 3), (4, 5, 6)), Edit("drop", (7, 8, 9))])
    write_mapping(folder / "a.hdf5", np.array([0, 1, 1, 2, 2, 0]), np.array([1, 3]), np.array([2, 4]),
                  np.array([0.5, 0.25]), np.arange(18).reshape(6, 3))
    return [folder / "a.csv", folder / "a.hdf5"]


def make_skeletons(folder: Path) -> list[Path]:
    import pickle
    import pickletools

    from emcore.segment import Skeleton, write_skeletons

    tree = Skeleton(np.arange(12.0).reshape(4, 3), np.array([[0, 1], [1, 2], [3, 2]]), np.ones(4))
    write_skeletons(folder / "swc", {3: tree, 9: tree})
    write_skeletons(folder / "precomputed", {3: tree, 2**40: tree}, "precomputed")
    (folder / "a.nml").write_text(NML)
    (folder / "a.csv").write_text("skeleton,node,z,y,x,parent,radius\n1,1,0,0,0,,1\n1,2,8,0,0,1,2.5\n2,1,4,4,4,-1,1\n")
    nodes = {0: {"id": 1, "nm_position": (1.0, 2, 3)}, 1: {"id": 1, "nm_position": np.array([4, 5, 6])}}
    # what networkx writes: the state of a graph, behind the name of its class, by the second protocol
    head = b"\x80\x02cnetworkx.classes.graph\nGraph\n)\x81"
    state = pickle.dumps({"graph": {}, "_node": nodes, "_adj": {0: {1: {}}, 1: {0: {}}}}, 2)
    (folder / "a.pkl").write_bytes(head + state[2:-1] + b"b.")
    pickletools.dis((folder / "a.pkl").read_bytes(), out=io.StringIO())
    return [folder / name for name in ("swc", "precomputed", "a.nml", "a.csv", "a.pkl")]


# ---- the readers


def read_volume(path: Path) -> None:
    from emcore.volumes import open_volume
    from emcore.volumes.inspect import inspect, jsonable, text_of

    report = inspect(str(path))
    text_of(report)
    json.dumps(jsonable(report), allow_nan=False)
    mistakes = [InputError(entry["error"]) for entry in report["datasets"] if "error" in entry]
    for entry in report["datasets"][:4]:
        if len(entry["shape"]) not in (3, 4):
            continue
        try:
            found = open_volume(path, entry["dataset"] or None)
            if found.nbytes <= MOST_READ:
                found[...]
        except InputError as error:
            mistakes.append(error)
    if mistakes:
        raise mistakes[0]


def read_block(path: Path) -> None:
    from emcore.volumes import blocks

    wanted = block_values()[path.name]
    whole = blocks.is_whole(path, wanted.shape, wanted.dtype)
    found = blocks.read_block(path, wanted.shape, wanted.dtype)
    if not whole or found.dtype != wanted.dtype or (found != wanted).any():
        raise AssertionError("not what was written")


def read_toml(path: Path) -> None:
    from emcore import config
    from emcore.settings import Settings

    config.to_toml(config.load(Settings, path))


def read_yaml(path: Path) -> None:
    from emcore.systems.pytc.yaml_files import filled, read_chain

    tree, _ = read_chain(path)
    filled(tree, tree)


def read_checkpoint(path: Path) -> None:
    from emcore.systems.checkpoints import load_model

    load_model(path)


def read_zip(path: Path) -> None:
    from emcore.volumes.download import unpack

    before = set(path.parent.parent.iterdir())
    made = unpack(path)
    if set(path.parent.parent.iterdir()) != before or not all(file.is_relative_to(path.parent.resolve())
                                                              for file in made):
        raise AssertionError("unpacked beside its folder")


def read_edits(path: Path) -> None:
    from emcore.segment import read_edits
    from emcore.segment.agglomerates import read_mapping

    if path.suffix == ".csv":
        read_edits(path)
    else:
        read_mapping(path, 5)


def read_skeletons(path: Path) -> None:
    from emcore.segment import read_skeletons

    read_skeletons(path)


def read_page(path: Path) -> None:
    from emcore import report

    report.main([str(path)])


def read_address(path: Path) -> None:
    """What tensorstore reads of zarr, where nothing but the address tells what is there."""
    from emcore.volumes import open_volume

    for number in range(2):
        try:
            found = open_volume(f"file://{path}", scale=number)
        except InputError as error:
            if "has no scale 1" in str(error):
                return
            raise
        if found.nbytes <= MOST_READ:
            found[...]


READERS = {
    "hdf5": Reader(make_hdf5, read_volume),
    "block": Reader(make_blocks, read_block),
    "tiff": Reader(make_tiff, read_volume),
    "tiff-packed": Reader(make_packed_tiff, read_volume),
    "images": Reader(make_images, read_volume),
    "mrc": Reader(make_mrc, read_volume),
    "npy": Reader(make_npy, read_volume),
    "zarr-v2": Reader(lambda folder: make_zarr(folder, 2), read_volume),
    "zarr-v3": Reader(lambda folder: make_zarr(folder, 3), read_volume),
    "precomputed": Reader(make_precomputed, read_volume),
    "precomputed-packed": Reader(make_packed, read_volume),
    "n5": Reader(make_n5, read_volume),
    "zarr-v2-address": Reader(lambda folder: make_zarr(folder, 2), read_address),
    "zarr-v3-address": Reader(lambda folder: make_zarr(folder, 3), read_address),
    "toml": Reader(make_toml, read_toml),
    "yaml": Reader(make_yaml, read_yaml),
    "checkpoint": Reader(make_checkpoint, read_checkpoint),
    "zip": Reader(make_zip, read_zip),
    "skeletons": Reader(make_skeletons, read_skeletons),
    "edits": Reader(make_edits, read_edits),
    "page": Reader(make_page, read_page),
}


# ---- the damage

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = ("0", "-1", "1", "3", "1.5", "1e400", "-1e-400", "99999999999999999999", "9" * 400, "9" * 5000, "NaN",
         "Infinity", "nan", "inf", "true", "false", "null", "~", "[]", "{}", "[1, 2]", '{"a": 1}', '""', '"a"',
         '"' + "a" * 100_000 + '"', "[" * 1000 + "]" * 1000, '{"a": ' * 1000 + "1" + "}" * 1000, "\\", '"', "'", "\0",
         "../x", "/dev/zero", ".", "\ud800", "2024-13-45T99:99:99Z", "0x", "1_", "!!int x", "*a", "&a", "<<", "|O",
         "<f16", "<M8[ns]", ">V8", "gzip", "blosc", "crc32c")

VALUES = (None, True, False, 0, 1, -1, 3, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, 0.5, 1e308, -1e308, 5e-324,
          float("nan"), float("inf"), "", "x", "1", "NaN", "../x", "/dev/zero", "a" * 100_000, [], {}, [[]], [0],
          [1] * 3, [1] * 4, [-1] * 3, [2**40] * 3, [1] * 100_000, [10**400] * 3, ["a"] * 3, {"a": 1}, {"id": "gzip"},
          [{"name": "gzip"}], json.loads("[" * 400 + "]" * 400), "|O", "<M8[ns]", "<f8", "float16")


def damaged(data: bytes, rng: random.Random, is_text: bool) -> bytes:
    """The bytes with a few things wrong with them."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if len(data) > 1 << 20:  # the next ones would multiply it again
            break
        if is_text and data[:1] == b"{" and rng.random() < 0.7:
            data = damaged_json(data, rng)
        else:
            data = damaged_word(data, rng) if is_text and rng.random() < 0.7 else damaged_bytes(data, rng)
    return data


def damaged_word(data: bytes, rng: random.Random) -> bytes:
    """A number, string or name of the text replaced, dropped or exchanged for another one; or a line."""
    start = data[:1 << 16]
    words = list(re.finditer(rb'-?\d+(?:\.\d+)?(?:e-?\d+)?|"[^"\n]*"|\'[^\'\n]*\'|[A-Za-z_]\w*|[\[\]{}:,=]', start))
    if not words:
        return damaged_bytes(data, rng)
    word, other = rng.choice(words), rng.choice(words)
    if (kind := rng.random()) < 0.15:
        lines = data.splitlines(keepends=True)
        line = rng.randrange(len(lines))
        lines[line:line + 1] = [] if kind < 0.07 else [lines[line]] * rng.choice((2, 3000 if len(data) < 2000 else 2))
        return b"".join(lines)
    new = other[0] if kind < 0.3 else rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return data[:word.start()] + new + data[word.end():]


def damaged_json(data: bytes, rng: random.Random) -> bytes:
    """A value of the JSON text replaced by one that no reader expects there, or left out."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return damaged_word(data, rng)
    places: list[tuple] = []  # container and key of every value

    def visit(value) -> None:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in inner:
            places.append((value, key))
            visit(item)

    visit(tree)
    if not places:
        return damaged_word(data, rng)
    container, key = rng.choice(places)
    if rng.random() < 0.15:
        del container[key]
    else:
        container[key] = rng.choice(VALUES)
    return json.dumps(tree).encode()


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    out = bytearray(data)
    place = rng.randrange(min(len(out), rng.choice((16, 128, 1024, 4096, 1 << 30, 1 << 30))))
    span = rng.choice((1, 2, 4, 8, 64, 1024))
    kind = rng.randrange(8)
    if kind == 0:
        out[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[place] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
    elif kind in (2, 3):
        size = rng.choice((2, 4, 8))
        number = rng.choice(NUMBERS) % (1 << 8 * size)
        out[place:place + size] = number.to_bytes(size, rng.choice(("little", "big")))
    elif kind == 4:
        del out[place:place + span]
    elif kind == 5:
        out[place:place] = bytes(rng.randrange(256) for _ in range(span))
    elif kind == 6:
        start = rng.randrange(len(out))
        out[place:place + span] = out[start:start + span]
    else:
        del out[place:]
    return bytes(out)


def damage_zip(path: Path, rng: random.Random) -> None:
    """Damages a member and packs the archive again, so that its checksums hold."""
    with zipfile.ZipFile(path) as archive:
        members = [(item, archive.read(item)) for item in archive.infolist()]
    hurt = rng.randrange(len(members)) if rng.random() < 0.4 else 0
    with zipfile.ZipFile(path, "w") as archive:
        for place, (item, data) in enumerate(members):
            if path.suffix == ".zip" and place == hurt and rng.random() < 0.5:
                item.filename = rng.choice((".", "..", "../x", "/x", "a/../../x", "a\\..\\x", "d1/im_1.h5", "C:x"))
            archive.writestr(item, damaged(data, rng, False) if place == hurt else data, item.compress_type)


def damage_hdf5(path: Path, rng: random.Random) -> None:
    """Puts something into an HDF5 file that is sound in itself, and that no reader expects there."""
    import h5py

    hostile = ([np.nan] * 3, [np.inf, 1, 1], [0, 0, 0], [-1, 1, 1], "x", b"\xff", [[40, 4, 4]], [2**64 - 1] * 3,
               [1e308] * 3, [], h5py.Empty("f8"), [True, False], np.zeros(2, "c8"), np.zeros(3, [("a", "u1")]),
               ["a", "bc", "d"], "[" * 2000, '{"a": [NaN]}', np.array([b"a"] * 3, "V1"), np.zeros((2, 3, 0)))
    with h5py.File(path, "r+") as file:
        names = ("volumes/raw", "volumes/labels/neuron_ids", "ids", "names", "checked", "main", "volumes", "soft",
                 "labels")
        name = rng.choice([name for name in names if name in file])
        kind = rng.randrange(9)
        if kind < 4:
            item = file[rng.choice([name, "/"])]
            item.attrs[rng.choice(["resolution", "offset", "units", "pixelResolution", "voxel_size", "x"])
                       ] = hostile[rng.randrange(len(hostile))]
            return
        del file[name]
        if kind == 4:
            file[name] = h5py.SoftLink(rng.choice(["/" + name, "/volumes", "/not/there", ".", "/"]))
        elif kind == 5:
            file[name] = h5py.ExternalLink(rng.choice(["old.h5", "/dev/zero", ".", "/etc/passwd"]), "/" + name)
        elif kind == 6:
            layout = h5py.VirtualLayout((6, 20, 24), "uint8")
            layout[...] = h5py.VirtualSource(rng.choice([".", path.name, "new.h5", "/dev/zero", "not.h5"]),
                                             rng.choice([name, name, "volumes/raw", "ids"]), (6, 20, 24))
            file.create_virtual_dataset(name, layout)
        elif kind == 7:
            file.create_dataset(name, (6, 20, 24), "uint8", external=[(rng.choice(["/etc/passwd", "x", "/dev/zero"]), 0,
                                                                       2880)])
        else:
            shape = tuple(rng.choice([0, 1, 2, 2**20, 2**31, 2**40]) for _ in range(rng.choice([0, 1, 3, 3, 4, 5])))
            kinds = ("u1", "f2", ">u8", "?", "S3", "c8", h5py.string_dtype(), [("a", "u1")], h5py.enum_dtype({"a": 1}),
                     h5py.ref_dtype, h5py.vlen_dtype("u1"), "(2,)u1")
            with suppress(ValueError):  # more than a file can hold
                file.create_dataset(name, shape, kinds[rng.randrange(len(kinds))], chunks=tuple(
                    min(length or 1, rng.choice([1, 2**12, 2**31])) for length in shape) or None)


def damage(path: Path, rng: random.Random) -> None:
    """Damages a file, or one of a folder's files: mostly one with metadata."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    beside = path.with_name(f"{path.name}.json")
    files += [beside] if beside.exists() else []
    texts = [file for file in files if file.name.endswith(TEXT)]
    file = rng.choice(texts if texts and rng.random() < 0.7 else files)
    if rng.random() < 0.04:
        file.unlink()
        kind = rng.randrange(6)
        if kind == 0:
            os.mkfifo(file)
        elif kind == 1:
            file.symlink_to(file.name)
        elif kind == 2:
            file.symlink_to("/dev/zero")
        elif kind == 3:
            file.mkdir()
        elif kind == 4:
            file.touch()
    elif file.suffix == ".h5" and rng.random() < 0.5:
        damage_hdf5(file, rng)
    elif zipfile.is_zipfile(file) and rng.random() < 0.6:
        damage_zip(file, rng)
    else:
        is_text = file.name.endswith(TEXT) or (file.suffix in (".npy", ".tif") and rng.random() < 0.5)
        data = file.read_bytes()
        if is_text and file.suffix in (".npy", ".tif"):  # only the header is text
            data = damaged(data[:128], rng, True) + data[128:] if file.suffix == ".npy" else damaged(data, rng, True)
        else:
            data = damaged(data, rng, is_text)
        file.write_bytes(data)


# ---- the child


def child(name: str, seed: str, first: int, last: int, folder: Path) -> None:
    """Reads the mutations first..last; tells of each on its own line of the standard output."""
    told = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    reader = READERS[name]
    warnings.simplefilter("ignore")
    samples = folder / "samples"
    samples.mkdir()
    paths = reader.make(samples)
    with redirect_stdout(io.StringIO()):
        for path in paths:  # undamaged they are read; this brings all imports
            reader.read(path)
    shutil.rmtree(samples)
    samples.mkdir()
    reader.make(samples)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    print("ready", file=told, flush=True)
    for number in range(first, last):
        work = folder / "work" / "in"
        shutil.rmtree(folder / "work", ignore_errors=True)
        shutil.copytree(samples, work)
        rng = random.Random(f"{seed} {name} {number}")
        path = work / rng.choice(paths).relative_to(samples)
        damage(path, rng)
        print(number, *outcome(reader, path), sep="\t", file=told, flush=True)


def outcome(reader: Reader, path: Path) -> tuple[str, str]:
    try:
        with redirect_stdout(io.StringIO()):
            reader.read(path)
    except InputError as error:
        text = str(error)
        if not text or "\n" in text or len(text) > LONGEST_SENTENCE:
            return "traceback", f"no sentence: {text[:100]!r}"
        return "refused", text.encode("ascii", "backslashreplace").decode()
    except BaseException as error:
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "emcore" in frame.filename]
        place = f"{Path(where[-1].filename).name}:{where[-1].lineno}" if where else "?"
        return "traceback", " ".join(f"{type(error).__name__} at {place}: {str(error)[:120]!r}".split())
    return "read", ""


# ---- the parent


def fuzz(name: str, each: int, seed: str, first: int = 0, verbose: bool = False) -> Tally:
    """Runs the mutations first..each of one reader."""
    tally = Tally(name)
    while first < each:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            first = run_child(tally, seed, first, each, folder, verbose)
    return tally


def run_child(tally: Tally, seed: str, first: int, last: int, folder: str, verbose: bool) -> int:
    """The number of the mutation to go on with: behind the last one, or behind the one that ended the child."""
    command = [sys.executable, __file__, "--child", tally.name, "--seed", seed, "--first", str(first),
               "--each", str(last), "--folder", folder]
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True,
                               env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"})
    lines = Lines(running.stdout)
    try:
        if lines.next(START_SECONDS) != "ready":
            raise RuntimeError(f"the child of {tally.name} did not start: exit code {running.poll()}")
        while first < last:
            line = lines.next(SECONDS)
            if not line:
                kind, defect = "hang", f"more than {SECONDS:.0f} s"
                if line is not None:
                    kind, defect = "crash", f"exit code {running.wait(SECONDS)}"
            else:
                _, kind, defect = line.split("\t")
            tally.counts[kind] += 1
            if kind in ("crash", "hang", "traceback"):
                tally.defects.append(f"mutation {first}: {kind}, {defect}")
            if verbose:
                print(f"{tally.name} {first}: {kind} {defect}", flush=True)
            first += 1
            if not line:
                break
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        running.stdout.close()
    return first


class Lines:
    """The lines of a pipe, with a limit of time for each."""

    def __init__(self, pipe):
        self.pipe, self.rest = pipe, b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(pipe, selectors.EVENT_READ)

    def next(self, seconds: float) -> str | None:
        """The next line; an empty one at the end, None where the time is over."""
        until = time.monotonic() + seconds
        while b"\n" not in self.rest:
            if not self.selector.select(max(0.0, until - time.monotonic())):
                return None
            piece = os.read(self.pipe.fileno(), 1 << 16)
            if not piece:
                return ""
            self.rest += piece
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"out of {', '.join(READERS)}; by default all")
    parser.add_argument("--each", type=int, default=300, help="mutations for each reader")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--verbose", action="store_true", help="a line for each mutation")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.seed, options.first, options.each, options.folder)
        return 0
    defects = 0
    for name in options.readers or READERS:
        if name not in READERS:
            parser.error(f"there is no reader {name!r}; there are {', '.join(READERS)}")
        tally = fuzz(name, options.each, options.seed, options.first, options.verbose)
        print(tally, flush=True)
        for defect in tally.defects:
            print(f"  {defect}", flush=True)
        defects += len(tally.defects)
    return min(defects, 1)


if __name__ == "__main__":
    sys.exit(main())
