"""python -m emcore statistics LABELS OUT.csv: voxels, boxes, centroids and contacts of every label, block by block.

OUT.csv has a row for each label but 0, OUT_contacts.csv one for each pair of labels that share faces of voxels.

    counts i     the tables of a block
    table        those of the volume
"""

import argparse
import csv
import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from emcore.blocks import engines, store
from emcore.blocks.boxes import BoxWork, add_arguments, box_of, check_arguments, content_of, grid_of, path_of
from emcore.blocks.work import Stage, digest_of
from emcore.errors import InputError
from emcore.files import check_name, writing
from emcore.segment.label_table import LabelStatistics, label_statistics, pool_statistics
from emcore.settings.blocks import Blocks
from emcore.volumes import metadata, open_volume

FORMAT = 1  # It names how the stages write their columns; files of another format are not taken.
AT_ONCE = 16  # tables that are held in memory while they are added
ROWS = 50_000  # So many rows of a CSV file are made at a time.
COLUMNS = tuple(field.name for field in fields(LabelStatistics))


@dataclass(frozen=True)
class StatisticsWork(BoxWork):
    """The statistics of a box of a volume of labels."""

    @cached_property
    def all_stages(self) -> tuple[Stage, Stage]:
        digest = digest_of(FORMAT, self.content, self.grid.shape, self.grid.block)
        return Stage("counts", self.grid.blocks(), f"counts-{digest}"), Stage("table", 1, f"table-{digest}")

    def stages(self) -> Sequence[Stage]:
        return self.all_stages

    def run(self, stage: Stage, number: int) -> None:
        found = self.count(number) if stage.name == "counts" else self.add()
        store.write(self.path(stage, number), {name: getattr(found, name) for name in COLUMNS})

    def count(self, number: int) -> LabelStatistics:
        """What a block holds, and its contacts with the blocks behind it."""
        window, _ = self.grid.grown(number, 0, 1)
        core = self.grid.box(number)
        there = self.within_volume(window)
        return label_statistics(open_volume(self.labels, kind="labels")[there], origin=[span.start for span in there],
                                beyond=[wide.stop - span.stop for wide, span in zip(window, core)], threads=1)

    def add(self) -> LabelStatistics:
        counts, total = self.all_stages[0], pool_statistics([])
        for start in range(0, counts.count, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, counts.count))
            total = pool_statistics([total, *(read_table(self.path(counts, number)) for number in numbers)])
        return total

    def table(self) -> LabelStatistics:
        return read_table(self.path(self.all_stages[1], 0))


def read_table(path: Path) -> LabelStatistics:
    return LabelStatistics(*store.read(path, *COLUMNS))


# ---- the command


def write_rows(path: Path, names: Sequence[str], columns: Sequence[np.ndarray]) -> None:
    """Writes columns as a CSV file; whole numbers stay exact."""
    with writing(path) as file:
        for part in lines(names, columns):
            file.write(part)


def lines(names: Sequence[str], columns: Sequence[np.ndarray]) -> Iterator[bytes]:
    for start in range(0, max(1, len(columns[0])), ROWS):
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if start == 0:
            writer.writerow(names)
        writer.writerows(zip(*(column[start : start + ROWS].tolist() for column in columns)))
        yield text.getvalue().encode()


def named_axes(before: str, behind: str = "") -> list[str]:
    return [f"{before}_{axis}{behind}" for axis in "zyx"]


def write_tables(found: LabelStatistics, out: Path, resolution: Sequence[float] | None,
                 offset: Sequence[float]) -> Path:
    """Writes both tables; the name of the second one. With a resolution they have columns in nm, too."""
    centroids = found.centroids
    names = ["id", "voxels", *named_axes("first"), *named_axes("end"), *named_axes("centroid")]
    columns = [found.ids, found.voxels, *found.boxes[:, 0].T, *found.boxes[:, 1].T, *centroids.T]
    pair_names = ["first_id", "second_id", *named_axes("faces")]
    pair_columns = [*found.pairs.T, *found.faces.T]
    if resolution is not None:
        unit = np.array(resolution)
        names += [*named_axes("centroid", "_nm"), "volume_nm3"]
        columns += [*((centroids + 0.5) * unit + offset).T, found.voxels * unit.prod()]
        pair_names.append("area_nm2")
        pair_columns.append(found.faces @ (unit.prod() / unit))
    contacts = out.with_name(f"{out.stem}_contacts.csv")
    write_rows(contacts, pair_names, pair_columns)
    write_rows(out, names, columns)
    return contacts


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m emcore statistics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m emcore statistics a_labels.h5 a_labels.csv")
    parser.add_argument("labels", help="path, or path:dataset")
    parser.add_argument("out", type=Path, help="table to write, a name that ends in .csv")
    add_arguments(parser, "indices stay those of the volume", "); it changes no number")
    options = parser.parse_args(arguments)
    check_arguments(options)
    if options.out.suffix != ".csv":
        raise InputError(f"the table is written as CSV: name it .csv, not {options.out}")
    check_name(options.out.name, "the name of the table")
    volume, out = open_volume(options.labels, kind="labels"), options.out.absolute()
    resolution = options.resolution or volume.resolution
    if resolution is not None:
        resolution = metadata.triple(list(resolution), "--resolution", positive=True)
    box = box_of(options.box, volume)
    work = StatisticsWork(out.with_name(out.name + ".blocks"), path_of(options.labels), box,
                          grid_of(box, options.block), content_of(options.labels, volume, box))
    engines.run(work, Blocks(engine="local", workers=options.workers))
    found = work.table()
    contacts = write_tables(found, out, resolution, volume.offset)
    shutil.rmtree(work.folder, ignore_errors=True)
    print(f"{options.out}: {len(found.ids)} labels; {contacts.name}: {len(found.pairs)} pairs")
    return 0
