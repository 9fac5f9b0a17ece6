"""Labels of a block as runs: voxels one after the other along x that have the same label are stored as one.

Fragments of 100 voxels make a run of five to seven voxels, so that a block takes 0.7 to 0.9 bytes a voxel instead of
four. That is several times faster than general compression, and the disk has less to write.
"""

import numpy as np

from emcore.blocks.pooled import Columns

NAMES = "run_begins", "run_labels"


def runs_of(labels: np.ndarray) -> Columns:
    """The runs of labels in raster order: a bit for every voxel that begins one, and the label of each."""
    flat = labels.reshape(-1)
    begins = np.ones(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    return dict(zip(NAMES, (np.packbits(begins), flat[begins])))


def labels_of(begins: np.ndarray, labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The labels of a block of that shape."""
    starts = np.flatnonzero(np.unpackbits(begins, count=int(np.prod(shape))).view(bool))
    return np.repeat(labels, np.diff(starts, append=int(np.prod(shape)))).reshape(shape)
