"""Synthetic tissue as the files that other people's data comes in, and the command `python -m emcore synth`."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.files import replaced, reported
from emcore.progress import Working
from emcore.synth.tissue import Defects, Tissue, synthesize
from emcore.volumes import create_volume
from emcore.volumes.hdf5_stream import streamed
from emcore.volumes.writing import choose_chunks

CREMI_BACKGROUND = np.uint64(0xFFFFFFFFFFFFFFFF)
LETTERS = "ABCDEFGH"
LAYOUTS = {
    "cremi": "sample_A_20160501.hdf, ...: volumes/raw, volumes/labels/neuron_ids and clefts, annotations",
    "cremi-clefts": "im_A.h5 and syn_A.h5, ...: main, clefts numbered from 1",
    "snemi": "train-input.tif, train-labels.tif, test-input.tif, test-labels.h5 (extra tiff)",
    "polarity": "vol3/im_orig_noPad.h5 and vol3/syn_gt_v3.h5, ...: main, synapse n is 2n - 1 (pre) and 2n (post)",
    "plain": "A.h5, ...: raw, labels, clefts, polarity, mitochondria, annotations as CREMI has them",
}
Arrays = dict[str, np.ndarray]


def write_hdf5(path: Path, arrays: Arrays, attributes: dict[str, dict[str, Any]]) -> None:
    """Write named arrays, and attributes of datasets and groups, as one file that appears when it is complete."""
    with replaced(path) as temporary, streamed(path, temporary, "w") as (file, stream), reported(path):
        for name, array in arrays.items():
            options: dict[str, Any] = {}
            if array.ndim == 3:
                options["chunks"] = choose_chunks(array.shape, array.dtype)
                if array.dtype != np.uint8:
                    options |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            file.create_dataset(name, data=array, **options)
            stream.check()
        for name, values in attributes.items():
            file[name].attrs.update(values)


def annotations(tissue: Tissue, origin: np.ndarray, shape: tuple[int, ...]) -> Arrays:
    """CREMI's tables of the synapses whose sites lie in a box of the tissue; their places count from its corner."""
    pairs = np.array([(synapse.pre_site, synapse.post_site) for synapse in tissue.synapses]).reshape(-1, 2, 3) - origin
    farthest = (np.array(shape) - 1) * tissue.resolution
    places = pairs[((pairs >= 0) & (pairs <= farthest)).all((1, 2))].reshape(-1, 3)
    ids = np.arange(1, len(places) + 1, dtype=np.uint64)
    return {"annotations/ids": ids, "annotations/locations": places,
            "annotations/types": np.array([b"presynaptic_site", b"postsynaptic_site"] * (len(ids) // 2), "S17"),
            "annotations/presynaptic_site/partners": ids.reshape(-1, 2)}


def write_cremi(path: Path, tissue: Tissue, padding: tuple[int, int, int]) -> None:
    """Write one CREMI sample; with padding, raw is wider than the labels by so many voxels on each side."""
    if any(2 * margin >= length or margin < 0 for margin, length in zip(padding, tissue.raw.shape)):
        raise InputError(f"padding {padding} leaves no labels of a volume of shape {tissue.raw.shape}")
    inner = tuple(slice(margin, length - margin) for margin, length in zip(padding, tissue.raw.shape))
    origin = np.array(padding) * tissue.resolution
    neurons, clefts = tissue.neuron_ids[inner].astype(np.uint64), tissue.clefts[inner].astype(np.uint64)
    clefts[clefts == 0] = CREMI_BACKGROUND
    grid = {"resolution": np.array(tissue.resolution)}
    placed = grid | ({"offset": origin} if any(padding) else {})  # CREMI writes an offset only where there is one
    write_hdf5(path, {
        "volumes/raw": tissue.raw, "volumes/labels/neuron_ids": neurons, "volumes/labels/clefts": clefts,
        **annotations(tissue, origin, neurons.shape),
    }, {"/": {"file_format": "0.2"}, "volumes/raw": grid, "volumes/labels/neuron_ids": placed,
        "volumes/labels/clefts": placed, "annotations": {"offset": origin}})


def write_layout(folder: Path | str, layout: str, tissue: Tissue, sample: int = 0,
                 padding: tuple[int, int, int] = (0, 0, 0)) -> list[Path]:
    """The paths of the files written for sample number 0, 1, ... of a layout (see LAYOUTS); padding is for cremi."""
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    if any(padding) and layout != "cremi":
        raise InputError(f"padding is part of the layout cremi, not of {layout}")
    if not 0 <= sample < (2 if layout == "snemi" else len(LETTERS)):
        raise InputError(f"the layout {layout} has no sample number {sample}: snemi has 2, the others {len(LETTERS)}")
    folder, letter = Path(folder), LETTERS[sample]
    grid = {"resolution": np.array(tissue.resolution)}
    if layout == "polarity":
        folder = folder / f"vol{3 + sample}"
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if layout == "cremi":
        paths = [folder / f"sample_{letter}_20160501.hdf"]
        write_cremi(paths[0], tissue, padding)
    elif layout == "plain":
        paths = [folder / f"{letter}.h5"]
        arrays = {"raw": tissue.raw, "labels": tissue.neuron_ids, "clefts": tissue.clefts,
                  "polarity": tissue.polarity, "mitochondria": tissue.mitochondria}
        sites = annotations(tissue, np.zeros(3), tissue.raw.shape)
        write_hdf5(paths[0], arrays | sites, dict.fromkeys(arrays, grid))
    elif layout == "snemi":
        labels = tissue.neuron_ids
        if labels.max() < 2**16:
            labels = labels.astype(np.uint16)
        paths = [folder / ("train-input.tif", "test-input.tif")[sample],
                 folder / ("train-labels.tif", "test-labels.h5")[sample]]
        for path, array in zip(paths, (tissue.raw, labels)):
            with create_volume(path, array.shape, array.dtype, tissue.resolution) as writer:
                writer[:] = array
    else:
        names, truth = ((f"im_{letter}.h5", f"syn_{letter}.h5"), tissue.clefts) if layout == "cremi-clefts" else (
            ("im_orig_noPad.h5", "syn_gt_v3.h5"), tissue.polarity)
        paths = [folder / name for name in names]
        for path, array in zip(paths, (tissue.raw, truth)):
            write_hdf5(path, {"main": array}, {"main": grid})
    return paths


def numbers(text: str, kind: type = int) -> tuple:
    """Three numbers from a text such as 128,512,512."""
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise InputError(f"expected three numbers z,y,x such as 128,512,512; got {text!r}")
    return values


def main(arguments: Sequence[str]) -> int:
    """python -m emcore synth: write samples of synthetic tissue; sample n has the seed SEED + n."""
    layouts = "\n".join(f"  {name:<14}{text}" for name, text in LAYOUTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m emcore synth", description="Write synthetic tissue with exact ground truth.",
        epilog=f"layouts:\n{layouts}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="folder for the files")
    parser.add_argument("--layout", default="plain", help=", ".join(LAYOUTS) + " (default: plain)")
    parser.add_argument("--shape", default="128,512,512", help="voxels z,y,x (default: 128,512,512)")
    parser.add_argument("--resolution", help="nm z,y,x (default: 40,4,4 for cremi, else 30,6,6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, help="volumes to write (default: 1; snemi always 2, train and test)")
    parser.add_argument("--neurites", type=int, help="neurites to grow (default: 16 a cubic micron)")
    parser.add_argument("--synapses", type=int, help="synapses of a volume, at most (default: 1.6 a cubic micron)")
    parser.add_argument("--partners", type=int, default=1, help="postsynaptic neurons of a synapse, at most "
                        "(default: 1; insects have several)")
    parser.add_argument("--missing-sections", type=int, default=0, help="sections that are black in raw")
    parser.add_argument("--misaligned-sections", type=int, default=0, help="places where sections jump sideways")
    parser.add_argument("--largest-shift", type=int, default=12, help="voxels a section may jump (default: 12)")
    parser.add_argument("--padding", default="0,0,0", help="cremi: voxels of raw around the labels z,y,x")
    options = parser.parse_args(arguments)
    layout = options.layout
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    samples = options.samples or 1 if layout != "snemi" else 2
    resolution = numbers(options.resolution or ("40,4,4" if layout.startswith("cremi") else "30,6,6"), float)
    shape, padding = numbers(options.shape), numbers(options.padding)
    defects = Defects(options.missing_sections, options.misaligned_sections, options.largest_shift)
    for sample in range(samples):
        started = time.perf_counter()
        with Working(f"volume {sample + 1} of {samples}") as work:
            tissue = synthesize(shape, resolution, options.seed + sample, neurites=options.neurites, told=work.now,
                                synapses=options.synapses, partners=options.partners, defects=defects)
            work.now("writing files")
            paths = write_layout(options.out, layout, tissue, sample, padding)
        count = len({synapse.number for synapse in tissue.synapses})
        print(f"{', '.join(map(str, paths))}: {tissue.neuron_ids.max()} neurons, {count} synapses, "
              f"shape {shape} at {resolution} nm, {time.perf_counter() - started:.1f} s")
    return 0
