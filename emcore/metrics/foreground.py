"""Where a truth holds an object, and where nobody knows, by the marks of CREMI's files."""

from collections.abc import Sequence

import numpy as np

from emcore.metrics.cleft_distances import CREMI_BACKGROUND, CREMI_INVALID

NOBODY_KNOWS = 2  # a state of a voxel, beside 1 for an object and 0 for background


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


def states_of(truth: np.ndarray, background: Sequence[int] = (), ignore: Sequence[int] = ()) -> np.ndarray:
    """1 where there is an object, NOBODY_KNOWS where that is so, else 0; of 8 bits."""
    states = true_foreground(truth, background).view(np.uint8)
    states[unknown(truth, ignore)] = NOBODY_KNOWS
    return states
