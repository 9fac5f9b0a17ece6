"""Affinities to labels against waterz, one threshold and nine: python -m bench.kernels --only segmentation."""

import statistics
from collections.abc import Callable, Iterator

import numpy as np

from bench.compare import Row, measure, quiet
from emcore import metrics, segment

LOW, HIGH, THRESHOLD = 0.1, 0.999, 0.5
SWEEP = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
SCORES = {  # name -> (type in waterz, goals)
    "mean": ("OneMinus<MeanAffinity<RegionGraphType, ScoreValue>>", ">= 8x, half the MiB"),
    "aff85_his256": ("OneMinus<HistogramQuantileAffinity<RegionGraphType, 85, ScoreValue, 256>>",
                     ">= 10x, 1/4 of the MiB"),
}


def waterz_segment(affs: np.ndarray, score: str) -> np.ndarray:
    """What waterz makes of it, without its messages on standard output."""
    import waterz
    with quiet():
        return next(waterz.agglomerate(affs, [THRESHOLD], aff_threshold_low=LOW, aff_threshold_high=HIGH,
                                       scoring_function=SCORES[score][0]))


def ours_at_all_thresholds(affs: np.ndarray, score: str) -> np.ndarray:
    """Nine segmentations, one after the other in the same array, as waterz gives them; the last one."""
    fragments = segment.watershed(affs, LOW, HIGH)
    tree = segment.agglomerate(segment.region_graph(fragments, affs, statistic=score, extras=()), score,
                               threshold=SWEEP[-1])
    return list(segment.sweep(fragments, tree, SWEEP, out=fragments))[-1][1]


def quality(labels: np.ndarray, truth: np.ndarray) -> str:
    table = metrics.contingency(truth, labels)
    voi = metrics.voi(table)
    return f"VOI {voi.split:.3f}+{voi.merge:.3f} ARAND {metrics.rand(table).error:.4f}"


def _agreement(ours: np.ndarray, theirs: np.ndarray, truth: np.ndarray) -> str:
    voi = metrics.voi(metrics.contingency(theirs, ours, ignore_truth=()))
    return f"{quality(ours, truth)}; theirs {quality(theirs, truth)}; apart by VOI {voi.split:.3f}+{voi.merge:.3f}"


def _rows_of(score: str, truth: np.ndarray, affs: np.ndarray, repeats: int, has_peer: bool) -> Iterator[Row]:
    ways: dict[str, Callable[[], np.ndarray]] = {
        "": lambda: segment.segment(affs, THRESHOLD, score, low=LOW, high=HIGH),
        ", 1 thread": lambda: segment.segment(affs, THRESHOLD, score, low=LOW, high=HIGH, threads=1),
        ", nine thresholds": lambda: ours_at_all_thresholds(affs, score),
    }
    if has_peer:
        ways["waterz"] = lambda: waterz_segment(affs, score)
    agreement = _agreement(ways[""](), ways["waterz"](), truth) if has_peer else quality(ways[""](), truth)
    runs = {way: [] for way in ways}
    for _ in range(repeats):
        for way, work in ways.items():
            runs[way].append(measure(work)[:2])
    seconds = {way: statistics.median(run[0] for run in done) for way, done in runs.items()}
    mib = {way: max(run[1] for run in done) for way, done in runs.items()}
    goals = {"": SCORES[score][1], ", 1 thread": "faster", ", nine thresholds": "<= 1.3x one: above 0.77"}
    for way, goal in goals.items():
        peer = "" if way == ", nine thresholds" else "waterz"
        ratio = seconds[peer] / seconds[way] if peer in seconds else None
        yield Row(f"{score}, {'x'.join(map(str, truth.shape))}{way}", peer or "ours, one", seconds[way],
                  seconds.get(peer), ratio, mib[way], mib.get(peer), goal, agreement if way == "" else "")


def rows(size: int, labels: np.ndarray, affs: np.ndarray, repeats: int | None = None) -> Iterator[Row]:
    """Per score: all threads, one thread, nine thresholds; every way and the peer in each turn."""
    repeats = repeats or (3 if size <= 256 else 1)
    try:
        import waterz  # noqa: F401 (only whether it is there)
        has_peer = True
    except ImportError:
        print("waterz is not installed (extra bench): ours alone")
        has_peer = False
    for score in SCORES:
        yield from _rows_of(score, labels, affs, repeats, has_peer)
