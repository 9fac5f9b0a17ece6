"""Doubts: the errors that a segmentation may have, by what it knows of itself. No truth is needed.

Two kinds of error have candidates. A merge below the threshold may join what is two: its object, parted at that merge,
has two sides. Two objects that touch may be one; those that do not touch are asked about where a shape says so. Of both
kinds it is asked how likely the segmentation is wrong there, and what is at stake: the bits of VOI between the two
sides as one object and as two. The candidates come by the product of that chance and stake ** CAUTION. A false merge
that has not been asked about is spread by every join of its object. Therefore merges count more where the chances add
up to MANY times as many false splits as false merges, or more: by that number ** 2.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from emcore.segment.agglomeration import Agglomeration
from emcore.segment.graph import KEY_STEPS, RegionGraph
from emcore.segment.segmentation import Segmentation
from emcore.segment.sides import Sides, sides_of

LEAST = 1e-4  # A height is taken for no less and its complement neither, so that their logit is finite.
# The larger the sides, the more often something else is wrong in them, too, and an answer brings less than its stake.
CAUTION = 0.5
# The real volumes that were measured have smaller ratios, and their order by chance and stake was good as it was.
# Synthetic tissue had ratios of 4.6 and 5.6, and joins spread false merges there. It was chosen when both were known.
MANY = 2.0
ALIKE = 0.1  # Two ways to part an object are alike if so much of the smallest side, or less, changes sides.
REASONS = ("", "two somata", "crossing", "ends that face")  # the shapes that a doubt may have, by their number
SOMATA, CROSSING, FACING = 1, 2, 3
# These are guesses, because too few were seen to fit them: hardly a neuron has two somata, and both shapes of skeletons
# make an error so many times as likely by odds. Objects that do not touch have no statistic, so their chance is stated.
TWO_SOMATA, CROSSING_ODDS, FACING_ODDS, FACING_APART = 0.9, 3.0, 3.0, 0.05
# The chance that two sides are one neuron is a logistic function of these times what chance_of_one says, fitted on
# sections 128-159 of fib25_train.h5 in docs/benchmarks.md. The first row is for merges, the second for two objects.
FITTED = ((1.44, -0.12, 0.0, -0.45), (1.87, -0.35, 0.52, -2.87))


@dataclass(frozen=True)
class Doubts:
    """Candidate errors, the most urgent first; row i of every column is of candidate i.

    Attributes:
        merge: int64, the merge that may be wrong; -1 where two objects may be one.
        contact: int64, the edge of the graph at which the two sides meet; its u is of side one.
        height: float64, 1 - the statistic of the affinities between the two sides.
        faces: int64, the faces of voxels between the two.
        voxels: int64 (n, 2), the sizes of the two sides.
        chance: float64, the chance that the segmentation is wrong here.
        stake: float64, the bits of VOI between the two sides as one object and as two.
        shape: uint8, the shape that told of it, too; 0 for none.
        weight: how much more urgent merges are than pairs of the same chance and stake.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.random.default_rng(0).random((3, 4, 8, 8), np.float32)
        >>> doubts, _ = segment.find_doubts(segment.Segmentation(affs, low=0.2, high=0.95), 0.5, voxel=1e-6)
        >>> len(doubts) == len(doubts.chance)
        True
    """

    merge: np.ndarray
    contact: np.ndarray
    height: np.ndarray
    faces: np.ndarray
    voxels: np.ndarray
    chance: np.ndarray
    stake: np.ndarray
    shape: np.ndarray
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.merge)

    @property
    def urgency(self) -> np.ndarray:
        """What the candidates are ordered by."""
        return self.chance * self.stake**CAUTION * np.where(self.merge >= 0, self.weight, 1.0)

    def rows(self, chosen: np.ndarray) -> "Doubts":
        """The doubts at these places of the list.

        Args:
            chosen: indices or a mask of rows.
        """
        columns = [getattr(self, name)[chosen] for name in self.__dataclass_fields__ if name != "weight"]
        return Doubts(*columns, self.weight)


class Suspects(NamedTuple):
    """Shapes that tell of errors, by the fragments that lie there."""

    somata: np.ndarray  # (n, 2): those in the middles of two somata of one object
    crossings: np.ndarray  # (n, 4): those at the ends of one straight path, then those of the other
    facing: np.ndarray  # (n, 2): those at ends that face each other
    between: np.ndarray  # (n,): the number of the voxel halfway between these ends


@dataclass(frozen=True)
class Parted:
    """A segmentation cut at a threshold: the object of every fragment, and the two sides of every candidate."""

    graph: RegionGraph  # It has the sizes of its fragments.
    sides: Sides
    table: np.ndarray  # the object of every fragment

    def weigh(self, merge: np.ndarray, contact: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(n, 2): the sums of the weights of fragments on either side of every candidate."""
        u, v = self.graph.u[contact], self.graph.v[contact]
        under = self.sides.under(weights)
        objects = np.zeros(int(self.table.max(initial=0)) + 1, weights.dtype)
        np.add.at(objects, self.table, weights)
        found = np.stack([objects[self.table[u]], objects[self.table[v]]], axis=1)
        inner = merge >= 0
        below = self.sides.below[merge[inner]]
        part = under[below]
        rest = found[inner, 0] - part
        u_below = u[inner] == below
        found[inner] = np.stack([np.where(u_below, part, rest), np.where(u_below, rest, part)], axis=1)
        return found

    def sides_in(self, merge: int, contact: int, fragments: np.ndarray) -> np.ndarray:
        """Which of the fragments are of side one and of side two of a candidate: 1, 2 and 0 for all others, uint8."""
        u, v = int(self.graph.u[contact]), int(self.graph.v[contact])
        if merge < 0:
            objects = self.table[fragments]
            return np.where(objects == self.table[u], 1, np.where(objects == self.table[v], 2, 0)).astype(np.uint8)
        found = self.sides.parted(merge, fragments)
        if self.sides.below[merge] == v:
            found = np.array([0, 2, 1], np.uint8)[found]
        return found

    def near(self, merge: int, contact: int, fragments: np.ndarray) -> np.ndarray:
        """The same for what was one cluster on either side just before the merge; whatever came later is 0.

        Between two voxels of these clusters the merge is the weakest link.
        """
        if merge < 0:
            return self.sides_in(merge, contact, fragments)
        ids, where = np.unique(fragments, return_inverse=True)
        ends = [self.graph.u[contact], self.graph.v[contact]]
        roots = self.sides.before(merge, np.append(ids, ends).astype(np.int64))
        found = np.where(roots[:-2] == roots[-2], 1, np.where(roots[:-2] == roots[-1], 2, 0)).astype(np.uint8)
        return found[where].reshape(fragments.shape)

    def alike(self, doubts: Doubts) -> np.ndarray:
        """For every doubt the first one before it that parts the same object into nearly the same sides, or -1.

        ALIKE says what nearly the same is.
        """
        inner = np.flatnonzero(doubts.merge >= 0)
        below = self.sides.below[doubts.merge[inner]]
        first, last, root = (ends[below] for ends in (*self.sides.span, self.sides.root))
        at_u = self.graph.u[doubts.contact[inner]] == below
        part = np.where(at_u, doubts.voxels[inner, 0], doubts.voxels[inner, 1])
        whole, small = doubts.voxels[inner].sum(axis=1), doubts.voxels[inner].min(axis=1)
        found = np.full(len(doubts), -1)
        for row in range(1, len(inner)):
            nested = (first[:row] <= last[row]) & (first[row] <= last[:row])  # two parts lie in each other or apart
            moved = np.where(nested, np.abs(part[:row] - part[row]), whole[row] - part[:row] - part[row])
            same = (root[:row] == root[row]) & (moved <= ALIKE * np.minimum(small[:row], small[row]))
            if same.any():
                found[inner[row]] = inner[same.argmax()]
        return found


