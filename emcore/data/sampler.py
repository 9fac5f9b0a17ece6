"""Which patch sample number N is, and a loader that reads patches ahead.

Every random number of a sample comes from (seed, N) alone: the same samples whatever the number of workers and
ranks, and after a resume.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from emcore.data.sources import Source
from emcore.data.targets import IGNORE
from emcore.errors import InputError
from emcore.settings.data import Data

Margin = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
NONE: Margin = ((0, 0), (0, 0), (0, 0))


class Sampler(Dataset):
    """Sample N as a dict: image, label, mask, skeleton where given, and where it comes from."""

    def __init__(self, sources: Sequence[Source], data: Data, seed: int, margin: Margin = NONE, stream: int = 0):
        """margin: voxels more than the patch on both sides of every axis; stream separates training from validation."""
        if not sources:
            raise InputError("there are no volumes to draw samples from: set data.train")
        self.sources, self.data, self.margin = list(sources), data, margin
        self.seed = (seed, stream)
        self.spans = [_corners(source, data) for source in self.sources]
        weights = np.array([self._weight(source, spans) for source, spans in zip(self.sources, self.spans)])
        if not (weights >= 0).all() or not weights.sum() > 0:
            raise InputError(f"the weights of the volumes must not be negative, one must be positive; got "
                             f"{weights.tolist()}")
        self.chance = weights / weights.sum()

    def _weight(self, source: Source, spans: Sequence[tuple[int, int]]) -> float:
        if self.data.choose == "size":
            return source.weight * float(np.prod(source.size, dtype=np.float64))
        if self.data.choose == "positions":
            return source.weight * float(np.prod([high - low for low, high in spans], dtype=np.float64))
        return source.weight

    def place(self, number: int) -> tuple[int, tuple[int, int, int], int]:
        """(volume, corner in voxels of its image, draws) of a sample."""
        random = np.random.default_rng([*self.seed, number])
        for draws in range(1, max(1, self.data.reject_tries) + 1):  # noqa: B007 (returned after the loop)
            volume = int(random.choice(len(self.sources), p=self.chance))
            corner = tuple(int(random.integers(low, high)) for low, high in self.spans[volume])
            if self._accepted(self.sources[volume], corner, random):
                break
        return volume, corner, draws

    def _accepted(self, source: Source, corner: Sequence[int], random: np.random.Generator) -> bool:
        box = [(c, c + p) for c, p in zip(corner, self.data.patch)]
        if "mask" in source.arrays and read(source, "mask", box).astype(bool).mean() <= 0.5:
            return False
        if self.data.reject_below > 0 and "label" in source.arrays:
            label = self.labels(source, box)
            if np.count_nonzero(label > 0) < self.data.reject_below:
                return bool(random.random() >= self.data.reject_probability)
        return True

    def labels(self, source: Source, box: Sequence[tuple[int, int]]) -> np.ndarray:
        """int64 labels of a box of the image, with the configured background as 0 and unknown as IGNORE."""
        values = read(source, "label", box)
        out = values.astype(np.int64)  # ids from 2**63 on turn negative and are told below
        for value in _representable(self.data.background, values.dtype):
            out[values == value] = 0
        ignored = np.zeros(values.shape, bool)
        for value in _representable(self.data.ignore, values.dtype):
            ignored |= values == value
        wrong = (out < 0) & ~ignored
        if wrong.any():
            raise InputError(f"the labels of {source.name} hold {values[wrong][0]}, which is no object: name it in "
                             "data.background (it means 0) or in data.ignore (it means unknown)")
        out[ignored] = IGNORE
        return out

    def __getitem__(self, number: int) -> dict[str, Any]:
        volume, corner, draws = self.place(number)
        source = self.sources[volume]
        box = [(c - low, c + p + high) for c, p, (low, high) in zip(corner, self.data.patch, self.margin)]
        image = read(source, "image", box)
        image = image if image.ndim == 4 else image[None]
        if image.dtype not in (np.uint8, np.float32):
            image = image.astype(np.float32)
        sample = {"number": number, "volume": volume, "corner": torch.tensor(corner), "draws": draws,
                  "statistics": torch.tensor(source.statistics, dtype=torch.float32),
                  "image": torch.from_numpy(np.ascontiguousarray(image))}
        if "label" in source.arrays:
            label = self.labels(source, box)
            label[~_inside(source, "label", box)] = IGNORE
            sample["label"] = torch.from_numpy(label)
        if "skeleton" in source.arrays:
            sample["skeleton"] = torch.from_numpy(read(source, "skeleton", box).astype(np.int64))
        if "mask" in source.arrays:
            sample["mask"] = torch.from_numpy(read(source, "mask", box).astype(bool))
        return sample


def _representable(ids: Sequence[int], dtype: np.dtype) -> list[np.integer]:
    """The ids that labels of this type can hold, in that type."""
    if dtype.kind not in "iu":
        return []
    return [dtype.type(value) for value in ids if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max]


def _corners(source: Source, data: Data) -> list[tuple[int, int]]:
    """[low, high) of the corners along each axis; a volume smaller than a patch has one, centred."""
    spans = []
    for axis, (patch, pad) in enumerate(zip(data.patch, data.pad)):
        low, high = source.box[axis]
        if "label" in source.arrays:
            start = source.starts["label"][axis]
            low, high = max(low, start), min(high, start + source.arrays["label"].shape[-3:][axis])
        low, high = low - pad, high + pad
        if high - low < patch:
            low -= (patch - (high - low)) // 2
            spans.append((low, low + 1))
        else:
            spans.append((low, high - patch + 1))
    return spans


def read(source: Source, role: str, box: Sequence[tuple[int, int]]) -> np.ndarray:
    """Voxels of the image's box [low, high) a axis; outside of what there is they are mirrored."""
    array, start = source.arrays[role], source.starts[role]
    spans, pads = [], []
    for axis, (low, high) in enumerate(box):
        first = max(source.box[axis][0], start[axis])
        last = min(source.box[axis][1], start[axis] + array.shape[-3:][axis])
        # a box wholly outside is read from the nearest voxels, so that there is something to mirror
        inner_low = min(max(low, first), last - 1)
        inner_high = max(min(high, last), first + 1)
        reach = max(inner_low - low, high - inner_high)
        inner_low = max(first, min(inner_low, last - reach - 1))
        inner_high = min(last, max(inner_high, first + reach + 1))
        spans.append(slice(inner_low - start[axis], inner_high - start[axis]))
        pads.append((max(0, inner_low - low), max(0, high - inner_high)))
    lead = (slice(None),) * (len(array.shape) - 3)
    values = np.asarray(array[(*lead, *spans)])
    if any(before or after for before, after in pads):
        values = np.pad(values, [(0, 0)] * len(lead) + pads, mode="reflect")
    offset = [span.start + start[axis] - pads[axis][0] for axis, span in enumerate(spans)]
    inner = tuple(slice(low - o, high - o) for (low, high), o in zip(box, offset))
    return values[(*lead, *inner)]


