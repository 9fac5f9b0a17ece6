"""A volume through a net, section by section: of a box of it the sums of a window's depth are held."""

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
from emcore.data.sources import Source, open_source, statistics_of
from emcore.engine.arithmetic.mode import Arithmetic
from emcore.engine.arithmetic.net import compiled, compiles_here, first_line, run
from emcore.engine.arithmetic.prediction import batch_size, wants_compiling
from emcore.errors import InputError
from emcore.prediction.activation import activate, check_vector
from emcore.prediction.tiles import DTYPES, PIECE, Task, write_in_tiles
from emcore.prediction.windows import (
    channel_plan,
    forward_view,
    inverse_view,
    passes,
    shifted,
    starts,
    touching,
    turned_back,
    views_of,
    weights,
)
from emcore.segment.affinities import TABLE_ATTRIBUTE, encode_affinities
from emcore.settings.channels import channels_of
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.predict import Infer

PRECISIONS = ("fp32", "bf16", "fp16")
Triple = tuple[int, int, int]
Box = tuple[slice, slice, slice]


class Output(NamedTuple):
    """Says where a prediction is written, and what its file says besides.

    Attributes:
        path: the HDF5 file.
        attributes: plain values to keep with it.
        replaces: True (the default) replaces a file that stands there; else it is what another process has just made.
        shared: True (the default) shares the work with the other ranks or jobs of this run.

    Examples:
        >>> from emcore.prediction import Output
        >>> Output("prediction.h5", {"name": "mine"}).replaces
        True
    """

    path: str | Path
    attributes: dict[str, Any]
    replaces: bool = True
    shared: bool = True


def predict(model: nn.Module, volume: Any, out: str | Path | Output | None = None, *, window: Triple,
            infer: Infer | None = None, data: Data | None = None, offsets: Sequence[Triple] | None = None,
            arithmetic: str | Arithmetic = "fp32") -> np.ndarray | Path:
    """Predicts a volume of any size with a net, window by window, and blends the windows.

    Args:
        model: a torch.nn.Module that maps (n, channels, z, y, x) to logits, for instance of `load_model`.
        volume: a path, path:dataset, an opened volume or an array (z, y, x) or (c, z, y, x), any real dtype.
        out: the file to write, or an `Output`. By default the result is an array in memory.
        window: the voxels z, y, x of one pass of the net.
        infer: the table [infer] of a config: overlap, blending, test-time augmentation. By default its defaults.
        data: the table [data] of a config: how intensities are scaled. By default its defaults.
        offsets: the (z, y, x) triple of each channel, to be stored, if channels are affinities. None by default.
        arithmetic: "fp32" (the default), "bf16" or "fp16" for a model that stands where and as it is; or what was
            decided for a result that several processes or starts make.

    Returns:
        The activated prediction (c, z, y, x), an array or the path of the file: float32, float16 or uint8, as infer
        says by its dtype (float32 by default).

    Raises:
        InputError: the window, the volume or a setting does not fit.

    Cost:
        The net decides the time; docs/performance.md has figures. Besides the net, memory holds the sums of one
        window's depth: about 1.4 GB for sections of 1536×1536 pixels and three channels.

    Examples:
        >>> import numpy as np, torch
        >>> import emcore
        >>> net = torch.nn.Conv3d(1, 2, 3, padding=1)
        >>> emcore.predict(net, np.zeros((8, 16, 16), np.uint8), window=(4, 8, 8)).shape
        (2, 8, 16, 16)
    """
    if len(window) != 3 or min(window) < 1:
        raise InputError(f"window must be three lengths above 0, along z, y and x; got {list(window)}")
    if isinstance(arithmetic, str) and arithmetic not in PRECISIONS:
        raise InputError(f"arithmetic must be one of {', '.join(PRECISIONS)}; got {arithmetic!r}")
    infer, data = infer or Infer(), data or Data()
    data = replace(data, normalise_by="volume", storage="lazy")
    volume = volume if isinstance(volume, VolumeFiles) else VolumeFiles(image=volume)
    source = open_source(replace(data, normalise="none"), volume, "test")  # it is measured once, when work begins
    infer = replace(infer, window=tuple(window))
    if out is not None and not source.measured:
        check_vector(infer, source.name)
    if isinstance(arithmetic, str):
        arithmetic = as_given(model, source, infer, arithmetic)
    job = Job(model, source, infer, data, offsets, arithmetic)
    if out is not None:
        return write_in_tiles(job, out if isinstance(out, Output) else Output(out, {}))
    job.take(job.measured())
    values = np.empty((len(job.channels), *job.shape), job.dtype)
    for low, high, get in job.pieces(job.whole):
        values[:, low:high] = get()
    return values


