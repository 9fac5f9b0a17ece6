"""Fragments against the first stage of waterz, and segmentation from 8 bits against float32.

python -m bench.rows_watershed [--size 256] [--labels FILE]
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np

from bench.affinities import load_labels, make_affinities
from bench.compare import Row, compare, measure, print_header, print_row
from emcore import metrics, segment

LOW, HIGH = 0.1, 0.999


# waterz holds the interpreter's lock while it works, so another process listens
_LISTENER = "import sys, time\nfor line in sys.stdin: print(time.monotonic(), line, end='')"


def _lines_with_times(work: Callable[[], object]) -> tuple[list[tuple[float, str]], object]:
    """What work prints from C++ to standard output, each line with its moment, and its result."""
    listener = subprocess.Popen([sys.executable, "-c", _LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                text=True)
    kept = os.dup(1)
    os.dup2(listener.stdin.fileno(), 1)
    try:
        result = work()
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        said = listener.communicate()[0]
    return [(float(moment), line) for moment, line in (row.split(" ", 1) for row in said.splitlines())], result


def waterz_fragments(affs: np.ndarray) -> tuple[float, np.ndarray]:
    """Seconds of the watershed inside waterz.agglomerate, by its own messages, and the fragments."""
    import waterz
    lines, labels = _lines_with_times(
        lambda: next(waterz.agglomerate(affs, [0], aff_threshold_low=LOW, aff_threshold_high=HIGH)))
    start = next(moment for moment, line in lines if line.startswith("performing initial watershed"))
    stop = next(moment for moment, line in lines if line.startswith("creating region graph"))
    return stop - start, labels


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> str:
    table = metrics.contingency(theirs, ours, ignore_truth=())
    voi = metrics.voi(table)
    if voi.split == voi.merge == 0:
        return f"the same {ours.max()} fragments"
    return f"{ours.max()} and {theirs.max()} fragments, VOI {voi.split:.4f} + {voi.merge:.4f}"


def _fragment_rows(affs: np.ndarray, repeats: int) -> Iterator[Row]:
    """waterz runs once a turn, and every way of ours in the same turn."""
    ways = {"fragments": {}, "fragments, 1 thread": {"threads": 1}, "fragments, waterz's rule": {"ties": "waterz"}}
    times, memory = {way: [] for way in ways}, dict.fromkeys(ways, 0.0)
    try:
        theirs = waterz_fragments(affs)[1]
    except ImportError:
        theirs = None
    agreement, peer = {}, []
    for way, keywords in ways.items():
        labels = segment.watershed(affs, LOW, HIGH, **keywords)
        agreement[way] = "" if theirs is None else _agreement(labels, theirs)
    has_peer = theirs is not None
    del labels, theirs
    for _ in range(repeats):
        for way, keywords in ways.items():
            seconds, mib, _ = measure(lambda: segment.watershed(affs, LOW, HIGH, **keywords))  # noqa: B023 (called now)
            times[way].append(seconds)
            memory[way] = max(memory[way], mib)
        if has_peer:
            peer.append(waterz_fragments(affs)[0])
    for way in ways:
        ours_s, peer_s = statistics.median(times[way]), statistics.median(peer) if has_peer else None
        yield Row(f"{way} {affs.shape[1]}³", "waterz, stage 1", ours_s, peer_s, peer_s / ours_s if has_peer else None,
                  memory[way], None, "≥ 8x", agreement[way])


def _encoding_row(labels: np.ndarray, affs: np.ndarray, repeats: int) -> Row:
    encoded, table = segment.encode_affinities(affs)
    codes = segment.Affinities(encoded, table=table)
    plain = np.empty(affs.shape, np.uint8)
    for channel, values in zip(plain, affs):
        channel[:] = np.round(255 * values)

    def scored(volume: np.ndarray | segment.Affinities) -> str:
        found = segment.segment(volume, 0.5, "mean", low=LOW, high=HIGH)
        voi = metrics.voi(metrics.contingency(labels, found, ignore_truth=(0,)))
        return f"{voi.split:.3f} + {voi.merge:.3f}"

    agreement = f"VOI {scored(affs)} float32, {scored(codes)} encoded, {scored(plain)} round(255 a)"
    row = compare(f"segment, 8-bit encoding {affs.shape[1]}³",
                  lambda: segment.segment(codes, 0.5, "mean", low=LOW, high=HIGH), "float32 (ours)",
                  lambda: segment.segment(affs, 0.5, "mean", low=LOW, high=HIGH), repeats, "VOI within 0.01")
    return Row(*list(vars(row).values())[:-1], agreement)


def rows(size: int, labels: np.ndarray, affs: np.ndarray, repeats: int = 3) -> Iterator[Row]:
    """Rows for affinities (3, z, y, x) made of labels."""
    labels, affs = np.asarray(labels[:size, :size, :size]), np.asarray(affs[:3, :size, :size, :size])
    yield from _fragment_rows(affs, repeats)
    yield _encoding_row(labels, affs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--labels", help="an HDF5 file with a dataset `labels`; a synthetic volume without it")
    arguments = parser.parse_args()
    labels = load_labels(arguments.labels, arguments.size)
    print_header()
    for row in rows(arguments.size, labels, make_affinities(labels)):
        print_row(row)


if __name__ == "__main__":
    main()
