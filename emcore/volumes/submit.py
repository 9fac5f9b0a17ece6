"""python -m emcore submit cremi: labels of infer.py as the file that the CREMI challenge takes, one for each sample.

The file holds volumes/labels/clefts, where 2^64 - 1 is background, and volumes/labels/neuron_ids, both uint64 at the
challenge's shape. Realigned volumes have to be brought back to the challenge's alignment before.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported
from emcore.volumes import Volume, list_datasets, open_volume, split_reference
from emcore.volumes.hdf5 import add_dataset
from emcore.volumes.hdf5_stream import Stream, StreamedDataset, streamed
from emcore.volumes.metadata import triple

FORMAT = "0.2"  # what CREMI's own files call theirs
SHAPE = (125, 1250, 1250)  # the samples A+, B+ and C+ have it
RESOLUTION = (40.0, 4.0, 4.0)
NO_CLEFT, UNKNOWN = 2**64 - 1, 2**64 - 2
CHUNK = (8, 256, 256)  # voxels that are packed together; so many sections are read at a time


class Kind(NamedTuple):
    """One of the two volumes: its dataset, and what stands where there is nothing."""

    dataset: str
    background: int


KINDS = {"clefts": Kind("volumes/labels/clefts", NO_CLEFT), "neuron_ids": Kind("volumes/labels/neuron_ids", 0)}


class Frame(NamedTuple):
    """The challenge's volume: its size, its voxels and where its first one lies, in nm; z, y, x."""

    shape: tuple[int, int, int]
    resolution: tuple[float, float, float]
    offset: tuple[float, float, float]


def submit(labels: dict[str, str], out: Path, frame: Frame, at: Sequence[int] | None = None) -> list[str]:
    """What was written, a line for each volume.

    labels: kind -> reference; at: voxel of the challenge's volume where their first one lies; None: as the files say.
    """
    volumes = {kind: open_labels(reference, kind) for kind, reference in labels.items()}
    places = {kind: place_of(volume, frame, at) for kind, volume in volumes.items()}
    lines = []
    with replaced(out) as temporary, streamed(out, temporary, "w") as (file, stream):
        file.attrs["file_format"] = FORMAT
        for kind, volume in volumes.items():
            lines.append(write_labels(file, stream, kind, volume, places[kind], frame, out))
    return lines


def open_labels(reference: str, kind: str) -> Volume:
    """The labels of a kind: of a file of several the dataset named as CREMI names it, where there is one."""
    path, dataset = split_reference(reference)
    if dataset is None and path.is_file() and KINDS[kind].dataset in {item.name for item in list_datasets(path)}:
        dataset = KINDS[kind].dataset
    return open_volume(path, dataset, kind="labels")


def place_of(volume: Volume, frame: Frame, at: Sequence[int] | None) -> tuple[int, int, int]:
    """The voxel of the challenge's volume at which the first voxel of the labels lies."""
    if volume.resolution is not None and not np.allclose(volume.resolution, frame.resolution, rtol=1e-3):
        raise InputError(f"{volume.name} has voxels of {volume.resolution} nm, the challenge of {frame.resolution}: "
                         "bring the labels to the challenge's grid first")
    if at is None and not any(np.subtract(volume.offset, frame.offset)) and volume.shape != frame.shape:
        raise InputError(f"{volume.name} has the shape {volume.shape}, the challenge {frame.shape}, and no offset says "
                         "where the labels lie: give the voxel of the challenge's volume where their first voxel lies "
                         "by --at z,y,x (--at=-37,-911,-911 for labels of a whole padded sample)")
    shift = np.subtract(volume.offset, frame.offset) / frame.resolution
    place = tuple(int(step) for step in (np.rint(shift) if at is None else at))
    if at is None and np.abs(shift - place).max() > 0.01:
        raise InputError(f"{volume.name} lies {tuple(shift.tolist())} voxels (z, y, x) off the challenge's volume, "
                         "which is not a whole number: give --at z,y,x")
    if any(step >= size or step + own <= 0 for step, size, own in zip(place, frame.shape, volume.shape)):
        raise InputError(f"{volume.name}, of the shape {volume.shape}, lies at {place}, outside of the challenge's "
                         f"volume {frame.shape}: give --at z,y,x")
    return place


