"""Tables, VOI and Rand, and whole threshold curves, against funlib.evaluate (or waterz) and scikit-image."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np

from bench.affinities import load_labels, make_affinities
from bench.compare import Row, compare
from emcore import metrics, segment

THRESHOLDS = 9  # so many single evaluations must take longer than the whole curve


def evaluate(truth: np.ndarray, labels: np.ndarray, ignore_truth: tuple[int, ...] = (0,)) -> dict[str, float]:
    """Both VOI parts and the Rand error by two conventions: what one threshold of a sweep costs."""
    table = metrics.contingency(truth, labels, ignore_truth)
    split, merge = metrics.voi(table)
    return {"split": split, "merge": merge, "skimage": metrics.rand(table, "skimage").error,
            "funlib": metrics.rand(table, "funlib").error}


def agree(ours: dict[str, float], peer: dict[str, float]) -> str:
    return f"largest difference {max(abs(ours[name] - value) for name, value in peer.items()):.0e}"


def _funlib() -> tuple[str, Callable] | None:
    """rand_voi of funlib.evaluate; where that is not installed waterz.evaluate, from whose code it was taken."""
    if find_spec("funlib") and find_spec("funlib.evaluate"):
        from funlib.evaluate import rand_voi
        name = "funlib.evaluate"
    elif find_spec("waterz"):
        import waterz
        name = "waterz.evaluate"

        def rand_voi(truth, labels):
            return waterz.evaluate(labels, truth)
    else:
        return None

    def call(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        found = rand_voi(truth, labels)
        precision, recall = found["rand_merge"], found["rand_split"]
        return {"split": found["voi_split"], "merge": found["voi_merge"],
                "funlib": 1 - 2 * precision * recall / (precision + recall)}
    return name, call


def _skimage(truth: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from skimage.metrics import adapted_rand_error, variation_of_information
    error = adapted_rand_error(truth, labels)[0]
    split, merge = variation_of_information(truth, labels)
    return {"split": split, "merge": merge, "skimage": error}


def rows(size: int, labels_path: str | None, repeats: int = 3) -> Iterator[Row]:
    """A real decoding: labels, their affinities, fragments, merge tree, and the labels at threshold .5."""
    truth = load_labels(labels_path, size)
    number = np.zeros(int(truth.max()) + 1, np.uint64)  # sequential ids: skimage's tables are as wide as the largest
    present = metrics.contingency(truth, truth, ()).truth_ids
    number[present] = np.arange(len(present)) + (present[0] > 0)
    truth = number[truth]
    affinities = make_affinities(truth)
    fragments = segment.watershed(affinities, low=0.1, high=0.999)
    tree = segment.agglomerate(segment.region_graph(fragments, affinities), statistic="mean")
    del affinities
    labels = segment.cut(fragments, tree, threshold=0.5).astype(np.uint64)
    where = f"{size}³"
    funlib = _funlib()
    if funlib:
        yield compare(f"VOI + Rand, {where}, sequential ids", lambda: evaluate(truth, labels), funlib[0],
                      lambda: funlib[1](truth, labels), repeats, "≥ 8× funlib", agree)
    if find_spec("skimage"):
        # its VOI ignores no label, so both take truth 0 as a segment of its own; its tables are as wide as the largest
        # id, which costs it most of its time where ids are those of a large volume
        for ids, spread in (("sequential ids", 1), ("ids to 1e7", 10**7 // (int(truth.max()) + 1))):
            pair = ((truth + np.uint64(1)) * np.uint64(spread)).view(np.int64), labels.view(np.int64)
            yield compare(f"VOI + Rand, {where}, {ids}", partial(evaluate, *pair), "skimage",
                          partial(_skimage, *pair), 1, "≥ 60×, ≤ 1/20 memory", agree)
            del pair

    def whole_curve():
        return metrics.threshold_curve(fragments, tree, truth)

    def single_evaluations():
        for _ in range(THRESHOLDS):
            scores = evaluate(truth, labels)
        return scores

    def agree_at_half(ours, single):
        state = ours.merges_below(0.5)
        differences = abs(ours.voi.split[state] - single["split"]), abs(ours.voi.merge[state] - single["merge"])
        return f"{tree.fragments} fragments, {len(tree.a)} merges; difference at .5 {max(differences):.0e}"

    yield compare(f"whole curve, {where}", whole_curve, "9 single of ours", single_evaluations, repeats, "≥ 1×",
                  agree_at_half)
    yield compare(f"border mask 25 nm at 4 nm, {where}", lambda: metrics.neuron_border_mask(truth, (40, 4, 4)),
                  "-", None, repeats)
