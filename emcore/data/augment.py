"""From a batch as read to a batch as learned: scaled, moved, made worse; on the model's device.

Every random number comes from the run's seed and the sample's number, so a sample is the same in any batch, worker
or rank, and after a resume.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from emcore.data.defects import DEFECTS, INTENSITY
from emcore.data.warps import check_geometry, draw_plan, margin, move
from emcore.errors import InputError
from emcore.settings.augment import Augment, CopyPaste
from emcore.settings.data import Data

__all__ = ["augment_batch", "check_augment", "margin", "normalise", "on_device"]

STREAM = 2  # Its random numbers are others than those of the sampler.
MEMBERS = {"misalignment", "deleted_section", *DEFECTS}
COMPUTED = ("image", "statistics", "label", "mask", "skeleton")


def check_augment(augment: Augment, patch: tuple[int, int, int]) -> None:
    """Refuses what cannot be done, before anything starts."""
    check_geometry(augment, patch)
    unknown = [name for name in augment.exclusive if name not in MEMBERS]
    if unknown:
        raise InputError(f"augment.exclusive names {', '.join(unknown)}; it can hold {', '.join(sorted(MEMBERS))}")


def normalise(image: Tensor, statistics: Tensor, data: Data) -> Tensor:
    """(n, c, z, y, x) as float32, scaled by the volume's statistics or by the patch's own."""
    if data.normalise == "none":
        return image.float()
    if data.normalise == "divide" or data.normalise_by == "volume":
        low, span = statistics[:, 0], statistics[:, 1]
    else:
        low, span = _own_statistics(image, data)
    low, span = (value.view(-1, 1, 1, 1, 1) for value in (low, span))
    scaled = (image - low).div_(span)
    return scaled.clamp_(0, 1) if data.normalise == "range" else scaled


def _own_statistics(image: Tensor, data: Data) -> tuple[Tensor, Tensor]:
    """What is subtracted from every patch, and what it is divided by then."""
    flat = image.flatten(1)
    if data.normalise == "score":
        low, span = flat.float().mean(1), flat.float().std(1, unbiased=False)
    elif data.percentiles == (0.0, 100.0):
        low, high = flat.amin(1).float(), flat.amax(1).float()
        span = high - low
    else:
        low, high = percentiles(flat, data.percentiles)
        span = high - low
    return low, torch.where(span > 0, span, 1.0)


def percentiles(values: Tensor, shares: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Two percentiles of every row, between the nearest values like numpy's; rows of any length."""
    last = values.shape[1] - 1
    places = [share / 100 * last for share in shares]
    if values.dtype == torch.uint8:  # counted, not sorted
        upto = (_counts(values) if values.device.type == "cpu" else _counts_without_waiting(values)).cumsum(1)

        def ranked(place: int) -> Tensor:
            return (upto <= place).sum(1).float()
    else:
        ordered = values.sort(1).values

        def ranked(place: int) -> Tensor:
            return ordered[:, place].float()
    low, high = (torch.lerp(ranked(int(place)), ranked(min(int(place) + 1, last)), place - int(place))
                 for place in places)
    return low, high


def _counts(values: Tensor) -> Tensor:
    """How often each of the 256 values stands in every row."""
    return torch.stack([row.bincount(minlength=256) for row in values.int()])


def _counts_without_waiting(values: Tensor) -> Tensor:
    """The same; bincount would look for the largest value first, and the host would wait for a GPU to tell it."""
    places = values.long()
    counts = torch.zeros(len(values), 256, dtype=torch.int64, device=values.device)
    return counts.scatter_add_(1, places, torch.ones_like(places))


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors of a batch that are computed with go to the device; the numbers of the samples stay on the host.

    Reading numbers back from a GPU would wait for all the work that it still has to do.
    """
    return {name: tensor.to(device, non_blocking=True) if name in COMPUTED else tensor
            for name, tensor in batch.items()}


def augment_batch(batch: Mapping[str, Tensor], augment: Augment, data: Data, seed: int) -> dict[str, Tensor]:
    """image float32 (n, c, z, y, x), label, mask and skeleton (n, z, y, x) of the patch's size."""
    image = normalise(batch["image"], batch["statistics"], data)
    moved = {name: batch[name][:, None] for name in ("label", "mask", "skeleton") if name in batch}
    out = {name: [] for name in ("image", *moved)}
    randoms = []
    for i, number in enumerate(batch["number"].tolist()):
        random = np.random.default_rng([seed, STREAM, number])
        chosen = _chosen(augment, random)
        plan = draw_plan(augment, data.patch, random, chosen)
        key = int(random.integers(0, 2**62))
        sample = {"image": image[i], **{name: tensor[i] for name, tensor in moved.items()}}
        for name, tensor in move(sample, plan, data.patch, torch.Generator(image.device).manual_seed(key)).items():
            out[name].append(tensor)
        randoms.append((random, chosen, torch.Generator(image.device).manual_seed(key + 1)))
    for i, (random, chosen, generator) in enumerate(randoms):
        for name, function in (*INTENSITY.items(), *DEFECTS.items()):
            step = getattr(augment, name)
            if step.probability <= 0 or (name in DEFECTS and name not in chosen):
                continue
            if random.random() < step.chance:
                out["image"][i] = function(out["image"][i], step, random, generator)
        if "label" in moved and random.random() < augment.copy_paste.probability:
            out["image"][i], out["label"][i] = _copy_paste(out["image"][i], out["label"][i], augment.copy_paste, random)
    result = {name: torch.stack(list(tensors)) for name, tensors in out.items()}
    result["image"] = _mixup(result["image"], augment, [random for random, *_ in randoms])
    return {name: tensor if name == "image" else tensor[:, 0] for name, tensor in result.items()}


def _chosen(augment: Augment, random: np.random.Generator) -> set[str]:
    """The defects that may happen to a sample: all, or one of those that exclude each other and all others."""
    group = [name for name in augment.exclusive if getattr(augment, name).probability > 0]
    free = MEMBERS - set(augment.exclusive)
    return free | ({group[int(random.integers(len(group)))]} if group else set())


def _mixup(images: Tensor, augment: Augment, randoms: list[np.random.Generator]) -> Tensor:
    if augment.mixup.probability <= 0 or len(images) < 2:
        return images
    out = images.clone()
    for i, random in enumerate(randoms):
        if random.random() < augment.mixup.probability:
            share, other = random.uniform(*augment.mixup.share), (i + 1 + int(random.integers(len(images) - 1)))
            out[i] = images[i] * share + images[other % len(images)] * (1 - share)
    return out


def _copy_paste(image: Tensor, label: Tensor, step: CopyPaste, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One object, turned in its section plane, where there is background now."""
    ids, sizes = label[label > 0].unique(return_counts=True)
    small = ids[sizes <= step.largest * label.numel()]
    if len(small) == 0:
        return image, label
    chosen = small[int(random.integers(len(small)))]
    turns, square = int(random.integers(1, 4)), image.shape[2] == image.shape[3]
    turns = turns if square else 2
    mask = (label == chosen).rot90(turns, (2, 3)) & (label == 0)
    pasted = torch.where(mask, image.rot90(turns, (2, 3)), image)
    # odd or even as the id that it copies: for polarity, odd ids are before the synapse and even ids behind it
    free = torch.arange(2 - int(chosen) % 2, 2 * len(ids) + 3, 2, device=ids.device)
    return pasted, torch.where(mask, free[~torch.isin(free, ids)][0], label) if step.labels else label
