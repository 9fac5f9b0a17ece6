"""Writing volumes for viewers: seconds of each format and codec beside tensorstore alone, in turns.

    python -m bench.volumes_writing [--image PATH:DATASET] [--labels PATH:DATASET] [--times 5] [--folder /scratch]

A row: our writer with one level and one process; tensorstore with the same metadata and the whole array in one call,
both from the same mapped npy file; their ratio (1 is equal, above 1 we are faster), by the clock and by CPU seconds,
both medians; then our writer with all its levels. Every array is read back and compared.
"""

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path

import numpy as np
import tensorstore

from emcore.volumes import Layout, Volume, multiscale, ome_zarr, open_volume, precomputed_writing

FORMS = {  # name: whether it is for labels, how it is planned, version or encoding
    "OME-Zarr 0.5, image": (False, ome_zarr, "0.5"),
    "OME-Zarr 0.5, labels": (True, ome_zarr, "0.5"),
    "OME-Zarr 0.4, image": (False, ome_zarr, "0.4"),
    "OME-Zarr 0.4, labels": (True, ome_zarr, "0.4"),
    "precomputed raw": (False, precomputed_writing, "raw"),
    "precomputed jpeg": (False, precomputed_writing, "jpeg"),
    "precomputed compressed_segmentation": (True, precomputed_writing, "compressed_segmentation"),
}


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of all threads."""
    start, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - start, cpu() - used


def cpu() -> float:
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def ours(source: Volume, path: Path, module, form: str, levels: int | None) -> None:
    layout = Layout(levels=levels, layer="segmentation" if source.dtype == np.uint64 else "image")
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        if module is ome_zarr:
            ome_zarr.write_ome_zarr(source, path, layout, form)
        else:
            precomputed_writing.write_precomputed(source, path, layout, form)


def alone(source: Volume, array: np.ndarray, path: Path, module, form: str) -> None:
    """The same array by tensorstore in one call."""
    layout = Layout(levels=1, layer="segmentation" if source.dtype == np.uint64 else "image").checked(source)
    if module is ome_zarr:
        pyramid = ome_zarr.planned(source, path, layout, form, 1)
    else:
        pyramid = precomputed_writing.planned(source, path, layout, source.dtype, form)
    spec = {**pyramid.specs[0], "kvstore": {"driver": "file", "path": f"{path}/"}, "create": True,
            "store_data_equal_to_fill_value": True}
    store = tensorstore.open(spec).result()
    store = store.T.translate_to[0][0] if spec["driver"] == multiscale.PRECOMPUTED else store
    store.write(array).result()
    if form != "jpeg":
        np.testing.assert_array_equal(store[:8].read().result(), array[:8])


def check(path: Path, array: np.ndarray, module, form: str) -> None:
    """Every voxel that our writer wrote, by tensorstore."""
    driver = {"0.5": "zarr3", "0.4": "zarr"}.get(form, multiscale.PRECOMPUTED)
    store = tensorstore.open({"driver": driver, "kvstore": f"file://{path}/{'0/' if module is ome_zarr else ''}"}
                             ).result()
    store = store.T.translate_to[0][0] if driver == multiscale.PRECOMPUTED else store
    if form != "jpeg":
        np.testing.assert_array_equal(store.read().result(), array)


def synthetic(labels: bool, size: int) -> np.ndarray:
    """Something like tissue: cells are slanted columns, the image is grey within them and noisy."""
    z, y, x = np.ogrid[:size, :size, :size]
    cells = ((x + z // 3) // 37 * 1000 + (y - z // 5 + size) // 29 + 1).astype(np.uint64) * 7919
    if labels:
        return cells
    noise = np.random.default_rng(0).normal(0, 12, cells.shape)
    return np.clip(90 + cells % 97 + noise, 0, 255).astype(np.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="uint8; by default a synthetic one of 384 x 384 x 384")
    parser.add_argument("--labels", help="by default synthetic ones of 256 x 256 x 256")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", help="where there is room for the volumes")
    settings = parser.parse_args()
    print(f"{'':37}{'MB/s':>8}{'alone':>8}{'ratio':>8}{'CPU ratio':>11}{'all levels, MB/s':>18}")
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        np.save(folder / "image.npy", open_volume(settings.image)[...] if settings.image else synthetic(False, 384))
        np.save(folder / "labels.npy", open_volume(settings.labels)[...].astype(np.uint64) if settings.labels
                else synthetic(True, 256))
        for form in FORMS:
            print(row(form, folder, settings.times), flush=True)
    return 0


def row(name: str, folder: Path, times: int) -> str:
    """The line of a form: the medians of so many runs of each kind, in turns."""
    is_labels, module, form = FORMS[name]
    file = folder / ("labels.npy" if is_labels else "image.npy")
    source, array = open_volume(file), np.load(file, mmap_mode="r")
    works = {"ours": lambda path: ours(source, path, module, form, 1),
             "alone": lambda path: alone(source, array, path, module, form),
             "levels": lambda path: ours(source, path, module, form, None)}
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in works}
    for _ in range(times):
        for kind, work in works.items():
            path = folder / f"{kind}{'.ome.zarr' if module is ome_zarr else '.precomputed'}"
            shutil.rmtree(path, ignore_errors=True)
            found[kind].append(measured(partial(work, path)))
            if kind == "ours":
                check(path, array, module, form)
    clock, used = ({kind: statistics.median(run[place] for run in runs) for kind, runs in found.items()}
                   for place in (0, 1))
    rate = {kind: array.nbytes / seconds / 1e6 for kind, seconds in clock.items()}
    return (f"{name:37}{rate['ours']:8.0f}{rate['alone']:8.0f}{clock['alone'] / clock['ours']:8.2f}"
            f"{used['alone'] / used['ours']:11.2f}{rate['levels']:18.0f}")


if __name__ == "__main__":
    sys.exit(main())
