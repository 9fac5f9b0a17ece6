"""What enters the top of the octree of blocks, where one task holds all of it: python -m bench.blocks --climbs.

For every size, statistic, pair of watershed thresholds and end a row: fragments, clusters and edges that enter the top,
the bytes of the sweeps, and the seconds of the merges on one core. Blocks are of half the side, so that the top is the
first level above them.
"""

import itertools
import shutil
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emcore.blocks import merges
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.windows import Source
from emcore.segment.pooling import pool_edges
from emcore.settings.decode import AffinityDecode
from emcore.volumes import open_volume

STATISTICS = ("mean", "aff85_his256")
WATERSHEDS = ((0.1, 0.999), (1e-4, 0.9999))  # the documented low and high, and the defaults
ENDS = (1.0, 0.5, 0.2)


def every_setting() -> list[AffinityDecode]:
    return [AffinityDecode(statistic=statistic, low=low, high=high, threshold=min(end, 0.5), end=end)
            for statistic, (low, high), end in itertools.product(STATISTICS, WATERSHEDS, ENDS)]


def print_climbs(folder: Path, prediction: Path, block: int, ways: Sequence[AffinityDecode]) -> None:
    """A row for every way to decode a prediction."""
    grid = Grid(open_volume(prediction).shape[1:], (block,) * 3)
    print(f"{'x'.join(map(str, grid.shape))}, blocks of {block}³: statistic, low, high, end | fragments | clusters and "
          "edges that enter the top | bytes of sweeps | seconds of merges")
    for settings in ways:
        work = AffinityWork(folder / "climb.blocks", grid, Source(str(prediction), settings), "bench")
        seconds = carried_out(work)
        clusters, edges = entering_top(work)
        fragments = sum(int(work.is_own(work.names(number), number).sum()) for number in range(work.grid.blocks()))
        way = f"{settings.statistic}, {settings.low:g}, {settings.high:g}, {settings.end:g}"
        print(f"  {way} | {fragments} | {clusters} and {edges} | "
              f"{bytes_of_sweeps(work)} | {sum(seconds.values()):.1f}", flush=True)
    shutil.rmtree(folder / "climb.blocks", ignore_errors=True)


def carried_out(work: AffinityWork) -> dict[str, float]:
    """Carries out what a cut needs, in this process; seconds of the stages that merge. Fragments are made once."""
    seconds: dict[str, float] = defaultdict(float)
    for stage in work.tree_stages():
        begun = time.perf_counter()
        for number in range(stage.count):
            if not work.is_done(stage, number):
                work.run(stage, number)
        if stage.name.partition(" ")[0] in ("settle", "merges", "forest", "outside"):
            seconds[stage.name] += time.perf_counter() - begun
    return seconds


def entering_top(work: AffinityWork) -> tuple[int, int]:
    """Clusters with edges, and edges, that the last windows below the top hand on."""
    top = len(work.grid.partitions) - 1
    if top == 0:
        return 0, 0
    edges = pool_edges(merges.gathered(work.handed_on(top, 0))[2])
    return len(np.unique(np.concatenate([edges["u"], edges["v"]]))), len(edges["u"])


def bytes_of_sweeps(work: AffinityWork) -> int:
    """What forests and the settling before them leave on disk, beside the merges that stay."""
    wanted = [stage for stage in work.tree_stages() if stage.name.partition(" ")[0] in ("forest", "outside", "settle")]
    return sum(work.path(stage, number).stat().st_size for stage in wanted for number in range(stage.count))
