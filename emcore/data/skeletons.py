"""Skeleton volumes for the target skeleton_distance: traced once and kept beside the labels until those change."""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from emcore import segment
from emcore.errors import InputError
from emcore.files import reported
from emcore.locks import alone
from emcore.segment.skeletons import RULES
from emcore.settings import Settings
from emcore.settings.target import SkeletonDistanceTarget
from emcore.volumes import Volume, create_volume, list_datasets, open_volume, split_reference
from emcore.volumes.address import is_address

DUST = 125  # voxels under which a piece of an object has no skeleton


def skeleton_folder(settings: Settings) -> Path | None:
    """Where skeletons go that cannot stand beside their labels; None where no target needs any."""
    if any(isinstance(target, SkeletonDistanceTarget) for target in settings.target):
        return Path(settings.outputs) / settings.name / "skeletons"
    return None


def skeletons_of(labels: Volume, resolution: Sequence[float], unlabelled: Sequence[int], folder: Path) -> Volume:
    """The skeleton volume of labels: <file>_skeleton.h5 beside them, or in `folder` where that cannot be written.

    The dataset is named like that of the labels. All ids in `unlabelled` are no objects. Of several processes one
    traces and the others wait for it. A file that was made from other labels, before these were written again, or by
    other rules is made anew. A file beside the labels that was not made here stays as it is.
    """
    if is_address(labels.name):
        raise InputError(f"skeletons are traced from labels on this machine, and {labels.name} is an address: copy it "
                         "by `python -m emcore convert`, or name a skeleton volume")
    path, dataset = split_reference(labels.name)
    # when the labels were written, not which of two files is newer: clocks of file servers disagree
    facts = {"unlabelled": sorted(map(str, unlabelled)), "traced_nm": list(map(float, resolution)),
             "labels_written_ns": str(_changed(path)), "rules": RULES}
    beside = _beside(path)
    # tells labels of one name in several folders apart
    key = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    apart = folder / f"{path.stem}_{key}_skeleton.h5"
    for file in (beside, apart):
        found = _made_from(file, dataset, labels, facts)
        if found is not None:
            return found
    file = beside if _writable(beside.parent) and _traced_here(beside) else apart
    with reported(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        found = _made_from(file, dataset, labels, facts)
        if found is None:
            print(f"tracing the skeletons of {labels.name} once, into {file}", flush=True)
            _trace(file, dataset, labels, resolution, unlabelled, facts)
            found = _made_from(file, dataset, labels, facts)
    if found is None or facts["labels_written_ns"] != str(_changed(path)):
        raise InputError(f"{labels.name} was changed while its skeletons were traced: start again")
    return found


def is_to_trace(skeleton: str, labels: str) -> bool:
    """Whether the skeletons that somebody names are missing, or are those that skeletons_of makes of the labels.

    Says so where others take the place of what was named.
    """
    if is_address(skeleton):
        return False
    file, _ = split_reference(skeleton)
    beside = _beside(file if is_address(labels) else split_reference(labels)[0])
    if not file.exists():
        if file != beside:
            print(f"there is no {file}: the skeletons are traced from {labels} instead", flush=True)
        return True
    return beside.exists() and beside.samefile(file) and _traced_here(beside)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}_skeleton.h5")


def _traced_here(file: Path) -> bool:
    """False for a file that somebody else made."""
    if not file.exists():
        return True
    try:
        return any("labels_written_ns" in open_volume(file, item.name).attrs for item in list_datasets(file))
    except InputError:
        return False


def _made_from(file: Path, dataset: str | None, labels: Volume, facts: dict) -> Volume | None:
    """The skeletons in a file if they were made from these labels as they are now."""
    if not file.exists():
        return None
    try:
        found = open_volume(file, dataset or "main", kind="labels")
    except InputError:  # it holds another dataset, or is not ours
        return None
    same = found.shape == labels.shape[-3:] and all(found.attrs.get(name) == value for name, value in facts.items())
    return found if same else None


def _changed(path: Path) -> int:
    """When a file, or anything in a folder, was last written, in nanoseconds."""
    inside = path.rglob("*") if path.is_dir() else ()
    return max(place.stat().st_mtime_ns for place in (path, *inside))


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextmanager
def _alone(file: Path):
    """One process at a time; nothing stays behind."""
    name = file.with_name(f".{file.name}.lock")
    with alone(name):
        try:
            yield
        finally:
            name.unlink(missing_ok=True)  # who waits for it finds the file made, and who comes next too


def _trace(file: Path, dataset: str | None, labels: Volume, resolution: Sequence[float], unlabelled: Sequence[int],
           facts: dict) -> None:
    values = labels[...]
    limits = np.iinfo(values.dtype)
    for identity in unlabelled:
        if limits.min <= identity <= limits.max:
            values[values == identity] = 0
    traced = segment.skeleton_volume(values, resolution, dust_voxels=DUST)
    with create_volume(f"{file}:{dataset or 'main'}", traced.shape, traced.dtype, labels.resolution, labels.offset,
                       facts) as writer:
        writer[...] = traced
