"""Tables of columns that many blocks hand in, pooled so that neither their order nor the grid can be told from it."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Columns = dict[str, np.ndarray]

# how the rows that become one are pooled; sums are of whole numbers, so that no order of them shows
POOLED = {"count": np.add, "sum": np.add, "pixels": np.add, "total": np.add, "max": np.maximum, "min": np.minimum,
          "key": np.maximum}
FEW = 2**16  # rows that may wait before they are pooled


def pool(columns: Mapping[str, np.ndarray], by: Sequence[str]) -> Columns:
    """One row for all rows that agree in the columns `by`, sorted by these."""
    order = np.lexsort([columns[name] for name in reversed(by)])
    ordered = {name: values[order] for name, values in columns.items()}
    starts = group_starts(ordered, by)
    return {name: values[starts] if name in by else POOLED[name].reduceat(values, starts)
            for name, values in ordered.items()}


def pool_all(parts: Iterable[Mapping[str, np.ndarray]], by: Sequence[str]) -> Columns:
    """The pooled rows of one or more tables, of which no more is held than about twice the result and the next one."""
    waiting: list[Mapping[str, np.ndarray]] = []
    rows = pooled = 0
    for part in parts:
        waiting.append(part)
        rows += len(part[by[0]])
        if rows > 2 * pooled + FEW:
            waiting = [pool(stack(waiting), by)]
            rows = pooled = len(waiting[0][by[0]])
    return pool(stack(waiting), by)


def stack(parts: Sequence[Mapping[str, np.ndarray]]) -> Columns:
    """The rows of one or more tables, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def group_starts(columns: Mapping[str, np.ndarray], by: Sequence[str]) -> np.ndarray:
    """Where a new group of rows that agree in the columns `by` begins, in a table that is sorted by them."""
    begins = np.zeros(len(columns[by[0]]), bool)
    begins[:1] = True
    for name in by:
        begins[1:] |= columns[name][1:] != columns[name][:-1]
    return np.flatnonzero(begins)
