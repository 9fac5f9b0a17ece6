"""python -m emcore augment --cfg X.toml [--out sheet.png] [--all] [KEY=VALUE ...]: a picture of every augmentation.

The first training sample as it is, then after each augmentation of the config by itself, then as it is trained on.
A row shows a section (the one that changed most): image, labels, both; and the same from the side, z downwards.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from emcore import config
from emcore.data.augment import augment_batch, check_augment, margin
from emcore.data.letters import HEIGHT, write
from emcore.data.sampler import Sampler
from emcore.data.skeletons import skeleton_folder
from emcore.data.sources import open_sources
from emcore.errors import InputError
from emcore.png import colour_labels, overlay, write_png
from emcore.settings import Settings
from emcore.settings.augment import Augment, Flip

NONE = Augment()
GROUND, INK = 24, 230  # grey of the paper and of the letters
GAP = 4  # pixels between pictures
TILE = 256  # pixels of a picture's longer side, about


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore augment", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of a training")
    parser.add_argument("--out", default="augment.png", help="the picture")
    parser.add_argument("--all", action="store_true", help="also what the config leaves at probability 0")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as augment.elastic.probability=0.5")
    options = parser.parse_args(arguments)
    if not options.out.lower().endswith(".png"):
        raise InputError(f"the picture is a PNG: --out must end in .png; got {options.out}")
    settings = config.load(Settings, options.cfg, options.overrides)
    write_png(options.out, sheet(settings, options.all))
    print(options.out)
    return 0


def sheet(settings: Settings, everything: bool = False) -> np.ndarray:
    """RGB uint8 (y, x, 3): a row for each augmentation, named."""
    check_augment(settings.augment, settings.data.patch)
    sources = open_sources(settings.data, "train", skeleton_folder(settings))
    before = _sample(settings, sources, NONE)
    rows = [_row("as it is", before, before, sources[0].resolution)]
    for name in names(settings.augment, everything):
        after = _sample(settings, sources, alone(settings.augment, name))
        rows.append(_row(name, before, after, sources[0].resolution))
    rows.append(_row("as trained on", before, _sample(settings, sources, settings.augment), sources[0].resolution))
    wide = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, wide - row.shape[1]), (0, 0)), constant_values=GROUND)
                           for row in rows])


def names(augment: Augment, everything: bool = False) -> list[str]:
    """The augmentations that have a probability, in the order of [augment]; all that the patch allows if asked for."""
    steps = [field.name for field in fields(augment) if field.name != "exclusive"]
    return [name for name in steps if everything or getattr(augment, name).probability not in (0.0, (0.0, 0.0, 0.0))]


def alone(augment: Augment, name: str) -> Augment:
    """That augmentation with the config's parameters, always done, and no other."""
    step = getattr(augment, name)
    if isinstance(step, Flip):
        chances = tuple(float(chance > 0) for chance in step.probability)
        return replace(NONE, flip=Flip(chances if any(chances) else (1.0, 1.0, 1.0)))
    return replace(NONE, **{name: replace(step, probability=1.0)})


def _sample(settings: Settings, sources: Sequence, augment: Augment) -> dict[str, Tensor]:
    """Image (z, y, x) and labels of the first training sample, which is in a batch with the second (for mixup)."""
    sampler = Sampler(sources, settings.data, settings.seed, margin(augment, settings.data.patch))
    read = {name: torch.from_numpy(values) for name, values in sampler.batch([0, 1]).items()}
    with torch.no_grad():
        done = augment_batch(read, augment, settings.data, settings.seed)
    return {"image": done["image"][0, 0], **({"label": done["label"][0]} if "label" in done else {})}


def _row(name: str, before: dict[str, Tensor], after: dict[str, Tensor], resolution: Sequence[float]) -> np.ndarray:
    """A name over the pictures of one section and of one plane from the side."""
    z, y = _places(before, after)
    low, high = (float(bound) for bound in before["image"].aminmax())
    grey = ((after["image"] - low) / max(high - low, 1e-6)).clamp(0, 1).mul(255).round().byte().numpy()
    labels = after["label"].clamp_min(0).numpy() if "label" in after else None
    tall = max(1, round(resolution[0] / resolution[2]))  # a section is that many rows from the side
    pictures = [*_views(grey, labels, z), *(np.repeat(view, tall, 0) for view in _views(grey, labels, y, 1))]
    longest = max(grey.shape[1:])
    larger, step = max(1, TILE // longest), max(1, -(-longest // TILE))
    pictures = [np.pad(picture[::step, ::step].repeat(larger, 0).repeat(larger, 1), ((0, GAP), (0, GAP), (0, 0)),
                       constant_values=GROUND) for picture in pictures]
    high = max(picture.shape[0] for picture in pictures)
    pictures = [np.pad(picture, ((0, high - picture.shape[0]), (0, 0), (0, 0)), constant_values=GROUND)
                for picture in pictures]
    line = np.concatenate(pictures, 1)
    title = write(f"{name}   z {z}, from the side y {y}", 2)
    head = np.full((2 * HEIGHT + 3 * GAP, max(line.shape[1], title.shape[1] + 2 * GAP), 3), GROUND, np.uint8)
    head[2 * GAP:2 * GAP + title.shape[0], GAP:GAP + title.shape[1]][title] = INK
    line = np.pad(line, ((0, 0), (0, head.shape[1] - line.shape[1]), (0, 0)), constant_values=GROUND)
    return np.concatenate([head, line])


def _places(before: dict[str, Tensor], after: dict[str, Tensor]) -> tuple[int, int]:
    """The section and the row to show: those with most labels, or the most changed where little is."""
    change = sum((after[key] - before[key]).abs().float() for key in before)
    found = []
    for others in ((1, 2), (0, 2)):
        lines = change.mean(others)
        few = 0 < int((lines > 0.01 * lines.max()).sum()) < len(lines) / 2
        labelled = (before["label"] > 0).float().mean(others) if "label" in before else torch.zeros_like(lines)
        middle = len(lines) // 2
        found.append(int(lines.argmax() if few else labelled.argmax() if labelled.var() > 0 else middle))
    return found[0], found[1]


def _views(grey: np.ndarray, labels: np.ndarray | None, place: int, axis: int = 0) -> list[np.ndarray]:
    """The image, its labels, and both, at one place of an axis."""
    section = grey.take(place, axis)
    found = [np.repeat(section[..., None], 3, 2)]
    if labels is not None:
        ids = labels.take(place, axis)
        found += [colour_labels(ids), overlay(section, ids)]
    return found
