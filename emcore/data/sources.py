"""The volumes of a run, opened, checked, aligned, and shared by every process of a node."""

import atexit
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from emcore.data.skeletons import is_to_trace, skeletons_of
from emcore.errors import InputError
from emcore.settings.data import Data, Volume
from emcore.volumes import check_labels, open_volume, split_reference

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
ROLES = ("image", "label", "mask", "skeleton")
SAMPLED = 2**25  # voxels whose statistics stand for a whole volume
_SHARED: dict[Path, np.ndarray] = {}  # the copies that this process has mapped


@dataclass(frozen=True)
class Source:
    """One place in the tissue: an image and what belongs to it, all cut to the same box."""

    name: str
    arrays: dict[str, Any]  # role -> sliceable; an array of a smaller extent than the box is extended on reading
    starts: dict[str, tuple[int, int, int]]  # role -> the voxel of the image at which the array begins
    box: Box  # voxels of the image that may be used
    resolution: tuple[float, float, float]
    offset: tuple[float, float, float]  # nm, of the box
    weight: float
    statistics: tuple[float, float]  # of the image: what is subtracted, what is divided by

    @property
    def size(self) -> tuple[int, int, int]:
        return tuple(stop - start for start, stop in self.box)


def open_sources(data: Data, which: str, skeletons: Path | None = None) -> list[Source]:
    """The volumes of data.train, data.validation or data.test; everything that is wrong with any file, at once.

    skeletons: folder for the skeletons of labels (see skeletons_of), where they are needed; those that a volume names
    are traced, too, where their file is missing.
    """
    sources, wrong = [], []
    for listed in ("train", "validation") if which == "train" else (which,):  # a training opens both, one after another
        for number, volume in enumerate(getattr(data, listed)):
            absent = _absent(data, volume, skeletons)
            if absent:
                wrong.append(f"data.{listed}.{number}: there is no file {', '.join(absent)}")
    for number, volume in enumerate(getattr(data, which)):
        if not _absent(data, volume, skeletons):
            try:
                tracing = skeletons
                if wrong and skeletons is not None:  # nothing is traced for a run that will not start
                    volume, tracing = replace(volume, skeleton=None), None
                sources += [open_source(data, one, which, tracing) for one in expanded(data, volume)]
            except InputError as error:
                wrong.append(f"data.{which}.{number}: {error}")
    if wrong:
        raise InputError("; ".join(wrong))
    return sources


def expanded(data: Data, volume: Volume) -> list[Volume]:
    """The volume, or one for each file that its image names with * or **, in the order of their names."""
    pattern, colon, dataset = volume.image.partition(":") if isinstance(volume.image, str) else ("", "", "")
    if "*" not in pattern:
        return [volume]
    if volume.label or volume.mask or volume.skeleton:
        raise InputError(f"{volume.image} names many files, so nothing can belong to it: name images with labels one "
                         "by one")
    found = sorted(glob.glob(os.path.join(data.folder, pattern), recursive=True))
    if not found:
        raise InputError(f"no file is named like {os.path.join(data.folder, pattern)}")
    return [replace(volume, image=os.path.abspath(path) + colon + dataset) for path in found]


def _absent(data: Data, volume: Volume, skeletons: Path | None) -> list[str]:
    """The paths of a volume at which there is nothing, but for what can be traced."""
    named = [reference for role in ROLES if isinstance(reference := getattr(volume, role), str)
             and not (role == "skeleton" and skeletons is not None and isinstance(volume.label, str))]
    paths = [split_reference(os.path.join(data.folder, reference))[0] for reference in named]
    return list(dict.fromkeys(str(path) for path in paths if "*" not in str(path) and not path.exists()))


