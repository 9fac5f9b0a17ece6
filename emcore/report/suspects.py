"""The shapes that tell of errors in a labels file, as the fragments that lie there."""

from collections.abc import Iterable, Mapping

import numpy as np

from emcore.metrics.points import labels_at
from emcore.report.stakes import resolution_of
from emcore.segment import Skeleton
from emcore.segment.doubts import Suspects
from emcore.segment.shapes import crossings, facing_ends, two_somata
from emcore.volumes import Volume


def suspects_of(labels: Volume, fragments: Volume, skeletons: Mapping[int, Skeleton]) -> Suspects:
    """Two somata within one of the labels, and what their skeletons tell; without skeletons they tell nothing."""
    resolution = resolution_of(fragments)
    somata = [place + 0.5 for pair in two_somata(labels, resolution) for place in (pair.one, pair.other)]
    crossed = [place for crossing in crossings(skeletons) for place in (*crossing.one, *crossing.other)]
    facing = rows([pair.ends for pair in facing_ends(skeletons)], 3)
    halfway = (facing.reshape(-1, 2, 3).mean(axis=1) - fragments.offset) / resolution
    halfway = np.clip(np.floor(halfway), 0, np.array(fragments.shape) - 1).astype(np.int64)

    def under(places: np.ndarray, width: int) -> np.ndarray:
        return labels_at(fragments, places, resolution, fragments.offset).astype(np.int64).reshape(-1, width)

    inner = rows(somata, 3) * resolution + fragments.offset
    return Suspects(under(inner, 2), under(rows(crossed, 3), 4), under(facing, 2),
                    np.ravel_multi_index(tuple(halfway.T), fragments.shape))


def rows(values: Iterable[np.ndarray], width: int) -> np.ndarray:
    """Rows as one array, also where there are none."""
    return np.array(list(values), np.float64).reshape(-1, width)
