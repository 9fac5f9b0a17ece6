"""The volumes of a run, opened, checked, aligned, and shared by every process of a node."""

import atexit
import glob
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from emcore import __version__
from emcore.cache import private_folder
from emcore.data.skeletons import is_to_trace, skeletons_of
from emcore.errors import InputError
from emcore.files import allocate, remove, replaced, reported, sweep_folder, temporary_name
from emcore.locks import NoLocks, take
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.target import PartnersTarget, Target
from emcore.system import user
from emcore.volumes import check_labels, open_volume, split_reference
from emcore.volumes.address import is_address, located, name_of
from emcore.volumes.kept import kept_on_disk
from emcore.volumes.stamp import stamp

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
ROLES = ("image", "label", "mask", "skeleton", "found")
SAMPLED = 2**25  # voxels whose statistics stand for a whole volume
LARGEST_SECTION = 2**27  # voxels of a section whose values are all held at once
_SHARED: dict[Path, np.ndarray] = {}  # the copies that this process has mapped


@dataclass(frozen=True)
class Source:
    """One place in the tissue: an image and what belongs to it, all cut to the same box."""

    name: str
    arrays: dict[str, Any]  # role -> sliceable; an array of a smaller extent than the box is extended on reading
    starts: dict[str, tuple[int, int, int]]  # role -> the voxel of the image at which the array begins
    box: Box  # voxels of the image that may be used
    whole: tuple[int, int, int]  # voxels of the image along z, y, x
    resolution: tuple[float, float, float]
    offset: tuple[float, float, float]  # nm, of the box
    weight: float
    statistics: tuple[float, float]  # what is subtracted from the image, and what it is divided by
    measured: bool = True  # whether the image or the settings say the resolution; else a voxel counts as 1 nm

    @property
    def size(self) -> tuple[int, int, int]:
        return tuple(stop - start for start, stop in self.box)


def open_sources(data: Data, which: str, skeletons: Path | None = None) -> list[Source]:
    """The volumes of data.train, data.validation or data.test; everything that is wrong with any file, at once.

    skeletons: folder for the skeletons of labels (see skeletons_of), where they are needed; those that a volume names
    are traced, too, where their file is missing.
    """
    # a training opens both, one after another
    sources, wrong = [], missing_files(data, ("train", "validation") if which == "train" else (which,), skeletons)
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


def check_vectors(sources: Sequence[Source], targets: Sequence[Target], resolution: Sequence[float]) -> None:
    """Refuses places whose vectors in nm would be wrong, as all of a training is measured by one resolution."""
    if not any(isinstance(target, PartnersTarget) for target in targets):
        return
    for source in sources:
        if not source.measured:
            raise InputError(f"the target partners measures in nm, but {source.name} does not say its resolution: "
                             "set data.resolution")
        if not np.allclose(source.resolution, resolution, rtol=1e-3):
            raise InputError(f"the target partners measures all volumes by {tuple(resolution)} nm, the first of "
                             f"data.train, but {source.name} has voxels of {source.resolution} nm: name volumes of one "
                             "resolution")


def missing_files(data: Data, lists: Sequence[str], skeletons: Path | None = None) -> list[str]:
    """Which files of data.train, data.validation or data.test are not there, a sentence for each volume."""
    return [f"data.{name}.{number}: there is no file {', '.join(absent)}" for name in lists
            for number, volume in enumerate(getattr(data, name)) if (absent := _absent(data, volume, skeletons))]


def expanded(data: Data, volume: VolumeFiles) -> list[VolumeFiles]:
    """The volume, or one for each file that its image names with * or **, in the order of their names."""
    pattern, colon, dataset = volume.image.partition(":") if isinstance(volume.image, str) else ("", "", "")
    if "*" not in pattern:
        return [volume]
    if volume.label or volume.mask or volume.skeleton or volume.found:
        raise InputError(f"{volume.image} names many files, so nothing can belong to it: name images with labels one "
                         "by one")
    found = sorted(glob.glob(os.path.join(data.folder, pattern), recursive=True))
    if not found:
        raise InputError(f"no file is named like {os.path.join(data.folder, pattern)}")
    return [replace(volume, image=os.path.abspath(path) + colon + dataset) for path in found]


