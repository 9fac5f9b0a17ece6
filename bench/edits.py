"""What edits cost on a large volume: `python -m bench.edits --size 512 --labels labels512.h5`.

Edits are drawn at random: half of them join two objects, half take two places of a large object apart. It prints the
seconds of the processor that fragments, graph and merges took, and those that the edits take: on the graph, and with
all voxels.
"""

import argparse
import time
from functools import partial

import numpy as np

from bench.affinities import load_labels, make_affinities
from emcore.segment import Edit, Segmentation, apply_edits
from emcore.segment.edits import decided, edited_objects, ids_at, objects_of


def timed(what, function):
    """What a function returns; its seconds of the processor and of the wall are printed."""
    start, wall = time.process_time(), time.perf_counter()
    found = function()
    print(f"{what}: {time.process_time() - start:.1f} s of the processor, {time.perf_counter() - wall:.1f} s")
    return found


def drawn(labels: np.ndarray, fragments: np.ndarray, count: int, seed: int) -> list[Edit]:
    """Joins of objects at random places, and splits of the places of one object that lie in different fragments."""
    random, edits = np.random.default_rng(seed), []
    places = [tuple(place) for place in np.stack(np.unravel_index(random.integers(0, labels.size, 400 * count),
                                                                 labels.shape), axis=1).tolist()]
    places = [place for place in places if labels[place]]
    by_object: dict[int, list] = {}
    for place in places:
        by_object.setdefault(int(labels[place]), []).append(place)
    large = sorted(by_object.values(), key=len, reverse=True)
    for own in large[:count // 2]:
        other = next((place for place in own if fragments[place] != fragments[own[0]]), None)
        edits += [Edit("split", own[0], other)] if other else []
    alone = large[count // 2:]
    return edits + [Edit("join", one[0], other[0]) for one, other in zip(alone[:count], alone[count:2 * count])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--labels", help="an HDF5 file with the dataset labels; synthetic ones without it")
    parser.add_argument("--edits", type=int, nargs="*", default=[2, 100, 1000])
    parser.add_argument("--threshold", type=float, default=0.5)
    options = parser.parse_args()
    truth = load_labels(options.labels, options.size)
    whole = Segmentation((make_affinities(truth) * 255).astype(np.uint8), low=0.1, high=0.999)
    timed("fragments, graph and merges", lambda: (whole.fragments, whole.graph, whole.tree))
    labels = timed("labels", lambda: whole.labels(options.threshold))
    print(f"{whole.tree.fragments} fragments, {len(whole.graph.u)} contacts, {int(labels.max())} objects; the largest "
          f"has {np.bincount(whole.tree.table(options.threshold)[1:]).max()} fragments")
    objects = objects_of(whole.fragments, labels, whole.tree.table(options.threshold))
    for count in options.edits:
        edits = drawn(labels, whole.fragments, count, seed=count)
        ids = ids_at(edits, labels.shape, lambda place: (int(whole.fragments[place]), int(labels[place])))
        timed(f"{len(edits)} edits on the graph",
              partial(edited_objects, whole, objects, options.threshold, ids, decided(edits, ids)))
        timed(f"{len(edits)} edits with all voxels", partial(apply_edits, whole, labels, options.threshold, edits))


if __name__ == "__main__":
    main()
