"""What runs in the interpreter of volara (pip install volara): its documented decoding of affinities in blocks.

    python blocks_volara.py store FOLDER                          # FOLDER/affinities.npy to volara's own file
    python blocks_volara.py decode FOLDER BLOCK CONTEXT WORKERS   # BLOCK, CONTEXT: voxels, as 128,128,128
    python blocks_volara.py export FOLDER                         # segments to FOLDER/segments.npy

`decode` starts from nothing, and writes the seconds of every task to FOLDER/seconds.json; imports are not counted.
"""

import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from funlib.geometry import Coordinate
from funlib.persistence import prepare_ds
from volara.blockwise import AffAgglom, ExtractFrags, GraphMWS, Relabel
from volara.datasets import Affs, Labels
from volara.dbs import SQLite
from volara.lut import LUT

NEIGHBOURS = [Coordinate(-1, 0, 0), Coordinate(0, -1, 0), Coordinate(0, 0, -1)]
BIAS = -0.5  # added to affinities, so that those above .5 join
AXES = ["z", "y", "x"]


def store() -> None:
    affs = np.load("affinities.npy", mmap_mode="r")
    out = prepare_ds("affinities.zarr", affs.shape, offset=(0, 0, 0), voxel_size=(1, 1, 1), units=["nm"] * 3,
                     axis_names=["offset^", *AXES], mode="w", dtype=affs.dtype,
                     chunk_shape=(3, *(min(64, length) for length in affs.shape[1:])))
    out[:] = affs


def decode(block: str, context: str, workers: str) -> None:
    for path in ("fragments.zarr", "segments.zarr", "volara_logs"):
        shutil.rmtree(path, ignore_errors=True)
    for path in Path().glob("graph*"):
        path.unlink()
    Path("table.npz").unlink(missing_ok=True)
    size, around = (Coordinate(map(int, text.split(","))) for text in (block, context))
    affs = Affs(store="affinities.zarr", neighborhood=NEIGHBOURS)
    graph = SQLite(path="graph.db", edge_attrs={"affinity": "float"})
    fragments, segments, table = Labels(store="fragments.zarr"), Labels(store="segments.zarr"), LUT(path="table.npz")
    tasks = {
        "fragments": lambda: ExtractFrags(db=graph, affs_data=affs, frags_data=fragments, block_size=size,
                                          context=around, bias=[BIAS] * 3, num_workers=int(workers)),
        "edges": lambda: AffAgglom(db=graph, affs_data=affs, frags_data=fragments, block_size=size, context=around,
                                   scores={"affinity": NEIGHBOURS}, num_workers=int(workers)),
        "merges": lambda: GraphMWS(db=graph, lut=table, weights={"affinity": (1, BIAS)}, roi=affs.array("r").roi),
        "labels": lambda: Relabel(lut=table, frags_data=fragments, seg_data=segments, block_size=size,
                                  num_workers=int(workers))}
    seconds = {}
    for name, task in tasks.items():
        begun = time.perf_counter()
        states = task().run_blockwise(multiprocessing=True)
        seconds[name] = time.perf_counter() - begun
        if not states:
            raise SystemExit(f"volara did not finish {name}")
    Path("seconds.json").write_text(json.dumps(seconds))


def export() -> None:
    np.save("segments.npy", Labels(store="segments.zarr").array("r")[:])


if __name__ == "__main__":
    multiprocessing.set_start_method("fork", force=True)  # volara's examples do so
    logging.getLogger().setLevel(logging.WARNING)
    what, folder, *arguments = sys.argv[1:]
    os.chdir(folder)
    {"store": store, "decode": decode, "export": export}[what](*arguments)
