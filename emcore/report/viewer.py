"""python -m emcore view LABELS OUT: neurons and synapses as one folder to look at, and as a page in 3-d.

LABELS is a file of labels, or the folder of a run, of which the newest labels are taken. OUT gets

    labels.precomputed  the labels with coarser levels, and in it meshes, skeletons and properties of segments
    image.precomputed   the micrographs
    labels.csv          voxels, boxes and centroids of all labels, and labels_contacts.csv
    connectome          synapses, edges and their page, from --synapses
    synapses            the synapses as annotations
    view.json           the state of Neuroglancer, which python -m emcore serve OUT turns into a link
    view.html           chosen neurons in 3-d, in one file

A command that was ended goes on where it was, and what is there and of the same files is not made again.
"""

import argparse
import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from emcore import record, results
from emcore.blocks import label_statistics, meshes, skeletons
from emcore.blocks.boxes import box_of, content_of
from emcore.blocks.work import digest_of
from emcore.errors import InputError
from emcore.files import remove, reported, write_text
from emcore.locks import NoLocks, take
from emcore.reading import read_text
from emcore.record import LABELS
from emcore.report import connectome
from emcore.report.annotations import write_annotations
from emcore.report.scene import Neurons, neurons_of, picked, write_scene
from emcore.report.viewer_state import properties_of, state_of
from emcore.report.wiring_files import read_synapses
from emcore.segment.edges import connections, degrees
from emcore.segment.wiring import Partners, on_grid_of
from emcore.system import allotted_cores
from emcore.volumes import Layout, Volume, is_there, metadata, open_volume, split_reference, write_precomputed
from emcore.volumes.address import located
from emcore.volumes.convert import convert
from emcore.volumes.fetched import part_of
from emcore.volumes.precomputed import name_part
from emcore.volumes.precomputed_writing import MOST_LISTED_SEGMENTS, SIZES
from emcore.volumes.serve import VIEW

FORMAT = 1  # It names how the parts are made; parts of another format are made again.
MADE = "made.json"  # says which parts are whole, and what they were made from
SHOWN = 16  # neurons of the page where none are named
MOST_TABLE = 1 << 30
SEGMENTS, IMAGE, SYNAPSES, PAGE = "labels.precomputed", "image.precomputed", "synapses", "view.html"
TABLE, WIRING = "labels.csv", "connectome"
MESHES, SKELETONS = f"{SEGMENTS}/mesh", f"{SEGMENTS}/skeletons"
PARTS = (SEGMENTS, MESHES, SKELETONS, TABLE, IMAGE, SYNAPSES, PAGE, WIRING)


@dataclass(frozen=True)
class Source:
    """What is looked at."""

    reference: str  # It names the labels.
    labels: Volume  # It has a resolution.
    image: str | None


