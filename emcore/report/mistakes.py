"""The largest errors of a segmentation, splits and merges, what it misses and invents, and where to look for them."""

from typing import Any

import numpy as np

from emcore.metrics import Contingency

LISTED = 10  # errors of a kind
PIECES = 5  # so many pieces of one error are shown


def largest(groups: np.ndarray, members: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """The groups (truth ids for splits, label ids for merges) that lie in several members, most misplaced voxels first.

    The arguments are the kept pairs of a table; misplaced are the voxels outside of the group's largest member.
    """
    order = np.lexsort((members, -counts, groups))
    groups, members, counts = groups[order], members[order], counts[order]
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1])) if len(groups) else np.zeros(0, int)
    ends = np.append(starts[1:], len(groups)).astype(int)
    sizes = np.add.reduceat(counts, starts) if len(groups) else counts
    misplaced = sizes - counts[starts]
    worst = np.argsort(-misplaced, kind="stable")[:LISTED]
    return [{"id": int(groups[starts[g]]), "voxels": int(sizes[g]), "misplaced": int(misplaced[g]),
             "members": int(ends[g] - starts[g]),
             "pieces": [(int(members[k]), int(counts[k])) for k in range(starts[g], min(ends[g], starts[g] + PIECES))]}
            for g in worst if misplaced[g] > 0]


def find(table: Contingency) -> dict[str, list[dict[str, Any]]]:
    """The largest splits and merges of a table that ignores the background of both sides."""
    truth, labels = table.truth[table.kept], table.labels[table.kept]
    return {"split": largest(truth, labels, table.n), "merge": largest(labels, truth, table.n)}


def unmet(groups: np.ndarray, members: np.ndarray, counts: np.ndarray,
          nothing: tuple[int, ...]) -> list[dict[str, Any]]:
    """The groups all of whose voxels lie in members that are nothing, most voxels first."""
    ids, place = np.unique(groups, return_inverse=True)
    sizes = np.zeros(len(ids), np.int64)
    np.add.at(sizes, place, counts)
    met = np.zeros(len(ids), bool)
    met[place[~np.isin(members, np.array(nothing, np.uint64))]] = True
    worst = [g for g in np.argsort(-sizes, kind="stable") if not met[g]][:LISTED]
    return [{"id": int(ids[g]), "voxels": int(sizes[g])} for g in worst]


def missed_and_invented(table: Contingency, background: tuple[int, ...]) -> dict[str, list[dict[str, Any]]]:
    """True objects that no segment touches, and segments that lie in nothing but the truth's background."""
    real = ~np.isin(table.truth, np.array((*background, *table.ignore_truth), np.uint64))
    ours = table.labels != 0
    return {"missed": unmet(table.truth[real], table.labels[real], table.counts[real], (0,)),
            "invented": unmet(table.labels[ours], table.truth[ours], table.counts[ours], background)}


def best_partner(groups: np.ndarray, members: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> dict[int, int]:
    """Group id -> the member that shares most voxels with it, the smaller id of equals; of the wanted groups alone."""
    kept = np.flatnonzero(np.isin(groups, wanted))[::-1]  # tables ascend, sorting keeps equals in order
    groups, members, counts = groups[kept], members[kept], counts[kept]
    order = np.lexsort((counts, groups))
    return dict(zip(groups[order].tolist(), members[order].tolist()))  # the last entry of a group stays


def place(truth: np.ndarray, labels: np.ndarray, truth_id: int, label_id: int) -> list[int] | None:
    """A grid point (z, y, x) well inside the voxels of this pair; None where the grid misses all of them."""
    both = (truth == truth_id) & (labels == label_id)
    in_section = np.count_nonzero(both, axis=(1, 2))
    if not in_section.any():
        return None
    z = int(in_section.argmax())
    points = np.argwhere(both[z])
    nearest = points[((points - points.mean(0)) ** 2).sum(1).argmin()]
    return [z, *nearest.tolist()]
