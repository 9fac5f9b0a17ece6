"""What right answers to doubts are worth, on tissue with truth: the scores after so many of them, by several orders.

    python -m bench.proofreading --pair fib25_val_labels.h5 data/fib25_val.h5:labels --synth 64,384,384

The truth answers every doubt as a person would who looks at its contact: which true body lies on either side within
REACH nm of it, and are the two one? Every yes is an edit at the two voxels that a doubt names, and all of them are held
as `infer.py --edits` holds them. A yes that contradicts those before it is left out. Removable is the VOI that answers
can take away: what is left when fragments that touch and mostly lie in one true body are joined, and no others.

--synth makes tissue, detects its borders as badly as `unsure` does, and cuts the merges where the VOI is best.
"""

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.contacts import with_labels
from emcore import metrics
from emcore.blocks.explain import threshold_of
from emcore.blocks.tables import read_segmentation
from emcore.metrics.nodes import node_table
from emcore.metrics.points import labels_at
from emcore.metrics.skeletons import run_length
from emcore.report.doubts import WRONG, times_asked
from emcore.report.places import contacts_of, named_voxels
from emcore.segment import Doubts, Segmentation, find_doubts, join_pairs, skeletonize
from emcore.segment.doubts import Parted
from emcore.segment.edits import Decisions, edited_objects
from emcore.synth import synthesize
from emcore.volumes import Volume, open_volume, placement

REACH = 100.0  # nm to either side of a contact that a person looks at
STEPS = (10, 50, 100, 500)
BINS = (0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.01)
CLEAR, FINE, COARSE = 4.0, 0.5, 1.0  # logits of a detector: of what is true, and the deviations of its errors
DRAWS = 3  # so many random orders are drawn, and their mean is shown


class Case(NamedTuple):
    """A segmentation, its truth, and all its doubts with their right answers."""

    name: str
    segmentation: Segmentation
    threshold: float
    doubts: Doubts
    parted: Parted
    named: np.ndarray  # (n, 2), the fragments that an edit names
    wrong: np.ndarray  # bool, whether the segmentation is wrong at a doubt
    bodies: metrics.Contingency  # the table of truth and fragments
    skeletons: np.ndarray  # the body of every node of the true skeletons
    under: np.ndarray  # the fragment under every node
    edges: np.ndarray
    lengths: np.ndarray


class Scores(NamedTuple):
    voi: float
    arand: float
    nerl: float


def case_of(name: str, segmentation: Segmentation, threshold: float, truth: np.ndarray, fragments: Volume,
            resolution: tuple[float, ...], certain: bool = False) -> Case:
    doubts, parted = find_doubts(segmentation, threshold, float(np.prod(resolution)) / 1e9, certain)
    field = [2 * max(1, round(REACH / size)) + 1 for size in resolution]
    wrong, named = np.zeros(len(doubts), bool), np.zeros((len(doubts), 2), np.uint64)
    found = contacts_of(doubts, parted, fragments, field)
    for row, (merge, contact, middle, box, inside) in enumerate(found):
        near = parted.near(merge, contact, inside)
        named[row] = [inside[voxel] for voxel in named_voxels(near, middle, box, resolution)]
        one, two = (majority(truth[box][near == side]) for side in (1, 2))
        wrong[row] = one > 0 and two > 0 and (one == two) == (merge < 0)
    nodes = node_table(skeletonize(truth, resolution))
    under = labels_at(fragments, np.rint(nodes.places / resolution) + 0.5, (1, 1, 1))
    bodies = metrics.contingency(truth, fragments[...], (0,))
    return Case(name, segmentation, threshold, doubts, parted, named, wrong, bodies, nodes.skeletons,
                under.astype(np.int64), nodes.edges, nodes.lengths)


def majority(ids: np.ndarray) -> int:
    """The id of most voxels, 0 where nothing but 0 is there."""
    found, counts = np.unique(ids[ids > 0], return_counts=True)
    return int(found[counts.argmax()]) if len(found) else 0


def united(pairs: np.ndarray, fragments: int) -> np.ndarray:
    """The object of every fragment after pairs (n, 2) of them are joined."""
    table = np.arange(fragments + 1)
    joined = join_pairs(pairs)
    table[joined.old.astype(np.int64)] = joined.new
    return table


