"""Which patch sample number N is, and a loader that reads patches ahead.

Every random number of a sample comes from (seed, N) alone: the same samples whatever the number of workers and
ranks, and after a resume.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from emcore.data.sources import Source
from emcore.data.targets import FALSE, IGNORE
from emcore.errors import InputError, death_of_worker
from emcore.settings.data import Data

Margin = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
NONE: Margin = ((0, 0), (0, 0), (0, 0))
SENT = 2**16  # bytes up to which an array goes through the workers' pipe


class Sampler(Dataset):
    """Sample N as a dict of tensors: image, label, mask, skeleton where given, and where it comes from."""

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
        if data.reject_below > 0:
            labelled = [source for source in self.sources if "label" in source.arrays]
            empty = [source.name for source in labelled if not self._foreground(source)]
            if empty:
                raise InputError(f"data.reject_below = {data.reject_below} asks for labelled voxels, but the labels of "
                                 f"{', '.join(empty)} hold none in the part that is used: leave those volumes out or "
                                 "set data.reject_below = 0")

        self.invented = [self._invented(source) for source in self.sources]

    def _foreground(self, source: Source) -> bool:
        """Whether any voxel that may be used is labelled; looks at a few sections at a time until one is."""
        return any((self.labels(source, box) > 0).any() for box in _sections(source, "label"))

    def _invented(self, source: Source) -> np.ndarray:
        """The ids of an earlier net's objects that touch no label, and nothing of which the labels say nothing."""
        if "found" not in source.arrays:
            return np.empty(0, np.int64)
        if "label" not in source.arrays:
            raise InputError(f"{source.name} names what a net found, but no labels, which say what of it is wrong: set "
                             "label of this volume, or leave found out")
        every, true = set(), set()
        for box in _sections(source, "found"):
            found = read(source, "found", box)
            known = (self.labels(source, box) == 0) & _inside(source, "label", box)
            every.update(np.unique(found).tolist())
            true.update(np.unique(found[~known]).tolist())
        for axis, ((low, high), length) in enumerate(zip(source.box, source.whole)):
            for first, is_cut in ((low, low > 0), (high - 1, high < length)):
                if is_cut:  # a label beyond may touch what reaches the cut
                    box = [*source.box]
                    box[axis] = (first, first + 1)
                    true.update(np.unique(read(source, "found", box)).tolist())
        return np.array(sorted(every - true - {0}), source.arrays["found"].dtype)  # another type would round large ids

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

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values)[0] for name, values in self.batch([number]).items()}

    def batch(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Several samples, stacked; volumes without labels beside others with labels are refused."""
        samples = [self._sample(number) for number in numbers]
        if any(sample.keys() != samples[0].keys() for sample in samples):
            raise InputError("volumes with and without labels, masks or skeletons cannot be mixed in one list of "
                             "volumes")
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _sample(self, number: int) -> dict[str, np.ndarray]:
        """Arrays that may be views of the volume: stacking copies them once."""
        volume, corner, draws = self.place(number)
        source = self.sources[volume]
        box = [(c - low, c + p + high) for c, p, (low, high) in zip(corner, self.data.patch, self.margin)]
        image = read(source, "image", box)
        image = image if image.ndim == 4 else image[None]
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise InputError(f"the image of {source.name} holds NaN or infinite values in the patch at {list(corner)}; "
                             "images must be finite")
        if image.dtype not in (np.uint8, np.float32):
            image = image.astype(np.float32)
        sample = {"number": np.int64(number), "volume": np.int64(volume), "corner": np.array(corner),
                  "draws": np.int64(draws), "statistics": np.array(source.statistics, np.float32), "image": image}
        if "label" in source.arrays:
            sample["label"] = self.labels(source, box)
            sample["label"][~_inside(source, "label", box)] = IGNORE
            if len(self.invented[volume]):
                false = np.isin(read(source, "found", box), self.invented[volume]) & _inside(source, "found", box)
                sample["label"][false & (sample["label"] == 0)] = FALSE
        if "skeleton" in source.arrays:
            sample["skeleton"] = read(source, "skeleton", box).astype(np.int64)
        if "mask" in source.arrays:
            sample["mask"] = read(source, "mask", box).astype(bool)
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


def _sections(source: Source, role: str) -> Iterator[list[tuple[int, int]]]:
    """Boxes of a few sections that cover what a volume has of a role in the part that is used."""
    shape = source.arrays[role].shape[-3:]
    box = [(max(low, s), min(high, s + n)) for (low, high), s, n in zip(source.box, source.starts[role], shape)]
    step = max(1, 2**24 // (shape[1] * shape[2]))
    for first in range(*box[0], step):
        yield [(first, min(first + step, box[0][1])), *box[1:]]


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


def load(sampler: Sampler, numbers: Iterable[list[int]], workers: int, prefetch: int = 4,
         pin: bool = False) -> Iterator[dict[str, Tensor]]:
    """Batches of samples, in the order of `numbers`, read ahead by workers."""
    volumes = [array for source in sampler.sources for array in source.arrays.values()]
    if workers == 0 or sampler.data.storage != "lazy" or not all(getattr(array, "forks", True) for array in volumes):
        return _threads(sampler, numbers, workers, prefetch, pin)
    # processes, because HDF5 reads and unpacks under one lock
    loader = DataLoader(_Batches(sampler), batch_size=None, sampler=_Numbers(numbers), collate_fn=_as_it_is,
                        num_workers=workers, prefetch_factor=prefetch, pin_memory=pin)
    return _plainly(iter(loader))  # the workers start now


def _threads(sampler: Sampler, numbers: Iterable[list[int]], workers: int, prefetch: int,
             pin: bool) -> Iterator[dict[str, Tensor]]:
    """Batches read by threads: copying from memory holds no lock, and nothing is handed over between processes."""
    def make(chosen: list[int]) -> dict[str, Tensor]:
        batch = {name: torch.from_numpy(values) for name, values in sampler.batch(chosen).items()}
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch

    if workers == 0:
        yield from map(make, numbers)
        return
    ahead: deque[Future] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for chosen in numbers:
            ahead.append(pool.submit(make, chosen))
            if len(ahead) > workers * prefetch:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Batches(Dataset):
    """Item [numbers] is a batch: large arrays as tensors, which processes share, small ones as they are."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor | np.ndarray]:
        batch = self.sampler.batch(numbers)
        return {name: torch.from_numpy(values) if values.nbytes > SENT else values for name, values in batch.items()}


class _Numbers:
    """An iterable for the loader, which asks for nothing else of it."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __iter__(self):
        return iter(self.numbers)


def _as_it_is(batch: dict) -> dict:
    return batch


def _plainly(batches: Iterator[dict[str, Tensor | np.ndarray]]) -> Iterator[dict[str, Tensor]]:
    """The batches; what a worker meets is told as the user's mistake that it is, without the worker's traceback."""
    try:
        for batch in batches:
            yield {name: torch.as_tensor(values) for name, values in batch.items()}
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("emcore.errors.InputError: ")) from None
    except RuntimeError as error:
        raise death_of_worker(error) or error from None
