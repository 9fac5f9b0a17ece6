"""A volume through a net, section by section: memory is a window's depth of sums, whatever the volume's size."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from emcore.data.augment import normalise
from emcore.data.sampler import read
from emcore.data.sources import Source, open_source
from emcore.engine.arithmetic.mode import Arithmetic
from emcore.engine.arithmetic.net import compiled, compiles_here, first_line, run
from emcore.engine.arithmetic.prediction import batch_size, wants_compiling
from emcore.errors import InputError
from emcore.prediction.parts import write_in_parts
from emcore.prediction.windows import (
    channel_plan,
    forward_view,
    inverse_view,
    passes,
    shifted,
    starts,
    views_of,
    weights,
)
from emcore.segment.affinities import TABLE_ATTRIBUTE, encode_affinities
from emcore.settings.channels import channels_of
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.predict import Infer
from emcore.volumes import split_reference

Triple = tuple[int, int, int]
PIECE = 2**25  # bytes of sums that are finished at a time, but whole sections
DTYPES = {"float32": "float32", "float16": "float16", "uint8": "uint8", "affinity8": "uint8"}


class Output(NamedTuple):
    """Where a prediction is written, and what its file says besides."""

    path: str | Path
    attributes: dict[str, Any]
    replaces: bool = True  # a file that stands there; else it is what another process has made just now


def predict(model: nn.Module, volume: Any, out: str | Path | Output | None = None, *, window: Triple,
            infer: Infer | None = None, data: Data | None = None, offsets: Sequence[Triple] | None = None,
            arithmetic: str | Arithmetic = "fp32") -> np.ndarray | Path:
    """Activated predictions (c, z, y, x): an array, or the path of the file they were written to.

    volume: a path, path:dataset or an array; window: voxels of one pass; infer and data: the tables [infer] and [data]
    (blending, test-time augmentation, how intensities are scaled); offsets: of the channels, if they are affinities;
    arithmetic: bf16, fp16 or fp32 for a model that stands where and as it is, or what was decided for a result that
    several processes or starts make.
    """
    infer, data = infer or Infer(), data or Data()
    data = replace(data, normalise_by="volume", storage="lazy")
    path, attributes, replaces = out if isinstance(out, Output) else (out, {}, True)
    replaced = replaces and path is not None and split_reference(path)[0].exists()
    source = open_source(data, volume if isinstance(volume, VolumeFiles) else VolumeFiles(image=volume), "test")
    infer = replace(infer, window=tuple(window))
    if isinstance(arithmetic, str):
        arithmetic = as_given(model, source, infer, arithmetic)
    job = Job(model, source, infer, data, offsets, arithmetic)
    if path is None:
        out = np.empty((len(job.channels), *job.shape), DTYPES[infer.dtype])
        for low, high, values in job.pieces(job.spans):
            out[:, low:high] = values()
        return out
    return write_in_parts(job, Path(path), attributes, replaced)


def as_given(model: nn.Module, source: Source, infer: Infer, precision: str) -> Arithmetic:
    """The arithmetic of a model that stands where and as it is; a compiler that fails is done without."""
    device = next(model.parameters()).device.type
    compiles = wants_compiling(infer, device, passes(source.size, infer, infer.window)) and compiles_here(
        model, (batch_size(infer, device), channels_in(source), *infer.window), precision)
    return Arithmetic(device, precision, "contiguous", compiles)


def channels_in(source: Source) -> int:
    image = source.arrays["image"]
    return image.shape[0] if len(image.shape) == 4 else 1


class Job:
    """One volume, one net, one way to go through it."""

    def __init__(self, model: nn.Module, source: Source, infer: Infer, data: Data, offsets: Sequence[Triple] | None,
                 arithmetic: Arithmetic):
        self.model, self.source, self.infer, self.data = model, source, infer, data
        self.device = next(model.parameters()).device
        self.precision = arithmetic.precision
        self.shape = source.size
        self.padded = tuple(n + 2 * p for n, p in zip(self.shape, infer.pad))
        self.window = tuple(infer.window)
        self.starts = [starts(n, w, infer.overlap) for n, w in zip(self.padded, self.window)]
        self.views = views_of(infer.views.flips, infer.views.turns)
        self.windows = len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])
        self.batch = batch_size(infer, self.device.type)
        self.runner = self._compiled() if arithmetic.compile else model
        if infer.views.turns and self.window[1] != self.window[2]:
            raise InputError(f"infer.views.turns needs square windows; got {list(self.window)}")
        self.count = self._count()
        if offsets is not None and len(offsets) > self.count:
            raise InputError(f"the net predicts {self.count} channels, but the config has {len(offsets)} affinity "
                             "offsets: it is the checkpoint of another config")
        self.offsets, self.dtype = offsets, DTYPES[infer.dtype]
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
        self.split(infer.slab)
        # sums are kept on the device where half of what is free there holds them
        roomy = self.device.type == "cuda" and self.sums_bytes() < torch.cuda.mem_get_info(self.device)[0] // 2
        self.keep_sums_on(self.device.type if roomy else "cpu")
        self.piece = max(1, PIECE // (4 * self.count * self.padded[1] * self.padded[2]))
        self.copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def keep_sums_on(self, kind: str) -> None:
        """Chooses the processor, or this job's GPU, to add up windows."""
        self.sums_device = self.device if kind == self.device.type else torch.device("cpu")
        self.weights = weights(self.window, self.infer.blend).to(self.sums_device)

    def split(self, slab: int) -> None:
        """Cuts the volume into spans of so many sections, the parts that processes share."""
        step = max(1, slab)
        self.spans = [(low, min(self.shape[0], low + step)) for low in range(0, self.shape[0], step)]

    def _compiled(self) -> nn.Module:
        try:
            return compiled(self.model, (self.batch, channels_in(self.source), *self.window), self.precision)
        except Exception as error:  # no compiler, or one that stumbles: of any kind
            raise InputError(f"this prediction is computed by a compiled net, but here torch.compile fails "
                             f"({first_line(error)}): install a compiler, or predict anew with infer.compile=off"
                             ) from None

    def _count(self) -> int:
        """Channels that the net predicts: of shapes alone where the net can do without values, else of one window."""
        window = torch.zeros(1, channels_in(self.source), *self.window, device="meta")
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        shapes = {name: value.to("meta") for name, value in named}
        with torch.inference_mode():
            try:
                return run(partial(functional_call, self.model, shapes), window, "fp32").shape[1]
            except Exception:  # whatever a foreign net needs values for; what is really wrong is raised by the window
                return run(self.model, torch.zeros_like(window, device=self.device), self.precision).shape[1]

    def _net(self, x: Tensor) -> Tensor:
        return run(self.runner, x, self.precision)

    def sums_bytes(self) -> int:
        """Memory of the sums of the windows that are not finished."""
        return 4 * (self.count + 1) * self.window[0] * self.padded[1] * self.padded[2]

    def memory(self) -> int:
        """Bytes that the work takes besides the net, about: sums, two rows of the image, finished sections."""
        plane = self.padded[1] * self.padded[2]
        item = self.source.arrays["image"].dtype.itemsize
        return (self.sums_bytes() + 3 * channels_in(self.source) * self.window[0] * plane * item
                + 5 * 4 * self.count * self.piece * plane)

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

    def pieces(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Callable[[], np.ndarray]]]:
        """(first, last section, how to get the values) of finished sections, in order; none crosses the end of a span.

        Sums are kept of the sections that windows still add to: a ring as deep as a window.
        """
        pad, depth, plane = self.infer.pad[0], self.window[0], self.padded[1:]
        low, high = spans[0][0] + pad, spans[-1][1] + pad
        rows = [z for z in self.starts[0] if z + depth > low and z < high]
        sums = torch.zeros(self.count + 1, depth, *plane, device=self.sums_device)
        ends = [low, *(last + pad for _, last in spans)]
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._row, rows[0])
            for number, z in enumerate(rows):
                image = ahead.result()
                if number + 1 < len(rows):
                    ahead = reader.submit(self._row, rows[number + 1])
                self._add(sums, z, image)
                done = rows[number + 1] if number + 1 < len(rows) else min(self.padded[0], z + depth)
                yield from self._finished(sums, z, done, low, high, ends)

    def _finished(self, sums: Tensor, start: int, stop: int, low: int, high: int, ends: Sequence[int]):
        """The sections [start, stop) that no window adds to any more; their place in the ring is cleared."""
        pad, depth = self.infer.pad, self.window[0]
        while start < stop:
            ring = start % depth
            last = min(stop, start + depth - ring, start + self.piece, *(end for end in ends if end > start))
            part = sums[:, ring:ring + last - start]
            if low <= start < high:
                inner = part[:, :, pad[1]:pad[1] + self.shape[1], pad[2]:pad[2] + self.shape[2]]
                values = inner[:-1] / inner[-1:]
                if len(self.views) == 1:
                    # each section by itself: the last bits of a sigmoid depend on how many values are computed at once
                    values = torch.stack([self.activate(section.contiguous()[None])[0] for section in values.unbind(1)],
                                         1)
                yield start - pad[0], last - pad[0], self._to_host(values[self.channels])
            part.zero_()
            start = last

    def _to_host(self, values: Tensor) -> Callable[[], np.ndarray]:
        """How to get values as they are stored; from a GPU they are copied while it goes on."""
        if self.infer.dtype == "uint8":
            values = (values.clamp(0, 1) * 255).round().to(torch.uint8)
        elif self.infer.dtype == "float16":
            values = values.half()
        if values.device.type == "cpu":
            return lambda: self._stored(values)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> np.ndarray:
            copied.synchronize()
            return self._stored(host)
        return wait

    def _row(self, z: int) -> tuple[Tensor, torch.cuda.Event | None]:
        """The padded image of all windows that begin at section z of the padded volume, (c, z, y, x), as it is."""
        pad = self.infer.pad
        box = []
        for axis, length in enumerate(self.padded):
            start = self.source.box[axis][0] - pad[axis]
            size = max(length, self.window[axis])
            box.append((start + z, start + z + self.window[0]) if axis == 0 else (start, start + size))
        image = read(self.source, "image", box)
        image = np.ascontiguousarray(image if image.ndim == 4 else image[None])
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
        row = torch.from_numpy(image)
        if self.copying is None:
            return row, None
        with torch.cuda.stream(self.copying):
            row = row.pin_memory().to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        return row, copied

    @torch.inference_mode()
    def _add(self, sums: Tensor, z: int, row: tuple[Tensor, torch.cuda.Event | None]) -> None:
        """Adds the windows that begin at section z to the sums; the last channel sums the weights."""
        image, copied = row
        if copied is not None:
            torch.cuda.current_stream().wait_event(copied)
            image.record_stream(torch.cuda.current_stream())
        depth, wy, wx = self.window
        ring = z % depth
        statistics = torch.tensor([self.source.statistics], device=self.device)
        places = [(y, x) for y in self.starts[1] for x in self.starts[2]]
        for i in range(0, len(places), self.batch):
            some = places[i:i + self.batch]
            batch = torch.stack([image[:, :, y:y + wy, x:x + wx] for y, x in some])
            batch = normalise(batch, statistics, self.data)
            if self.runner is not self.model and len(some) < self.batch:  # compiled for one size alone
                batch = torch.cat([batch, batch[:1].expand(self.batch - len(some), *batch.shape[1:])])
            for (y, x), value in zip(some, self._windows(batch)):
                value = value.to(self.sums_device)
                for here, there in places_in_ring(ring, depth):
                    place = sums[:, there, y:y + wy, x:x + wx]
                    inside = (here, slice(place.shape[2]), slice(place.shape[3]))  # a window may hang over the end
                    place[:-1].addcmul_(value[(slice(None), *inside)], self.weights[inside])
                    place[-1] += self.weights[inside]

    def _stored(self, values: Tensor) -> np.ndarray:
        array = values.numpy()
        return encode_affinities(np.clip(array, 0, 1))[0] if self.infer.dtype == "affinity8" else array

    def attributes(self) -> dict[str, Any]:
        found = {}
        if self.offsets is not None:
            found["offsets"] = [list(self.offsets[c]) for c in self.channels if c < len(self.offsets)]
        if self.infer.dtype == "affinity8":
            found[TABLE_ATTRIBUTE] = encode_affinities(np.zeros((1, 1, 1, 1), np.float32))[1].tolist()
        return found


def places_in_ring(ring: int, depth: int) -> list[tuple[slice, slice]]:
    """(sections of a window, their places) in a ring of its depth that it enters at `ring`."""
    found = [(slice(0, depth - ring), slice(ring, depth)), (slice(depth - ring, depth), slice(0, ring))]
    return found if ring else found[:1]
