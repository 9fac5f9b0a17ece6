"""A merge tree in a file beside its fragments, so that another threshold costs a table look-up."""

from pathlib import Path

import numpy as np

from emcore.segment.merge_tree import MergeTree
from emcore.volumes import create_volume, list_datasets, open_volume

MERGES = "merges"  # dataset (3, 1, 1, merges): fragments a and b and the score of every merge


def write_tree(path: Path, tree: MergeTree) -> None:
    """Adds the tree to an HDF5 file."""
    count = len(tree.a)
    merges = np.zeros((3, 1, 1, max(1, count)))  # a volume has at least one voxel
    merges[:, 0, 0, :count] = tree.a, tree.b, tree.score
    attributes = {"fragments": int(tree.fragments), "merges": count}
    with create_volume(f"{path}:{MERGES}", merges.shape, merges.dtype, attributes=attributes) as out:
        out[...] = merges


def has_tree(path: Path) -> bool:
    return MERGES in {item.name for item in list_datasets(path)}


def read_tree(path: Path) -> MergeTree:
    """The tree that write_tree stored."""
    stored = open_volume(path, MERGES)
    a, b, score = stored[...][:, 0, 0, : int(stored.attrs["merges"])]
    return MergeTree(int(stored.attrs["fragments"]), a.astype(np.uint32), b.astype(np.uint32), score)
