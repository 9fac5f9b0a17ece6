"""What `new` knows of a volume and its labels: read from the files, or measured on a sample of the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from emcore.data.sources import Source, open_source
from emcore.errors import InputError
from emcore.segment import connected_components, distance_transform, unique
from emcore.settings.data import Data, VolumeFiles
from emcore.volumes import check_labels, open_volume
from emcore.volumes.inspect import numbers

NO_OBJECT = np.uint64(2**63)  # the least id that is none
MOST = 2**24  # voxels of the sample of labels
DEEP = 8  # pixels from which a voxel without label is no border between objects
CRUMB = 100  # voxels below which an object has no width, unless all are so small
SMALLEST = 16  # pixels along y and x that labels must cover
APART = 1e4  # so far apart that sections do not count
FEW = 8  # sections below which they are too few for the patch of a block
MOST_UNKNOWN = 16  # ids that mean no object
SHEET = 2.5  # so many times deeper than wide, a voxel is of a section and no longer of a block
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Facts:
    image: tuple[int, ...]  # the shape of the image
    bytes: int  # image and labels take so many as they are stored
    channels: int  # the image has so many
    region: tuple[tuple[int, int], ...]  # voxels of the image that the labels cover
    resolution: Triple | None  # nm
    told_by: str  # who says the resolution
    depth: float  # how many times a voxel is deeper than wide
    unknown: tuple[int, ...]  # ids from 2**63 on, which mean no object, such as 2**64 - 1
    objects: int  # in the sample
    is_mask: bool  # whether the labels are 0 and one more number
    labelled: float  # share of voxels that belong to an object
    empty: float  # share of voxels that are far from every object
    touching: float  # share of the borders within sections where two objects touch without a gap
    thin: float  # pixels that thin objects are wide at their thickest place, the 5th percentile
    wide: float  # the same of the usual object, the median
    size: float  # voxels of a small object, the 5th percentile
    profiles: tuple[np.ndarray, ...]  # labelled voxels of each plane of the sample, along z, y, x
    sampled: bool  # whether the sample is less than all labels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels that the labels cover."""
        return tuple(high - low for low, high in self.region)

    @property
    def is_flat(self) -> bool:
        """Whether the volume is a stack of sections and no block."""
        return self.depth >= SHEET or self.shape[0] < FEW


def look(image: str, labels: str, resolution: Triple | None = None) -> Facts:
    """Opens both, finds where the labels lie in the image, and measures a sample of them."""
    raw, truth = open_volume(image, kind="image"), open_volume(labels, kind="labels")
    written = raw.resolution or truth.resolution
    if resolution and written and not np.allclose(resolution, written, rtol=1e-2):
        raise InputError(f"--resolution {numbers(resolution)} is not what {raw.name if raw.resolution else truth.name} "
                         f"says, which is {numbers(written)} nm (z, y, x): leave the flag out, or correct the file "
                         "with python -m emcore convert --resolution")
    found = resolution or written
    told = "--resolution" if not written else "the image" if raw.resolution else "the labels"
    source = open_source(Data(storage="lazy", resolution=found), VolumeFiles(image, labels), "train")
    region = _region(source)
    shape = tuple(high - low for low, high in region)
    if min(shape[1:]) < SMALLEST:
        raise InputError(f"the labels cover {numbers(shape)} voxels of the image (z, y, x), and a patch needs at least "
                         f"{SMALLEST} along y and x: label more of it")
    block = sample(source, region)
    unknown = unknown_of(source, region)
    if unknown:
        block[block >= NO_OBJECT] = 0
    depth = found[0] / ((found[1] + found[2]) / 2) if found else depth_of(source, region)
    return Facts(raw.shape, sum(prod(one.shape) * one.dtype.itemsize for one in (raw, truth)),
                 raw.shape[0] if raw.ndim == 4 else 1, region, found, told if found else "nobody", depth, unknown,
                 sampled=block.size < prod(shape), **measured(block, depth, labels))


def _region(source: Source) -> tuple[tuple[int, int], ...]:
    shape = source.arrays["label"].shape[-3:]
    return tuple((max(low, start), min(high, start + length))
                 for (low, high), start, length in zip(source.box, source.starts["label"], shape))


