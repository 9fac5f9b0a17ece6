"""Masks of the voxels near borders between labels, which contests leave out of neuron scores."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emcore.cache import compiled
from emcore.errors import InputError
from emcore.metrics.pairs import checked_resolution
from emcore.segment.arrays import as_array, within
from emcore.threads import run_parallel, thread_count


def _signature(types):
    reach = types.Array(types.int64, 1, "C", readonly=True)
    return types.void(types.Array(types.boolean, 2, "C", readonly=True), reach, types.Array(types.boolean, 2, "C"))


@compiled(_signature)
def _dilate(border, reach, mask):
    """Sets the mask where a border pixel is dy rows and at most reach[dy] columns away."""
    height, width = border.shape
    far = np.int64(height + width)
    gaps = np.empty(width, np.int64)
    for y in range(height):
        gap = far
        for x in range(width):  # columns to the nearest border pixel of this row
            gap = 0 if border[y, x] else gap + 1
            gaps[x] = gap
        gap = far
        for x in range(width - 1, -1, -1):
            gap = 0 if border[y, x] else gap + 1
            gaps[x] = min(gaps[x], gap)
        for dy in range(1 - reach.shape[0], reach.shape[0]):
            if 0 <= y + dy < height:
                limit = reach[abs(dy)]
                for x in range(width):
                    mask[y + dy, x] |= gaps[x] <= limit


def neuron_border_mask(truth: ArrayLike, resolution: Sequence[float], distance_nm: float | None = 25.0,
                       threads: int | None = None) -> NDArray[np.bool_]:
    """Marks the voxels near a border between two labels of the same section: the mask of CREMI.

    A border pixel differs from one of its four neighbours in the section; all ids are ordinary ones, and the edge of
    the image is no border. Distances are Euclidean, in the section, and the limit is inclusive. cremi_python takes 0
    for None, and it masks a corner of sections of a single label because its distance transform has a phantom there;
    here such sections stay unmasked.

    Args:
        truth: integers (z, y, x).
        resolution: the size of a voxel in nm, z, y, x.
        distance_nm: how far from a border voxels are masked; 25 nm by default. None masks nothing, 0 the border pixels.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        bool (z, y, x), True near a border; `contingency` takes it as a mask.

    Raises:
        InputError: the truth, the resolution or the distance does not fit.

    Cost:
        It takes 5.4 ns of one core and 1.1 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.neuron_border_mask(np.array([[[1, 1, 1, 2, 2, 2]]]), (40, 8, 8), 8)
        array([[[False,  True,  True,  True,  True, False]]])
    """
    truth = _sections(truth)
    resolution = checked_resolution(resolution)
    if distance_nm is None:
        return np.zeros(truth.shape, bool)
    if not (within(distance_nm, 0, math.inf) and math.isfinite(distance_nm)):
        raise InputError(f"distance_nm must be 0 or more, or None for no mask; got {distance_nm}")
    # in pixels along x, as the reference computes it, so that the same distances are equal to the limit
    pixels, aspect = distance_nm / resolution[2], resolution[1] / resolution[2]
    height, width = truth.shape[1:]
    columns = np.arange(width + height + 1, dtype=np.float64)
    reach = []
    for dy in range(height):
        near = np.sqrt(columns**2 + (dy * aspect) ** 2) <= pixels
        if not near[0]:
            break
        reach.append(min(np.count_nonzero(near), len(columns) - 1) - 1)
    return _dilated(truth, np.array(reach, np.int64), False, threads)


def box_border_mask(truth: ArrayLike, distance_xy: int, distance_z: int = 0,
                    threads: int | None = None) -> NDArray[np.bool_]:
    """Marks the voxels within a box around each border: the mask of dbMiM.

    It is larger than the mask of CREMI at corners, and from 2 pixels on everywhere.

    Args:
        truth: integers (z, y, x).
        distance_xy: the half width of the box in y and x, in voxels.
        distance_z: the half width in z; above 0 also borders between sections count, and all borders widen along z. The
            default is 0. Both 0 mask nothing.
        threads: how many threads to use; all cores by default. The number changes no bit of the result.

    Returns:
        bool (z, y, x), True near a border; `contingency` takes it as a mask.

    Raises:
        InputError: the truth or a distance does not fit.

    Cost:
        It takes 7.0 ns of one core and 2.0 bytes per voxel.

    Examples:
        >>> import numpy as np
        >>> from emcore import metrics
        >>> metrics.box_border_mask(np.array([[[1, 1, 1, 2, 2, 2]]]), 1)
        array([[[False,  True,  True,  True,  True, False]]])
    """
    truth = _sections(truth)
    for name, distance in (("distance_xy", distance_xy), ("distance_z", distance_z)):
        if not isinstance(distance, (int, np.integer)) or distance < 0:
            raise InputError(f"{name} must be a whole number of voxels, 0 or more; got {distance!r}")
    if distance_xy == distance_z == 0:
        return np.zeros(truth.shape, bool)
    rows = min(distance_xy, truth.shape[1]) + 1
    mask = _dilated(truth, np.full(rows, min(distance_xy, truth.shape[2]), np.int64), distance_z > 0, threads)
    section_masks = mask.copy()
    for dz in range(1, min(distance_z, len(truth) - 1) + 1):
        mask[dz:] |= section_masks[:-dz]
        mask[:-dz] |= section_masks[dz:]
    return mask


def _sections(truth: ArrayLike) -> NDArray:
    truth = as_array("truth", truth)
    if truth.ndim != 3:
        raise InputError(f"a border mask needs labels of shape (z, y, x); got {truth.shape}")
    if truth.dtype.kind not in "uib":
        raise InputError(f"a border mask needs integer labels; got {truth.dtype}")
    return truth


def _dilated(truth: NDArray, reach: NDArray[np.int64], along_z: bool, threads: int | None) -> NDArray[np.bool_]:
    """The border pixels of each section, dilated; one section a job."""
    mask = np.zeros(truth.shape, bool)

    def section(z: int) -> None:
        labels = truth[z]
        border = np.zeros(labels.shape, bool)
        for one, other, differ in ((border[1:], border[:-1], labels[1:] != labels[:-1]),
                                   (border[:, 1:], border[:, :-1], labels[:, 1:] != labels[:, :-1])):
            one |= differ
            other |= differ
        if along_z and z > 0:
            border |= labels != truth[z - 1]
        if along_z and z + 1 < len(truth):
            border |= labels != truth[z + 1]
        _dilate(border, reach, mask[z])

    run_parallel(section, [(z,) for z in range(len(truth))], thread_count(threads))
    return mask