def open_source(data: Data, volume: Volume, which: str, skeletons: Path | None = None) -> Source:
    """One place; volume.image may also be an array."""
    opened = {}
    for role in ROLES:
        reference = getattr(volume, role)
        if reference is not None:
            kind = {"image": "image", "label": "labels", "skeleton": "labels"}.get(role)
            if isinstance(reference, str):
                reference = os.path.join(data.folder, reference)
            if role == "skeleton" and skeletons is not None and isinstance(volume.label, str) and is_to_trace(
                    reference, os.path.join(data.folder, volume.label)):
                continue
            opened[role] = open_volume(reference, kind=kind)
    image = opened["image"]
    resolution = image.resolution or data.resolution or (1.0, 1.0, 1.0)
    whole = image.shape[-3:]
    if skeletons is not None and isinstance(volume.label, str) and "skeleton" not in opened:
        unlabelled = (*data.background, *data.ignore)
        opened["skeleton"] = skeletons_of(opened["label"], resolution, unlabelled, skeletons)
    starts = {"image": (0, 0, 0)}
    for role, other in opened.items():
        if role != "image":
            starts[role] = _start(image, other, resolution, role)
            if role in ("label", "skeleton"):
                check_labels(other)
    box = _box(data, volume, which, whole)
    if "label" in opened:  # patches are drawn where labels are; the image around them is context
        spans = [(max(low, start), min(high, start + length)) for (low, high), start, length
                 in zip(box, starts["label"], opened["label"].shape[-3:])]
        if any(low >= high for low, high in spans):
            raise InputError(f"the labels {volume.label} lie outside the image {volume.image} or its box")
    arrays = {role: _stored(data, array, starts[role], box) for role, array in opened.items()}
    moved = {role: starts[role] if data.storage == "lazy" else
             tuple(max(low, start) for (low, _), start in zip(box, starts[role])) for role in opened}
    name = volume.name or Path(str(image.name).partition(":")[0]).stem
    offset = tuple(o + low * r for o, (low, _), r in zip(image.offset, box, resolution))
    return Source(name, arrays, moved, box, tuple(resolution), offset, volume.weight, _statistics(data, image, box))


def _start(image: Any, other: Any, resolution: Sequence[float], role: str) -> tuple[int, int, int]:
    """Where another volume begins in voxels of the image, by their offsets in nm."""
    if other.resolution is not None and image.resolution is not None and not np.allclose(
            other.resolution, image.resolution, rtol=1e-3):
        raise InputError(f"{role} {other.name} has voxels of {other.resolution} nm, the image {image.name} of "
                         f"{image.resolution}")
    shift = (np.array(other.offset) - np.array(image.offset)) / np.array(resolution)
    if not shift.any() and other.shape[-3:] != image.shape[-3:]:
        raise InputError(f"{role} {other.name} is {other.shape[-3:]} voxels, the image {image.name} "
                         f"{image.shape[-3:]}: "
                         "give the smaller one an offset attribute (nm, z y x) that says where it lies")
    if np.abs(shift - shift.round()).max() > 0.01:
        raise InputError(f"{role} {other.name} begins {shift.tolist()} voxels from the image: not on its voxel grid")
    return tuple(int(s) for s in shift.round())


def _box(data: Data, volume: Volume, which: str, whole: Sequence[int]) -> Box:
    given = volume.box or tuple(edge for length in whole for edge in (0, length))
    box = [(given[2 * axis], given[2 * axis + 1]) for axis in range(3)]
    for (low, high), length in zip(box, whole):
        if not 0 <= low < high <= length:
            raise InputError(f"the box {list(given)} does not fit the image {volume.image} of {list(whole)} voxels")
    part = {"train": data.train_part, "validation": data.validation_part}.get(which, (0.0, 1.0))
    if not 0 <= part[0] < part[1] <= 1:
        raise InputError(f"data.{which}_part must be two rising shares within 0..1; got {list(part)}")
    low, high = box[data.split_axis]
    cut = (low + int((high - low) * part[0]), low + int((high - low) * part[1]))
    if cut[0] == cut[1]:
        raise InputError(f"data.{which}_part {list(part)} leaves nothing of the {high - low} voxels along the axis")
    box[data.split_axis] = cut
    return tuple(box)


def _clip(box: Box, start: Sequence[int], shape: Sequence[int]) -> tuple[slice, ...]:
    """The part of an array, which begins at `start`, that lies inside the box."""
    return tuple(slice(max(0, low - s), max(0, min(n, high - s))) for (low, high), s, n in zip(box, start, shape))


def _stored(data: Data, array: Any, start: Sequence[int], box: Box) -> Any:
    if data.storage == "lazy":
        return array
    spans = _clip(box, start, array.shape[-3:])
    full = (slice(None),) * (len(array.shape) - 3) + spans
    folder = "/dev/shm" if data.storage == "memory" and os.path.isdir("/dev/shm") else tempfile.gettempdir()
    return shared_copy(array, full, folder)