def find_doubts(segmentation: Segmentation, threshold: float, voxel: float, certain: bool = False,
                suspects: Suspects | None = None) -> tuple[Doubts, Parted]:
    """Lists where a segmentation may be wrong at a threshold, the most urgent first; no truth is needed.

    Args:
        segmentation: fragments, graph and merges.
        threshold: 0 to 1, at which the objects are cut.
        voxel: the size of a voxel in cubic micrometres.
        certain: True takes heights for probabilities of a border, as those of [decode.learned]. The default is False.
        suspects: shapes that tell of errors (default none). They raise chances, and ends that face each other also make
            doubts of objects that do not touch.

    Returns:
        The doubts, and the segmentation cut at the threshold with the two sides of each of them.

    Raises:
        InputError: the graph and the merges do not fit each other.

    Cost:
        It takes 14 us of one core and 350 bytes per fragment.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.random.default_rng(0).random((3, 4, 8, 8), np.float32)
        >>> doubts, _ = segment.find_doubts(segment.Segmentation(affs, low=0.2, high=0.95), 0.5, voxel=1e-6)
        >>> bool((np.diff(doubts.urgency) <= 0).all())
        True
    """
    tree = segmentation.tree
    parted = Parted(replace(segmentation.graph, sizes=segmentation.sizes),
                    sides_of(tree, segmentation.graph, threshold), tree.table(threshold))
    made = parted.sides.made
    contact, faces, height = touching(segmentation, parted.table, threshold)
    merge = np.concatenate([np.arange(made), np.full(len(contact), -1)])
    contact = np.concatenate([parted.sides.contact, contact])
    height = np.concatenate([tree.height[:made].astype(np.float64), height])
    faces = np.concatenate([parted.sides.faces, faces])
    voxels = parted.weigh(merge, contact, parted.graph.sizes)
    if certain:
        two = height
    else:
        best = best_of_smaller(parted, merge, contact, height, voxels)
        two = 1 - chance_of_one(height, threshold, voxels * voxel, best, merge >= 0)
    chance, shape = np.where(merge >= 0, two, 1 - two), np.zeros(len(merge), np.uint8)
    total = int(parted.graph.sizes[1:].sum())
    found = Doubts(merge, contact, height, faces, voxels, chance, stake(voxels, total), shape)
    if suspects is not None:
        found, parted = with_suspects(found, parted, suspects)
    found = replace(found, weight=weight_of_merges(found))
    return found.rows(np.lexsort((found.contact, -found.urgency))), parted


