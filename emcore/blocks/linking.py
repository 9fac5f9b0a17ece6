"""Segments joined across sections in blocks: overlaps add up over the blocks of a row, and one table decides.

    columns = overlap_columns(labels, z, pixels, planes)               # one block tells these
    row = decide(pool_overlaps(columns_of_a_row), pixels, rule)        # the blocks of one row decide
    joined = link_table(rows, columns_of_all_blocks)
    segment.remap(labels, (joined.old, joined.new.astype(labels.dtype)), missing="keep")
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np

from emcore.blocks.pooled import Columns, group_starts, pool_all, stack
from emcore.kernels import overlaps as kernel
from emcore.segment.affinities import Affinities
from emcore.segment.linking import CANDIDATE, Joined, LinkRule, candidates, join_candidates, z_plane

PAIRS = ("z", "first", "second", "pixels", "total")
SPANS = ("number", "begin", "end")
_KERNEL_TABLE = [("first", "u8"), ("second", "u8"), ("pixels", "i8"), ("total", "i8")]


def overlap_columns(labels: np.ndarray, z: int, pixels: int, planes: Iterable[np.ndarray] | None = None) -> Columns:
    """What a block tells of its segments: PAIRS of consecutive sections, and SPANS, where each begins and ends in it.

    labels (uint32 or uint64) are those of the block and, unless the volume begins there, of one section before it; the
    first of them is section z of the volume, whose sections have so many pixels. planes are the z affinities between
    consecutive sections of the labels (see z_planes) where the rule asks for them.
    """
    planes = [None] * (len(labels) - 1) if planes is None else planes
    tables = [kernel.overlaps(first, second, plane, pixels)
              for first, second, plane in zip(labels[:-1], labels[1:], planes, strict=True)]
    own = z + 1 if z else 0  # the first section of the block itself
    present = [*([] if z else [np.unique(labels[0])]), *(np.unique(table["second"]) for table in tables)]
    numbers, sections = np.concatenate(present), np.repeat(np.arange(own, own + len(present)), [*map(len, present)])
    order = np.argsort(numbers, kind="stable")
    spans = {"number": numbers[order].astype(np.uint64), "end": sections[order]}
    starts = group_starts(spans, ("number",))
    table = np.concatenate([np.empty(0, _KERNEL_TABLE), *tables])
    return {"z": np.repeat(np.arange(z, z + len(tables)), [*map(len, tables)]),
            **{name: table[name] for name in PAIRS[1:]},
            "number": spans["number"][starts], "begin": spans["end"][starts],
            "end": np.maximum.reduceat(spans["end"], starts)}


def z_planes(affs: Affinities, inside: tuple[slice, slice, slice]) -> Iterator[np.ndarray]:
    """The z affinities between the sections of a box inside affinities."""
    for z in range(inside[0].start, inside[0].stop - 1):
        yield z_plane(affs, z)[inside[1:]]


def pool_overlaps(parts: Iterable[Mapping[str, np.ndarray]]) -> Columns:
    """The overlaps of whole sections, of those of one or more blocks that fill them."""
    return pool_all(({name: part[name] for name in PAIRS} for part in parts), ("z", "first", "second"))


def decide(overlaps: Mapping[str, np.ndarray], pixels: int, rule: LinkRule) -> Columns:
    """The pairs of labels that the rule joins if they end and begin where they meet, as CANDIDATE.

    overlaps are those of whole sections. What is seen to go on in the other of two sections is left out.
    """
    found = [np.empty(0, CANDIDATE)]
    bounds = [*group_starts(overlaps, ("z",)), len(overlaps["z"])]
    for start, stop in pairwise(bounds):
        table = np.empty(stop - start, _KERNEL_TABLE)
        for name in table.dtype.names:
            table[name] = overlaps[name][start:stop]
        pairs = candidates(table, int(overlaps["z"][start]), pixels, rule)
        goes_on = np.isin(pairs["first"], table["second"])
        was_there = np.isin(pairs["second"], table["first"])
        found.append(pairs[~(goes_on & was_there) & (pairs["alike"] | ~(goes_on | was_there))])
    rows = np.concatenate(found)
    return {name: rows[name] for name in CANDIDATE.names}


def link_table(rows: Iterable[Mapping[str, np.ndarray]], spans: Iterable[Mapping[str, np.ndarray]]) -> Joined:
    """The groups of labels that are one, and their new names; rows are of decide, spans of overlap_columns.

    Memory follows the candidates: of all spans only theirs are kept.
    """
    columns = stack(list(rows))
    found = np.empty(len(columns["z"]), CANDIDATE)
    for name in CANDIDATE.names:
        found[name] = columns[name]
    ids = np.unique(np.concatenate([found["first"], found["second"]]))
    begins, ends = np.full(len(ids), np.iinfo(np.int64).max), np.full(len(ids), -1)
    for span in spans:
        known = np.isin(span["number"], ids)
        where = np.searchsorted(ids, span["number"][known])
        begins[where] = np.minimum(begins[where], span["begin"][known])
        ends[where] = np.maximum(ends[where], span["end"][known])
    return join_candidates(found, ids, begins, ends)
