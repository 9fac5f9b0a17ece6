"""What decoding in blocks takes of volumes of any size, by rates that were measured on small ones.

    python -m bench.blocks --plan                       # a ladder from a gigavoxel to a petavoxel
    python -m bench.blocks --plan 4000,20000,20000      # one volume

Stages and tasks are those of emcore itself. What a stage takes grows with the voxels, with the faces between blocks,
with the clusters that enter the windows of a partition, or with the labels; RATES says what was measured for each of
them. How many clusters enter larger windows than any that was measured is an extrapolation: it has a lower and an upper
end.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.watch import watch
from emcore.blocks import store
from emcore.blocks.choice import WORKER, Task, amount, size_of, times
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.run import work_of
from emcore.blocks.windows import Source
from emcore.blocks.work import Stage, run_task
from emcore.settings.decode import AffinityDecode

LADDER = ((1000,) * 3, (2154,) * 3, (10_000,) * 3, (100_000,) * 3)


class Rate(NamedTuple):
    """What a stage takes for each of the things that it works on."""

    thing: str  # voxel; face: a voxel on one side of a face between two nodes; cluster that enters a window; label
    disk: float  # bytes of its files
    cores: float  # nanoseconds of a core
    memory: float = 0  # bytes of memory, where a single task works on all of them


# 8-bit affinities of real labels, mean, low .1 and high .999 (a fragment for every 153 voxels), blocks of 256³: printed
# by python -m bench.blocks --size 512 --labels labels512.h5 --gigavoxels 1 --block 256, which are mirrored copies, and
# those of pairs by the same with --statistic aff85_his256 and without --gigavoxels.
RATES = {
    "fragments": Rate("voxel", 0.768, 35.5),
    "seams": Rate("face", 1.0, 369, 14.2),
    "graph": Rate("voxel", 1.02, 37.8),
    "pairs": Rate("face", 0.863, 109, 22.4),
    "settle 0": Rate("voxel", 0.752, 15.7),
    "merges 0": Rate("voxel", 0.478, 6.11),
    "cut 0": Rate("voxel", 0.116, 1.26),
    "settle": Rate("cluster", 149, 2930),
    "merges": Rate("cluster", 99.2, 1850, 2560),
    "cut": Rate("cluster", 16, 620),
    "forest": Rate("face", 2.89, 75.2, 108),
    "outside": Rate("face", 1.54, 137),
    "numbers": Rate("label", 16, 706, 79.8),
    "labels": Rate("voxel", 0.298, 20.9),
}
LABELS = 8.8e-4  # labels a voxel, most of them of a few voxels
PREDICTION = 3  # bytes a voxel of the prediction itself: 8 bits along z, y and x

# ---- what climbs: of all figures those to measure anew when merges change (decode.end is the threshold, .5)
# Clusters for every voxel at faces of the windows before, 256³ and 512³: first of those that begin with the volume,
# then of those that lie half a window off.
CLUSTERS = (0.0409, 0.00573), (0.0101, 0.000685)
EXPONENTS = -0.5, 0.0  # by which they grow with the side of larger windows: as segments that touch a face; not at all
EDGES = 13.6  # so many enter the top with every cluster

# ---- what the file of seams is read by
HEADER = 2 * 50  # bytes for every block in the header of the file of seams, which has two columns for each


# ---- what was measured of whole runs, to hold the model against


class Run(NamedTuple):
    grid: Grid
    measured: dict[str, float]


RUNS = (  # the command above, and with --gigavoxels 8, which only the disk of fragments was taken from
    Run(Grid((1024,) * 3, (256,) * 3), {"seconds of a core": 167, "clusters in the last merges": 8624,
                                        "bytes of memory of the last merges": 7.8e7}),
    Run(Grid((2048,) * 3, (256,) * 3), {"bytes of disk": 4.458e10, "seconds of a core": 1687}),
)


# ---- the model


def planes(grid: Grid, level: int) -> int:
    """Voxels on one side of the faces between the nodes of a level."""
    return sum((count - 1) * prod(grid.shape) // length for count, length in zip(grid.counts(level), grid.shape))


def clusters(grid: Grid, partition: int, exponent: float) -> float:
    """Clusters that enter the windows of a partition, all together; none is before the first."""
    before = grid.partitions[max(0, partition - 1)]
    level = min(1, (before.block[0] // grid.block[0]).bit_length() - 1)
    growth = max(1, prod(map(min, before.block, grid.shape)) ** (1 / 3) / 512) ** exponent if level else 1
    return CLUSTERS[level][any(before.shift)] * 2 * planes(before, 0) * growth if partition else 0.0


def rate_of(stage: Stage) -> tuple[str, int, int]:
    """The name of a stage's rate, the partition that it works on, and the level of its nodes above that."""
    kind, *places = stage.name.split()
    level, partition = map(int, places[:2] if kind in ("forest", "outside") else (0, *places[:1], 0)[:2])
    return f"{kind} 0" if partition == 0 and f"{kind} 0" in RATES else kind, partition, level