def weight_of_merges(doubts: Doubts) -> float:
    """How many false splits are expected for every false merge, ** 2; 1 where they are fewer than MANY."""
    merged = doubts.merge >= 0
    ratio = float(doubts.chance[~merged].sum()) / max(float(doubts.chance[merged].sum()), 1e-9)
    return ratio**2 if ratio >= MANY else 1.0


def with_suspects(doubts: Doubts, parted: Parted, suspects: Suspects) -> tuple[Doubts, Parted]:
    """Doubts whose chances know of shapes, and what they are about, in which ends that face each other have a contact.

    The first doubts must be those of the merges, in the order of these.
    """
    shape, (one, other) = doubts.shape.copy(), suspects.facing.T
    crossed = crossing_merges(parted.sides, suspects.crossings)
    for kind, merges in ((CROSSING, crossed), (SOMATA, parted.sides.joined(*suspects.somata.T))):
        shape[merges[(merges >= 0) & (merges < parted.sides.made)]] = kind
    ours = pair_names(parted.table[one], parted.table[other])
    _, first = np.unique(ours, return_index=True)
    first = first[(parted.table[one] != parted.table[other])[first] & (one[first] > 0) & (other[first] > 0)]
    contact = doubts.contact[doubts.merge < 0]
    touch = pair_names(parted.table[parted.graph.u[contact]], parted.table[parted.graph.v[contact]])
    shape[parted.sides.made + np.flatnonzero(np.isin(touch, ours[first]))] = FACING
    apart = first[~np.isin(ours[first], touch)]
    chance = doubts.chance.copy()
    for kind, times in ((CROSSING, CROSSING_ODDS), (FACING, FACING_ODDS)):
        own = chance[shape == kind]
        chance[shape == kind] = own * times / (1 - own + own * times)
    chance[shape == SOMATA] = np.maximum(chance[shape == SOMATA], TWO_SOMATA)
    doubts, count = replace(doubts, chance=chance, shape=shape), len(apart)
    if count == 0:
        return doubts, parted
    graph = parted.graph
    ends = np.sort(np.stack([one[apart], other[apart]], axis=1), axis=1).astype(graph.u.dtype)
    more = {"u": ends[:, 0], "v": ends[:, 1], "count": np.zeros(count), "sum": np.zeros(count),
            "key": suspects.between[apart].astype(np.uint64) * np.uint64(KEY_STEPS)}
    columns = {name: np.append(getattr(graph, name), values.astype(getattr(graph, name).dtype))
               for name, values in more.items()}
    parted = replace(parted, graph=RegionGraph(graph.fragments, **columns, max=graph.max, min=graph.min,
                                               sizes=graph.sizes))
    none, contact = np.full(count, -1), np.arange(len(graph.u), len(graph.u) + count)
    voxels = parted.weigh(none, contact, graph.sizes)
    added = (none, contact, np.ones(count), np.zeros(count, np.int64), voxels, np.full(count, FACING_APART),
             stake(voxels, int(graph.sizes[1:].sum())), np.full(count, FACING, np.uint8))
    names = [name for name in Doubts.__dataclass_fields__ if name != "weight"]
    return Doubts(*(np.concatenate([getattr(doubts, name), rows]) for name, rows in zip(names, added))), parted


