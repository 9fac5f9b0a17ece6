"""Labels of a block as runs: voxels one after the other along x that have the same label are stored as one.

Fragments of 100 voxels make a run of five to seven voxels, so that a block takes 0.7 to 0.9 bytes a voxel instead of
four. That is several times faster than general compression, and the disk has less to write.
"""

import numpy as np

from emcore.blocks.pooled import Columns
from emcore.errors import InputError

NAMES = "run_begins", "run_labels"


def runs_of(labels: np.ndarray) -> Columns:
    """The runs of labels in raster order: a bit for every voxel that begins one, and the label of each."""
    flat = labels.reshape(-1)
    begins = np.ones(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    return dict(zip(NAMES, (np.packbits(begins), flat[begins])))


def labels_of(begins: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The labels of a block of that shape."""
    size = int(np.prod(shape))
    starts = np.flatnonzero(np.unpackbits(begins, count=size).view(bool))
    if len(begins) != -(-size // 8) or len(starts) != len(labels) or (size > 0 and starts[:1].tolist() != [0]):
        raise InputError("the runs of a block do not fill it, so its files are damaged: delete the folder of the "
                         "blocks and run the same command again")
    return np.repeat(labels, np.diff(starts, append=size)).reshape(shape)
