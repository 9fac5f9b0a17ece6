"""Augmentations, targets and the loader against MONAI, numpy and bare reads, in turns.

    python -m bench.data [--only pipelines] [--threads 1] [--gigavoxels 2] [--folder /scratch]

The GPU is used where there is one. MONAI and scipy come with the extra `bench`; without them ours stands alone.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.data_loader import loader
from bench.data_pipelines import alone, on_gpu, whole
from bench.data_rows import Result, print_head, print_result
from bench.data_targets import targets

TITLES = {"augmentations": "one augmentation, 18 x 256 x 256 and labels, normalisation included",
          "pipelines": "whole sets of augmentations", "targets": "targets",
          "loader": "loader, crops of 18 x 256 x 256 (ratio: bare reads' seconds over ours)",
          "gpu": "one GPU against processes on the CPU, a sample"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TITLES, help="one part alone")
    parser.add_argument("--repeats", type=int, default=5, help="blocks of samples, ours and the peer's in turns")
    parser.add_argument("--threads", type=int, help="of torch, for both; as many as cores without")
    parser.add_argument("--gigavoxels", type=float, default=2.0, help="size of the HDF5 volume")
    parser.add_argument("--samples", type=int, default=200, help="crops that the loader reads a run")
    parser.add_argument("--folder", help="where the volumes are made for a while")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {device}, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        parts: dict[str, Callable[[], Iterator[Result]]] = {
            "loader": lambda: loader(Path(folder), options.gigavoxels, options.samples, options.repeats),
            "augmentations": lambda: alone(device, options.repeats),
            "pipelines": lambda: whole(device, options.repeats, find_spec("monai") is not None),
            "targets": lambda: targets(device, options.repeats),
            "gpu": lambda: on_gpu(20) if device == "cuda" else iter(()),
        }
        for name, rows in parts.items():
            if options.only in (None, name) and (name != "gpu" or device == "cuda"):
                print_head(TITLES[name])
                for row in rows():
                    print_result(row)


if __name__ == "__main__":
    main()