def objects_after(case: Case, yes: np.ndarray) -> np.ndarray:
    """The object of every fragment with the edits of these doubts (rows, in their order)."""
    joined, apart = agreeing(case.named[yes].astype(np.int64), case.doubts.merge[yes] >= 0)
    objects = case.parted.table.astype(np.uint64)
    if len(joined) + len(apart) == 0:
        return objects
    decisions = Decisions(joined, apart, np.zeros(0, np.uint64))
    return edited_objects(case.segmentation, objects, case.threshold, np.concatenate([joined, apart]), decisions)


def agreeing(pairs: np.ndarray, split: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pairs that are joined, pairs that are held apart) without those that contradict pairs before them."""
    parent: dict[int, int] = {}
    foes: dict[int, set[int]] = {}

    def group(at: int) -> int:
        while parent.get(at, at) != at:
            at = parent[at]
        return at

    kept: tuple[list, list] = [], []
    for pair, apart in zip(pairs.tolist(), split.tolist()):
        one, other = map(group, pair)
        if apart and one != other:
            foes.setdefault(one, set()).add(other)
            foes.setdefault(other, set()).add(one)
        elif not apart and other not in foes.get(one, ()):
            if one != other:
                parent[other] = one
                for foe in foes.pop(other, set()):
                    foes[foe].discard(other)
                    foes[foe].add(one)
                    foes.setdefault(one, set()).add(foe)
        else:
            continue
        kept[apart].append(pair)
    joined, parted = (np.array(rows, np.uint64).reshape(-1, 2) for rows in kept)
    return joined, parted


def best_objects(case: Case) -> np.ndarray:
    """Fragments that touch and mostly lie in one body, joined."""
    graph, kept = case.parted.graph, case.bodies.kept
    truth, fragment = case.bodies.truth[kept].astype(np.int64), case.bodies.labels[kept].astype(np.int64)
    order = np.lexsort((case.bodies.n, fragment))
    body = np.zeros(graph.fragments + 1, np.int64)
    body[fragment[order]] = truth[order]  # The last one of a fragment stays, and it has most voxels.
    same = (body[graph.u] == body[graph.v]) & (body[graph.u] > 0)
    return united(np.stack([graph.u[same], graph.v[same]], axis=1), graph.fragments)


def scores(case: Case, table: np.ndarray) -> Scores:
    counts = with_labels(case.bodies, table)
    voi = metrics.voi(counts)
    run = run_length(case.skeletons, table[case.under], case.edges, case.lengths, 50.0)
    return Scores(voi.split + voi.merge, metrics.rand(counts, convention="cremi").error, run.normalized)


def after(case: Case, order: np.ndarray, steps: list[int], answers: np.ndarray) -> np.ndarray:
    """(steps, 3): the scores after the first answers of an order."""
    rows = []
    for step in steps:
        given = order[:step]
        rows.append(scores(case, objects_after(case, given[answers[given]])))
    return np.array(rows)


def asked_again(case: Case, random: np.random.Generator, steps: list[int]) -> np.ndarray:
    """(steps, 3): as after, in the order of the doubts, by people of whose answers a share is WRONG.

    A yes is asked again as often as the page does; every answer counts as a step.
    """
    yes, rows, given = [], [], 0
    waiting = list(steps)
    for row, (chance, wrong) in enumerate(zip(case.doubts.chance.tolist(), case.wrong.tolist())):
        answer, left = True, times_asked(chance)
        while answer and left:
            if waiting and given == waiting[0]:
                rows.append(scores(case, objects_after(case, np.array(yes, np.int64))))
                waiting.pop(0)
            answer = wrong ^ (random.random() < WRONG)
            given, left = given + 1, left - 1
        if answer:
            yes.append(row)
        if not waiting:
            break
    return np.array(rows + [scores(case, objects_after(case, np.array(yes, np.int64)))] * len(waiting))


def show(case: Case) -> None:
    """Prints the curves of a case."""
    count = len(case.doubts)
    steps = [step for step in sorted({*STEPS, count // 10, count}) if step <= count]
    now, best = scores(case, objects_after(case, np.zeros(0, np.int64))), scores(case, best_objects(case))
    removable = now.voi - best.voi
    merges = case.doubts.merge >= 0
    print(f"\n{case.name}: {count} doubts, {case.wrong[merges].sum()} of {merges.sum()} merges and "
          f"{case.wrong[~merges].sum()} of {(~merges).sum()} pairs are wrong; VOI {now.voi:.3f}, ARAND "
          f"{now.arand:.3f}, NERL {now.nerl:.3f}; the best of these fragments {best.voi:.3f}, {best.arand:.3f}, "
          f"{best.nerl:.3f}; removable VOI {removable:.3f}")
    random = np.random.default_rng(0)
    tired = case.wrong ^ (random.random(count) < WRONG)
    largest = np.argsort(-case.doubts.stake, kind="stable")
    curves = {"doubts": after(case, np.arange(count), steps, case.wrong),
              f"doubts, {WRONG:.0%} of the answers wrong": after(case, np.arange(count), steps, tired),
              "the same, each yes asked again": asked_again(case, random, steps),
              "largest first": after(case, largest, steps, case.wrong),
              "random order": np.mean([after(case, random.permutation(count), steps, case.wrong)
                                       for _ in range(DRAWS)], axis=0)}
    print("chance said, and the share that is wrong: " + calibration(case))
    print("| order | " + " | ".join(f"{step:,} answers" for step in steps) + " |")
    print("|---" * (len(steps) + 1) + "|")
    for name, curve in curves.items():
        cells = [f"{(now.voi - voi) / removable:.2f}; {voi:.3f}, {arand:.3f}, {nerl:.3f}"
                 for voi, arand, nerl in curve.tolist()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def calibration(case: Case) -> str:
    """The mean chance of doubts of about the same chance, how many they are and which share of them is wrong."""
    told = []
    for low, high in itertools.pairwise(BINS):
        inside = (case.doubts.chance >= low) & (case.doubts.chance < high)
        if inside.any():
            told.append(f"{case.doubts.chance[inside].mean():.3f} ({inside.sum()}) {case.wrong[inside].mean():.3f}")
    return "; ".join(told)


def unsure(truth: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Affinities of nearest neighbours by a detector whose borders are soft, and wrong in places a few voxels wide."""
    field = smoothed(random.standard_normal(truth.shape, np.float32), 2) * FINE
    field += smoothed(random.standard_normal(truth.shape, np.float32), 12) * COARSE
    affs = []
    for axis in range(3):
        same = (truth == np.roll(truth, 1, axis)).astype(np.float32)
        affs.append(1 / (1 + np.exp(-(CLEAR * np.maximum(4 * smoothed(same, 1, False) - 3, -1) + field))))
    return np.stack(affs)