def things(grid: Grid, stage: Stage, exponent: float) -> float:
    """How many of what its rate counts a stage works on, in all its tasks."""
    name, partition, level = rate_of(stage)
    thing = RATES[name].thing
    if thing == "cluster":
        return clusters(grid, partition, exponent)
    if thing == "face":  # what a forest joins lies at the faces between the children of a node
        return planes(grid.partitions[partition], level - (name == "forest"))
    return prod(grid.shape) * (LABELS if thing == "label" else 1)


class Plan(NamedTuple):
    """What a volume takes at one end of the extrapolation, by groups of stages."""

    tasks: dict[str, float]
    disk: dict[str, float]  # bytes
    cores: dict[str, float]  # seconds of a core
    memory: dict[str, float]  # bytes of a task


def plan_of(grid: Grid, settings: AffinityDecode, exponent: float) -> Plan:
    work = AffinityWork(Path(), grid, Source("", settings), "")
    worker = WORKER + Task(grid.shape, 3, 1, settings).in_block * prod(grid.block)
    plan = Plan({}, {}, {}, {"a block": worker})
    for stage in work.stages():
        rate, kind, count = RATES[rate_of(stage)[0]], stage.name.split()[0], things(grid, stage, exponent)
        group = "sweeps" if kind in ("forest", "outside") else "merges" if kind == "settle" else kind
        for table, more in ((plan.tasks, stage.count), (plan.disk, rate.disk * count),
                            (plan.cores, rate.cores * count / 1e9)):
            table[group] = table.get(group, 0) + more
        if rate.memory and stage.count == 1 < grid.blocks():
            name = f"last {kind}" if kind in ("merges", "forest") else kind
            plan.memory[name] = max(plan.memory.get(name, 0), WORKER + rate.memory * count)
    plan.memory["pairs"] = WORKER + RATES["pairs"].memory * planes(grid, 0)  # a stage of quantiles of maxima alone
    return plan


def figures(grid: Grid, settings: AffinityDecode) -> dict[str, tuple[float, float]]:
    """The figures of a Run by the model, at both ends."""
    plans = [plan_of(grid, settings, exponent) for exponent in EXPONENTS]
    tops = [clusters(grid, len(grid.partitions) - 1, exponent) for exponent in EXPONENTS]
    return {"bytes of disk": tuple(sum(plan.disk.values()) for plan in plans),
            "seconds of a core": tuple(sum(plan.cores.values()) for plan in plans),
            "clusters in the last merges": tuple(tops),
            "bytes of memory of the last merges": tuple(plan.memory["last merges"] for plan in plans)}


def limits(grid: Grid, ends: Sequence[Plan], memory: float) -> Iterator[str]:
    """What a machine with so much memory cannot do, and what none can, in sentences."""
    for name, least in ends[0].memory.items():
        if name == "pairs" and name not in ends[0].tasks:
            continue
        most, what = ends[1].memory[name], "each task of" if name == "a block" else "the single task"
        if most > memory:
            word = "cannot" if least > memory else "may not be able to"
            yield f"{what} {name} takes {span(least, most, size_of)}: a machine with {size_of(memory)} {word} do it"
    header = HEADER * grid.blocks()
    if header > store.LONGEST_HEADER:
        yield (f"the file of seams would name its columns in {size_of(header)}, but no more than "
               f"{size_of(store.LONGEST_HEADER)} are read: no machine can do it")
    edges = [EDGES * clusters(grid, len(grid.partitions) - 1, exponent) for exponent in EXPONENTS]
    if edges[1] >= 2**32:
        word = "no machine can" if edges[0] >= 2**32 else "perhaps no machine can"
        yield f"{span(*edges, count_of)} edges enter the last merges, which number them in 32 bits: {word} do it"


# ---- printing


def span(least: float, most: float, told: Callable[[float], str]) -> str:
    """One number, or both ends where they read differently."""
    return told(least) if told(least) == told(most) else f"{told(least)} to {told(most)}"


def count_of(number: float) -> str:
    return amount(number, "").strip()


def hours_of(seconds: float) -> str:
    return f"{seconds / 3600:.2f}" if seconds < 36_000 else f"{seconds / 3600:,.0f}"