def main(arguments: Sequence[str]) -> int:
    options = parsed(arguments)
    source = source_of(options)
    chosen = meshes.ids_of(options.neurons, "--neurons")
    image = None if source.image is None else connectome.open_image(source.image, source.labels)
    with parts(options.out) as made:
        segments = write_labels(made, source, options.workers)
        if image is not None:
            write_image(made, source, image, options.workers)
        table = write_synapses(made, source, image, options)
        neurons = write_properties(made, segments, table)
        shown = picked(neurons, choice(neurons, chosen, source.reference))
        state = state_of(source.labels, shown.ids, image is not None, table is not None)
        write_text(options.out / VIEW, json.dumps(state, indent=1))
        digest = digest_of(FORMAT, made.digests[SEGMENTS], made.digests[SYNAPSES] if table is not None else None,
                           shown.ids.tolist(), source.labels.name)
        made.make(PAGE, digest, lambda: write_scene(
            options.out / PAGE, segments / "mesh", shown, table, source.labels.resolution,
            np.array(box_in_nm(source.labels)), source.labels.name))
        # Skeletons come last, as nothing else is made from them.
        made.make(SKELETONS, made.digests[SEGMENTS], lambda: write_skeletons(segments, options.workers))
        made.drop_others()
    print(f"{options.out / PAGE}: {len(shown.ids)} of {len(neurons.ids)} labels in 3-d; open it in a browser\n"
          f"for Neuroglancer: python -m emcore serve {options.out}")
    return 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m emcore view", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", metavar="LABELS", help="file or file:dataset of neurons, or the folder of a run")
    parser.add_argument("--image", metavar="I", help="the micrographs (default: those that a record of LABELS names)")
    wiring = parser.add_mutually_exclusive_group()
    wiring.add_argument("--synapses", metavar="S", help="labels of synapses on the same voxels: synapse n has "
                        "the id 2n - 1 on its presynaptic and 2n on its postsynaptic side")
    wiring.add_argument("--connectome", type=Path, metavar="FOLDER", help="what python -m emcore connectome wrote")
    parser.add_argument("--clefts", action="store_true", help="each id of --synapses is a cleft, which has no sides")
    parser.add_argument("--neurons", metavar="12,57", help=f"neurons of the page (default: the {SHOWN} with most "
                        "synapses, or the largest where there are none)")
    parser.add_argument("--resolution", type=float, nargs=3, metavar=("Z", "Y", "X"),
                        help="size of a voxel in nm, where the files do not say it")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: as many as there are cores)")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for all of it")
    options = parser.parse_args(arguments)
    if options.clefts and not options.synapses:
        raise InputError("--clefts belongs to --synapses, which names the labels of clefts")
    if options.workers < 0:
        raise InputError(f"--workers must be above 0; got {options.workers}")
    options.workers = options.workers or allotted_cores()
    return options


# ---- what is looked at


def source_of(options: argparse.Namespace) -> Source:
    """The labels and the image that the command names, or that the run or the record of the labels names."""
    reference, image, resolution = options.labels, options.image, options.resolution
    if (Path(reference) / "config.toml").is_file():
        reference, found, known = of_run(Path(reference))
    else:
        found, known = recorded_image(reference), None
    image = image or found
    labels = open_volume(reference, kind="labels")
    if labels.resolution is None and image is not None:
        labels = on_grid_of(labels, open_volume(image, kind="image"))
    resolution = resolution or labels.resolution or known
    if resolution is None:
        raise InputError(f"a view is in nm, but {labels.name} does not say its resolution; give --resolution Z Y X")
    resolution = metadata.triple(list(resolution), "--resolution", positive=True)
    return Source(reference, replace(labels, resolution=resolution), image)


def of_run(folder: Path) -> tuple[str, str, Sequence[float] | None]:
    """The newest labels of a run, the image that they are of, and the resolution that its config says."""
    settings = results.settings_of(folder)
    place = results.newest(settings)
    found = [(number, *files) for number, files in enumerate(results.files_of(settings, place))
             if record.has_labels(files[1])]
    if not found:
        raise InputError(f"{place} has no labels: run infer.py with decode.kind other than none")
    if len(found) > 1:
        raise InputError(f"{place} has the labels of {len(found)} volumes; name one of them instead of the run: "
                         f"{', '.join(str(labels) for _, _, labels in found)}")
    number, prediction, labels = found[0]
    results.check_scored(settings, number, labels, prediction)
    image = located(settings.data.folder, settings.data.test[number].image)
    return f"{labels}:{LABELS}", image, settings.data.resolution


def recorded_image(reference: str) -> str | None:
    """The image that the record of a labels file names, if it is still there."""
    path, dataset = split_reference(reference)
    if dataset not in (None, LABELS) or not path.is_file() or not record.has_labels(path):
        return None
    made_by = record.read(path, LABELS) or {}
    image = made_by.get("prediction", {}).get("volume", {}).get("image")
    return image if image is not None and is_there(image) else None


