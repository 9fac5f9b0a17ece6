"""What made a result: the record in every prediction and every labels file, and how it differs from what is asked for.

A record is a plain table. It holds by value everything that changes a bit of the result: the weights by their content,
the settings of the stage, the arithmetic, the source volume by its content. Threads, workers, tiles and paths of
checkpoints change no bit; some of them stand in the record for a reader and are never compared.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import emcore
from emcore import config
from emcore.errors import InputError
from emcore.reading import open_regular
from emcore.segment.edit_files import Edit, canonical, digest_of_edits
from emcore.settings import Settings
from emcore.settings.data import VolumeFiles
from emcore.settings.decode import Decode
from emcore.settings.model import Model
from emcore.settings.predict import Infer
from emcore.settings.target import affinity_offsets
from emcore.volumes import is_there, list_datasets, open_volume
from emcore.volumes.address import located
from emcore.volumes.stamp import content, stamp

ATTRIBUTE = "record"
LABELS = "labels"  # the dataset of a labels file that carries its record
# settings of [infer] that change no bit, or that stand elsewhere in the record
ELSEWHERE = ("checkpoint", "weights", "batch", "tile", "compile", "layout")
CHOICES = {"device": "device", "precision": "train.precision", "layout": "infer.layout"}
SETTINGS = {"model": Model, "infer": Infer}
MOST_NAMED = 4  # differences that a sentence lists


# ---- records


def of_prediction(settings: Settings, number: int, weights: Mapping[str, Any],
                  net: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the prediction of data.test[number], but for the arithmetic, which is decided when work begins.

    weights: their digest, which of them were used, and for readers alone checkpoint and step; net: the table [model].
    """
    return {"emcore": emcore.__version__, "weights": dict(weights), "settings": {"model": dict(net), **asked(settings)},
            "volume": of_volume(settings, settings.data.test[number])}


def asked(settings: Settings) -> dict[str, Any]:
    """The settings besides the net that change a bit of a prediction."""
    infer, data = settings.infer, settings.data
    table = {name: value for name, value in config.to_table(infer).items() if name not in ELSEWHERE}
    table["window"] = list(infer.window or data.patch)
    scaling = {"normalise": data.normalise}
    scaling |= {"percentiles": list(data.percentiles)} if data.normalise == "range" else {}
    scaling |= {"divide": data.divide} if data.normalise == "divide" else {}
    offsets = affinity_offsets(settings.target) or ()
    return {"infer": table, "data": scaling, "offsets": [list(offset) for offset in offsets]}


def of_volume(settings: Settings, volume: VolumeFiles) -> dict[str, Any]:
    """Where an image is, what it looks like and the stamp of its files; `with_content` adds a digest of its voxels."""
    return described(located(settings.data.folder, volume.image), settings.data.resolution, volume.box)


def described(reference: str, resolution: Sequence[float] | None, box: Sequence[int] | None) -> dict[str, Any]:
    """The record of an image; resolution: what counts where the image does not say its own."""
    image = open_volume(reference, kind="image")
    resolution = image.resolution or resolution
    return {"image": reference, "shape": list(image.shape), "dtype": str(image.dtype),
            "resolution": list(resolution) if resolution else None, "offset": list(image.offset),
            "box": list(box) if box else None, "stamp": stamp(reference)}


def size_of(volume: Mapping[str, Any]) -> tuple[int, int, int]:
    """Voxels along z, y, x of the box that is predicted."""
    box = volume["box"]
    return tuple(box[2 * axis + 1] - box[2 * axis] for axis in range(3)) if box else tuple(volume["shape"][-3:])


