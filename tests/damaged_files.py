"""Checkpoints of every kind, small but complete, and ways to damage them; run as a script it reads damaged ones.

    python -m tests.damaged_files FOLDER KIND FIRST COUNT    prints as JSON what became of that many mutations
"""

import json
import random
import resource
import struct
import sys
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import torch

from emcore import config
from emcore.engine import checkpoint, resume
from emcore.engine.arithmetic.mode import Mode
from emcore.engine.best import Best
from emcore.engine.ema import MovingAverage
from emcore.engine.optimizer import build_optimizer
from emcore.engine.steps import Supervised
from emcore.errors import InputError
from emcore.models.unet_v1 import UNetV1
from emcore.settings import Settings
from emcore.settings.model import UNetV1Model, UNetV1Sizes
from emcore.systems.checkpoints import ours
from emcore.systems.legacy_v1.weights import load_net, save_net
from emcore.systems.pytc.checkpoint import import_checkpoint

KINDS = {"run": "step_000000005.pt", "weights": "weights.pt", "lightning": "last.ckpt", "legacy": "volume_7.pth"}


def settings(**save) -> Settings:
    return config.from_table(Settings, {
        "name": "t", "data": {"patch": [2, 8, 8]}, "target": [{"kind": "binary"}],
        "loss": {"terms": [{"kind": "bce"}]}, "model": {"rsunet": {"width": [4, 6], "norm": "batch"}},
        "train": {"ema": {"decay": 0.9}, "save": {"monitor": "loss/train", **save}}})


def parts_of(wanted: Settings) -> dict:
    """What a run consists of, after one step."""
    torch.manual_seed(0)
    task = Supervised(wanted, Mode("cpu", "fp32", "contiguous", False), (1.0, 1.0, 1.0))
    optimizer = build_optimizer(task, wanted.train, None)
    sum(weight.sum() ** 2 for weight in task.net.parameters()).backward()
    optimizer.step()
    average = MovingAverage(task.net, wanted.train.ema)
    average.weights["tail.2.bias"] += 1
    return {"task": task, "optimizer": optimizer, "average": average, "plateau": None,
            "scaler": torch.amp.GradScaler("cpu", enabled=False), "best": Best(wanted.train.save)}


def make(folder: Path) -> None:
    """One file of each kind."""
    wanted = settings()
    parts = parts_of(wanted)
    resume.keep(folder, 5, wanted, parts, {"steps": 1.0})
    run = folder / "checkpoints" / KINDS["run"]
    run.rename(folder / run.name)
    content = torch.load(folder / run.name, weights_only=True)
    checkpoint.save_weights(content, folder / KINDS["weights"])
    torch.save({"global_step": 7, "callbacks": {"EMA": {"updates": 3, "ema_state": content["ema"]["weights"]}},
                "state_dict": {f"model.{name}": value for name, value in content["model"].items()},
                "hyper_parameters": {"folder": Path("x")}}, folder / KINDS["lightning"])
    torch.manual_seed(0)
    save_net(UNetV1(UNetV1Model(unet_v1=UNetV1Sizes((8, 8, 8, 16, 16)))), folder / KINDS["legacy"], 3.0)


def load(kind: str, path: Path):
    """Everything that emcore takes from a file of that kind."""
    if kind == "lightning":
        return import_checkpoint(path, settings())
    if kind == "legacy":
        return load_net(str(path))[0].state_dict()
    content = ours(checkpoint.read(path))
    return content, checkpoint.model_of(content, path).state_dict()


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and one.shape == other.shape and bool(
            torch.equal(one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def damage(data: bytes, path: Path, number: int) -> bytes:
    """The mutation of that number."""
    draw = random.Random(f"{path.name} {number}")
    found = bytearray(data)
    place, length = draw.randrange(len(data)), draw.randrange(1, 300)
    ways = ["bit", "byte", "cut", "longer", "splice", "insert", "delete"]
    ways += ["swap", "field", "field", "field", "field", "two files"] if zipfile.is_zipfile(path) else []
    match draw.choice(ways):
        case "bit":
            found[place] ^= 1 << draw.randrange(8)
        case "byte":
            found[place] = draw.choice([0, 255, draw.randrange(256)])
        case "cut":
            del found[place:]
        case "longer":
            found += draw.randbytes(length)
        case "splice":
            other = draw.randrange(len(data))
            found[place:place + length] = data[other:other + len(found[place:place + length])]
        case "insert":
            found[place:place] = draw.randbytes(length)
        case "delete":
            del found[place:place + length]
        case "two files":
            found = found + data if draw.random() < 0.5 else bytearray(data[:place]) + data
        case "swap":
            swap_records(found, path, draw)
        case "field":
            change_field(found, path, draw)
    return bytes(found)


def swap_records(data: bytearray, path: Path, draw: random.Random) -> None:
    """The content of two records of one size, or their lines in the table."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
        one = draw.choice(entries)
        other = draw.choice([entry for entry in entries if entry.file_size == one.file_size])
        places = []
        for entry in (one, other):
            name, extra = struct.unpack_from("<2H", data, entry.header_offset + 26)
            places.append(entry.header_offset + 30 + name + extra)
        if draw.random() < 0.5:
            (a, b), size = places, one.file_size
            data[a:a + size], data[b:b + size] = data[b:b + size], data[a:a + size]
        else:  # the offsets in their lines
            a, b = (data.index(entry.filename.encode(), archive.start_dir) - 4 for entry in (one, other))
            data[a:a + 4], data[b:b + 4] = data[b:b + 4], data[a:a + 4]


def change_field(data: bytearray, path: Path, draw: random.Random) -> None:
    """A number in one of the structures of a zip that no checksum covers."""
    kinds = {b"PK\x03\x04": 30, b"PK\x01\x02": 46, b"PK\x05\x06": 22, b"PK\x06\x06": 56, b"PK\x06\x07": 20,
             b"PK\x07\x08": 16}
    mark = draw.choice(list(kinds))
    places, at = [], data.find(mark)
    while at >= 0:
        places.append(at)
        at = data.find(mark, at + 1)
    if not places:
        return
    width = draw.choice([1, 2, 4, 8])
    at = draw.choice(places) + draw.randrange(kinds[mark])
    value = draw.choice([0, 1, 2**(8 * width) - 1, draw.randrange(2**(8 * width)), draw.randrange(256)])
    data[at:at + width] = value.to_bytes(width, "little")[:len(data[at:at + width])]


def read_damaged(folder: Path, kind: str, first: int, count: int) -> dict:
    """What became of mutations: same, refused, and those that must not be: other, traceback."""
    whole = folder / KINDS[kind]
    data, expected = whole.read_bytes(), load(kind, whole)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, worst = Counter(), ""
    path = folder / "damaged" / whole.name
    path.parent.mkdir(exist_ok=True)
    for number in range(first, first + count):
        path.write_bytes(damage(data, whole, number))
        try:
            outcome = "same" if same(expected, load(kind, path)) else "other"
        except InputError as error:
            outcome = "refused" if str(path) in str(error) and "\n" not in str(error) else "traceback"
            worst = worst if outcome == "refused" else f"{number}: {error}"
        except Exception:
            outcome, worst = "traceback", f"{number}: {traceback.format_exc()}"
        worst = f"{number} of {kind} loads with other values" if outcome == "other" and kind != "legacy" else worst
        found[outcome] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {**found, "bytes": grown, "worst": worst}


if __name__ == "__main__":
    folder, kind, first, count = sys.argv[1:]
    print(json.dumps(read_damaged(Path(folder), kind, int(first), int(count))))
