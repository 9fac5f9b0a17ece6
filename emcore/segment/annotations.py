"""Lines for Neuroglancer: a folder that it shows as a layer of precomputed annotations.

A line is encoded as its two ends (x, y, z, float32) and its score. `by_id` has a file for every line; `lines` has all
of them in one cell, which says how many there are, then the lines, then their ids from 1 on.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RECORD = np.dtype([("ends", "<f4", (2, 3)), ("score", "<f4")])


def write_lines(folder: Path, starts: np.ndarray, ends: np.ndarray, scores: np.ndarray, first: Sequence[int],
                shape: Sequence[int], resolution: Sequence[float]) -> None:
    """Writes lines between voxels (n, 3) z, y, x of a volume; the folder must not be there.

    first: the place of the volume's first voxel, in voxels.
    """
    lines = np.empty(len(starts), RECORD)
    lines["ends"] = (np.stack([starts, ends], axis=1) + first)[:, :, ::-1] + 0.5  # the middle of a voxel
    lines["score"] = scores
    extent, low = ([int(number) for number in reversed(numbers)] for numbers in (shape, first))
    info = {"@type": "neuroglancer_annotations_v1", "annotation_type": "LINE",
            "dimensions": {axis: [size / 1e9, "m"] for axis, size in zip("xyz", reversed(tuple(resolution)))},
            "lower_bound": low, "upper_bound": [at + length for at, length in zip(low, extent)],
            "properties": [{"id": "score", "type": "float32", "description": "the statistic of the merge"}],
            "relationships": [], "by_id": {"key": "by_id"},
            "spatial": [{"key": "lines", "grid_shape": [1, 1, 1], "chunk_size": extent, "limit": max(1, len(lines))}]}
    for name in ("by_id", "lines"):
        (folder / name).mkdir(parents=True)
    ids = np.arange(1, len(lines) + 1, dtype="<u8")
    for number, line in zip(ids.tolist(), lines):
        (folder / "by_id" / str(number)).write_bytes(line.tobytes())
    (folder / "lines" / "0_0_0").write_bytes(np.array([len(lines)], "<u8").tobytes() + lines.tobytes() + ids.tobytes())
    (folder / "info").write_text(json.dumps(info, indent=1))
