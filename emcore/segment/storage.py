"""A merge tree and a region graph in a file beside their fragments: another threshold costs a table look-up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from emcore.errors import InputError
from emcore.segment.graph import BINS, RegionGraph, check_graph
from emcore.segment.merge_tree import MergeTree, check_tree
from emcore.volumes import Volume, create_volume, list_datasets, open_volume

FRAGMENTS = "fragments"  # dataset (z, y, x)
MERGES = "merges"  # dataset (3, 1, 1, merges): fragments a and b and the height of every merge
MERGE_KEYS = "merge_keys"  # dataset (1, 1, 1, merges): the key of every merge, where the tree has them
GRAPH = "graph"  # dataset (7 or 8, 1, 1, edges): these fields, of float32 the bits; the last one where there is one
FIELDS = {"u": np.uint32, "v": np.uint32, "count": np.int64, "sum": np.int64, "key": np.uint64,
          "max": np.float32, "min": np.float32, "running_mean": np.float32}
HISTOGRAMS = "histograms"  # dataset (3, 1, 1, bins): edge, bin and count, where the graph has them


class Parts(Protocol):
    """Fragments, graph and tree that were made before; each is read when it is called for."""

    @property
    def statistic(self) -> str: ...
    @property
    def ties(self) -> str: ...
    def fragments(self) -> Volume: ...
    def graph(self) -> RegionGraph: ...
    def tree(self) -> MergeTree: ...


@dataclass(frozen=True)
class StoredParts:
    """The parts in a file that Segmentation.write made."""

    path: Path

    @property
    def statistic(self) -> str:
        return read_made_by(self.path)[0]

    @property
    def ties(self) -> str:
        return read_made_by(self.path)[1]

    def fragments(self) -> Volume:
        return open_volume(self.path, FRAGMENTS)

    def graph(self) -> RegionGraph:
        return read_graph(self.path)

    def tree(self) -> MergeTree:
        return read_tree(self.path)


def stored_parts(path: Path) -> StoredParts | None:
    """Fragments, graph and tree of a file; None where it has no tree."""
    return StoredParts(path) if has_tree(path) else None


def no_tree(path: Path) -> InputError:
    """The sentence for a file without a tree."""
    if "labels" in {item.name for item in list_datasets(path)} and "blocks" in open_volume(path, "labels").attrs:
        return InputError(f"{path} was decoded in blocks, so its merges stand in the files of the blocks: read them by "
                          "emcore.blocks.tables.read_segmentation")
    return InputError(f"{path} has no merge tree, so it cannot be cut: only decode.kind = affinities stores one")


def write_tree(path: Path, tree: MergeTree, made_by: Mapping[str, str] | None = None) -> None:
    """Adds a merge tree to an HDF5 file; its other datasets stay.

    Args:
        path: an HDF5 file; it is made if it is not there.
        tree: the `MergeTree`.
        made_by: the statistic and the ties of the agglomeration, to be kept with it. None by default.

    Raises:
        InputError: the path does not name an HDF5 file.

    Cost:
        It takes 1,600 ns of one core and 200 bytes per merge.

    Examples:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from emcore import segment
        >>> tree = segment.MergeTree(2, np.array([1], np.uint32), np.array([2], np.uint32), np.array([0.2]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     segment.write_tree(Path(folder, "tree.h5"), tree, {"statistic": "mean", "ties": "canonical"})
    """
    tree = check_tree(tree, "write_tree")
    merges = np.stack([tree.a, tree.b, tree.height]).astype(np.float64)
    end = {} if np.isinf(tree.complete_below) else {"complete_below": float(tree.complete_below)}
    _write_rows(path, MERGES, merges, {"fragments": int(tree.fragments), "merges": len(tree.a), **end,
                                       "single": int(tree.height.dtype == np.float32), **(made_by or {})})
    if tree.key is not None:
        _write_rows(path, MERGE_KEYS, tree.key[None], {"merges": len(tree.a)})


def has_tree(path: Path) -> bool:
    """Tells whether a file holds a merge tree.

    Args:
        path: an HDF5 file.

    Returns:
        True or False.

    Raises:
        InputError: the file cannot be read.

    Cost:
        The names of the datasets are read.

    Examples:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from emcore import segment
        >>> tree = segment.MergeTree(2, np.array([1], np.uint32), np.array([2], np.uint32), np.array([0.2]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "tree.h5")
        ...     segment.write_tree(path, tree)
        ...     segment.has_tree(path), segment.read_tree(path).height
        (True, array([0.2]))
    """
    return MERGES in {item.name for item in list_datasets(path)}


def read_tree(path: Path) -> MergeTree:
    """Reads the merge tree that `write_tree` or a decoding stored; files of older versions have no keys.

    Args:
        path: an HDF5 file.

    Returns:
        The `MergeTree`.

    Raises:
        InputError: the file holds no merge tree, or a damaged one.

    Cost:
        It takes 1,100 ns of one core and 150 bytes per merge.

    Examples:
        >>> import numpy as np, tempfile
        >>> from pathlib import Path
        >>> from emcore import segment
        >>> tree = segment.MergeTree(2, np.array([1], np.uint32), np.array([2], np.uint32), np.array([0.2]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     segment.write_tree(Path(folder, "tree.h5"), tree)
        ...     segment.read_tree(Path(folder, "tree.h5")).fragments
        2
    """
    names = {item.name for item in list_datasets(path)}
    if MERGES not in names:
        raise no_tree(path)
    (a, b, height), attributes = _read_rows(path, MERGES, "merges", (3,))
    _check_ids(path, MERGES, attributes["fragments"], a, b)
    if np.isnan(height).any() or (np.diff(height) < 0).any():
        raise InputError(f"{path}: the heights of its merges fall; the file is damaged, decode the prediction again")
    end = attributes.get("complete_below", np.inf)
    if not isinstance(end, int | float) or not (end >= 0 and (len(height) == 0 or height[-1] < end)):
        raise InputError(f"{path}: its merges say that they were made up to {end!r}, which does not fit their heights; "
                         "the file is damaged, decode the prediction again")
    key = _read_keys(path, height) if MERGE_KEYS in names else None
    return MergeTree(int(attributes["fragments"]), a.astype(np.uint32), b.astype(np.uint32),
                     height.astype(np.float32) if attributes.get("single") else height, float(end), key)


def _read_keys(path: Path, height: np.ndarray) -> np.ndarray:
    """The keys of merges at these heights."""
    stored = open_volume(path, MERGE_KEYS)
    if stored.shape == (1, 1, 1, max(1, len(height))) and stored.dtype == np.uint64:
        key = stored[...].reshape(-1)[:len(height)]
        if not ((height[1:] == height[:-1]) & (key[1:] < key[:-1])).any():
            return key
    raise InputError(f"{path}: the keys of its merges do not fit their heights; the file is damaged, decode the "
                     "prediction again")


def read_made_by(path: Path) -> tuple[str, str]:
    """The statistic and the ties by which the tree of a file was made."""
    said = open_volume(path, MERGES).attrs
    if "statistic" not in said:  # files of older versions say it with their fragments
        settings = open_volume(path, FRAGMENTS).attrs.get("decode")
        said = {"statistic": settings.get("score"), **settings} if isinstance(settings, dict) else {}
    found = said.get("statistic"), said.get("ties", "canonical")
    if not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} does not say by which statistic its merges were made; decode the prediction again")
    return found


def write_graph(path: Path, graph: RegionGraph) -> None:
    """Adds the edges of the graph to an HDF5 file, bit for bit."""
    graph = check_graph(graph, "write_graph")
    columns = [getattr(graph, name) for name in FIELDS if getattr(graph, name) is not None]
    rows = np.stack([(column.view(np.uint32) if column.dtype == np.float32 else column).astype(np.uint64)
                     for column in columns])
    _write_rows(path, GRAPH, rows, {"fragments": int(graph.fragments), "edges": len(graph.u)})
    if graph.bins is not None:
        edges = np.repeat(np.arange(len(graph.u)), np.diff(graph.bin_starts))
        bins = np.stack([edges, graph.bins, graph.bin_counts]).astype(np.uint64)
        _write_rows(path, HISTOGRAMS, bins, {"bins": bins.shape[1]})


def read_graph(path: Path) -> RegionGraph:
    """The graph that write_graph stored, without the sizes of its fragments."""
    names = {item.name for item in list_datasets(path)}
    if GRAPH not in names:
        raise InputError(f"{path} has no region graph; decode the prediction again")
    rows, attributes = _read_rows(path, GRAPH, "edges", (len(FIELDS) - 1, len(FIELDS)))
    _check_ids(path, GRAPH, attributes["fragments"], rows[0], rows[1])
    fields = {name: row.astype(np.uint32).view(dtype) if dtype is np.float32 else row.astype(dtype)
              for (name, dtype), row in zip(FIELDS.items(), rows)}
    if HISTOGRAMS in names:
        edges, bins, counts = _read_rows(path, HISTOGRAMS, "bins", (3,))[0]
        falling = (edges[1:] < edges[:-1]).any()
        if falling or (edges >= max(1, rows.shape[1])).any() or (bins >= BINS).any():
            raise InputError(f"{path}: its histograms fit no graph; the file is damaged, decode the prediction again")
        starts = np.searchsorted(edges, np.arange(rows.shape[1] + 1, dtype=np.uint64))
        fields |= {"bin_starts": starts.astype(np.int64), "bins": bins.astype(np.uint32),
                   "bin_counts": counts.astype(np.int64)}
    return RegionGraph(int(attributes["fragments"]), **fields)


def _write_rows(path: Path, dataset: str, rows: np.ndarray, attributes: dict) -> None:
    shape = (len(rows), 1, 1, max(1, rows.shape[1]))  # a volume has at least one voxel
    with create_volume(f"{path}:{dataset}", shape, rows.dtype, attributes=attributes) as out:
        if rows.size:
            out[...] = rows.reshape(shape)


def _read_rows(path: Path, dataset: str, count: str, rows: Sequence[int]) -> tuple[np.ndarray, dict]:
    stored = open_volume(path, dataset)
    numbers = [stored.attrs.get(name) for name in (count, "fragments") if name in stored.attrs or name == count]
    shape = stored.shape
    if (len(shape) != 4 or shape[0] not in rows or shape[1:3] != (1, 1)
            or not all(isinstance(number, int) and number >= 0 for number in numbers) or numbers[0] > shape[3]):
        raise InputError(f"{path}: the dataset {dataset} {shape} is not one that was stored with labels")
    return stored[...][:, 0, 0, :numbers[0]], {"fragments": 0, **stored.attrs}


def _check_ids(path: Path, dataset: str, fragments: int, *columns: np.ndarray) -> None:
    for ids in columns:
        if ids.size and not (ids.min() >= 1 and ids.max() <= min(fragments, 2**32 - 2) and (ids == ids // 1).all()):
            raise InputError(f"{path}: the dataset {dataset} names fragments that are not among its {fragments}; the "
                             "file is damaged, decode the prediction again")
