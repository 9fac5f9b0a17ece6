"""Augmentations one by one, and whole sets of them against the same sets of MONAI transforms."""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from bench.data_rows import Result, in_turns
from emcore import config
from emcore.data.augment import augment_batch, margin
from emcore.data.targets import make_targets, prepare_labels
from emcore.settings import Settings
from emcore.settings import augment as steps
from emcore.settings.augment import Augment
from emcore.settings.data import Data

FOLDER = Path(__file__).parent / "pipelines"
NAMES = ("cremi", "snemi", "dbmim", "legacy")
ALONE = {
    "nothing": Augment(),
    "flip": Augment(flip=steps.Flip((1.0, 1.0, 1.0))),
    "turn": Augment(turn=steps.Turn(1.0)),
    "rotate": Augment(rotate=steps.Rotate(1.0)),
    "scale": Augment(scale=steps.Scale(1.0)),
    "shear": Augment(shear=steps.Shear(1.0)),
    "elastic": Augment(elastic=steps.Elastic(1.0)),
    "elastic, flat": Augment(elastic=steps.Elastic(1.0, (4.0, 4.0), (12.0, 12.0), flat=True)),
    "misalignment": Augment(misalignment=steps.Misalignment(1.0)),
    "misalignment, turned": Augment(misalignment=steps.Misalignment(1.0, rotate_ratio=1.0)),
    "deleted_section": Augment(deleted_section=steps.DeletedSection(1.0)),
    "noise": Augment(noise=steps.Noise(1.0)),
    "shift": Augment(shift=steps.Shift(1.0)),
    "gamma": Augment(gamma=steps.Gamma(1.0)),
    "contrast": Augment(contrast=steps.Contrast(1.0, 1.0)),
    "missing_section": Augment(missing_section=steps.MissingSection(1.0)),
    "lost_section": Augment(lost_section=steps.LostSection(1.0)),
    "missing_part": Augment(missing_part=steps.MissingPart(1.0)),
    "fold": Augment(fold=steps.Fold(0.9)),
    "blur": Augment(blur=steps.Blur(1.0)),
    "blur, motion": Augment(blur=steps.Blur(1.0, motion=True)),
    "cut_noise": Augment(cut_noise=steps.CutNoise(1.0)),
    "cut_blur": Augment(cut_blur=steps.CutBlur(1.0)),
    "stripes": Augment(stripes=steps.Stripes(1.0)),
    "copy_paste": Augment(copy_paste=steps.CopyPaste(1.0)),
}


def tissue(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Smooth uint8 grey values and int64 blocks of labels with background between them."""
    random = np.random.default_rng(0)
    grey = random.integers(60, 200, [n // 4 + 1 for n in shape], dtype=np.uint8)
    labels = random.integers(0, 300, [n // 12 + 1 for n in shape])
    for axis in range(3):
        grey, labels = grey.repeat(4, axis), labels.repeat(12, axis)
    whole = tuple(slice(0, n) for n in shape)
    return np.ascontiguousarray(grey[whole]), np.ascontiguousarray(labels[whole])


def samples(data: Data, augment: Augment, device: str, size: int = 1) -> Callable[[int], dict]:
    """A function of a number: a batch of `size` samples from there on, augmented."""
    around = margin(augment, data.patch)
    image, label = tissue(tuple(p + low + high for p, (low, high) in zip(data.patch, around)))
    read = {"image": torch.from_numpy(image)[None, None].repeat(size, 1, 1, 1, 1),
            "label": torch.from_numpy(label)[None].repeat(size, 1, 1, 1),
            "statistics": torch.tensor([[0.0, 255.0]] * size)}

    def make(number: int) -> dict:
        batch = {name: tensor.to(device) for name, tensor in read.items()}
        return augment_batch({**batch, "number": torch.arange(number, number + size)}, augment, data, 0)
    return make


def peer_samples(data: Data, name: str) -> Callable[[int], dict]:
    """The same of MONAI: one sample, without the margin that our geometry needs."""
    from bench.data_peers import elastic, pipelines
    extra = (2, 0, 0) if name == "legacy" else (0, 0, 0)  # sections are deleted
    image, label = tissue(tuple(p + e for p, e in zip(data.patch, extra)))
    transform = elastic(1.0, (5, 8), (50, 150)) if name == "elastic" else pipelines()[name]
    given = {"image": image[None], "label": label[None].astype(np.int32)}
    if name == "elastic":
        given["image"] = given["image"].astype(np.float32) / 255
    return lambda number: transform(dict(given))


def alone(device: str, repeats: int) -> Iterator[Result]:
    """Every augmentation by itself on one 18 x 256 x 256 sample with labels."""
    data = Data(patch=(18, 256, 256))
    for name, augment in ALONE.items():
        make = samples(data, augment, device)
        yield in_turns(name, lambda number, make=make: _waited(make(number), device), None, repeats, 8)


def whole(device: str, repeats: int, with_peer: bool) -> Iterator[Result]:
    """Elastic and the four sets, mean of many samples, ours and MONAI in turns."""
    works = {"elastic": (Settings(name="elastic", data=Data(patch=(18, 256, 256))), ALONE["elastic"], ">= 5")}
    for name in NAMES:
        settings = config.load(Settings, FOLDER / f"{name}.toml", [])
        works[name] = (settings, settings.augment, ">= 3" if name == "cremi" else "faster")
    for name, (settings, augment, goal) in works.items():
        make = samples(settings.data, augment, device)
        peer = peer_samples(settings.data, name) if with_peer else None
        label = f"{name}, {' x '.join(map(str, settings.data.patch))} + labels"
        yield in_turns(label, lambda number, make=make: _waited(make(number), device), peer, repeats, 10, goal, "MONAI")


def _waited(batch: dict, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _worker(numbers: range) -> None:
    torch.set_num_threads(1)
    settings = config.load(Settings, FOLDER / "snemi.toml", [])
    make = samples(settings.data, settings.augment, "cpu")
    for number in numbers:
        _targeted(make(number), settings)


def _targeted(batch: dict, settings: Settings) -> None:
    labels = prepare_labels(batch["label"], settings.labels)
    make_targets(labels, settings.target)


def on_gpu(repeats: int, workers: int = 4, size: int = 8) -> Iterator[Result]:
    """The SNEMI set with its targets: batches of 8 on the GPU against processes on the CPU."""
    settings = config.load(Settings, FOLDER / "snemi.toml", [])
    settings = dataclasses.replace(settings, device="cuda")
    make = samples(settings.data, settings.augment, "cuda", size)
    for number in range(0, 3 * size, size):
        _targeted(make(number), settings)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for number in range(0, repeats * size, size):
        _targeted(make(number), settings)
    torch.cuda.synchronize()
    ours = (time.perf_counter() - start) / (repeats * size)
    each = 12
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_worker, [range(2)] * workers, 1)  # imports
        start = time.perf_counter()
        pool.map(_worker, [range(each * n, each * (n + 1)) for n in range(workers)], 1)
        peer = (time.perf_counter() - start) / (each * workers)
    yield Result(f"batch of {size}, augmented and targeted", ours, f"{workers} CPU workers", peer, ">= 20")
