"""Morphology against scipy, skeletons against kimimaro: python -m bench.rows_shapes [--size 128] [--labels FILE].

Skeletons have processor time beside that of the clock, which other work on the machine makes longer.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from bench.compare import Row, compare, rows_command
from bench.rows_components import peer_module
from emcore.segment import dilate, erode, fill_holes, skeletonize

RESOLUTION = (40, 16, 16)
TEASAR = {"scale": 1.5, "const": 400, "pdrf_scale": 100000, "pdrf_exponent": 4, "soma_acceptance_threshold": 3500,
          "soma_detection_threshold": 750, "soma_invalidation_const": 300, "soma_invalidation_scale": 2}


def same(ours: np.ndarray, peer: np.ndarray) -> str:
    different = int((ours != peer).sum())
    return f"{different} voxels differ" if different else "same voxels"


def cable(ours: dict, peer: dict) -> str:
    ratios = [ours[label].length / found.cable_length() for label, found in peer.items() if found.cable_length()]
    return f"cable length {np.median(ratios):.3f} times the peer's at the median of {len(ratios)} objects"


class Clocked:
    """A callable that keeps the seconds of processor time of each call."""

    def __init__(self, function: Callable[[], object]):
        self.function, self.runs = function, []

    def __call__(self) -> object:
        start = time.process_time()
        try:
            return self.function()
        finally:
            self.runs.append(time.process_time() - start)

    @property
    def seconds(self) -> float:
        """The median of all calls but the first."""
        return statistics.median(self.runs[1:])


def rows(size: int, labels: np.ndarray, affs: np.ndarray | None = None, repeats: int = 3) -> Iterator[Row]:
    """Rows of masks (all threads and one), then the skeletons of all labels."""
    labels = np.ascontiguousarray(labels[:size, :size, :size])
    mask = erode(labels, (1, 3, 3)) > 0
    try:
        from scipy import ndimage
    except ImportError:
        ndimage = None
    works = {
        "dilate 1x5x5": (lambda threads: dilate(mask, (1, 5, 5), threads=threads),
                         lambda: ndimage.binary_dilation(mask, np.ones((1, 5, 5)))),
        "erode 5x5x5": (lambda threads: erode(mask, 5, threads=threads),
                        lambda: ndimage.binary_erosion(mask, np.ones((5, 5, 5)), border_value=1)),
        "fill holes": (lambda threads: fill_holes(mask, threads=threads), lambda: ndimage.binary_fill_holes(mask)),
    }
    for name, (ours, peer) in works.items():
        for suffix, threads in (("", None), (", 1 thread", 1)):
            yield compare(f"{name}, {size}³{suffix}", lambda ours=ours, threads=threads: ours(threads), "scipy",
                          peer if ndimage else None, repeats, "faster", same)
    kimimaro = peer_module("kimimaro")

    def peer_skeletons() -> dict:
        return kimimaro.skeletonize(labels, teasar_params=TEASAR, anisotropy=RESOLUTION, dust_threshold=0,
                                    fix_borders=False, progress=False, parallel=1)

    ours = Clocked(lambda: skeletonize(labels, RESOLUTION, threads=1))
    peer = Clocked(peer_skeletons)
    row = compare(f"skeletons, {size}³, 1 thread", ours, "kimimaro", peer if kimimaro else None,
                  repeats if size <= 128 else 1, ">= 8x", cable)
    told = [f"{clock.seconds:.2f} s" for clock in (ours, peer) if clock.runs]
    ratio = f", a ratio of {peer.seconds / ours.seconds:.2f}" if peer.runs else ""
    yield replace(row, agreement=f"{row.agreement}; processor time {', '.join(told)}{ratio}")
    yield compare(f"skeletons, {size}³", lambda: skeletonize(labels, RESOLUTION), "kimimaro", None, 1)


if __name__ == "__main__":
    rows_command(__doc__, rows)
