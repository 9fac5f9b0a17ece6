"""Why a voxel has its label: the merges that led from its fragment to it, and the link between two voxels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.kernels import merge_tree as kernel
from emcore.segment.arrays import as_array
from emcore.segment.graph import SUM_SCALE, RegionGraph
from emcore.segment.merge_tree import MergeTree
from emcore.volumes import Volume

SHOWN = 12  # merges that are printed from either end of a long chain


class Merge(NamedTuple):
    """A cluster that joined the one of the voxel."""

    height: float  # 1 - the statistic of the affinities between the two
    partner: int  # the smallest fragment of what joined
    fragments: int
    voxels: int
    contacts: int  # pairs of voxels with an affinity between the two clusters


class Step(NamedTuple):
    """A merge between two fragments that touch, on the way from one voxel to the other."""

    first: int
    second: int
    height: float


class Contact(NamedTuple):
    """What lies between two segments that were not joined."""

    contacts: int
    mean: float  # mean of the affinities
    largest: float


class Site(NamedTuple):
    voxel: tuple[int, int, int]
    fragment: int
    voxels: int  # size of the fragment
    label: int


@dataclass(frozen=True)
class Explanation:
    """Tells the fragment of a voxel and every merge up to its label; `str` of it is a text for people.

    The last four are there where another voxel was asked about.

    Attributes:
        place: the voxel with its fragment and label.
        threshold: the threshold, 0 to 1.
        statistic: the name of the merge statistic.
        fragments: how many fragments the label has.
        voxels: how many voxels the label has.
        merges: the merges that joined the fragment with others, in order.
        other: the other voxel.
        path: the steps through touching fragments from one voxel to the other, if they have one label; the step of the
            largest height is their weakest link.
        joined_at: the height at which the two would merge, if they have two labels.
        contact: what lies between the two labels.

    Examples:
        >>> import numpy as np
        >>> from emcore import segment
        >>> affs = np.full((3, 2, 4, 6), 0.9, np.float32)
        >>> affs[2, :, :, 3] = 0.2  # a membrane between x = 2 and x = 3
        >>> told = segment.Segmentation(affs).explain((0, 0, 0), 0.5, other=(0, 0, 5))
        >>> round(told.joined_at, 3)
        0.8
    """

    place: Site
    threshold: float
    statistic: str
    fragments: int
    voxels: int
    merges: tuple[Merge, ...]
    other: Site | None = None
    path: tuple[Step, ...] = ()
    joined_at: float | None = None
    contact: Contact | None = None

    @property
    def weakest(self) -> Step | None:
        """The step of the path that the smallest statistic allowed."""
        return max(self.path, key=lambda step: step.height, default=None)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, shown: int = SHOWN) -> list[str]:
        """Tells it in lines of text for people.

        Args:
            shown: how many merges of a long chain are told from either end (default 12); the others are counted.

        Returns:
            The lines.
        """
        lines = [told_place(self.place)]
        if self.place.fragment == 0:
            return [*lines, "it belongs to no fragment: no affinity towards it is above low, or it is masked out"]
        lines.append(f"label {self.place.label} at threshold {self.threshold:g}: {self.fragments} fragments, "
                     f"{self.voxels} voxels")
        if not self.merges:
            lines.append(f"nothing joins it below {self.threshold:g}")
        else:
            lines += ["what joined it, in order, by the statistic of the affinities at the contact:",
                      row(self.statistic, "cluster of", "fragments", "voxels", "contacts")]
        rows = [row(f"{1 - merge.height:.6f}", *merge[1:]) for merge in self.merges]
        lines += shortened(rows, shown)
        if self.other is not None:
            lines += ["", *self._about_other(shown)]
        return lines

    def _about_other(self, shown: int) -> list[str]:
        lines = [told_place(self.other)]
        if self.other.fragment == 0:
            return [*lines, "it belongs to no fragment, so nothing can join it"]
        if self.other.fragment == self.place.fragment:
            return [*lines, "both are in one fragment: the watershed joined them, before any merge"]
        if self.path:
            weakest = self.weakest
            lines += [f"both have label {self.place.label}; the weakest link between them is the merge of fragments "
                      f"{weakest.first} and {weakest.second} at {self.statistic} {1 - weakest.height:.6f}",
                      "the way from one to the other:"]
            return lines + shortened([f"  {step.first} - {step.second}  {1 - step.height:.6f}" for step in self.path],
                                     shown)
        lines.append(f"it has label {self.other.label}: they are not joined at threshold {self.threshold:g}")
        if self.joined_at is not None:
            lines.append(f"they join from thresholds above {self.joined_at:.6f} on ({self.statistic} "
                         f"{1 - self.joined_at:.6f})")
        else:
            lines.append("no chain of merges joins them at any threshold that was computed")
        if self.contact is None:
            lines.append("their segments do not touch")
        else:
            lines.append(f"between their segments are {self.contact.contacts} contacts, of mean affinity "
                         f"{self.contact.mean:.6f} and largest {self.contact.largest:.6f}")
        return lines


def row(statistic: str, *columns: object) -> str:
    return f"  {statistic:>12}" + "".join(f"  {column:>10}" for column in columns)


def told_place(place: Site) -> str:
    z, y, x = place.voxel
    return f"voxel {z} {y} {x}: fragment {place.fragment}" + (f", {place.voxels} voxels" if place.fragment else "")


def shortened(rows: list[str], shown: int) -> list[str]:
    """The first and the last rows of many."""
    if len(rows) <= 2 * shown:
        return rows
    return [*rows[:shown], f"  ... {len(rows) - 2 * shown} more ...", *rows[-shown:]]


def explain(fragments: np.ndarray | Volume, graph: RegionGraph, tree: MergeTree, statistic: str, voxel: Sequence[int],
            threshold: float, other: Sequence[int] | None = None) -> Explanation:
    """See Segmentation.explain; the graph needs the sizes of its fragments."""
    sizes, table = graph.sizes, tree.table(threshold)
    made = int(np.searchsorted(tree.height, tree.height.dtype.type(threshold), side="left"))  # merges up to the label
    place, second = (None if one is None else place_of(fragments, one, sizes, table) for one in (voxel, other))
    if place.fragment == 0:
        return Explanation(place, threshold, statistic, 0, 0, (), second)
    joined = joins(tree, place.fragment)
    inside = joined < made
    merges = tuple(chain(tree, graph, sizes, joined, made))
    found = {"other": second}
    if second is not None and second.fragment not in (0, place.fragment):
        at = int(joined[second.fragment])
        if at < made:
            found["path"] = tuple(path(tree, made, table == place.label, place.fragment, second.fragment))
        else:
            found["joined_at"] = float(tree.height[at]) if at < len(tree.height) else None
            found["contact"] = contact(graph, table, place.label, second.label)
    return Explanation(place, threshold, statistic, int(inside[1:].sum()), int(sizes[inside].sum()), merges, **found)


def place_of(fragments: np.ndarray | Volume, voxel: Sequence[int], sizes: np.ndarray, table: np.ndarray) -> Site:
    position, shape = as_array("voxel", voxel), fragments.shape
    if position.shape != (3,) or position.dtype.kind not in "iu" or not (
            (position >= 0) & (position < shape)).all():
        raise InputError(f"a voxel is three whole numbers z, y, x within {tuple(shape)}; got {voxel}")
    voxel = tuple(position.tolist())
    fragment = int(fragments[voxel])
    return Site(voxel, fragment, int(sizes[fragment]), int(table[fragment]))


def joins(tree: MergeTree, fragment: int) -> np.ndarray:
    """With which merge every fragment came to the cluster of one of them.

    It is -1 for that one, and the number of all merges for those that never came; 0, the background, never does.
    """
    parent = np.arange(tree.fragments + 1, dtype=np.uint32)
    when = np.full(tree.fragments + 1, np.inf)
    kernel.link(tree.a, tree.b, np.arange(len(tree.a), dtype=np.float64), parent, when)
    # each fragment is the smallest of its cluster until that joins the cluster of its parent, with the merge `when`
    latest = np.where(np.isfinite(when), when, len(tree.a)).astype(np.int64)
    jump = parent.astype(np.int64)
    at, came = fragment, -1
    while True:  # up from the fragment: these the others are measured by
        following, next_came = int(parent[at]), latest[at]
        latest[at], jump[at] = came, at
        if following == at:
            break
        at, came = following, int(next_came)
    while not (jump == jump[jump]).all():  # the latest merge on the way to one of those, or to another root
        latest = np.maximum(latest, latest[jump])
        jump = jump[jump]
    return np.maximum(latest, latest[jump])


def chain(tree: MergeTree, graph: RegionGraph, sizes: np.ndarray, joined: np.ndarray, made: int) -> list[Merge]:
    """What came to the cluster of a fragment with each of the merges up to its label."""
    members = np.flatnonzero((joined >= 0) & (joined < made))
    events, first, group = np.unique(joined[members], return_index=True, return_inverse=True)
    count = np.bincount(group, minlength=len(events))
    voxels = np.zeros(len(events), np.int64)
    np.add.at(voxels, group, sizes[members])
    ends = np.stack([joined[graph.u], joined[graph.v]])
    latest = ends.max(0)
    between = (ends[0] != ends[1]) & (latest < made)  # one end was there when the other came
    contacts = np.zeros(len(events), np.int64)
    np.add.at(contacts, np.searchsorted(events, latest[between]), graph.count[between])
    return [Merge(float(tree.height[event]), int(members[at]), *numbers) for event, at, *numbers in zip(
        events.tolist(), first.tolist(), count.tolist(), voxels.tolist(), contacts.tolist())]


def path(tree: MergeTree, made: int, inside: np.ndarray, start: int, end: int) -> list[Step]:
    """The merges between touching fragments that lead from one fragment of a label to another."""
    numbers = np.flatnonzero(inside[tree.a[:made]])
    neighbours: dict[int, list[tuple[int, int]]] = {}
    for number, a, b in zip(numbers.tolist(), tree.a[numbers].tolist(), tree.b[numbers].tolist()):
        neighbours.setdefault(a, []).append((b, number))
        neighbours.setdefault(b, []).append((a, number))
    before: dict[int, tuple[int, int]] = {start: (start, -1)}
    waiting = [start]
    while waiting and end not in before:
        at = waiting.pop()
        for following, number in neighbours.get(at, ()):
            if following not in before:
                before[following] = (at, number)
                waiting.append(following)
    steps = []
    while end != start:
        previous, number = before[end]
        steps.append(Step(previous, end, float(tree.height[number])))
        end = previous
    return steps[::-1]


def contact(graph: RegionGraph, table: np.ndarray, one: int, other: int) -> Contact | None:
    """What lies between two segments; None where they do not touch."""
    u, v = table[graph.u], table[graph.v]
    between = ((u == one) & (v == other)) | ((u == other) & (v == one))
    if not between.any():
        return None
    contacts = int(graph.count[between].sum())
    return Contact(contacts, float(graph.sum[between].sum() / (contacts * SUM_SCALE)),
                   float(graph.max[between].max()))
