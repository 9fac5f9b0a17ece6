"""Lets every single C++ allocation of every kernel fail once; each must come out as a MemoryError.

Runs with the library of test_memory_failures.py preloaded. Prints a line for each allocation whose failure was lost.
"""

import ctypes
import sys

import numpy as np

from emcore import segment
from emcore.blocks import sweeps
from emcore.segment.fragments import block_fragments

MOST = 20_000  # allocations of one call


def calls() -> dict:
    random = np.random.default_rng(0)
    labels = np.repeat(random.integers(0, 30, (4, 6, 5)), 3, axis=2).astype(np.uint32)
    affs = (random.integers(0, 9, (3, *labels.shape)) / 8).astype(np.float32)
    long_range = np.concatenate([affs, affs[::-1]])
    offsets = [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (-2, 0, 0), (0, -3, 0), (0, 0, -4)]
    every = ("sizes", "boxes", "histogram", "running_mean")
    dense = random.integers(1, 200, (6, 8, 8)).astype(np.uint32)
    fine = (random.integers(0, 99, (3, *dense.shape)) / 99).astype(np.float32)
    graph = segment.region_graph(dense, fine, extras=every)
    found = {f"agglomerate {name}": lambda name=name: segment.agglomerate(graph, name, threads=1)
             for name in ("mean", "aff85_his256", "aff50", "aff85_his256_all")}
    found |= {f"agglomerate {name} as waterz": lambda name=name: segment.agglomerate(graph, name, ties="waterz")
              for name in ("mean", "aff85_his256")}
    found |= {f"components {touch}": lambda touch=touch: segment.connected_components(labels, touch, threads=2)
              for touch in (6, 26)}
    def merges_of_a_block():
        run = segment.Agglomeration(graph, "aff85_his256_all", frozen=np.arange(1, 20))
        run.advance()
        return run.merges(), run.remaining_edges()

    def merges_by_a_forest():
        forest = {"forest_u": graph.u + np.uint64(0), "forest_v": graph.v + np.uint64(0),
                  "forest_height": 1.0 - graph.max, "forest_key": graph.key}
        names = np.arange(graph.fragments + 1, dtype=np.uint64)
        outside = sweeps.spanning([forest], names[1:20])
        edges = {"u": graph.u, "v": graph.v, "key": graph.key}
        return sweeps.absorptions(names, edges, 1.0 - graph.max, (names > 0) & (names < 20), outside, 1.0)

    def fragments_of_a_block():
        window = affs[:, :4, :4, :4]
        return block_fragments(window, 0.1, 0.9, core=(slice(0, 2),) * 3, origin=(0, 0, 0), volume_shape=(9, 9, 9))

    return found | {
        "merges of a block": merges_of_a_block,
        "merges by a forest": merges_by_a_forest,
        "fragments of a block": fragments_of_a_block,
        "agglomerate on threads": lambda: segment.agglomerate(graph, threads=2),
        "watershed": lambda: segment.watershed(affs, threads=1),
        "watershed as waterz": lambda: segment.watershed(affs, ties="waterz", threads=2),
        "region_graph": lambda: segment.region_graph(dense, fine, extras=every, threads=2),
        "pool_graphs": lambda: segment.pool_graphs([graph, graph]),
        "size_linkage": lambda: segment.size_linkage(graph, 5),
        "affinity_components": lambda: segment.affinity_components(affs),
        "distance_transform": lambda: segment.distance_transform(labels, threads=2),
        "mutex_watershed": lambda: segment.mutex_watershed(long_range, offsets, threads=1),
        "relabel": lambda: segment.relabel(np.arange(3000, dtype=np.uint64).reshape(3, 10, 100), threads=2),
        "remap": lambda: segment.remap(labels, {number: number + 1 for number in range(30)}),
        "flood": lambda: segment.flood(fine[0], np.where(dense < 9, dense, 0)),
        "seeded_slices": lambda: segment.seeded_slices(affs, "hminima", threads=1),
        "link_sections": lambda: segment.link_sections(dense, fine, segment.LinkRule(affinity=0.1), threads=1),
        "skeletonize": lambda: segment.skeletonize(labels, (30, 8, 8), threads=2),
    }


def main() -> int:
    library, lost = ctypes.CDLL(None), 0
    for name, call in calls().items():
        wanted = repr(call())
        for number in range(MOST):
            outcome = "a result"
            library.emcore_fail_after(ctypes.c_long(number))
            try:
                call()
            except MemoryError:
                outcome = "MemoryError"
            except Exception as error:
                outcome = repr(error)
            if not library.emcore_failed():
                break
            if outcome != "MemoryError":
                lost += 1
                print(f"{name}: allocation {number} failed and led to {outcome}", flush=True)
        library.emcore_fail_after(ctypes.c_long(-1))
        print(f"{name}: {number} allocations", flush=True)
        if repr(call()) != wanted:
            lost += 1
            print(f"{name}: another result after a failure")
    return lost > 0


if __name__ == "__main__":
    sys.exit(main())
