"""A volume through a net, slab by slab: memory is a few slabs of sections, a killed prediction continues.

Each slab of finished sections is a file of its own, written under another name and renamed. Any number of processes
may work on one prediction: each takes the next slab that nobody holds; a lock says who does, and ends with its process.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emcore.data.augment import normalise
from emcore.data.sampler import read
from emcore.data.sources import Source, open_source
from emcore.errors import InputError
from emcore.losses import channels_of
from emcore.predict.windows import channel_plan, forward_view, inverse_view, shifted, starts, views_of, weights
from emcore.progress import Progress
from emcore.segment.affinities import TABLE_ATTRIBUTE, encode_affinities
from emcore.settings.data import Data, Volume
from emcore.settings.predict import Infer
from emcore.volumes import create_volume

Triple = tuple[int, int, int]
DTYPES = {"float32": "float32", "float16": "float16", "uint8": "uint8", "affinity8": "uint8"}


def predict(model: nn.Module, volume: Any, path: str | Path | None = None, *, window: Triple,
            infer: Infer | None = None, data: Data | None = None, offsets: Sequence[Triple] | None = None,
            precision: str = "fp32", provenance: dict[str, Any] | None = None) -> np.ndarray | Path:
    """Activated predictions (c, z, y, x): an array, or the path of the file they were written to.

    volume: a path, path:dataset or an array; window: voxels of one pass; infer and data: the tables [infer] and [data]
    (blending, test-time augmentation, how intensities are scaled); offsets: of the channels, if they are affinities.
    """
    infer, data = infer or Infer(), data or Data()
    data = replace(data, normalise_by="volume", storage="lazy")
    source = open_source(data, volume if isinstance(volume, Volume) else Volume(image=volume), "test")
    job = Job(model, source, replace(infer, window=window), data, offsets, precision)
    if path is None:
        out = np.empty((len(job.channels), *job.shape), DTYPES[infer.dtype])
        for low, high, values in job.slabs([(low, high) for low, high in job.spans]):
            out[:, low:high] = values
        return out
    return _write(job, Path(path), provenance or {})


class Job:
    """One volume, one net, one way to go through it."""

    def __init__(self, model: nn.Module, source: Source, infer: Infer, data: Data, offsets: Sequence[Triple] | None,
                 precision: str):
        self.model, self.source, self.infer, self.data = model, source, infer, data
        self.device = next(model.parameters()).device
        self.precision = precision
        self.shape = source.size
        self.padded = tuple(n + 2 * p for n, p in zip(self.shape, infer.pad))
        self.window = tuple(infer.window)
        self.starts = [starts(n, w, infer.overlap) for n, w in zip(self.padded, self.window)]
        self.weights = weights(self.window, infer.blend).to(self.device)
        self.views = views_of(infer.views.flips, infer.views.turns)
        if infer.views.turns and self.window[1] != self.window[2]:
            raise InputError(f"infer.views.turns needs square windows; got {list(self.window)}")
        self.count = self._count()
        self.offsets = offsets
        self.plans = [channel_plan(offsets, self.count, view) for view in self.views]
        if any(plan is None for plan in self.plans):
            wrong = self.views[next(i for i, plan in enumerate(self.plans) if plan is None)]
            raise InputError(f"test-time augmentation with flips {list(wrong[0])} and {wrong[1]} quarter turns needs a "
                             f"counterpart for every affinity channel; the offsets are {[list(o) for o in offsets]}")
        self.channels = list(infer.select) or list(range(self.count))
        if any(not 0 <= c < self.count for c in self.channels):
            raise InputError(f"infer.select {list(infer.select)} names channels that the net does not have: it has "
                             f"{self.count}")
        self.activations = [(channels_of(a.channels, self.count, "infer.activation.channels"), a.kind)
                            for a in infer.activation]
        step = max(1, infer.slab)
        self.spans = [(low, min(self.shape[0], low + step)) for low in range(0, self.shape[0], step)]

    def _count(self) -> int:
        with torch.inference_mode():
            out = self._net(torch.zeros(1, *self._lead(), *self.window, device=self.device))
        return out.shape[1]

    def _lead(self) -> tuple[int, ...]:
        image = self.source.arrays["image"]
        return (image.shape[0],) if len(image.shape) == 4 else (1,)

    def _net(self, x: Tensor) -> Tensor:
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        fast = self.precision in types
        with torch.autocast(x.device.type, dtype=types[self.precision]) if fast else nullcontext():
            out = self.model(x)
        if isinstance(out, dict):
            out = out["output"] if "output" in out else torch.cat(list(out.values()), 1)
        return out.float()

    def memory(self) -> int:
        """Bytes that the sums and the slabs take, about."""
        plane = self.padded[1] * self.padded[2]
        sections = self.window[0] + self.infer.slab
        return plane * sections * 4 * (self.count + 1) + plane * self.infer.slab * 8 * len(self.channels)

    def activate(self, logits: Tensor) -> Tensor:
        """Values of (n, c, ...) logits, by channel."""
        out = logits.clone()
        for channels, kind in self.activations:
            part = logits[:, channels]
            if kind == "sigmoid":
                out[:, channels] = part.sigmoid()
            elif kind == "tanh":
                out[:, channels] = part.tanh()
            elif kind == "softmax":
                out[:, channels] = part.softmax(1)
        return out

    def _windows(self, batch: Tensor) -> Tensor:
        """Logits of windows, or with several views their combined values."""
        if len(self.views) == 1:
            return self._net(batch)
        mode, total, counts = self.infer.views.combine, None, None
        for view, plan in zip(self.views, self.plans):
            values = self.activate(inverse_view(self._net(forward_view(batch, view)), view))
            moved = [shifted(values[:, source], shift) if any(shift) else (values[:, source], None)
                     for source, shift in plan]
            values = torch.stack([value for value, _ in moved], 1)
            inside = torch.stack([torch.ones_like(values[0, 0], dtype=torch.bool) if where is None else where
                                  for _, where in moved])[None]
            if mode == "mean":
                values = torch.where(inside, values, 0.0)
                total = values if total is None else total + values
                counts = inside.float() if counts is None else counts + inside
            else:
                worst = torch.inf if mode == "min" else -torch.inf
                values = torch.where(inside, values, worst)
                choose = torch.minimum if mode == "min" else torch.maximum
                total = values if total is None else choose(total, values)
        return total / counts if mode == "mean" else total  # the plain view covers every voxel

    def slabs(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first, last section, values) of consecutive slabs; windows that two of them share are computed once."""
        pad, wz, plane = self.infer.pad, self.window[0], self.padded[1:]
        low = spans[0][0] + pad[0]
        rows = [z for z in self.starts[0] if z + wz > low]
        base = rows[0]  # the section at which the sums begin
        sums = torch.zeros(self.count + 1, 0, *plane)
        done = 0
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._row, rows[0])
            for first, last in spans:
                stop = min(self.padded[0], last + pad[0])
                while done < len(rows) and rows[done] < stop:
                    image = ahead.result()
                    if done + 1 < len(rows):
                        ahead = reader.submit(self._row, rows[done + 1])
                    need = max(rows[done] + wz, stop) - base - sums.shape[1]
                    if need > 0:
                        sums = torch.cat([sums, torch.zeros(self.count + 1, need, *plane)], 1)
                    self._add(sums[:, rows[done] - base:rows[done] - base + wz], image)
                    done += 1
                part = sums[:, first + pad[0] - base:last + pad[0] - base, pad[1]:pad[1] + self.shape[1],
                            pad[2]:pad[2] + self.shape[2]]
                values = part[:-1] / part[-1:]
                if len(self.views) == 1:
                    values = self.activate(values[None])[0]
                yield first, last, self._stored(values[self.channels])
                sums = sums[:, stop - base:].clone()
                base = stop

    def _row(self, z: int) -> Tensor:
        """The padded image of all windows that begin at section z of the padded volume, scaled, (c, z, y, x)."""
        pad = self.infer.pad
        box = []
        for axis, length in enumerate(self.padded):
            start = self.source.box[axis][0] - pad[axis]
            size = max(length, self.window[axis])
            box.append((start + z, start + z + self.window[0]) if axis == 0 else (start, start + size))
        image = read(self.source, "image", box)
        image = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 4 else image[None]))
        return normalise(image[None], torch.tensor([self.source.statistics]), self.data)[0]

    @torch.inference_mode()
    def _add(self, sums: Tensor, image: Tensor) -> None:
        """Adds the windows of one row to the sums; the last channel sums the weights."""
        _, wy, wx = self.window
        places = [(y, x) for y in self.starts[1] for x in self.starts[2]]
        for i in range(0, len(places), self.infer.batch):
            some = places[i:i + self.infer.batch]
            batch = torch.stack([image[:, :, y:y + wy, x:x + wx] for y, x in some])
            for (y, x), value in zip(some, self._windows(batch.to(self.device))):
                weighted = torch.cat([value * self.weights, self.weights[None]]).cpu()
                place = sums[:, :, y:y + wy, x:x + wx]
                # a window larger than the volume hangs over its end
                place += weighted[:, :place.shape[1], :place.shape[2], :place.shape[3]]

    def _stored(self, values: Tensor) -> np.ndarray:
        array = values.numpy()
        if self.infer.dtype == "uint8":
            return np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
        if self.infer.dtype == "affinity8":
            return encode_affinities(np.clip(array, 0, 1))[0]
        return array.astype(DTYPES[self.infer.dtype])

    def attributes(self) -> dict[str, Any]:
        found = {}
        if self.offsets is not None:
            found["offsets"] = [list(self.offsets[c]) for c in self.channels if c < len(self.offsets)]
        if self.infer.dtype == "affinity8":
            found[TABLE_ATTRIBUTE] = encode_affinities(np.zeros((1, 1, 1, 1), np.float32))[1].tolist()
        return found


