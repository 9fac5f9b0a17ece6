"""Checkpoints that survive being killed: written under another name, flushed, renamed; read as tensors only.

Every file is read once, as a whole; its checksums and sizes are verified, and torch loads the bytes that were verified.
While it loads, the file and its tensors take memory, twice the size of the file together.

A file holds model, ema, optimizer, step, rng, config, version and what else the run needs, under the names of the
bare module. It rebuilds its net without the config file.
"""

import hashlib
import io
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emcore.cards import checkpoint_file
from emcore.config import from_table, to_table
from emcore.engine import archive
from emcore.errors import InputError
from emcore.files import reported, writing
from emcore.models.build import build_model
from emcore.models.vit import transfer_encoder
from emcore.settings.model import Model

NAME = re.compile(r"step_(\d{9})\.pt")
VERSION = 1
PICKLE = b"\x80"  # how a file of the format before torch 1.6 begins
MOST_CLASSES = 500  # a file may name so many classes of other programs


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a checkpoint whole or not at all."""
    with reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        torch.save({"version": VERSION, **content}, file)


def all_steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints of a run, newest first, complete or not."""
    if folder.exists() and not folder.is_dir():  # said now, and not when the first one is to be written
        raise InputError(f"{folder} is no folder, but the checkpoints go there; move it away")
    found = [(int(match[1]), path) for path in folder.glob("step_*.pt") if (match := NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; None where there is no checkpoint."""
    found = first_sound(folder, verified)
    return found[0] if found else None


def read_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and its content; None where there is no checkpoint."""
    return first_sound(folder, read)


def first_sound(folder: Path, reading: Callable[[Path], Any]) -> tuple[Path, Any] | None:
    """The newest checkpoint that can be read and what came of it; those that are passed over are named."""
    damaged = []
    for _, path in all_steps(folder):
        try:
            found = reading(path)
        except InputError as error:
            damaged.append(error)
            continue
        for error in damaged:
            tell(f"{error}; {path} is taken, the newest that is whole")
        return path, found
    if damaged:
        raise InputError(f"none of the {len(damaged)} checkpoints in {folder} can be read: {damaged[0]}; to start from "
                         "the beginning, remove that folder or use another name")
    return None


def tell(sentence: str) -> None:
    """Says something on stderr, once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(sentence, file=sys.stderr, flush=True)


def prune(folder: Path, step: int, last: int, keep: set[int]) -> None:
    """Deletes all but the newest `last` checkpoints up to a step and the steps to keep, and what killed writers left.

    A file of a later step is one that was passed over as damaged; it is there until the run writes that step again.
    """
    found = [(at, path) for at, path in all_steps(folder) if at <= step]
    for at, path in found[max(1, last):]:
        if at not in keep:
            path.unlink(missing_ok=True)
    for leftover in folder.glob(".step_*.tmp"):
        leftover.unlink(missing_ok=True)


def read(path: str | Path, device: str | torch.device = "cpu", stand_in: type | None = None) -> dict[str, Any]:
    """The content of a checkpoint, by its path or by the name of weights of emcore; code inside it is never run.

    stand_in: takes the place of the classes of another program; without it a file that names any is refused.
    """
    path = checkpoint_file(path)
    return _content(path, verified(path, stand_in is not None), device, stand_in)


def read_with_digest(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a checkpoint, and the digest of the bytes that were read (record.digest_of_file)."""
    data = verified(path)
    return _content(path, data), hashlib.sha256(data).hexdigest()


def _content(path: Path, data: bytes, device: str | torch.device = "cpu",
             stand_in: type | None = None) -> dict[str, Any]:
    with refused(path, "is not a whole checkpoint"):
        names = _strange_names(data) if stand_in else ()
        # their dicts and ordered dicts hold what is looked for
        known = [(dict if name.endswith(("AttributeDict", "OrderedDict")) else stand_in, name) for name in names]
        with torch.serialization.safe_globals(known):
            content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def verified(path: Path, foreign: bool = False) -> bytes:
    """The bytes of a file in which every checksum is right and every tensor fits its record.

    foreign: whether stand-ins are to take the place of the classes of another program.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}")
    try:
        with open(path, "rb") as file:
            begin = file.read(4)
            file.seek(0)
            data = file.read() if begin == archive.ZIP or begin.startswith(PICKLE) else b""
    except (OSError, MemoryError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it does not fit into memory'}"
                         ) from None
    if not data:
        raise InputError(f"{path} is not a whole checkpoint: torch.save did not write it")
    with refused(path, "is not a whole checkpoint"):
        if data.startswith(archive.ZIP):
            _verify_zip(data, foreign)
        else:
            _verify_pickles(data)
            tell(f"{path} is of the format before torch 1.6, which holds no checksums: damage to it cannot be seen")
    return data


def _verify_zip(data: bytes, foreign: bool) -> None:
    records = archive.records(memoryview(data))
    if "constants.pkl" in records:
        raise archive.Damaged("it is a TorchScript program")

    def check(key: str, size: int) -> None:
        found = len(records.get(f"data/{key}", b""))
        if found != size or f"data/{key}" not in records:
            raise archive.Damaged(f"its record data/{key} has {found} bytes and should have {size}")

    archive.check_pickle(io.BytesIO(records["data.pkl"]), check, _strange_names(data) if foreign else None)


def _verify_pickles(data: bytes) -> None:
    """A file of the old format: magic number, version, system and content; then its storages, one after another."""
    claimed: dict[str, int] = {}

    def check(key: str, size: int) -> None:
        claimed[key] = max(size, claimed.get(key, 0))
        if size < 0 or sum(claimed.values()) > len(data):
            raise archive.Damaged(f"its tensors should have {sum(claimed.values())} bytes, more than it has")

    stream = io.BytesIO(data)
    for _ in range(4):
        archive.check_pickle(stream, check, None)


def _strange_names(data: bytes) -> list[str]:
    """The classes and functions in a file of torch.save that torch's safe loader does not know."""
    if not data.startswith(archive.ZIP):
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
    if len(names) > MOST_CLASSES:
        raise archive.Damaged(f"it names {len(names)} classes, which no checkpoint does")
    return names


@contextmanager
def refused(path: str | Path, sentence: str) -> Iterator[None]:
    """Answers whatever a foreign file makes fail in one sentence that names it."""
    try:
        yield
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from None
    except (archive.Foreign, pickle.UnpicklingError) as error:
        raise InputError(f"{path} holds more than tensors and plain values, which could run code, so it is not read; "
                         f"save its weights alone where it was written: {_first_line(error)}") from None
    except Exception as error:  # a foreign file can make anything fail
        raise InputError(f"{path} {sentence}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    ours = isinstance(error, archive.Damaged | archive.Foreign | pickle.UnpicklingError) and text
    return (text if ours else f"{type(error).__name__} {text}".strip())[:300]


def bare(state: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under the names of the bare module, whatever wrapper wrote them."""
    clean = {}
    for name, value in state.items():
        for prefix in ("module.", "_orig_mod."):
            name = name.removeprefix(prefix)
        clean[name] = value
    return clean


def load_weights(net: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Loads all weights, or says which differ."""
    state = bare(state)
    check_weights(net, state, what)
    net.load_state_dict(state)


def check_weights(net: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Refuses weights of another net, and says which differ."""
    own = net.state_dict()
    differ = sorted(state.keys() ^ own.keys()) or [
        f"{name} {tuple(state[name].shape)} against {tuple(own[name].shape)}" for name in own
        if tuple(state[name].shape) != tuple(own[name].shape)]
    if differ:
        raise InputError(f"{what} belongs to another net: {len(differ)} tensors differ, first {', '.join(differ[:5])}")


def start_from(net: nn.Module, content: Mapping[str, Any], path: str | Path, include: Sequence[str],
               exclude: Sequence[str]) -> list[str]:
    """Takes what was read from the file `path`, where it fits by name and shape; which tensors were taken."""
    with refused(path, "holds no weights to start from"):
        state = content.get("model", content.get("state_dict", content))
        if content.get("ema"):
            state = content["ema"]["weights"]
        state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        taken = transfer_encoder(net, state, grid_of(content.get("config")), include, exclude)
        if not taken:
            raise InputError(f"no tensor of {path} fits this net by name and shape; it has "
                             f"{', '.join(map(str, list(state)[:5])) or 'none'}")
    return taken


def grid_of(config: Any) -> tuple[int, int, int] | None:
    """Tokens along z, y, x that the positions in a checkpoint belong to; None if its config does not say."""
    tables = [config.get(name) if isinstance(config, Mapping) else None for name in ("model", "data")]
    model, data = (table if isinstance(table, Mapping) else {} for table in tables)
    size, token = data.get("patch"), (model.get("transformer") or {}).get("patch")
    return tuple(int(s) // int(t) for s, t in zip(size, token)) if size and token and all(token) else None


def step_of(content: Mapping[str, Any]) -> int:
    """How many steps a checkpoint was trained."""
    step = content.get("step", 0)
    if not isinstance(step, int):
        raise InputError(f"the step of the checkpoint must be a whole number; it is a {type(step).__name__}")
    return step


def choose_weights(content: Mapping[str, Any], choice: str, checkpoint: str | Path) -> tuple[Mapping[str, Any], str]:
    """The weights of a checkpoint by infer.weights, and what they are: "averaged", "plain" or "not recorded".

    auto: the averaged ones where there are any. Files of weights alone that are older than the record do not tell.
    """
    ema = content.get("ema")
    if ema:
        return (content["model"], "plain") if choice == "plain" else (ema["weights"], "averaged")
    weights_alone = "ema" not in content and "optimizer" not in content
    held = content.get("weights", "not recorded" if weights_alone else "plain")
    if choice not in ("auto", held):
        has = (f"holds {held} weights alone" if held != "not recorded" else "does not record whether its weights are "
               "averaged")
        raise InputError(f"infer.weights = {choice}, but {checkpoint} {has}; take infer.weights = auto")
    return content["model"], held


def save_weights(content: Mapping[str, Any], path: Path, choice: str = "auto") -> None:
    """Writes only what prediction needs of a checkpoint: a quarter of its size, to be shared."""
    weights, held = choose_weights(content, choice, "the checkpoint")
    record = {} if held == "not recorded" else {"weights": held}
    save(path, {"step": step_of(content), "model": weights, "config": content["config"], **record})


def model_of(content: Mapping[str, Any], checkpoint: str | Path, device: str | torch.device = "cpu",
             choice: str = "auto") -> nn.Module:
    """The net in what was read from the file `checkpoint`; memory is taken only for a net that its tensors fill."""
    if "config" not in content or not {"model", "ema"} & content.keys():
        raise InputError(f"{checkpoint} does not say which net it belongs to (no model and config); it has: "
                         f"{', '.join(map(str, content)) or 'nothing'}")
    with refused(checkpoint, "does not say which net it belongs to"):
        weights = bare(choose_weights(content, choice, checkpoint)[0])
        config = content["config"]
        model, patch = from_table(Model, config["model"], "model"), tuple(config["data"]["patch"])
        check_sizes(model, weights, checkpoint)
        with torch.device("meta"):
            planned = build_model(model, patch)
        check_weights(planned, weights, f"the checkpoint {checkpoint}")
        net = build_model(model, patch)
        net.load_state_dict(weights)
    return net.to(device).eval()


def check_sizes(model: Model, weights: Mapping[str, Tensor], checkpoint: str | Path) -> None:
    """Refuses a [model] that is larger than the tensors of its file could fill, before any of it is built."""
    largest, layers = max(_numbers(to_table(model))), model.layers
    held = sum(value.numel() for value in weights.values())
    if largest > held or layers > len(weights):
        raise InputError(f"{checkpoint} belongs to another net: its config has a size of {largest} and {layers} "
                         f"layers, its {len(weights)} tensors have {held} numbers")


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers anywhere in a table."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)
    elif isinstance(value, int):
        yield value