def box_in_nm(labels: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Where the volume that viewers get begins and ends, z y x: it begins at a whole number of voxels."""
    low = np.rint(np.array(labels.offset) / labels.resolution) * labels.resolution
    return low, low + np.array(labels.shape) * labels.resolution


# ---- the parts of the folder


class Parts:
    """The parts of a folder: each is made once, and again where what it is made of has changed."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, set()
        try:
            found = json.loads(read_text(folder / MADE))
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) and folder.is_dir() and any(path.name != "lock" for path in folder.iterdir()):
            raise InputError(f"{folder} is there, and no view that this command has made: choose a new folder")
        # The file may come from anybody, and what it names may be removed.
        self.digests = {name: found[name] for name in PARTS if name in found} if isinstance(found, dict) else {}

    def make(self, name: str, digest: str, write: Callable[[], object]) -> None:
        """Makes a part, which is a file or folder of that name, unless it is there and of that digest."""
        self.asked.add(name)
        if self.digests.get(name) != digest or not (self.folder / name).exists():
            self.forget(name)
            write()
            self.note({**self.digests, name: digest})

    def forget(self, name: str) -> None:
        """What is being made counts as not there, and so does what stands in it."""
        self.note({known: digest for known, digest in self.digests.items()
                   if known != name and not known.startswith(f"{name}/")})

    def note(self, digests: dict[str, str]) -> None:
        self.digests = digests
        write_text(self.folder / MADE, json.dumps(digests, indent=1))

    def drop_others(self) -> None:
        """Removes the parts of an earlier command that this one did not ask for."""
        for name in [name for name in self.digests if name not in self.asked]:
            remove(self.folder / name)
            self.forget(name)


@contextmanager
def parts(folder: Path) -> Iterator[Parts]:
    """The parts of a folder, of which this process is the only writer."""
    Parts(folder)  # It refuses a folder of something else before anything is put into it.
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a")  # noqa: SIM115
    with file:
        try:
            alone = take(file, wait=False)
        except NoLocks:
            alone = True
        if not alone:
            raise InputError(f"{folder} is being written by another process: wait for its end")
        yield Parts(folder)


def write_labels(made: Parts, source: Source, workers: int) -> Path:
    """The labels as a volume for viewers, with their meshes and table of sizes; its folder."""
    labels, folder = source.labels, made.folder / SEGMENTS
    digest = digest_of(FORMAT, content_of(source.reference, labels, box_of(None, labels)), labels.resolution,
                       labels.offset, has_tensorstore())
    placed = replace(labels, offset=tuple(box_in_nm(labels)[0].tolist()))
    made.make(SEGMENTS, digest, lambda: write_volume(placed, folder, "segmentation", workers))
    made.make(MESHES, digest, lambda: meshes.main(
        [str(folder), str(folder), "--workers", str(workers)]))
    made.make(TABLE, digest, lambda: label_statistics.main(
        [str(folder), str(made.folder / TABLE), "--workers", str(workers)]))
    return folder


def has_tensorstore() -> bool:
    return find_spec("tensorstore") is not None


def write_volume(volume: Volume, folder: Path, layer: str, workers: int) -> None:
    """A volume for viewers: compressed and resumable where tensorstore is installed, else plain."""
    dtype = np.dtype(f"u{volume.dtype.itemsize}") if layer == "segmentation" else volume.dtype
    if has_tensorstore():
        write_precomputed(volume, folder, Layout(layer=layer, dtype=dtype, workers=workers))
    else:
        convert(volume, str(folder), dtype, layer=layer)


def write_skeletons(folder: Path, workers: int) -> None:
    remove(folder / "skeletons")
    skeletons.main([str(folder), str(folder / "skeletons"), "--format", "precomputed", "--workers", str(workers)])
    name_part(folder, "skeletons", "skeletons")


def write_image(made: Parts, source: Source, image: tuple[Volume, tuple[slice, ...]], workers: int) -> None:
    """The part of the micrographs where labels are."""
    volume, box = image
    digest = digest_of(FORMAT, content_of(source.image, volume, box), source.labels.resolution, source.labels.offset,
                       has_tensorstore())
    there = part_of(volume, [(span.start, span.stop) for span in box])
    there = replace(there, resolution=source.labels.resolution,
                    offset=tuple(box_in_nm(source.labels)[0].tolist()))
    made.make(IMAGE, digest, lambda: write_volume(there, made.folder / IMAGE, "image", workers))


