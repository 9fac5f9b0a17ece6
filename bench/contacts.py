"""The classifier of contacts, every volume decoded by one that learned from the others; beside the recipe's decoder.

    python -m bench.contacts --cfg configs/tissue/fib25_neurons.toml --params bench/volumes/fib25_contacts.toml \\
        --pair fib25_val_prediction.h5 data/fib25_val.h5:labels --pair gala_prediction.h5 data/gala_train.h5:labels \\
        --also fib25_seen_prediction.h5 data/fib25_train.h5:labels

--also names volumes that every classifier learns from and that are not scored. VOI and ARAND are those of cremi, over
all voxels with a label: the mean of the seeds of the classifier, and the least and the largest. The decoder of the
recipe, which --params changes, is scored beside it.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from emcore import config, metrics
from emcore.decode.affinities import labels_of, read_affinities, segmentation_of
from emcore.decode.learn_contacts import check_decode, learn, source_of
from emcore.decode.learned import first_clusters, learned_graph, voxels_of
from emcore.segment.agglomeration import agglomerate
from emcore.segment.contacts import pool_contacts
from emcore.settings import Settings
from emcore.volumes import open_volume


def scores(table: metrics.Contingency) -> tuple[float, float, float]:
    """VOI split and merge, and ARAND."""
    voi = metrics.voi(table)
    return voi.split, voi.merge, metrics.rand(table, convention="cremi").error


def with_labels(bodies: metrics.Contingency, table: np.ndarray) -> metrics.Contingency:
    """The table of truth and labels, of one of truth and fragments."""
    kept = bodies.kept
    repeated = [np.repeat(ids, bodies.counts[kept]) for ids in (bodies.truth[kept], table[bodies.labels[kept].astype(
        np.int64)].astype(np.uint64))]
    return metrics.contingency(*(ids.reshape(1, 1, -1) for ids in repeated))


def told(rows: list[tuple[float, float, float]]) -> str:
    split, merge, error = np.array(rows).T
    return (f"{split.mean():.3f} + {merge.mean():.3f} = {(split + merge).mean():.3f} "
            f"({(split + merge).min():.3f} to {(split + merge).max():.3f}), {error.mean():.4f} "
            f"({error.min():.4f} to {error.max():.4f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, help="the recipe")
    parser.add_argument("--params", required=True, help="its [decode.learned], whose file is not read")
    parser.add_argument("--pair", nargs=2, action="append", required=True, metavar=("PREDICTION", "LABELS"))
    parser.add_argument("--also", nargs=2, action="append", default=[], metavar=("PREDICTION", "LABELS"))
    parser.add_argument("--seeds", type=int, default=3)
    options, more = parser.parse_known_args()
    decode = check_decode(config.load(Settings, options.cfg, more, options.params))
    started = time.process_time()
    sources = [source_of(*pair, decode, (0,)) for pair in [*options.pair, *options.also]]
    print(f"statistics of {len(sources)} volumes: {time.process_time() - started:.1f} CPU seconds")
    print("VOI split + merge = sum (least to largest), ARAND (least to largest)")
    for number, (prediction, labels) in enumerate(options.pair):
        source, rows, started = sources[number], [], time.process_time()
        others = [other for place, other in enumerate(sources) if place != number]
        limit = voxels_of(decode.learned, source.resolution)
        table = first_clusters(source.contacts, decode.learned.first_threshold, limit)
        pooled = pool_contacts(source.contacts, table)
        for seed in range(options.seeds):
            net, edges = learn(others, decode, seed)
            last = agglomerate(learned_graph(pooled, net), threshold=decode.threshold).table(decode.threshold)
            rows.append(scores(with_labels(source.bodies, last[table])))
        spent = (time.process_time() - started) / options.seeds
        print(f"{Path(prediction).stem}: {told(rows)}; {edges} contacts of the others, {spent:.1f} CPU seconds a seed",
              flush=True)
        own = config.load(Settings, options.cfg).decode
        found = labels_of(segmentation_of(read_affinities(open_volume(prediction), own), own), own)
        truth = open_volume(labels, kind="labels")[source.place.theirs]
        print(f"    the recipe: {told([scores(metrics.contingency(truth, found[source.place.ours]))])}", flush=True)


if __name__ == "__main__":
    main()