def rows_of(grid: Grid, ends: Sequence[Plan], gpu: float | None) -> dict[str, str]:
    """What is printed of a volume, line by line."""
    voxels, number = prod(grid.shape), sum(ends[0].tasks.values())
    rows = {"voxels": count_of(voxels), "blocks": f"{grid.blocks():,}", "levels of the octree": str(grid.levels),
            "files, one a task": f"{number:,}", "disk, prediction": size_of(PREDICTION * voxels)}
    for part, told in (("tasks", count_of), ("disk", size_of), ("core hours", hours_of), ("memory", size_of)):
        tables = [getattr(end, part.replace("core hours", "cores")) for end in ends]
        rows |= {f"{part}, {name}": span(*(table[name] for table in tables), told) for name in tables[0]}
        if part in ("disk", "core hours"):
            rows[f"{part}, together"] = span(*(sum(table.values()) for table in tables), told)
    return rows | ({"GPU hours, prediction": hours_of(voxels / gpu)} if gpu else {})


def print_plan(shapes: Sequence[tuple[int, int, int]], block: int, settings: AffinityDecode, memory: float,
               gpu: float | None) -> None:
    """Prints a volume, or the ladder where no shape is given."""
    grids = [Grid(shape, tuple(min(block, length) for length in shape)) for shape in shapes or LADDER]
    plans = [[plan_of(grid, settings, exponent) for exponent in EXPONENTS] for grid in grids]
    columns = [rows_of(grid, ends, gpu) for grid, ends in zip(grids, plans)]
    print("".join([f"{f'blocks of {block}³':<24}", *(f"{times(grid.shape):>22}" for grid in grids)]))
    for name in max(columns, key=len):  # in which every stage occurs
        print("".join([f"{name:<24}", *(f"{column.get(name, '-'):>22}" for column in columns)]))
    print("The rates are those of mean, low .1, high .999 and a cut at .5; other settings change the stages alone.")
    if not gpu:
        print("GPU hours of the prediction are left out, as no rate was measured: --voxels-per-gpu-second gives one.")
    for run in RUNS:
        modelled = figures(run.grid, settings)
        print(f"{times(run.grid.shape)} in blocks of {times(run.grid.block)}, measured and (by this model):",
              ", ".join(f"{count_of(number)} ({span(*modelled[name], count_of)}) {name}"
                        for name, number in run.measured.items()))
    for grid, ends in zip(grids, plans):
        said = list(limits(grid, ends, memory)) or [f"no task takes more than {size_of(memory)}"]
        print("\n    ".join([f"{times(grid.shape)}:", *said]))


def shape_of(text: str) -> tuple[int, int, int]:
    """Z,Y,X of the command line."""
    match = re.fullmatch(r"([1-9]\d*),([1-9]\d*),([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a shape is voxels along z, y, x, such as 4000,20000,20000; got {text!r}")
    return tuple(map(int, match.groups()))


# ---- measuring


def told_rates(labels: Path, seconds: Mapping[str, float], cores: float) -> Iterator[str]:
    """The rates of a run, one a line. Single tasks run again, each in a process of its own, which tells their seconds
    of a core; the other stages share what is left of those of all by how long they took."""
    work = work_of(labels)
    single = {stage.name: watch(run_task, work, stage, 0) for stage in work.stages() if stage.count == 1}
    idle = watch(work.stages).largest
    left = cores - sum(run.cpu for run in single.values())
    taken = sum(number for name, number in seconds.items() if name not in single)
    found: dict[str, np.ndarray] = {}
    memory: dict[str, float] = {}
    for stage in work.stages():
        name, partition, _ = rate_of(stage)
        paths = [work.path(stage, number) for number in range(stage.count)]
        count = things(work.grid, stage, EXPONENTS[0])
        if RATES[name].thing == "cluster":
            count = sum(store.shapes(work.path(work.merge_stage(partition), number))["names"][0]
                        for number in range(stage.count))
        elif RATES[name].thing == "label":
            count = 1 + int(store.read(paths[0], "segments")[0][0])
        run = single.get(stage.name)
        busy = run.cpu if run else left * seconds[stage.name] / taken
        found[name] = found.get(name, 0) + np.array([count, sum(path.stat().st_size for path in paths), busy])
        if run:
            memory[name] = max(memory.get(name, 0), (run.largest - idle) / count)
    for name, (count, disk, busy) in found.items():
        held = f", {memory[name]:.3g} bytes of memory" if name in memory else ""
        yield (f"    {name}: for each {RATES[name].thing} of {count:.0f} {disk / count:.3g} bytes, "
               f"{busy / count * 1e9:.3g} ns{held}")