def with_content(volume: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a volume with the digest of the voxels in its box."""
    box = volume["box"] and [tuple(volume["box"][2 * axis:2 * axis + 2]) for axis in range(3)]
    return {**volume, "content": content(open_volume(volume["image"], kind="image", cache_bytes=0), box)}


def of_truth(settings: Settings, number: int) -> dict[str, Any] | None:
    """Which truth belongs to the volume; it changes no bit of a result and is compared when the result is scored."""
    label = settings.data.test[number].label
    if label is None:
        return None
    reference = located(settings.data.folder, label)
    if not is_there(reference):
        return None
    return {"label": reference, "stamp": stamp(reference), "content": content(open_volume(reference, kind="labels"))}


def of_labels(settings: Settings, prediction: Path, truth: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of labels that [decode] makes of a stored prediction."""
    return {"emcore": emcore.__version__, "prediction": of_source(prediction),
            "decode": config.to_table(settings.decode), **of_classifier(settings.decode),
            **({"truth": dict(truth)} if truth else {})}


def of_classifier(decode: Decode) -> dict[str, Any]:
    """The digest of the file of [decode.learned], whose name says nothing about it; nothing where there is none."""
    learned = getattr(decode, "learned", None)
    if learned is None:
        return {}
    try:
        return {"classifier": {"digest": digest_of_file(learned.file)}}
    except OSError as error:
        raise InputError(f"decode.learned.file: cannot read {learned.file}: {error.strerror or error}; python -m "
                         "emcore learn-contacts writes it") from None


def digest_of_file(path: str | Path) -> str:
    """The digest of the bytes of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_edits(edits: Sequence[Edit]) -> dict[str, Any]:
    """What was decided, by its content; nothing where nothing was."""
    return {"edits": {"digest": digest_of_edits(edits), "count": len(canonical(edits))}} if edits else {}


def of_source(prediction: Path) -> dict[str, Any]:
    """The record of a stored prediction with its digest, in that of labels."""
    source = read(prediction)
    if source is None:  # a prediction of another program, or of an older version
        volume = open_volume(prediction)
        source = {"file": str(prediction), "shape": list(volume.shape), "dtype": str(volume.dtype),
                  "content": content(volume)}
    return {"digest": digest(source), **source}


def digest(record: Mapping[str, Any]) -> str:
    """A digest of what changes a bit of a prediction: its record without paths, stamps and names."""
    if "settings" not in record:
        kept = {name: record[name] for name in ("shape", "dtype", "content")}
    else:
        volume = {name: record["volume"].get(name) for name in ("shape", "dtype", "box", "content")}
        kept = {"weights": record["weights"]["digest"], "settings": record["settings"], "volume": volume,
                "arithmetic": record["arithmetic"]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read(path: Path, dataset: str | None = None) -> dict[str, Any] | None:
    """The record in a file; None where it has none."""
    found = open_volume(path, dataset).attrs.get(ATTRIBUTE)
    if found is None:
        return None
    wanted = ("decode", "prediction") if dataset == LABELS else ("weights", "settings", "volume", "arithmetic")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in wanted):
        raise InputError(f"{path} has a record of what made it that cannot be read: it is damaged or was written by "
                         "another version; make the file again")
    return found


def refuse_edits(labels: Path, instead: str) -> None:
    """Refuses labels that hold edits: the merges that stand beside them know of none."""
    if (read(labels, LABELS) or {}).get("edits"):
        raise InputError(f"{labels} holds edits, and the merges in it are as they are without them: {instead}")


def has_labels(path: Path) -> bool:
    return path.exists() and any(item.name == LABELS for item in list_datasets(path))


# ---- what differs


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], settings: Settings) -> list[str]:
    """How a stored prediction differs from the wanted one, in words; empty where every bit would be the same."""
    found = []
    if stored["weights"]["digest"] != wanted["weights"]["digest"]:
        found.append(f"the weights were {told_weights(stored['weights'])}, are {told_weights(wanted['weights'])}")
    found += changed(with_defaults(stored["settings"], SETTINGS), wanted["settings"])
    made = stored["arithmetic"]
    asked = {"device": settings.device, "precision": settings.train.precision, "layout": settings.infer.layout}
    found += [f"{CHOICES[name]} was {made[name]!r}, is {choice!r}" for name, choice in asked.items()
              if choice != "auto" and made.get(name) != choice]
    if settings.infer.compile == "off" and made.get("compile"):  # where it was asked for it may have failed
        found.append("infer.compile was 'on', is 'off'")
    if made.get("device") == "cuda" and settings.infer.batch not in (0, made.get("batch")):
        found.append(f"infer.batch was {made.get('batch')!r}, is {settings.infer.batch!r}")
    if made.get("device") == "cuda" and settings.infer.tile:
        whole = size_of(stored["volume"])[1:]  # y and x, along which a tile decides how windows are batched
        was, asked = list(made.get("tile", whole)), [min(pair) for pair in zip(settings.infer.tile[1:], whole)]
        if any(side not in (0, before) for side, before in zip(asked, was)):
            found.append(f"infer.tile was {was} along y and x, is {asked}")
    if not same_volume(stored["volume"], wanted["volume"]):
        found.append(f"the volume was {told_volume(stored['volume'])}, is {told_volume(wanted['volume'])}")
    return found


def with_defaults(table: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded table by today's names, in which settings that are newer than the record have their defaults."""
    return {name: _whole(schemas[name], value) if name in schemas else value for name, value in table.items()}


def _whole(schema: Any, table: Any) -> Any:
    if not isinstance(table, Mapping):
        return table
    table = config.translated(schema, table)
    return _merged(config.to_table(config.of_kind(schema, table)()), table)


def _merged(defaults: Any, table: Any) -> Any:
    if not isinstance(defaults, Mapping) or not isinstance(table, Mapping):
        return table
    return {name: _merged(defaults.get(name), table.get(name, defaults.get(name)))
            for name in dict.fromkeys([*defaults, *table]) if name in table or name not in ELSEWHERE}


def changed(before: Any, now: Any, where: str = "") -> list[str]:
    """Every value of two tables that differs: `key was A, is B`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [text for name in dict.fromkeys([*before, *now])
                for text in changed(before.get(name), now.get(name), f"{where}.{name}" if where else name)]
    return [] if before == now else [f"{where} was {_value(before)}, is {_value(now)}"]


def same_volume(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two records are of the same voxels; where only paths or times differ the voxels are compared."""
    if any(stored.get(name) != wanted.get(name) for name in ("shape", "dtype", "resolution", "offset", "box")):
        return False
    if stored["image"] == wanted["image"] and stored.get("stamp") and stored.get("stamp") == wanted.get("stamp"):
        return True
    return stored.get("content") == with_content(wanted)["content"]


def is_unchanged(volume: Mapping[str, Any]) -> bool:
    """Whether the image of a record holds the voxels that it had then."""
    return same_volume(volume, described(volume["image"], volume.get("resolution"), volume.get("box")))


def same_truth(stored: Mapping[str, Any], label: str) -> bool:
    """Whether a truth is the one that was recorded, by its files or else by its voxels."""
    if stored["label"] == label and stored.get("stamp") and stored.get("stamp") == stamp(label):
        return True
    return stored.get("content") == content(open_volume(label, kind="labels"))


def listed(differences: list[str]) -> str:
    more = len(differences) - MOST_NAMED
    return "; ".join(differences[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


# ---- in words


def told_weights(weights: Mapping[str, Any]) -> str:
    """Which weights, how many steps they learned, the start of their digest and the file they came from."""
    step = f", step {weights['step']}" if weights.get("step") is not None else ""
    kind = weights.get("used", "")
    kind = "weights (not recorded whether averaged)" if kind == "not recorded" else f"{kind} weights".strip()
    return f"{kind} {weights['digest'][:12]}{step}, {weights.get('checkpoint', '?')}"


def told_volume(volume: Mapping[str, Any]) -> str:
    box = f" box {volume['box']}" if volume.get("box") else ""
    return f"{volume['image']} ({' x '.join(map(str, volume['shape']))} {volume['dtype']}{box})"


def told_arithmetic(made: Mapping[str, Any]) -> str:
    compiled = ", compiled" if made.get("compile") else ""
    return f"{made.get('precision')}, {made.get('layout')}{compiled} on {made.get('device')}"


def told_decode(table: Mapping[str, Any]) -> str:
    """The kind and what differs from the defaults."""
    table = config.translated(Decode, table)
    usual = config.to_table(config.of_kind(Decode, table)())
    other = [f"{name} {value}" for name, value in table.items() if name != "kind" and usual.get(name) != value]
    return ", ".join([f"kind {table.get('kind')}", *other])


def _value(value: Any) -> str:
    return "not set" if value is None else repr(value)