@contextmanager
def claimed(path: Path):
    """Whether this process may work on a part; the claim ends with the block, or with the process."""
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _write(job: Job, path: Path, provenance: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps([asdict(job.infer), job.shape, job.source.name, provenance], sort_keys=True,
                                       default=str).encode()).hexdigest()[:12]
    parts = path.with_name(f"{path.name.split(':')[0]}.{digest}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write beside {path}: {error.strerror}") from None
    names = {span: parts / f"{span[0]:06d}_{span[1]:06d}.npy" for span in job.spans}
    total = int(np.prod(job.shape, dtype=object))
    with Progress(total, f"predict {path.name}", "voxels") as progress:
        while missing := [span for span in job.spans if not names[span].exists()]:
            if not _take(job, missing, names, progress):
                break
    with claimed(parts / "whole.lock") as mine:
        if not mine or not parts.exists() or any(not name.exists() for name in names.values()):
            return path  # another process is still at work or puts the whole together
        section = int(np.prod(job.shape[1:], dtype=object))
        with create_volume(path, (len(job.channels), *job.shape), DTYPES[job.infer.dtype], job.source.resolution,
                           job.source.offset, {**job.attributes(), **provenance}) as out:
            for (low, high), name in names.items():
                values = np.load(name, mmap_mode="r")
                step = max(1, 2**26 // section)
                for z in range(low, high, step):
                    out[:, z:min(z + step, high)] = values[:, z - low:min(z + step, high) - low]
        shutil.rmtree(parts)
    return path


def _take(job: Job, missing: list[tuple[int, int]], names: dict, progress: Progress) -> bool:
    """Works on the first run of slabs that nobody holds; False where all are held by others."""
    for start, span in enumerate(missing):
        with claimed(names[span].with_suffix(".lock")) as mine:
            if not mine or names[span].exists():
                continue
            for (low, high), (first, last, values) in zip(missing[start:], job.slabs(_consecutive(missing[start:]))):
                target = names[(low, high)]
                temporary = target.with_suffix(f".{os.getpid()}.tmp")
                with open(temporary, "wb") as file:
                    np.save(file, values)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
                progress.add((last - first) * job.shape[1] * job.shape[2])
                following = [s for s in missing[start:] if s[0] == high]
                if int(os.environ.get("WORLD_SIZE", "1")) > 1 or not following:
                    break  # others may have taken the next one
            return True
    return False


def _consecutive(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found = [spans[0]]
    for span in spans[1:]:
        if span[0] != found[-1][1]:
            break
        found.append(span)
    return found