def _absent(data: Data, volume: VolumeFiles, skeletons: Path | None) -> list[str]:
    """The paths of a volume at which there is nothing, but for what can be traced."""
    named = [reference for role in ROLES if isinstance(reference := getattr(volume, role), str)
             and not (role == "skeleton" and skeletons is not None and isinstance(volume.label, str))]
    paths = [split_reference(os.path.join(data.folder, reference))[0] for reference in named
             if not is_address(reference)]
    return list(dict.fromkeys(str(path) for path in paths if "*" not in str(path) and not path.exists()))


def open_source(data: Data, volume: VolumeFiles, which: str, skeletons: Path | None = None) -> Source:
    """One place; volume.image may also be an array."""
    opened, origins = {}, {}
    for role in ROLES:
        reference = getattr(volume, role)
        if reference is not None:
            kind = {"image": "image", "mask": None}.get(role, "labels")
            if isinstance(reference, str):
                reference = located(data.folder, reference)
            if role == "skeleton" and skeletons is not None and isinstance(volume.label, str) and is_to_trace(
                    reference, located(data.folder, volume.label)):
                continue
            opened[role], origins[role] = _opened(data, reference, kind), (reference, kind)
    image = opened["image"]
    resolution = image.resolution or data.resolution or (1.0, 1.0, 1.0)
    whole = image.shape[-3:]
    if skeletons is not None and isinstance(volume.label, str) and "skeleton" not in opened:
        unlabelled = (*data.background, *data.ignore)
        opened["skeleton"] = skeletons_of(opened["label"], resolution, unlabelled, skeletons)
        origins["skeleton"] = opened["skeleton"].name, "labels"
    starts = {"image": (0, 0, 0)}
    for role, other in opened.items():
        if role != "image":
            starts[role] = _start(image, other, resolution, role)
            if role in ("label", "skeleton", "found"):
                check_labels(other)
    box = _box(data, volume, which, whole)
    if "label" in opened:  # patches are drawn where labels are; the image around them is context
        spans = [(max(low, start), min(high, start + length)) for (low, high), start, length
                 in zip(box, starts["label"], opened["label"].shape[-3:])]
        if any(low >= high for low, high in spans):
            raise InputError(f"the labels {volume.label} lie outside the image {volume.image} or its box")
    arrays = {role: _stored(data, array, origins[role], starts[role], box) for role, array in opened.items()}
    moved = {role: starts[role] if data.storage == "lazy" else
             tuple(max(low, start) for (low, _), start in zip(box, starts[role])) for role in opened}
    name = volume.name or name_of(str(image.name))
    offset = tuple(o + low * r for o, (low, _), r in zip(image.offset, box, resolution))
    return Source(name, arrays, moved, box, whole, tuple(resolution), offset, volume.weight,
                  statistics_of(data, image, box), bool(image.resolution or data.resolution))


def _opened(data: Data, reference: Any, kind: str | None) -> Any:
    """A volume, whose chunks stay on disk where it is at an address and the settings say so."""
    volume = open_volume(reference, kind=kind, cache_bytes=round(data.remote_cache * 2**30))
    if not (data.remote_disk and data.storage == "lazy" and is_address(reference)):
        return volume
    return kept_on_disk(volume, stamp(reference), private_place("chunks"), round(data.remote_disk * 2**30))


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


def _box(data: Data, volume: VolumeFiles, which: str, whole: Sequence[int]) -> Box:
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


def _stored(data: Data, array: Any, origin: tuple[Any, ...], start: Sequence[int], box: Box) -> Any:
    if data.storage == "lazy":
        return array
    spans = _clip(box, start, array.shape[-3:])
    full = (slice(None),) * (len(array.shape) - 3) + spans
    return shared_copy(array, full, copies_folder(data.storage), origin)


