"""Realistic float32 affinities made from a label volume: the same numbers for the same labels, on any threads.

A blurred membrane map, weakened by correlated noise, goes through a logistic, so that most edges saturate near 1 as
those of real networks do. From a real 512³ label volume 81 % of the edges lie above .999 and the watershed at .1/.999
leaves a fragment per 146 voxels; its first 256³, with larger cells, give 87 % and 242; a synthetic 128³ 75 % and 133.
"""

from collections.abc import Sequence

import h5py
import numpy as np

from emcore.threads import run_parallel, slabs, thread_count

_HALO = 2  # sections that the blur of one section looks at, on either side
_INSIDE, _MEMBRANE, _CROSSING, _CLOUDS, _EDGE, _CLEAR = 12.3, 9.0, 11.0, 3.6, 1.0, 0.7  # logits


def load_labels(path: str | None, size: int, corner: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """size³ voxels of an HDF5 file's labels, from a corner on, or of a synthetic volume where no path is given."""
    if path is None:
        from emcore.synth import synthesize  # only here: growing 128³ took most of a minute on a busy machine
        return synthesize((size, size, size), (40.0, 16.0, 16.0)).neuron_ids
    with h5py.File(path, "r") as file:
        return file["labels"][tuple(slice(begin, begin + size) for begin in corner)]


def _blurred(volume: np.ndarray, axis: int) -> np.ndarray:
    """volume (z, y, x) smoothed by 1/4, 1/2, 1/4 along one axis; the ends are repeated."""
    volume = np.moveaxis(volume, axis, 0)
    smooth = volume * np.float32(0.5)
    smooth[1:] += np.float32(0.25) * volume[:-1]
    smooth[:-1] += np.float32(0.25) * volume[1:]
    smooth[0] += np.float32(0.25) * volume[0]
    smooth[-1] += np.float32(0.25) * volume[-1]
    return np.moveaxis(smooth, 0, axis)


def _noise(shape: tuple[int, ...], begin: int, seed: int) -> np.ndarray:
    """White noise of standard deviation 1; section z is a function of (seed, z) alone."""
    return np.stack([np.random.default_rng([seed, begin + z]).standard_normal(shape[1:], np.float32)
                     for z in range(shape[0])])


def _fill(labels: np.ndarray, affs: np.ndarray, begin: int, end: int, seed: int) -> None:
    """Fills affs[:, begin:end]; the blur looks at _HALO sections more on either side."""
    top = max(0, begin - _HALO)
    block = labels[top : min(len(labels), end + _HALO)]
    crossing = []
    membrane = 6 * (block == 0).astype(np.float32)  # then: the share of a voxel's edges that cross a border
    for axis in range(3):
        crossing.append(np.zeros(block.shape, bool))
        a, b, m = (np.moveaxis(volume, axis, 0) for volume in (block, crossing[axis], membrane))
        b[1:] = a[1:] != a[:-1]
        m += b
        m[:-1] += b[1:]
    membrane = np.minimum(membrane / 6, 1)
    clouds = _noise(block.shape, top, seed)
    for axis in (0, 1, 2, 0, 1, 2):
        membrane, clouds = _blurred(membrane, axis), _blurred(clouds, axis)
    clouds *= np.float32((256 / 70) ** 1.5)  # two passes leave sqrt(70)/16 of the deviation along each axis
    clouds = np.minimum(clouds, np.float32(_CLEAR))  # it mostly darkens, else no membrane would hold
    voxel = np.float32(_INSIDE) - np.float32(_MEMBRANE) * membrane + np.float32(_CLOUDS) * clouds
    for axis in range(3):
        logit = voxel.copy()
        pair, value = np.moveaxis(logit, axis, 0), np.moveaxis(voxel, axis, 0)
        np.minimum(pair[1:], value[:-1], out=pair[1:])
        logit -= np.float32(_CROSSING) * crossing[axis]
        logit += np.float32(_EDGE) * _noise(block.shape, top, seed + 1 + axis)
        affs[axis, begin:end] = 1 / (1 + np.exp(-logit[begin - top : end - top]))


def make_affinities(labels: np.ndarray, seed: int = 0, threads: int | None = None) -> np.ndarray:
    """(3, z, y, x) float32 affinities of labels, made eight sections at a time (256³: 58 MiB besides the result)."""
    affs = np.empty((3, *labels.shape), np.float32)
    jobs = [(labels, affs, begin, end, seed) for begin, end in slabs(len(labels), -(-len(labels) // 8))]
    run_parallel(_fill, jobs, thread_count(threads))
    return affs
