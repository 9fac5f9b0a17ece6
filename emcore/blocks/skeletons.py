"""python -m emcore skeletonize LABELS OUT: the skeleton of every object, box by box, as files.

    counts i      the tables of a block: where its objects lie
    table         those of the volume
    groups        which objects are read together, and which task traces them
    skeletons i   those of some groups

The skeletons are those that segment.skeletonize makes of the whole volume. A command that was ended goes on where it
was.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from emcore.blocks import engines, store
from emcore.blocks.boxes import check_arguments, content_of, grid_of, path_of
from emcore.blocks.label_statistics import StatisticsWork
from emcore.blocks.work import Stage, digest_of
from emcore.errors import InputError
from emcore.segment.arrays import as_count
from emcore.segment.skeleton_boxes import MOST_VOXELS, groups, trace_group
from emcore.segment.skeleton_files import FORMATS, check_folder, write_each
from emcore.segment.skeletons import RULES, Skeleton, way_of
from emcore.settings.blocks import Blocks
from emcore.volumes import metadata, open_volume
from emcore.volumes.precomputed import read_info

FORMAT = 1  # It names how the stages write their columns; files of another format are not taken.
PARTS = 8  # A volume that one process could read at once is traced by so many.
ARRAYS = ("vertices", "edges", "radius")


@dataclass(frozen=True)
class SkeletonWork(StatisticsWork):
    """The skeletons of a volume of labels."""

    resolution: tuple[float, float, float]
    scale: float
    const_nm: float | None
    dust_voxels: int
    most_voxels: int
    needs_less = "fewer --workers or a smaller --most-voxels need less"

    @cached_property
    def all_stages(self) -> tuple[Stage, ...]:
        same = digest_of(FORMAT, RULES, self.content, self.grid.shape, self.grid.block, self.resolution, self.scale,
                         self.const_nm, self.dust_voxels, self.most_voxels)
        return (*super().all_stages, Stage("groups", 1, f"groups-{same}"),
                Stage("skeletons", max(PARTS, self.grid.blocks()), f"skeletons-{same}"))

    def run(self, stage: Stage, number: int) -> None:
        if stage.name == "groups":
            store.write(self.path(stage, number), self.group())
        elif stage.name == "skeletons":
            store.write(self.path(stage, number), self.trace(number))
        else:
            super().run(stage, number)

    def group(self) -> dict[str, np.ndarray]:
        """The groups, and the first one of each task."""
        table, count = self.table(), self.all_stages[3].count
        order, starts = groups(table, self.most_voxels, PARTS)
        sizes = np.prod(table.boxes[order, 1] - table.boxes[order, 0], axis=1).astype(np.float64)
        done = np.append(0, np.cumsum(np.sqrt(sizes * table.voxels[order])))[starts]
        cuts = np.searchsorted(done, done[-1] * np.arange(count + 1) / count)
        cuts[0], cuts[-1] = 0, len(starts) - 1
        return {"order": order, "starts": starts, "cuts": cuts.astype(np.int64)}

    def trace(self, number: int) -> dict[str, np.ndarray]:
        order, starts, cuts = store.read(self.path(self.all_stages[2], 0), "order", "starts", "cuts")
        table, volume = self.table(), open_volume(self.labels, kind="labels")
        way = way_of(volume.shape, self.resolution, self.scale, self.const_nm, self.dust_voxels)
        ids, found = [], [Skeleton(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.int64), np.zeros(0, np.float32))]
        for group in range(cuts[number], cuts[number + 1]):
            rows = order[starts[group] : starts[group + 1]]
            for label, skeleton in trace_group(volume, way, table.ids[rows], table.voxels[rows], table.boxes[rows], 1):
                ids.append(label)
                found.append(skeleton)
        counts = [(len(one.vertices), len(one.edges)) for one in found]
        return {"ids": np.array(ids, np.uint64), "ends": np.cumsum(counts, 0).reshape(-1, 2),
                **{name: np.concatenate([getattr(one, name) for one in found]) for name in ARRAYS}}

    def skeletons(self) -> Iterator[tuple[int, Skeleton]]:
        """Every label with its skeleton."""
        for number in range(self.all_stages[3].count):
            ids, ends, vertices, edges, radius = store.read(self.path(self.all_stages[3], number), "ids", "ends",
                                                            *ARRAYS)
            for label, (node, edge), (last, final) in zip(ids.tolist(), ends, ends[1:]):
                yield label, Skeleton(vertices[node:last], edges[edge:final], radius[node:last])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m emcore skeletonize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m emcore skeletonize a_labels.h5 a_skeletons")
    parser.add_argument("labels", metavar="LABELS", help="file, or file:dataset")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder that is made; places are in nm from where the "
                        "volume begins")
    parser.add_argument("--format", choices=FORMATS, default="swc",
                        help="swc (default), one tree a file, or precomputed for Neuroglancer")
    parser.add_argument("--resolution", type=float, nargs=3, metavar=("Z", "Y", "X"),
                        help="nm of a voxel, where the file says none or a wrong one")
    parser.add_argument("--scale", type=float, default=1.5, help="how far around a path, in radii, no other one starts")
    parser.add_argument("--const-nm", type=float, metavar="NM", help="added to it; default: ten voxel sides, at least "
                        "100 nm")
    parser.add_argument("--dust-voxels", type=int, default=0, metavar="N", help="pieces of fewer voxels have none")
    parser.add_argument("--block", nargs=3, type=int, default=(256, 256, 256), metavar=("Z", "Y", "X"),
                        help="voxels of a block in which objects are looked for (default 256 256 256)")
    parser.add_argument("--most-voxels", type=int, default=MOST_VOXELS, metavar="N",
                        help="voxels of a box that is read for several objects (default 2**26: about 2 GB a worker, "
                        "and 100 bytes for every voxel of the object it traces); a larger object is read alone, and "
                        "it changes no skeleton")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: as many as there are cores)")
    options = parser.parse_args(arguments)
    work, offset = work_for(options)
    engines.run(work, Blocks(engine="local", workers=options.workers))
    # Nodes lie at the middles of voxels, so that no rounding moves them into the next one.
    middle, totals = np.array(offset) + np.array(work.resolution) / 2, np.zeros(3)

    def moved() -> Iterator[tuple[int, Skeleton]]:
        for label, one in work.skeletons():
            one = replace(one, vertices=one.vertices + middle)
            totals[:] += 1, len(one.vertices), one.length / 1000
            yield label, one

    write_each(options.out, moved(), options.format)
    shutil.rmtree(work.folder, ignore_errors=True)
    print(f"{totals[0]:.0f} skeletons, {totals[1]:.0f} nodes, {totals[2]:.6g} um\n{options.out}")
    return 0


def work_for(options: argparse.Namespace) -> tuple[SkeletonWork, tuple[float, ...]]:
    """The work that a command asks for, checked, and where the volume begins."""
    check_arguments(options)
    out, volume = check_folder(options.out, options.format).absolute(), open_volume(options.labels, kind="labels")
    resolution = options.resolution or volume.resolution
    if resolution is None:
        raise InputError(f"skeletons are in nm, but {volume.name} does not say its resolution; give --resolution Z Y X")
    resolution = metadata.triple(list(resolution), "--resolution", positive=True)
    way_of(volume.shape, resolution, options.scale, options.const_nm, options.dust_voxels)
    if options.most_voxels < 1:
        raise InputError(f"--most-voxels must be above 0; got {options.most_voxels}")
    box, labels = tuple(slice(0, length) for length in volume.shape), path_of(options.labels)
    # Skeletons that go into the labels' own folder are no change of the labels.
    inside = str(out.parent) == labels and (out.parent / "info").is_file()
    told = f"{out.parent}:{read_info(out.parent)[1][0].key}" if inside else labels
    return SkeletonWork(out.with_name(out.name + ".blocks"), labels, box, grid_of(box, options.block),
                        content_of(told, volume, box), resolution, options.scale, options.const_nm,
                        options.dust_voxels, as_count("--most-voxels", options.most_voxels)), volume.offset