def write_synapses(made: Parts, source: Source, image: tuple[Volume, tuple[slice, ...]] | None,
                   options: argparse.Namespace) -> Partners | None:
    """The synapses as annotations, and their table; None where there are none."""
    folder, labels = options.connectome, source.labels
    if options.synapses is not None:
        folder, synapses = made.folder / WIRING, open_volume(options.synapses, kind="labels")
        digest = digest_of(FORMAT, content_of(source.reference, labels, box_of(None, labels)),
                           None if image is None else content_of(source.image, *image),
                           content_of(options.synapses, synapses, box_of(None, synapses)), options.clefts,
                           labels.resolution, labels.offset)
        made.make(WIRING, digest, lambda: connectome.write_connectome(
            folder, labels, synapses, "clefts" if options.clefts else "polarity", image, labels.resolution))
    if folder is None:
        return None
    if folder.resolve() == (made.folder / WIRING).resolve():
        made.asked.add(WIRING)
    table, (low, high) = read_synapses(folder), box_in_nm(labels)
    # Volumes for viewers begin at whole voxels, so that synapses must move with them.
    table = moved(table, low - np.array(labels.offset))
    beyond = np.array(labels.resolution) / 2
    outside = (table.sites < low - beyond) | (table.sites > high + beyond)
    if outside.any():
        raise InputError(f"{folder} has synapses outside of {labels.name}, which lies at {low.tolist()} to "
                         f"{high.tolist()} nm (z, y, x): name the connectome of these labels")
    with open(folder / "synapses.csv", "rb") as file:
        digest = digest_of(FORMAT, hashlib.file_digest(file, "sha256").hexdigest(), labels.resolution, labels.offset,
                           labels.shape)
    made.make(SYNAPSES, digest, lambda: write_annotations(made.folder / SYNAPSES, table, labels.resolution,
                                                          np.array([low, high])))
    return table


def moved(table: Partners, by: np.ndarray) -> Partners:
    return replace(table, place=table.place + by, pre_place=table.pre_place + by, post_place=table.post_place + by)


def write_properties(made: Parts, segments: Path, table: Partners | None) -> Neurons:
    """Sizes and degrees of all labels, which viewers list beside the segments."""
    ids, voxels = sizes_in(made.folder / TABLE)
    wired = degrees(connections(table if table is not None else no_partners()))
    if len(missing := np.setdiff1d(wired.neurons, ids)):
        raise InputError(f"the connectome has a neuron {missing[0]}, but the labels have none: name the connectome of "
                         "these labels")
    neurons = neurons_of(ids, voxels, wired)
    if len(ids) <= MOST_LISTED_SEGMENTS:
        with reported(segments):
            (segments / SIZES).mkdir(exist_ok=True)
        write_text(segments / SIZES / "info", json.dumps(properties_of(neurons, table is not None)))
        name_part(segments, SIZES, SIZES)
    return neurons


def no_partners() -> Partners:
    """A table without a row."""
    none, places = np.zeros(0), np.zeros((0, 3))
    ids = np.zeros(0, np.uint64)
    return Partners(ids, places, np.zeros(0, np.int64), ids, ids, np.zeros(0, bool), none, none, places, places)


def sizes_in(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The labels and their voxels in the table that python -m emcore statistics writes."""
    rows = csv.DictReader(io.StringIO(read_text(path, MOST_TABLE), newline=""))
    found = [(int(row["id"]), int(row["voxels"])) for row in rows]
    return np.array([label for label, _ in found], np.uint64), np.array([count for _, count in found], np.int64)


def choice(neurons: Neurons, asked: Sequence[int] | None, name: str) -> np.ndarray:
    """The rows of the neurons that the page shows: those that are named, or those with most synapses."""
    if asked is None:
        synapses = neurons.outgoing + neurons.incoming + neurons.undirected
        order = np.lexsort((neurons.ids, -neurons.voxels, -synapses))
        return order[:min(SHOWN, np.count_nonzero(synapses) or SHOWN)]
    wanted = np.array(asked, np.uint64)
    if len(missing := np.setdiff1d(wanted, neurons.ids)):
        raise InputError(f"--neurons must name labels of {name}; it has no voxel of "
                         f"{', '.join(map(str, missing[:5].tolist()))}")
    return np.searchsorted(neurons.ids, wanted)
