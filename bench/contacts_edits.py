"""What decisions on one volume teach the classifier of contacts, measured on another one.

    python -m bench.contacts_edits --cfg configs/tissue/fib25_neurons.toml --params bench/volumes/fib25_contacts.toml \\
        --on fib25_val_prediction.h5 data/fib25_val.h5:labels --score gala_prediction.h5 data/gala_train.h5:labels

Decisions are right answers, as a person gives them: of contacts between clusters of the first merges whose mean
affinity lies between 0.2 and 0.8, so many are drawn at random, and each becomes a join or a split of two voxels at the
contact. Beside them stand the mean affinity alone, and a classifier that all labels of the first volume teach. VOI and
ARAND are those of cremi: the mean of several draws, each with another seed of the classifier.
"""

import argparse

import numpy as np

from bench.contacts import scores, with_labels
from emcore import config
from emcore.decode.learn_contacts import PURE, SURE, Answers, check_decode, largest_body, learn, source_of
from emcore.decode.learned import first_clusters, learned_graph, voxels_of
from emcore.segment import Edit
from emcore.segment.agglomeration import agglomerate
from emcore.segment.contacts import first_graph, pool_contacts
from emcore.segment.edits import decided
from emcore.settings import Settings


def questions(source, table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(fragments (n, 2) on both sides of a contact, whether there is a border) of contacts that may be asked about."""
    pooled = pool_contacts(source.contacts, table)
    body, share = largest_body(source.bodies, table)
    mean = first_graph(pooled).mean
    wanted = (mean > SURE) & (mean < 1 - SURE) & (share[pooled.u] > PURE) & (share[pooled.v] > PURE)
    at = np.searchsorted(np.sort(source.contacts.key), pooled.key[wanted])
    fragments = np.argsort(source.contacts.key)[at]  # the contact of fragments that has the pooled key
    sides = np.stack([source.contacts.u[fragments], source.contacts.v[fragments]], axis=1).astype(np.uint64)
    return sides, (body[pooled.u] != body[pooled.v])[wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True)
    parser.add_argument("--params")
    parser.add_argument("--on", nargs=2, required=True, metavar=("PREDICTION", "LABELS"))
    parser.add_argument("--score", nargs=2, action="append", required=True, metavar=("PREDICTION", "LABELS"))
    parser.add_argument("--decisions", type=int, nargs="*", default=[50, 200, 1000])
    parser.add_argument("--draws", type=int, default=5)
    options = parser.parse_args()
    settings = config.load(Settings, options.cfg, ["decode.learned.file=unused.json"], options.params)
    decode = check_decode(settings)
    source, *scored = (source_of(*pair, decode, (0,)) for pair in (options.on, *options.score))
    limit, threshold = voxels_of(decode.learned, source.resolution), decode.learned.first_threshold
    sides, border = questions(source, first_clusters(source.contacts, threshold, limit))
    print(f"{len(border)} contacts may be asked about, {border.sum()} of them are borders")
    print(f"{'':>40} {'VOI split':>10} {'merge':>8} {'sum':>8} {'ARAND':>8}")

    def told(what: str, found: list[tuple[float, float, float]], volume: str) -> None:
        split, merge, rand = np.mean(found, axis=0)
        print(f"{volume[-24:]:>24} {what:>15} {split:10.3f} {merge:8.3f} {split + merge:8.3f} {rand:8.4f}", flush=True)

    for one in scored:
        table = first_clusters(one.contacts, threshold, limit)
        pooled = pool_contacts(one.contacts, table)

        def score(graph, one=one, table=table) -> tuple[float, float, float]:
            return scores(with_labels(one.bodies, agglomerate(graph, "mean").table(0.5)[table]))

        told("mean affinity", [score(first_graph(pooled))], one.name)
        for count in options.decisions:
            found = []
            for draw in range(options.draws):
                chosen = np.random.default_rng(draw).permutation(len(border))[:count]
                edits = [Edit("split" if one else "join", (0, 0, 0), (0, 0, 0)) for one in border[chosen]]
                answers = Answers(source.name, source.steps, source.resolution, source.contacts,
                                  decided(edits, sides[chosen]))
                found.append(score(learned_graph(pooled, learn([answers], decode, draw)[0])))
            told(f"{count} decisions", found, one.name)
        found = [score(learned_graph(pooled, learn([source], decode, draw)[0])) for draw in range(options.draws)]
        told("all labels", found, one.name)


if __name__ == "__main__":
    main()