def write_labels(file: h5py.File, stream: Stream, kind: str, volume: Volume, place: Sequence[int], frame: Frame,
                 out: Path) -> str:
    """Writes one volume section by section; says what lies beyond the labels, and what of them beyond it."""
    dataset, background = KINDS[kind]
    low = [max(0, step) for step in place]
    high = [min(size, step + own) for step, size, own in zip(place, frame.shape, volume.shape)]
    attributes = {"resolution": list(frame.resolution), "offset": list(frame.offset)}
    chunk = tuple(map(min, CHUNK, frame.shape))
    with reported(out):
        made = StreamedDataset(add_dataset(file, dataset, frame.shape, np.dtype(np.uint64), attributes, chunk, "gzip"),
                               stream)
    for start in range(0, frame.shape[0], chunk[0]):
        stop = min(frame.shape[0], start + chunk[0])
        block = np.full((stop - start, *frame.shape[1:]), background, np.uint64)
        first, last = max(low[0], start), min(high[0], stop)
        if first < last:
            box = [slice(first, last), *(slice(a, b) for a, b in zip(low[1:], high[1:]))]
            values = volume[tuple(slice(part.start - at, part.stop - at) for part, at in zip(box, place))]
            block[(slice(first - start, last - start), *box[1:])] = as_ids(values, kind, volume.name)
        with reported(out):
            made[start:stop] = block
    inside = int(np.prod(np.subtract(high, low), dtype=object))
    beyond, left_out = int(np.prod(frame.shape, dtype=object)) - inside, volume.size - inside
    return (f"{dataset}: {' x '.join(map(str, frame.shape))} from {volume.name}, {beyond} voxels beyond the labels are "
            f"background, {left_out} voxels of the labels lie outside")


def as_ids(values: np.ndarray, kind: str, name: str) -> np.ndarray:
    """Labels as the challenge's ids, exact up to 64 bits; label 0 is the background of the kind."""
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise InputError(f"{name} holds {values.min()}; labels of a submission are 0 (nothing) or positive")
    ids = values.astype(np.uint64)
    if kind == "clefts":
        if (ids == UNKNOWN).any():
            raise InputError(f"{name} holds 2^64 - 2, which marks voxels that nobody knows in the truth; a submission "
                             "has to decide whether they are a cleft")
        ids[ids == 0] = NO_CLEFT
    return ids


def numbers(count: type) -> Any:
    """Reads z,y,x from the command line."""
    def read(text: str) -> tuple:
        try:
            values = tuple(count(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != 3:
            raise argparse.ArgumentTypeError(f"three numbers z,y,x; got {text!r}")
        return values
    return read


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore submit", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("challenge", choices=["cremi"], help="which challenge")
    parser.add_argument("out", type=Path, help="file to write, one sample, such as sample_A+.hdf")
    parser.add_argument("--clefts", metavar="LABELS", help="labels of clefts, 0 = none")
    parser.add_argument("--neuron-ids", metavar="LABELS", help="labels of neurons, 0 = none")
    parser.add_argument("--at", type=numbers(int), metavar="Z,Y,X", help=(
        "voxel of the challenge's volume where the first voxel of the labels lies; by default as their offset says"))
    parser.add_argument("--shape", type=numbers(int), default=SHAPE, metavar="Z,Y,X",
                        help="of the challenge's volume (default 125,1250,1250)")
    parser.add_argument("--resolution", type=numbers(float), default=RESOLUTION, metavar="Z,Y,X",
                        help="nm of its voxels (default 40,4,4)")
    parser.add_argument("--offset", type=numbers(float), default=(0.0, 0.0, 0.0), metavar="Z,Y,X",
                        help="nm of its first voxel (default 0,0,0)")
    options = parser.parse_args(arguments)
    labels = {kind: getattr(options, kind) for kind in KINDS if getattr(options, kind) is not None}
    if not labels:
        raise InputError("there is nothing to submit: name labels by --clefts, --neuron-ids or both")
    if min(options.shape) < 1:
        raise InputError(f"--shape must be three positive numbers; got {options.shape}")
    if options.out.suffix not in (".hdf", ".h5", ".hdf5"):
        raise InputError(f"the challenge takes HDF5: name the file .hdf, not {options.out}")
    frame = Frame(options.shape, triple(options.resolution, "--resolution", positive=True),
                  triple(options.offset, "--offset"))
    for line in submit(labels, options.out, frame, options.at):
        print(line)
    print(options.out)
    return 0
