"""Where a truth holds an object, and where nobody knows, by the marks of CREMI's files."""

from collections.abc import Sequence

import numpy as np

from emcore.metrics.cleft_distances import CREMI_BACKGROUND, CREMI_INVALID


def true_foreground(truth: np.ndarray, background: Sequence[int]) -> np.ndarray:
    """Where there is a label; CREMI's marks for background and for unknown are none."""
    out = truth > 0
    for mark in (CREMI_BACKGROUND, CREMI_INVALID, *background):
        if mark <= np.iinfo(truth.dtype).max if truth.dtype.kind in "ui" else mark == 0:
            out &= truth != truth.dtype.type(mark)
    return out


def unknown(truth: np.ndarray, ignore: Sequence[int]) -> np.ndarray:
    """Where nobody knows; such voxels are background on both sides."""
    out = np.zeros(truth.shape, bool)
    for mark in (CREMI_INVALID, *ignore):
        if truth.dtype.kind in "ui" and mark <= np.iinfo(truth.dtype).max:
            out |= truth == truth.dtype.type(mark)
    return out
