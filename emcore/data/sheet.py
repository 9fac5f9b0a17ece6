"""python -m emcore augment --cfg X.toml [--out sheet.html] [--all] [KEY=VALUE ...]: pictures of every augmentation.

A page with the first training sample as it is, then after each augmentation of the config by itself, then as it is
trained on: a section (the one that changed most) as image, labels and both; and the same from the side, z downwards.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch

from emcore import config
from emcore.data.augment import augment_batch, check_augment, margin
from emcore.data.sampler import Sampler
from emcore.data.skeletons import skeleton_folder
from emcore.data.sources import open_sources
from emcore.errors import InputError
from emcore.files import write_text
from emcore.report.sheet import sheet_page
from emcore.settings import Settings
from emcore.settings.augment import Augment, Flip

NONE = Augment()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore augment", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="TOML file with the settings of a training")
    parser.add_argument("--out", default="augment.html", help="the page")
    parser.add_argument("--all", action="store_true", help="also what the config leaves at probability 0")
    parser.add_argument("overrides", nargs="*", help="settings to change, such as augment.elastic.probability=0.5")
    options = parser.parse_args(arguments)
    if not options.out.lower().endswith(".html"):
        raise InputError(f"the pictures are in a page: --out must end in .html; got {options.out}")
    settings = config.load(Settings, options.cfg, options.overrides)
    write_text(options.out, sheet(settings, options.all))
    print(options.out)
    return 0


def sheet(settings: Settings, everything: bool = False) -> str:
    """HTML with a section for each augmentation, named."""
    check_augment(settings.augment, settings.data.patch)
    sources = open_sources(settings.data, "train", skeleton_folder(settings))
    steps = {"as it is": NONE, **{name: alone(settings.augment, name) for name in names(settings.augment, everything)},
             "as trained on": settings.augment}
    samples = {name: _sample(settings, sources, augment) for name, augment in steps.items()}
    return sheet_page(f"augmentations of {settings.name}", samples, sources[0].resolution)


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


def _sample(settings: Settings, sources: Sequence, augment: Augment) -> dict[str, np.ndarray]:
    """Image (z, y, x) and labels of the first training sample, which is in a batch with the second (for mixup)."""
    sampler = Sampler(sources, settings.data, settings.seed, margin(augment, settings.data.patch))
    read = {name: torch.from_numpy(values) for name, values in sampler.batch([0, 1]).items()}
    with torch.no_grad():
        done = augment_batch(read, augment, settings.data, settings.seed)
    found = {"image": done["image"][0, 0], **({"label": done["label"][0]} if "label" in done else {})}
    return {name: tensor.numpy() for name, tensor in found.items()}
