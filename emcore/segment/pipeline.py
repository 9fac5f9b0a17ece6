"""Affinities to neurons in one call."""

import numpy as np

from emcore.errors import InputError
from emcore.segment.affinities import check_affinities
from emcore.segment.arrays import within
from emcore.segment.cleanup import boundary_threshold, merge_dust
from emcore.segment.fragments import watershed
from emcore.segment.graph import check_size, region_graph
from emcore.segment.merge_tree import finish, look_up, start
from emcore.segment.scores import Score, parse_score


def segment(affs: np.ndarray, threshold: float = 0.5, score: str | Score = "mean", *, low: float = 1e-4,
            high: float = 0.9999, mask: np.ndarray | None = None, plateau: str = "canonical", boundary: float = 0.0,
            dust_size: int = 0, dust_affinity: float = 0.0, remove: int = 0, tie_break: str = "canonical",
            threads: int | None = None, **convention) -> np.ndarray:
    """Labels (z, y, x), uint32, of affinities (c, z, y, x): watershed, region graph, agglomeration, cut and cleanup.

    Regions merge while score < threshold. boundary clears voxels as boundary_threshold does; then segments below
    dust_size are merged across borders above dust_affinity and those below `remove` voxels become 0 (see merge_small).
    convention: offsets, edge and table, as in watershed.
    """
    if not within(boundary, -np.inf, 1) or not within(dust_size, 0, np.inf) or not within(remove, 0, np.inf):
        raise InputError("boundary must be at most 1, dust_size and remove 0 or more; "
                         f"got {boundary}, {dust_size} and {remove}")
    score = parse_score(score)
    checked = check_affinities(affs, values=False, **convention)
    check_size(checked.values.shape[1:])
    affs, channels = checked.values, checked.channels
    fragments = watershed(affs, low, high, mask=mask, plateau=plateau, threads=threads, **convention)
    graph = region_graph(fragments, affs, channels=channels, score=score, threads=threads, **convention,
                         statistics=("running_mean",) if tie_break == "waterz" else ())
    started = start(graph, score, tie_break)
    del graph
    tree, borders = finish(started, threshold, with_remaining=dust_size > 0, threads=threads)
    del started
    table = tree.table(threshold)
    labels = look_up(fragments, table, out=fragments if fragments.dtype == np.uint32 else None, threads=threads)
    if boundary > 0:
        labels = boundary_threshold(labels, affs, boundary, threads=threads, **convention)
    if dust_size or remove:
        labels = merge_dust(labels, table, borders, dust_size, affinity=dust_affinity, remove=remove, threads=threads)
    return labels
