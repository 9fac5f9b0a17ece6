"""Morphology against scipy, skeletons against kimimaro: python -m bench.rows_shapes [--size 128] [--labels FILE]."""

from collections.abc import Iterator

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

    for suffix, threads in (("", None), (", 1 thread", 1)):
        yield compare(f"skeletons, {size}³{suffix}",
                      lambda threads=threads: skeletonize(labels, RESOLUTION, threads=threads), "kimimaro",
                      peer_skeletons if kimimaro and threads else None, 1, ">= 8x" if threads else "", cable)


if __name__ == "__main__":
    rows_command(__doc__, rows)
