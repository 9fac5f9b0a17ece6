"""Components, distances, relabelling against cc3d, edt and fastremap: python -m bench.rows_components [--size 512]."""

import argparse
from collections.abc import Callable, Iterator
from importlib import import_module

import numpy as np

from bench.affinities import load_labels
from bench.compare import Row, compare, print_header, print_row
from emcore.segment import connected_components, distance_transform, mask_out, relabel, remap, unique
from emcore.threads import allotted_cores

RESOLUTION = (30, 6, 6)


def equal(ours: object, peer: object) -> str:
    """In words, whether two arrays, or two tuples of arrays, are the same."""
    pairs = zip(ours, peer) if isinstance(ours, tuple) else [(ours, peer)]
    return "equal" if all(np.array_equal(own, their) for own, their in pairs) else "DIFFERENT"


def close(ours: np.ndarray, peer: np.ndarray) -> str:
    return "equal" if np.array_equal(ours, peer) else f"differ by {np.nanmax(np.abs(ours - peer)):.3g}"


def peer_module(name: str):
    """The module of a peer, or None where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def rows(size: int, labels: np.ndarray, affs: np.ndarray | None = None, repeats: int = 5) -> Iterator[Row]:
    """Rows with all threads and with one; the peers but edt have one thread only."""
    labels = np.ascontiguousarray(labels[:size, :size, :size], np.uint32)
    cc3d, edt, fastremap = map(peer_module, ("cc3d", "edt", "fastremap"))

    def row(work: str, ours: Callable, name: str, peer: Callable, goal: str, agree: Callable = equal) -> Iterator[Row]:
        for suffix, threads in (("", None), (", 1 thread", 1)):
            yield compare(f"{work}, {size}³{suffix}", lambda threads=threads: ours(threads), name,
                          (lambda threads=threads: peer(threads)) if peer_module(name) else None, repeats,
                          goal if threads is None else "faster", agree)

    for connectivity in (6, 26):
        yield from row(f"components {connectivity}, labels",
                       lambda threads, c=connectivity: connected_components(labels, c, threads=threads), "cc3d",
                       lambda threads, c=connectivity: cc3d.connected_components(labels, connectivity=c), ">= 1.3x")
    yield from row("distance transform, labels",
                   lambda threads: distance_transform(labels, RESOLUTION, threads=threads), "edt",
                   lambda threads: edt.edt(labels, anisotropy=RESOLUTION, black_border=False,
                                           parallel=threads or allotted_cores()), ">= 1x", close)
    ids = unique(labels)
    sparse = np.sort(np.random.default_rng(0).choice(98_000_000, len(ids), replace=False) + 1).astype(np.uint32)
    labels = remap(labels, (ids, np.where(ids == 0, 0, sparse).astype(np.uint32)))  # ids of a whole data set
    ids = unique(labels).tolist()
    halved = {label: label // 2 for label in ids}
    yield from row("renumber", lambda threads: relabel(labels, threads=threads)[0], "fastremap",
                   lambda threads: fastremap.renumber(labels, in_place=False)[0], ">= 1.3x")
    yield from row("unique with counts", lambda threads: unique(labels, counts=True, threads=threads), "fastremap",
                   lambda threads: fastremap.unique(labels, return_counts=True), ">= 1.3x")
    yield from row("remap by a dict", lambda threads: remap(labels, halved, threads=threads), "fastremap",
                   lambda threads: fastremap.remap(labels, halved), ">= 1.3x")
    yield from row("mask out all but 200", lambda threads: mask_out(labels, ids[1:201], keep=True, threads=threads),
                   "fastremap", lambda threads: fastremap.mask_except(labels, ids[1:201]), "faster")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--labels", help="HDF5 file with a dataset labels (z, y, x); synthetic without")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print_header()
    for row in rows(arguments.size, load_labels(arguments.labels, arguments.size), repeats=arguments.repeats):
        print_row(row)


if __name__ == "__main__":
    main()