def crossing_merges(sides: Sides, crossings: np.ndarray) -> np.ndarray:
    """The merges that joined the two paths of crossings (n, 4), of those that one merge joined, each whole by then."""
    one, two, three, four = crossings.T
    across = np.stack([sides.joined(here, there) for here in (one, two) for there in (three, four)])
    whole = np.maximum(sides.joined(one, two), sides.joined(three, four))
    return across[0][(across == across[0]).all(axis=0) & (whole < across[0])]


def best_of_smaller(parted: Parted, merge: np.ndarray, contact: np.ndarray, height: np.ndarray,
                    voxels: np.ndarray) -> np.ndarray:
    """Whether nothing that touches the smaller of two objects has a lower height; no merge counts as that."""
    objects = parted.table[np.stack([parted.graph.u[contact], parted.graph.v[contact]], axis=1)]
    outside = merge < 0
    least = np.full(int(parted.table.max(initial=0)) + 1, np.inf)
    for side in range(2):
        np.minimum.at(least, objects[outside, side], height[outside])
    smaller = np.where(voxels[:, 0] <= voxels[:, 1], objects[:, 0], objects[:, 1])
    return outside & (height <= least[smaller])


def touching(segmentation: Segmentation, table: np.ndarray,
             threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(contact, faces, height) of every two objects that touch; the contact is that which carries most affinity."""
    graph = segmentation.graph
    between = np.flatnonzero(table[graph.u] != table[graph.v])
    names = pair_names(table[graph.u[between]], table[graph.v[between]])
    order = np.lexsort((-graph.sum[between], names))
    between, names = between[order], names[order]
    starts = np.flatnonzero(np.append(True, names[1:] != names[:-1])) if len(names) else between
    faces = np.add.reduceat(graph.count[between], starts) if len(names) else between
    run = Agglomeration(graph, segmentation.statistic, segmentation.ties)
    run.advance(threshold, segmentation.threads)
    left = run.remaining()
    order = np.argsort(pair_names(table[left.u], table[left.v]))
    return between[starts], faces, left.height[order].astype(np.float64)


def pair_names(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A number for each pair of two objects, in whatever order they come."""
    return np.minimum(one, other).astype(np.uint64) << np.uint64(32) | np.maximum(one, other).astype(np.uint64)


def stake(voxels: np.ndarray, total: int) -> np.ndarray:
    """The bits of VOI between two sides (n, 2) as one object and as two, in so many voxels."""
    sizes = voxels.astype(np.float64)
    both = sizes.sum(axis=1)
    return np.maximum(0, weighted(both) - weighted(sizes).sum(axis=1)) / max(total, 1)


def weighted(sizes: np.ndarray) -> np.ndarray:
    """n log2 n."""
    return sizes * np.log2(np.maximum(sizes, 1))


def logit(values: np.ndarray | float) -> np.ndarray:
    values = np.clip(values, LEAST, 1 - LEAST)
    return np.log(values / (1 - values))


def chance_of_one(height: np.ndarray, threshold: float, volumes: np.ndarray, best: np.ndarray,
                  merged: np.ndarray) -> np.ndarray:
    """How likely the two sides of every candidate are one neuron.

    It counts how far the logit of the height lies below that of the threshold, the logarithm of the smaller side
    (volumes (n, 2) are in cubic micrometres), and whether the other object is the one nearest to the smaller side.
    """
    small = np.log(np.maximum(volumes.min(axis=1), 1e-9))
    columns = np.stack([logit(threshold) - logit(height), small, best, np.ones(len(small))], axis=1)
    factors = np.where(merged[:, None], *np.array(FITTED))
    return 1 / (1 + np.exp(-(columns * factors).sum(axis=1)))