def copies_folder(storage: str) -> Path:
    """The folder of this user's copies: in shared memory, or on the local disk; nobody else can write there."""
    try:
        return private_place("copies", in_memory=storage == "memory" and os.path.isdir("/dev/shm"))
    except InputError as error:
        raise InputError(f'{error}; data.storage = "lazy" needs no folder') from None


def private_place(name: str, in_memory: bool = False) -> Path:
    """A folder of that name of this user, in shared memory or on the local disk."""
    top = Path("/dev/shm" if in_memory else tempfile.gettempdir()).absolute() / f"emcore-{user()}"
    return private_folder(private_folder(top) / name)


def shared_copy(array: Any, index: tuple[slice, ...], folder: Path, origin: tuple[Any, ...]) -> np.ndarray:
    """A read-only array of array[index] that all processes of this node share: one file, mapped by each.

    origin: the reference that the array was opened from, and as what. The first process to ask writes the copy, the
    others wait for it; the last to end removes it. After a kill it stays, and the next run takes it if no file of the
    volume has changed since. Where that cannot be told, or nothing can be locked, each process has a copy of its own.
    """
    shape = tuple(len(range(*span.indices(length))) for span, length in zip(index, array.shape))
    version = stamp(origin[0]) if isinstance(origin[0], str) else None
    if version is not None:
        source = origin[0] if is_address(origin[0]) else os.path.realpath(split_reference(origin[0])[0])
        spans = [(span.start, span.stop) for span in index]
        words = source, (*origin, shape, spans, str(array.dtype), __version__), version
        path = folder / ("-".join(hashlib.sha256(repr(word).encode()).hexdigest()[:20] for word in words) + ".npy")
        if path in _SHARED:
            return _SHARED[path]
        try:
            with open(folder / "lock", "a") as lock:
                take(lock)  # only one process at a time writes, takes or removes a copy
                return _take_copy(array, index, shape, path, lambda: stamp(origin[0]) == version)
        except NoLocks:
            pass
    if isinstance(origin[0], str):
        print(f"note: {array.name} is copied for each process of this node, because it cannot be told whether it "
              "changes, or nothing can be locked", file=sys.stderr)
    temporary = temporary_name(folder / "copy.npy", "partial")
    try:
        with reported(temporary):
            _write(array, index, shape, temporary)
        return np.load(temporary, mmap_mode="r").view(np.ndarray)
    finally:
        remove(temporary)  # the map stays


def _take_copy(array: Any, index: tuple[slice, ...], shape: tuple[int, ...], path: Path,
               unchanged: Callable[[], bool]) -> np.ndarray:
    sweep_folder(path.parent)
    source, _, version = path.stem.split("-")
    for other in path.parent.glob(f"{source}-*-*.npy"):
        if other.stem.rpartition("-")[2] != version:  # the volume has changed since
            _remove_unused(other)
    if not path.exists():
        with replaced(path) as temporary:
            with reported(path):
                _write(array, index, shape, temporary)
            if not unchanged():
                raise InputError(f"{array.name} was changed while it was copied: start again")
    users = open(path, "rb")  # noqa: SIM115 (its lock is held while this process lives)
    take(users, shared=True)
    _SHARED[path] = np.load(path, mmap_mode="r").view(np.ndarray)
    atexit.register(_release, path, users, os.getpid())
    return _SHARED[path]


def _write(array: Any, index: tuple[slice, ...], shape: tuple[int, ...], path: Path) -> None:
    """An npy file of array[index], for this user alone; all its room is taken before it is mapped."""
    section = int(np.prod(shape[-2:], dtype=object)) * array.dtype.itemsize
    size = section * int(np.prod(shape[:-2], dtype=object))
    if size > 0.9 * shutil.disk_usage(path.parent).free:
        for copy in path.parent.glob("*.npy"):  # left by killed runs of other volumes
            _remove_unused(copy)
    free = shutil.disk_usage(path.parent).free
    if size > 0.9 * free:
        raise InputError(f"{array.name} takes {size / 2**30:.1f} GiB, but {path.parent} has {free / 2**30:.1f} GiB "
                         "free: set data.storage = \"lazy\"")
    axis = len(shape) - 3
    first, depth = index[axis].indices(array.shape[axis])[0], shape[axis]
    step = max(1, 2**26 // max(1, size // depth))
    with open(path, "xb", opener=partial(os.open, mode=0o600)) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(array.dtype),
                                                    "fortran_order": False, "shape": shape})
        begin = file.tell()
        allocate(file, begin + size)
        for low in range(0, depth, step):
            spans = slice(first + low, first + min(depth, low + step))
            block = np.ascontiguousarray(array[(*index[:axis], spans, *index[axis + 1:])])
            for number, channel in enumerate(block.reshape(-1, *block.shape[-3:])):
                file.seek(begin + section * (number * depth + low))
                file.write(channel.data.cast("B"))