def shared_copy(array: Any, index: tuple[slice, ...], folder: str) -> np.ndarray:
    """A read-only array of array[index] that all processes of this node share: one file, mapped by each.

    The first process to ask writes it, the others wait for it; the last to end removes it. After a kill the file stays
    and the next run of the same data uses it.
    """
    shape = tuple(len(range(*span.indices(length))) for span, length in zip(index, array.shape))
    size = int(np.prod(shape, dtype=object)) * array.dtype.itemsize
    key = hashlib.sha256(repr((array.name, _stamp(array.name), shape, [(s.start, s.stop) for s in index],
                               str(array.dtype), os.getuid())).encode()).hexdigest()[:24]
    path = Path(folder) / f"emcore-{key}.npy"
    if path not in _SHARED:
        with _building(path.parent):
            if not path.exists():
                free = shutil.disk_usage(folder).free
                if size > free * 0.9:
                    raise InputError(f"{array.name} takes {size / 2**30:.1f} GiB, but {folder} has {free / 2**30:.1f} "
                                     "GiB free: set data.storage = \"lazy\"")
                _write(array, index, shape, path)
            users = open(path.with_suffix(".users"), "a")  # noqa: SIM115 (its lock is held while this process lives)
            fcntl.flock(users, fcntl.LOCK_SH)
            _SHARED[path] = np.load(path, mmap_mode="r").view(np.ndarray)
        atexit.register(_release, path, users, os.getpid())
    return _SHARED[path]


@contextmanager
def _building(folder: Path):
    """Only one process at a time writes, takes or removes a copy."""
    with open(folder / f"emcore-{os.getuid()}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stamp(name: str) -> tuple:
    """What tells a changed file from the one that was copied."""
    path = name.partition(":")[0]
    try:
        found = os.stat(path)
    except OSError:
        return (os.getpid(),)
    return found.st_size, found.st_mtime_ns, os.path.abspath(path)


def _write(array: Any, index: tuple[slice, ...], shape: tuple[int, ...], path: Path) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    out = np.lib.format.open_memmap(temporary, "w+", array.dtype, shape)
    axis = len(shape) - 3
    first = index[axis].indices(array.shape[axis])[0]
    step = max(1, 2**26 // max(1, int(np.prod(shape, dtype=object)) // max(1, shape[axis]) * array.dtype.itemsize))
    for start in range(0, shape[axis], step):
        stop = min(shape[axis], start + step)
        block = (*index[:axis], slice(first + start, first + stop), *index[axis + 1:])
        out[(slice(None),) * axis + (slice(start, stop),)] = array[block]
    out.flush()
    os.replace(temporary, path)


def _release(path: Path, users: IO, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked worker shares its parent's lock
    with _building(path.parent):
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # another process still uses it
        path.unlink(missing_ok=True)
        Path(users.name).unlink(missing_ok=True)


def _statistics(data: Data, image: Any, box: Box) -> tuple[float, float]:
    """(subtracted, divided by) for normalisation by volume; what a patch decides itself is (0, 1)."""
    if data.normalise == "divide":
        return 0.0, data.divide
    if data.normalise == "none" or data.normalise_by == "patch":
        return 0.0, 1.0
    depth = box[0][1] - box[0][0]
    section = (box[1][1] - box[1][0]) * (box[2][1] - box[2][0])
    every = max(1, -(-depth * section // SAMPLED))
    planes = [image[..., z, box[1][0]:box[1][1], box[2][0]:box[2][1]] for z in range(box[0][0], box[0][1], every)]
    values = np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)
    return scale_of(values, data.normalise, data.percentiles, image.name)


def scale_of(values: np.ndarray, normalise: str, percentiles: Sequence[float], name: str) -> tuple[float, float]:
    """(subtracted, divided by) that bring values to 0..1 or to mean 0 and deviation 1."""
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinite values; images must be finite")
    if normalise == "score":
        return float(values.mean()), float(values.std()) or 1.0
    low, high = np.percentile(values, percentiles)
    return float(low), float(high - low) or 1.0