def _inside(source: Source, role: str, box: Sequence[tuple[int, int]]) -> np.ndarray:
    """Where labels are known: inside their extent, and in the mirror beyond an edge that they share with the image."""
    lines = []
    for axis, (low, high) in enumerate(box):
        place = np.arange(low, high)
        start = source.starts[role][axis]
        stop = start + source.arrays[role].shape[-3:][axis]
        known = np.ones(len(place), bool)
        if start > source.box[axis][0]:
            known &= place >= start
        if stop < source.box[axis][1]:
            known &= place < stop
        lines.append(known)
    return lines[0][:, None, None] & lines[1][:, None] & lines[2]


def sample_numbers(first: int, steps: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[list[int]]:
    """The numbers of every micro-batch of one rank, from step `first` on: step * batch + position."""
    if batch % (accumulate * world):
        raise InputError(f"train.batch = {batch} cannot be shared by {world} ranks in {accumulate} micro-batches each; "
                         f"the nearest that can is {max(1, round(batch / (accumulate * world))) * accumulate * world}")
    part = batch // (accumulate * world)
    for step in range(first, steps):
        for micro in range(accumulate):
            start = step * batch + (micro * world + rank) * part
            yield list(range(start, start + part))


def load(sampler: Sampler, numbers: Iterator[list[int]] | Sequence[list[int]], workers: int, prefetch: int = 4,
         pin: bool = False) -> Iterator[dict[str, Tensor]]:
    """Batches of samples, in the order of `numbers`, read ahead by workers; a worker's error is told as it was."""
    loader = DataLoader(sampler, batch_sampler=_Numbers(numbers), collate_fn=collate, num_workers=workers,
                        prefetch_factor=prefetch if workers else None, pin_memory=pin)
    try:
        yield from loader
    except InputError as error:  # from a worker it comes with that process's traceback in its text
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("emcore.errors.InputError: ")) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(f"a process that reads patches died: {str(error).splitlines()[0]} If memory ran out, lower "
                         "data.workers or data.prefetch") from None


class _Numbers:
    """An iterable for the loader, which asks for nothing else of it."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __iter__(self):
        return iter(self.numbers)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch; samples of volumes without labels beside others with labels are refused."""
    if any(sample.keys() != samples[0].keys() for sample in samples):
        raise InputError("volumes with and without labels, masks or skeletons cannot be mixed in one list of volumes")
    return {key: torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in samples[0]}