def _remove_unused(path: Path) -> None:
    with suppress(FileNotFoundError), open(path, "rb") as file:
        if take(file, wait=False):
            path.unlink()


def _release(path: Path, users: IO, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked worker shares its parent's lock
    with suppress(OSError), open(path.parent / "lock", "a") as lock:
        take(lock)
        if take(users, wait=False):  # no other process uses it
            path.unlink()


def statistics_of(data: Data, image: Any, box: Box) -> tuple[float, float]:
    """(subtracted, divided by) for normalisation by volume; what a patch decides itself is (0, 1)."""
    if data.normalise == "divide":
        return 0.0, data.divide
    if data.normalise == "none" or data.normalise_by == "patch":
        return 0.0, 1.0
    depth = box[0][1] - box[0][0]
    section = (box[1][1] - box[1][0]) * (box[2][1] - box[2][0])
    every = max(1, -(-depth * section // SAMPLED))
    if section > LARGEST_SECTION and image.dtype in (np.uint8, np.uint16):
        return scale_of_counts(counted(image, box, every), data.normalise, data.percentiles)
    planes = [image[..., z, box[1][0]:box[1][1], box[2][0]:box[2][1]] for z in range(box[0][0], box[0][1], every)]
    values = np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)
    return scale_of(values, data.normalise, data.percentiles, image.name)


def counted(image: Any, box: Box, every: int) -> np.ndarray:
    """How often each value occurs in a box, of which sections `every` apart count; they are read in strips."""
    counts, rows = np.zeros(2 ** (8 * image.dtype.itemsize), np.int64), max(1, SAMPLED // (box[2][1] - box[2][0]))
    for z in range(box[0][0], box[0][1], every):
        for low in range(box[1][0], box[1][1], rows):
            strip = image[..., z, low:min(low + rows, box[1][1]), box[2][0]:box[2][1]]
            counts += np.bincount(np.asarray(strip).ravel(), minlength=len(counts))
    return counts


def scale_of_counts(counts: np.ndarray, normalise: str, percentiles: Sequence[float]) -> tuple[float, float]:
    """What scale_of finds, by how often the values 0, 1, ... occur: the same percentiles to the bit."""
    total, values = int(counts.sum()), np.arange(len(counts), dtype=np.float64)
    if normalise == "score":
        mean = float((counts * values).sum() / total)
        return mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / total)) or 1.0
    upto, found = counts.cumsum(), []
    for share in percentiles:  # between the two nearest values, in the arithmetic of numpy
        place = (total - 1) * (share / 100)
        low = int(np.floor(place))
        a, b = (float(np.searchsorted(upto, min(index, total - 1), side="right")) for index in (low, low + 1))
        part = place - low
        found.append(b - (b - a) * (1 - part) if part >= 0.5 else a + (b - a) * part)
    return found[0], (found[1] - found[0]) or 1.0


def scale_of(values: np.ndarray, normalise: str, percentiles: Sequence[float], name: str) -> tuple[float, float]:
    """(subtracted, divided by) that bring values to 0..1 or to mean 0 and deviation 1."""
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinite values; images must be finite")
    if normalise == "score":
        return float(values.mean()), float(values.std()) or 1.0
    low, high = np.percentile(values, percentiles)
    return float(low), float(high - low) or 1.0