def as_given(model: nn.Module, source: Source, infer: Infer, precision: str) -> Arithmetic:
    """The arithmetic of a model that stands where and as it is; a compiler that fails is done without."""
    device = next(model.parameters()).device.type
    compiles = wants_compiling(infer, device, passes(source.size, infer, infer.window)) and compiles_here(
        model, (batch_size(infer, device), channels_in(source), *infer.window), precision)
    return Arithmetic(device, precision, "contiguous", compiles)


def channels_in(source: Source) -> int:
    image = source.arrays["image"]
    return image.shape[0] if len(image.shape) == 4 else 1


class Core(NamedTuple):
    """A box of the padded volume, and which windows have voxels in it."""

    low: Triple
    high: Triple
    ys: Sequence[int]  # where they begin
    xs: Sequence[int]

    def overlap(self, axis: int, start: int, length: int) -> tuple[slice, slice]:
        """What a window and the core share along an axis: as places of the core, and of the window."""
        first, last = max(self.low[axis], start), min(self.high[axis], start + length)
        return slice(first - self.low[axis], last - self.low[axis]), slice(first - start, last - start)


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
        self.starts = [starts(length, width, overlap)
                       for length, width, overlap in zip(self.padded, self.window, infer.overlaps)]
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
        self.vectors = [channels for channels, kind in self.activations if kind == "vector"]
        if any(channels.stop - channels.start != 3 for channels in self.vectors):
            raise InputError("infer.activation of kind = vector must name three channels, along z, y and x; got "
                             f"{[a.channels for a in infer.activation if a.kind == 'vector']}")
        image = source.arrays["image"]
        self.task = Task(self.shape, infer, channels_in(source) * image.dtype.itemsize, self.count)
        self.whole = tuple(slice(0, length) for length in self.shape)
        self.work_in(self.shape)
        self.copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def keep_sums_on(self, kind: str) -> None:
        """Chooses the processor, or this job's GPU, to add up windows."""
        self.sums_device = self.device if kind == self.device.type else torch.device("cpu")
        self.weights = weights(self.window, self.infer.blend).to(self.sums_device)

    def work_in(self, tile: Triple) -> None:
        """Takes tiles of this size; sums are kept on the device where half of what is free there holds them."""
        sums = 4 * (self.count + 1) * self.window[0] * tile[1] * tile[2]
        roomy = self.device.type == "cuda" and sums < torch.cuda.mem_get_info(self.device)[0] // 2
        self.keep_sums_on(self.device.type if roomy else "cpu")
        self.piece = max(1, PIECE // (4 * self.count * tile[1] * tile[2]))

    def measured(self) -> tuple[float, float]:
        """The statistics of the image."""
        return statistics_of(self.data, self.source.arrays["image"], self.source.box)

    def take(self, statistics: tuple[float, float]) -> None:
        """Scales the image by these statistics."""
        self.source = replace(self.source, statistics=tuple(statistics))

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
                return self._count_by_values(torch.zeros_like(window, device=self.device))

    def _count_by_values(self, window: Tensor) -> int:
        try:
            return run(self.model, window, self.precision).shape[1]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(f"the net cannot take windows of {window.shape[1]} channels and {list(self.window)} "
                             f"voxels: {first_line(error)}") from error

    def _net(self, x: Tensor) -> Tensor:
        return run(self.runner, x, self.precision)

    def activate(self, logits: Tensor) -> Tensor:
        """Values of (n, c, ...) logits, by channel."""
        return activate(logits, self.activations)

    def _windows(self, batch: Tensor) -> Tensor:
        """Logits of windows, or with several views their combined values."""
        if len(self.views) == 1:
            return self._net(batch)
        mode, total, counts = self.infer.views.combine, None, None
        for view, plan in zip(self.views, self.plans):
            values = self.activate(inverse_view(self._net(forward_view(batch, view)), view))
            values = turned_back(values, self.vectors, view)
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

    def pieces(self, box: Box) -> Iterator[tuple[int, int, Callable[[], np.ndarray]]]:
        """(first, last section, how to get the values) of finished sections of a box of the volume, in order.

        Every window that touches the box is computed, in the order of all windows. Sums are kept of the sections that
        windows still add to: a ring as deep as a window.
        """
        low, high = zip(*((span.start + pad, span.stop + pad) for span, pad in zip(box, self.infer.pad)))
        rows, *flat = map(touching, self.starts, self.window, low, high)
        core = Core(low, high, *flat)
        sums = torch.zeros(self.count + 1, self.window[0], high[1] - low[1], high[2] - low[2], device=self.sums_device)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._row, rows[0], core)
            for number, z in enumerate(rows):
                image = ahead.result()
                if number + 1 < len(rows):
                    ahead = reader.submit(self._row, rows[number + 1], core)
                self._add(sums, z, image, core)
                done = rows[number + 1] if number + 1 < len(rows) else min(self.padded[0], z + self.window[0])
                yield from self._finished(sums, z, done, core)

    def _finished(self, sums: Tensor, start: int, stop: int, core: Core):
        """The sections [start, stop) that no window adds to any more; their place in the ring is cleared."""
        depth, low, high = self.window[0], core.low[0], core.high[0]
        while start < stop:
            ring = start % depth
            last = min(stop, start + depth - ring, start + self.piece, *(end for end in (low, high) if end > start))
            part = sums[:, ring:ring + last - start]
            if low <= start < high:
                values = part[:-1] / part[-1:]
                if len(self.views) == 1:
                    values = self.activate(values[None])[0]
                pad = self.infer.pad[0]
                yield start - pad, last - pad, self._to_host(values[self.channels])
            part.zero_()
            start = last

    def _to_host(self, values: Tensor) -> Callable[[], np.ndarray]:
        """How to get values as they are stored; from a GPU they are copied while it goes on."""
        if self.infer.dtype == "uint8":
            values = (values.clamp(0, 1) * 255).round().to(torch.uint8)
        elif self.infer.dtype == "float16":
            values = values.half()
        if values.device.type != "cuda":
            values = values.cpu()
            return lambda: self._stored(values)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def wait() -> np.ndarray:
            copied.synchronize()
            return self._stored(host)
        return wait

    def _row(self, z: int, core: Core) -> tuple[Tensor, torch.cuda.Event | None]:
        """The padded image of the windows of a core that begin at section z, (c, z, y, x), as it is."""
        box = []
        for axis, places in enumerate(([z], core.ys, core.xs)):
            first = self.source.box[axis][0] - self.infer.pad[axis]
            box.append((first + places[0], first + places[-1] + self.window[axis]))
        image = read(self.source, "image", box)
        image = np.ascontiguousarray(image if image.ndim == 4 else image[None])
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
        row = torch.from_numpy(image)
        if self.copying is None:
            return row.to(self.device), None
        with torch.cuda.stream(self.copying):
            row = row.pin_memory().to(self.device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        return row, copied

    @torch.inference_mode()
    def _add(self, sums: Tensor, z: int, row: tuple[Tensor, torch.cuda.Event | None], core: Core) -> None:
        """Adds the windows that begin at section z to the sums; the last channel sums the weights."""
        image, copied = row
        if copied is not None:
            torch.cuda.current_stream().wait_event(copied)
            image.record_stream(torch.cuda.current_stream())
        depth, wy, wx = self.window
        ring = z % depth
        statistics = torch.tensor([self.source.statistics], device=self.device)
        places = [(y, x) for y in core.ys for x in core.xs]
        for i in range(0, len(places), self.batch):
            some = places[i:i + self.batch]
            batch = torch.stack([image[:, :, y - core.ys[0]:y - core.ys[0] + wy, x - core.xs[0]:x - core.xs[0] + wx]
                                 for y, x in some])
            batch = normalise(batch, statistics, self.data)
            if self.runner is not self.model and len(some) < self.batch:  # compiled for one size alone
                batch = torch.cat([batch, batch[:1].expand(self.batch - len(some), *batch.shape[1:])])
            for (y, x), value in zip(some, self._windows(batch)):
                value = value.to(self.sums_device)
                (to_y, from_y), (to_x, from_x) = core.overlap(1, y, wy), core.overlap(2, x, wx)
                for here, there in places_in_ring(ring, depth):
                    place, inside = sums[:, there, to_y, to_x], (here, from_y, from_x)
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
