"""Held-out data during training: the loss on patches, of masks the Jaccard index, if asked the scores of whole volumes.

The bare module computes them, with averaged weights if there are any; every rank does its share.
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from emcore import metrics
from emcore.data.augment import augment_batch, on_device
from emcore.data.sampler import Sampler, load
from emcore.data.skeletons import skeleton_folder
from emcore.data.sources import check_vectors, open_sources
from emcore.data.targets import IGNORE
from emcore.decode.labels import decode
from emcore.engine.arithmetic.net import widest
from emcore.engine.checkpoint import tell
from emcore.errors import InputError
from emcore.metrics.partitions import ALONG_CURVES, agreement
from emcore.prediction.streaming import Output, predict
from emcore.settings import Settings
from emcore.settings.augment import Augment
from emcore.settings.target import affinity_offsets
from emcore.volumes import open_volume


class Lattice(Sampler):
    """Sample N is the N-th of the patches that cover all volumes; the last along an axis ends where the volume does."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.places = [(volume, corner, 1) for volume, spans in enumerate(self.spans) for corner in product(
            *(_covering(low, high, patch) for (low, high), patch in zip(spans, self.data.patch)))]

    def place(self, number: int) -> tuple[int, tuple[int, int, int], int]:
        return self.places[number]


def _covering(low: int, high: int, patch: int) -> list[int]:
    """Corners from low to below high, a patch apart, and the last one."""
    return sorted({*range(low, high, patch), high - 1})


class Validation:
    def __init__(self, settings: Settings, ranks, task, average, folder: Path):
        self.settings, self.ranks, self.task, self.average, self.folder = settings, ranks, task, average, folder
        chosen = settings.train.validate
        self.possible = bool(settings.data.validation) and chosen.steps > 0
        # masks also have a Jaccard index: for the weights of loss/val, and beside it for those not averaged
        masks = (["jaccard/val", *(["jaccard/val plain"] if average else [])]) if task.learns_masks else []
        self.columns = ["loss/val", *masks, *(f"{name}/val" for name in chosen.scores)]
        monitor = settings.train.save.monitor
        if monitor not in ("loss/train", *self.columns):
            raise InputError(f"train.save.monitor = {monitor} is never computed: " + (
                "not all targets are masks" if monitor == "jaccard/val" else
                f"name {monitor.removesuffix('/val')} in train.validate.scores"))
        if not self.possible:
            if monitor != "loss/train" and settings.train.save.best > 0:
                tell(f"no checkpoint of this run will be ranked as the best: train.save.monitor = {monitor}, and "
                     "nothing is validated")
            return
        if chosen.scores and (settings.decode.kind == "none" or settings.pretrain is not None):
            raise InputError("train.validate.scores needs labels: set decode.kind, and no table [pretrain]")
        kind = Sampler if chosen.crops else Lattice
        sources = open_sources(settings.data, "validation", skeleton_folder(settings))
        if settings.pretrain is None:
            check_vectors(sources, settings.target, task.resolution)
        self.sampler = kind(sources, settings.data, settings.seed, stream=1)
        self.patches = chosen.crops or len(self.sampler.places)

    @torch.no_grad()
    def run(self) -> dict[str, float]:
        """Values by column, the same on every rank; no buffer of the net changes."""
        task = self.task
        self.ranks.share_buffers(task.net)
        task.eval()
        random = torch.get_rng_state()
        torch.manual_seed(self.settings.seed)  # masks of pretraining: the same in every validation
        with self.average.swapped(task.net) if self.average else nullcontext():
            found, jaccard = self._patches()
            found = {"loss/val": found} | ({"jaccard/val": jaccard} if task.learns_masks else {})
            names = self.settings.train.validate.scores
            if names:
                rows = list(self._scores())
                found |= {f"{name}/val": self._mean(row[name] for row in rows) for name in names}
        if self.average and task.learns_masks:
            found["jaccard/val plain"] = self._patches()[1]
        torch.set_rng_state(random)
        task.train()
        return found

    def _mean(self, values: Iterable[float | torch.Tensor]) -> float:
        """The mean of the values of all ranks."""
        sums = torch.zeros(2, dtype=widest(self.ranks.device), device=self.ranks.device)
        for value in values:
            sums[0] += value
            sums[1] += 1
        sums = self.ranks.sum(sums)
        return (sums[0] / sums[1]).item()

    def _patches(self) -> tuple[float, float]:
        """The mean loss of all patches, and where masks are learned the Jaccard index of all their voxels together."""
        numbers = [[n] for n in range(self.ranks.rank, self.patches, self.ranks.world)]
        losses, shared = [], torch.zeros(2, dtype=widest(self.ranks.device), device=self.ranks.device)
        for read in load(self.sampler, numbers, 0):
            batch = augment_batch(on_device(read, self.ranks.device), Augment(), self.settings.data, self.settings.seed)
            if self.task.learns_masks:
                loss, counts = self.task.overlap(batch)
                shared += counts
            else:
                loss = self.task(batch, 0)[0]
            losses.append(loss.to(shared.dtype))
        both, either = self.ranks.sum(shared).tolist()
        return self._mean(losses), both / either if either else 1.0

    def _scores(self) -> Iterator[dict[str, float]]:
        """The scores of each volume of this rank, which is predicted by [infer] and decoded by [decode]."""
        settings, data = self.settings, self.settings.data
        for number in range(self.ranks.rank, len(data.validation), self.ranks.world):
            source = self.sampler.sources[number]
            box = tuple(edge for span in source.box for edge in span)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".validation_") as place:
                prediction, labels = Path(place) / "prediction.h5", Path(place) / "labels.h5"
                predict(self.task.net, replace(data.validation[number], box=box),
                        Output(prediction, {}, shared=False),
                        window=settings.infer.window or data.patch, infer=settings.infer, data=data,
                        offsets=affinity_offsets(settings.target), arithmetic=self.task.mode.precision)
                decode(open_volume(prediction), settings.decode, labels)
                ours = open_volume(labels, "labels")[...]
            truth = self.sampler.labels(source, source.box)
            table = metrics.contingency(np.where(truth == IGNORE, 0, truth), ours, ignore_truth=(0,))
            found = agreement(table, settings.evaluate.convention)
            yield {"voi": ALONG_CURVES["voi"](found), "rand": ALONG_CURVES["adapted_rand"](found)}
