"""Training samples of the 2019 tutorial: how large they are cut, where from, and what is done to them.

A sample is cut larger than the patch, so that every step finds tissue. Steps run in the order of that time:
misalignment, deleted sections, folds, grey values, then one interpolation for elastic, flip, scale and rotation.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from emcore.data.defects import contrast, fold, inner_sections
from emcore.data.targets import IGNORE, prepare_labels
from emcore.data.warps import Plan, deviation, move
from emcore.settings import Settings
from emcore.settings.augment import Contrast, Elastic, Fold

Triple = tuple[int, int, int]
STREAM = 3  # the random numbers here stay apart from those that choose places
SHIFT = 16  # places along y and x that sections are cut at
DELETED = 2  # sections
FOLD = Fold(probability=0.9, width=40)
GREY = Contrast(section_ratio=0.5, gain=(0.85, 1.15), bias=(-0.15, 0.15), gamma=(0.5, 2.0))
ELASTIC = Elastic(sigma=(4.0, 4.0), magnitude=(12.0, 12.0), flat=True)


def sample_size(patch: Triple) -> Triple:
    """Voxels that a sample is cut at: what rotation, scaling, elastic, lost sections and shifts need."""
    z, y, x = patch
    y, x = (math.ceil(math.ceil(n * 1.42) * 1.25) + 2 * 13 + SHIFT for n in (y, x))
    return z + DELETED, y, x


def augmented(batch: Mapping[str, Tensor], settings: Settings, patch: Triple) -> tuple[Tensor, Tensor]:
    """Images (n, 1, z, y, x) in 0..1 and labels (n, z, y, x) of the patch's size, from samples as they were cut."""
    images, labels = [], []
    for image, label, number in zip(batch["image"], batch["label"], batch["number"].tolist()):
        random = np.random.default_rng([settings.seed, STREAM, number])
        moved = augment(image.float() / 255, label[None], patch, random)
        images.append(moved[0])
        labels.append(moved[1])
    label = torch.cat(labels)
    if settings.target[0].kind == "binary":
        label = torch.where(label == IGNORE, IGNORE, (label > 0).long())
    return torch.stack(images), prepare_labels(label, settings.labels)


def augment(image: Tensor, label: Tensor, patch: Triple, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One sample (1, z, y, x) and its labels, moved and cut to the patch."""
    image, label = _misaligned(image, label, random)
    if random.random() < 0.5:
        lost = inner_sections(image.shape[1], DELETED, random)
        kept = [z for z in range(image.shape[1]) if z not in lost]
        image, label = image[:, kept], label[:, kept]
    if random.random() < FOLD.probability:  # drawn here and again for each section
        image = fold(image, FOLD, random, None)
    if random.random() < 0.75:
        image = contrast(image, GREY, random, None)
    plan, first = Plan(), int(random.integers(image.shape[1] - patch[0] + 1))
    if random.random() < 0.75:
        plan.elastic, plan.flat = (ELASTIC.sigma[0], deviation(ELASTIC, ELASTIC.sigma[0], ELASTIC.magnitude[0])), True
    # with the rotation below, flips alone have the same distribution as flips and exchanges of y and x
    plan.flips = tuple(axis for axis in range(3) if random.random() < 0.5)
    scale = np.diag([1.0, *random.uniform(0.8, 1.2, 2)]) if random.random() < 0.5 else np.eye(3)
    angle = random.uniform(0, 2 * math.pi)
    plan.matrix = scale @ np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)],
                                    [0, math.sin(angle), math.cos(angle)]])
    key = int(random.integers(2**62))
    sample = {"image": image[:, first:first + patch[0]], "label": label[:, first:first + patch[0]]}
    moved = move(sample, plan, patch, torch.Generator(image.device).manual_seed(key))
    return moved["image"], moved["label"]


def _misaligned(image: Tensor, label: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cut SHIFT narrower, one section or all from it on at another place than the rest."""
    depth, height, width = image.shape[1], image.shape[2] - SHIFT, image.shape[3] - SHIFT
    corners = random.integers(0, SHIFT, (2, 2))
    section, slips = int(random.integers(1, depth - 1)), random.random() < 0.5
    rows = [corners[int(z == section if slips else z >= section)] for z in range(depth)]
    return tuple(torch.stack([tensor[:, z, y:y + height, x:x + width] for z, (y, x) in enumerate(rows)], 1)
                 for tensor in (image, label))