def unknown_of(source: Source, region: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """All ids of the labels that no sample takes for objects; labels of a type that can hold them are read once."""
    labels, found = source.arrays["label"], set()
    if labels.dtype.kind != "u" or labels.dtype.itemsize < 8:
        return ()
    spans = [slice(low - start, high - start) for (low, high), start in zip(region, source.starts["label"])]
    step = max(1, MOST // prod(span.stop - span.start for span in spans[1:]))
    for first in range(spans[0].start, spans[0].stop, step):
        part = labels[first:min(first + step, spans[0].stop), spans[1], spans[2]]
        found.update(np.unique(part[part >= NO_OBJECT]).tolist())
        if len(found) > MOST_UNKNOWN:
            raise InputError(f"{labels.name} holds more than {MOST_UNKNOWN} ids of 2^63 and above, which a training "
                             "does not take for objects: give the objects smaller ids")
    return tuple(sorted(found))


def sample(source: Source, region: Sequence[tuple[int, int]]) -> np.ndarray:
    """All labels, or a box at their centre of at most MOST voxels."""
    size = [high - low for low, high in region]
    while prod(size) > MOST:
        size[size.index(max(size))] //= 2
    spans = []
    for (low, high), length, start in zip(region, size, source.starts["label"]):
        first = low - start + (high - low - length) // 2
        spans.append(slice(first, first + length))
    block = check_labels(source.arrays["label"])[tuple(spans)]
    return block.astype(np.uint8) if block.dtype == bool else block


def depth_of(source: Source, region: Sequence[tuple[int, int]]) -> float:
    """How many times more sections differ from each other than columns do, where nobody says the resolution."""
    spans = [slice((low + high - size) // 2, (low + high - size) // 2 + size)
             for (low, high), size in zip(region, (min(high - low, most) for (low, high), most in
                                                   zip(region, (16, 256, 256))))]
    block = source.arrays["image"][(..., *spans)].astype(np.float32).reshape(-1, *(s.stop - s.start for s in spans))
    if block.shape[1] < 2:
        return 1.0
    along = [float(np.abs(np.diff(block, axis=axis)).mean()) for axis in (1, 2, 3)]
    return along[0] / max(1e-6, (along[1] + along[2]) / 2)


def measured(block: np.ndarray, depth: float, name: str) -> dict:
    """The statistics of a block of labels; depth: how many times a voxel is deeper than wide."""
    found, counts = unique(block, counts=True)
    counts = counts[found > 0]
    if not counts.size:
        raise InputError(f"the middle of {name}, {numbers(block.shape)} voxels, holds no label: is it the right "
                         "dataset? Labels that cover a part of the image are written as a smaller volume with an "
                         "offset attribute")
    is_mask = counts.size == 1
    pieces = connected_components((block > 0).view(np.uint8), 26) if is_mask else block
    if is_mask:
        counts = unique(pieces, counts=True)[1][1:] if (block == 0).any() else np.array([block.size])
    widths = widths_of(pieces, depth)
    beside, other = block[:, :, :-1], block[:, :, 1:]
    borders = beside != other
    touching = float((borders & (beside > 0) & (other > 0)).sum() / max(1, borders.sum()))
    labelled = block > 0
    far = 0.0
    if not labelled.all():
        far = float((distance_transform(~labelled, (depth, 1, 1)) > DEEP).mean())
    profiles = tuple(np.count_nonzero(labelled, axis=tuple({0, 1, 2} - {axis})) for axis in range(3))
    return {"objects": len(counts), "is_mask": is_mask, "labelled": float(labelled.mean()), "empty": far,
            "touching": touching, "thin": float(np.percentile(widths, 5)), "wide": float(np.median(widths)),
            "size": float(np.percentile(counts, 5)), "profiles": profiles}


def widths_of(labels: np.ndarray, depth: float) -> np.ndarray:
    """Pixels that every object is wide at its thickest place; in a stack of sections within a section."""
    inside = distance_transform(labels, (depth if depth < SHEET else APART, 1, 1))
    inside[~np.isfinite(inside)] = max(labels.shape)  # an object fills the sample, or a section of it
    found, counts = unique(labels, counts=True)
    most = np.zeros(len(found), np.float32)
    np.maximum.at(most, np.searchsorted(found, labels.ravel()), np.minimum(inside, max(labels.shape)).ravel())
    counted = (most > 0) & (counts >= CRUMB)
    return 2 * most[counted if counted.any() else most > 0] - 1
