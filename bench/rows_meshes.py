"""Meshes against zmesh, statistics against cc3d: python -m bench.rows_meshes [--size 256] [--labels FILE]."""

from collections.abc import Iterator

import numpy as np

from bench.compare import Row, compare, rows_command
from bench.rows_components import peer_module
from emcore.segment import LabelStatistics, Mesh, label_statistics, mesh

RESOLUTION = (40.0, 16.0, 16.0)


def rows(size: int, labels: np.ndarray, affs: np.ndarray | None = None, repeats: int = 3) -> Iterator[Row]:
    """Every object as an indexed mesh, and every label's table; the peers have one thread."""
    labels = np.ascontiguousarray(labels[:size, :size, :size])
    zmesh, cc3d = peer_module("zmesh"), peer_module("cc3d")

    def peer_meshes() -> int:
        mesher = zmesh.Mesher(RESOLUTION[::-1])
        mesher.mesh(labels)
        return sum(len(mesher.get(label, normals=False, reduction_factor=0).faces) for label in mesher.ids())

    def faces(ours: dict[int, Mesh], peer: int) -> str:
        return f"{sum(len(found.faces) for found in ours.values())} and {peer} triangles"

    def peer_statistics() -> tuple:
        return cc3d.statistics(labels), cc3d.contacts(labels, connectivity=6)

    def equal(ours: LabelStatistics, peer: tuple) -> str:
        pairs = {tuple(pair): sum(count) for pair, count in zip(ours.pairs.tolist(), ours.faces.tolist())}
        same = {tuple(map(int, pair)): int(area) for pair, area in peer[1].items()} == pairs
        voxels = np.array_equal(peer[0]["voxel_counts"][ours.ids.astype(np.int64)], ours.voxels)
        return "equal" if same and voxels else "DIFFERENT"

    for suffix, threads in ((", 1 thread", 1), ("", None)):
        yield compare(f"meshes of all objects, {size}³{suffix}",
                      lambda threads=threads: mesh(labels, RESOLUTION, threads=threads), "zmesh",
                      peer_meshes if zmesh and threads else None, repeats, ">= 1.5x" if threads else "", faces)
    for suffix, threads in ((", 1 thread", 1), ("", None)):
        yield compare(f"statistics and contacts, {size}³{suffix}",
                      lambda threads=threads: label_statistics(labels, threads=threads), "cc3d",
                      peer_statistics if cc3d and threads else None, repeats, "faster" if threads else "", equal)


if __name__ == "__main__":
    rows_command(__doc__, rows)