def smoothed(values: np.ndarray, times: int, unit: bool = True) -> np.ndarray:
    """Means over three voxels along every axis, so many times; with a deviation of 1 where that is asked for."""
    for _ in range(times):
        for axis in range(3):
            values = (np.roll(values, 1, axis) + 2 * values + np.roll(values, -1, axis)) / 4
    return values / values.std() if unit else values


def synthetic(shape: tuple[int, ...], seed: int) -> Case:
    resolution = (20.0, 8.0, 8.0)
    tissue = synthesize(shape, resolution, seed=seed)
    segmentation = Segmentation(unsure(tissue.neuron_ids, np.random.default_rng(seed)), fragments="faces-1")
    curve = metrics.threshold_curve(segmentation.fragments, segmentation.tree, tissue.neuron_ids)
    return case_of(f"synthetic {shape}, seed {seed}", segmentation, curve.best("voi").threshold, tissue.neuron_ids,
                   open_volume(segmentation.fragments), resolution)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, action="append", default=[], metavar=("LABELS", "TRUTH"))
    parser.add_argument("--synth", metavar="Z,Y,X", help="voxels of synthetic tissue")
    parser.add_argument("--seed", type=int, default=7, help="seed of synthetic tissue (default %(default)s)")
    options = parser.parse_args()
    print("share of the removable VOI that is gone; VOI, ARAND, NERL after so many answers")
    for labels, reference in options.pair:
        segmentation, fragments = read_segmentation(Path(labels)), open_volume(labels, "fragments")
        truth = open_volume(reference, kind="labels")
        truth = truth[placement(fragments, truth)]
        show(case_of(Path(labels).stem, segmentation, threshold_of(Path(labels)), truth,
                     open_volume(fragments[...]), fragments.resolution,
                     bool(open_volume(labels, "labels").attrs["decode"].get("learned"))))
    if options.synth:
        show(synthetic(tuple(int(length) for length in options.synth.split(",")), options.seed))


if __name__ == "__main__":
    main()
