"""evaluate.py --tune against 25 trials of its space through waterz: python -m bench.tune [--shape 32 512 512].

Ours is the whole command: reading, 24 watersheds x 5 merge statistics x every threshold, the file of stages, and the
confirmation.
A trial is what PyTC gives to Optuna: a merge score and a pair (low, high) are drawn, waterz sweeps nine thresholds, and
the best adapted Rand error counts. The draws are random ones (Optuna's first ten are too); scoring is ours for both.
The first half of the trials runs before ours, the second half after it. The affinities are rounded to float16, as a net
in mixed precision gives them, which saturates most at 1; with --dtype float32 few do, and the watersheds with high = 1
leave a fragment for every seven voxels (at 100 1024 1024 too many for 24 GB, for waterz as well).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from bench.affinities import load_labels, make_affinities
from bench.compare import Row, measure, print_header, print_row, quiet
from emcore import metrics
from emcore.decode.tune import tune
from emcore.settings import Settings
from emcore.settings.data import Data, VolumeFiles
from emcore.settings.decode import AffinityDecode
from emcore.settings.tune import Space, Tune
from emcore.volumes import create_volume

SWEEP = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def tiled(labels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Labels of a shape made of mirrored copies, each with ids of its own, so that no fragment spans two cells."""
    out = np.empty(shape, np.uint32)
    highest = int(labels.max())
    counts = [-(-length // size) for length, size in zip(shape, labels.shape)]
    for number, tile in enumerate(np.ndindex(*counts)):
        box = tuple(slice(k * size, min((k + 1) * size, length)) for k, size, length in zip(tile, labels.shape, shape))
        copy = labels[tuple(slice(None, None, -1 if k % 2 else 1) for k in tile)]
        copy = copy[tuple(slice(0, span.stop - span.start) for span in box)]
        out[box] = np.where(copy > 0, copy + number * highest, 0)
    return out


def scoring_type(score: str) -> str:
    quantile = int(score.removeprefix("aff").split("_")[0])
    return f"OneMinus<HistogramQuantileAffinity<RegionGraphType, {quantile}, ScoreValue, 256>>"


def waterz_sweep(affs: np.ndarray, truth: np.ndarray, score: str, low: float, high: float,
                 thresholds: list[float]) -> float:
    """The best adapted Rand error that waterz reaches with these thresholds."""
    import waterz
    with quiet():
        return min(metrics.rand(metrics.contingency(truth, labels)).error for labels in waterz.agglomerate(
            affs, list(thresholds), aff_threshold_low=low, aff_threshold_high=high,
            scoring_function=scoring_type(score)))


def draws(space: Space, count: int, seed: int) -> list[tuple[str, float, float]]:
    random = np.random.default_rng(seed)
    return [(space.statistic[random.integers(len(space.statistic))], space.low[random.integers(len(space.low))],
             space.high[random.integers(len(space.high))]) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 512, 512), help="SNEMI3D has 100 1024 1024")
    parser.add_argument("--labels", help="HDF5 file with a dataset labels (z, y, x); synthetic tissue without")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the stored prediction")
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--processes", type=int, default=1, help="of ours")
    parser.add_argument("--seed", type=int, default=0, help="of the trials")
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    truth = tiled(load_labels(arguments.labels, min(max(shape), 512 if arguments.labels else 96)), shape)
    stored = make_affinities(truth).astype(arguments.dtype)
    affs = stored.astype(np.float32)  # the same values, as waterz takes them
    space = Space()
    trials = draws(space, arguments.trials, arguments.seed)
    for score in {trial[0] for trial in trials}:  # waterz compiles each of them once
        waterz_sweep(np.ascontiguousarray(affs[:, :8, :32, :32]), truth[:8, :32, :32], score, 0.1, 0.9, SWEEP)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with create_volume(folder / "test_im_prediction.h5", stored.shape, stored.dtype, attributes={
                "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}) as out:
            out[...] = stored
        del stored
        with create_volume(f"{folder / 'truth.h5'}:labels", truth.shape, truth.dtype) as out:
            out[...] = truth
        settings = Settings("bench", data=Data(folder=name, test=(VolumeFiles("truth.h5", "truth.h5:labels"),)),
                            decode=AffinityDecode(statistic="aff85_his256", low=0.1, high=0.999),
                            tune=Tune(space=space, processes=arguments.processes))
        print_header()
        errors, peer_s, peer_mib, ours = [], 0.0, 0.0, None
        for number, trial in enumerate(trials):
            if number == len(trials) // 2:
                ours = measure(lambda: tune(settings, folder))
            seconds, mib, error = measure(lambda trial=trial: waterz_sweep(affs, truth, *trial, SWEEP))
            errors.append(error)
            peer_s, peer_mib = peer_s + seconds, max(peer_mib, mib)
        seconds, mib, rows = ours
        curves = [row for row in rows if row.kind == "curve"]
        best = rows[0]
        error = best.found["adapted_rand"]["scores"]["adapted_rand"]
        point = [best.decode[setting] for setting in ("statistic", "low", "high")]
        threshold = best.found["adapted_rand"]["threshold"]
        same = waterz_sweep(affs, truth, *point, [threshold])
    place = f"{len(curves)} curves, {'x'.join(map(str, shape))}"
    print_row(Row(f"tune, {place}", f"waterz, {len(trials)} trials", seconds, peer_s, peer_s / seconds, mib, peer_mib,
                  "above 1, error not higher", f"adapted Rand error {error:.5f} against {min(errors):.5f}"))
    print(f"best point {point}, threshold {threshold:.4f}; through waterz {same:.5f}; the best trial "
          f"{trials[int(np.argmin(errors))]}; a trial {peer_s / len(trials):.2f} s")


if __name__ == "__main__":
    main()
