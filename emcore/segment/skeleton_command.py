"""python -m emcore skeletonize LABELS OUT: the skeletons of labels as SWC files, or for Neuroglancer."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from emcore.errors import InputError
from emcore.memory import check_memory
from emcore.progress import Working
from emcore.segment.skeleton_files import FORMATS, write_skeletons
from emcore.segment.skeletons import skeletonize
from emcore.volumes import open_volume

VOXEL_BYTES = 112  # 46 were measured where one object fills the volume; boxes that are traced beside it take more


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore skeletonize", description=(
        "Write the skeleton of every label into a new folder, in nm from where the volume begins: a file ID.swc for "
        "each object, or Neuroglancer's precomputed skeletons."))
    parser.add_argument("labels", metavar="LABELS", help="file, or file:dataset")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that is made")
    parser.add_argument("--format", choices=FORMATS, default="swc", help="default: swc, one tree a file")
    parser.add_argument("--resolution", type=float, nargs=3, metavar=("Z", "Y", "X"),
                        help="size of a voxel in nm, where the file does not say it")
    parser.add_argument("--scale", type=float, default=1.5, help="how far around a path, in radii, no other one starts")
    parser.add_argument("--const-nm", type=float, metavar="NM", help="added to it; default: ten voxel sides, at least "
                        "100 nm")
    parser.add_argument("--dust-voxels", type=int, default=0, metavar="N", help="pieces of fewer voxels have none")
    options = parser.parse_args(arguments)
    labels = open_volume(options.labels, kind="labels")
    resolution = options.resolution or labels.resolution
    if resolution is None:
        raise InputError(f"skeletons are in nm, but {labels.name} does not say its resolution; give --resolution Z Y X")
    if options.out.exists():
        raise InputError(f"{options.out} exists already; choose another name for the folder of skeletons, or remove it")
    check_memory(VOXEL_BYTES * labels.size, f"tracing the skeletons of {labels.shape} voxels at once",
                 "cut the labels into smaller volumes")
    with Working(f"trace the skeletons of {labels.name}"):
        found = skeletonize(labels[...], resolution, scale=options.scale, const_nm=options.const_nm,
                            dust_voxels=options.dust_voxels)
    # Nodes lie at the middles of voxels, so that no rounding moves them into the next one.
    middle = np.array(labels.offset) + np.array(resolution) / 2
    found = {label: replace(skeleton, vertices=skeleton.vertices + middle) for label, skeleton in found.items()}
    write_skeletons(options.out, found, options.format)
    nodes = sum(len(skeleton.vertices) for skeleton in found.values())
    length = sum(skeleton.length for skeleton in found.values())
    print(f"{len(found)} skeletons, {nodes} nodes, {length / 1000:.6g} um\n{options.out}")
    return 0
