"""The merge tree of labels for the page, which tells from it why the voxel under the cross has its label."""

from pathlib import Path
from typing import Any

import numpy as np

from emcore.blocks.tables import parts_of
from emcore.report.grids import pack
from emcore.segment import Segmentation

MOST_EDGES = 500_000  # so many edges of the region graph take about three megabytes of the page


def packed_merges(labels: Path, threshold: Any) -> dict[str, Any] | None:
    """Fragments, merges and contacts; None where there is no tree, or where it is too large for a page."""
    parts = parts_of(labels) if isinstance(threshold, int | float) else None
    if parts is None:
        return None
    segmentation = Segmentation.of_parts(parts)
    graph, tree = segmentation.graph, segmentation.tree
    if len(graph.u) > MOST_EDGES:
        return None
    arrays = {"a": tree.a, "b": tree.b, "height": tree.height.astype(np.float64).view(np.uint32),
              "sizes": segmentation.sizes, "u": graph.u, "v": graph.v, "count": graph.count}
    packed = {name: {**pack(values.astype(np.uint32)), "length": len(values)} for name, values in arrays.items()}
    made = int(np.searchsorted(tree.height, tree.height.dtype.type(threshold), side="left"))
    return {**packed, "fragments": pack(segmentation.fragments.astype(np.uint32)), "made": made,
            "threshold": float(f"{threshold:g}"), "statistic": str(segmentation.statistic)}
