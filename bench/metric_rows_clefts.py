"""Rows of the cleft scores beside the same with scipy's distance transforms of the whole volume."""

from collections.abc import Iterator

import numpy as np

from bench.compare import Row, measure
from emcore import metrics

SHAPE = (125, 1250, 1250)  # a CREMI volume
RESOLUTION = (40.0, 4.0, 4.0)


def cleft_pair(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction as uint8 masks: thin tilted discs, moved and grown a little, a tenth missed or invented."""
    random = np.random.default_rng(seed)
    truth, prediction = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for _ in range(int(400 * np.prod(shape) / np.prod(SHAPE))):
        centre = random.random(3) * shape * RESOLUTION
        normal = random.normal(size=3)
        normal /= np.linalg.norm(normal)
        radius, moved, kind = random.uniform(120, 350), random.normal(0, 20, 3), random.random()
        for volume, middle, half, absent in ((truth, centre, 16, kind < 0.1),
                                             (prediction, centre + moved, 22, kind > 0.9)):
            if absent:
                continue
            reach = np.ceil(radius / np.array(RESOLUTION)).astype(int) + 1
            voxel = (middle / RESOLUTION).astype(int)
            box = tuple(slice(max(0, v - r), max(0, v + r)) for v, r in zip(voxel, reach))
            axes = (np.arange(span.start, min(span.stop, size)) * step - at
                    for span, size, step, at in zip(box, shape, RESOLUTION, middle))
            away = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
            along = away @ normal
            volume[box] |= ((np.abs(along) <= half) & ((away**2).sum(axis=-1) - along**2 <= radius**2)).astype(np.uint8)
    return truth, prediction


def by_scipy(truth: np.ndarray, prediction: np.ndarray) -> tuple:
    """(FP, FN, mean, deviation, maximum and median of either side) from whole-volume distance transforms."""
    from scipy.ndimage import distance_transform_edt

    found = []
    for points, targets in ((prediction, truth), (truth, prediction)):
        distances = distance_transform_edt(targets == 0, sampling=RESOLUTION)[points != 0]
        found += [int((distances > 200).sum()), distances.mean(), distances.std(), distances.max(),
                  np.median(distances)]
    return tuple(found)


def agreement(ours: metrics.clefts, peer: tuple) -> str:
    """Whether the counts are equal and how far the distances are apart."""
    mine = (ours.false_positives, *ours.to_truth[:4], ours.false_negatives, *ours.to_prediction[:4])
    apart = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(mine, peer))
    counts = "equal" if (mine[0], mine[5]) == (peer[0], peer[5]) else "different"
    return f"FP and FN {counts}, distances within {apart:.0e}"


def rows() -> Iterator[Row]:
    """clefts on masks of a CREMI volume's size, once before and once after scipy's one call, which takes minutes."""
    truth, prediction = cleft_pair()
    metrics.clefts(truth, prediction, RESOLUTION)  # compiles
    before = measure(lambda: metrics.clefts(truth, prediction, RESOLUTION))
    peer_s, peer_mib, peer = measure(lambda: by_scipy(truth, prediction))
    after = measure(lambda: metrics.clefts(truth, prediction, RESOLUTION))
    ours_s = max(before[0], after[0])
    yield Row("clefts 125x1250x1250 uint8", "scipy EDTs", ours_s, peer_s, peer_s / ours_s, max(before[1], after[1]),
              peer_mib, ">= 5x, <= half the memory", agreement(after[2], peer))
