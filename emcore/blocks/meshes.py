"""python -m emcore mesh LABELS OUT: the closed surface of every object, block by block, as files.

    pieces i     the surfaces in a block, object by object
    index        where the pieces of each object lie, and which task writes it
    objects i    the meshes of some objects, each written whole

The meshes are those that segment.mesh makes of the whole volume. A command that was ended goes on where it was.
"""

import argparse
import json
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from emcore.blocks import engines, store
from emcore.blocks.boxes import (
    BoxWork,
    add_arguments,
    box_of,
    check_arguments,
    content_of,
    grid_of,
    path_of,
)
from emcore.blocks.grid import Box
from emcore.blocks.work import Stage, digest_of
from emcore.errors import InputError
from emcore.files import check_name, publish, remove, reported, sweep_folder, temporary_name, write_text
from emcore.segment.mesh_files import FORMATS, LEGACY_INFO, encoded, manifest, names
from emcore.segment.meshes import Frame, Piece, checked_error, checked_ids, finished, pieces
from emcore.settings.blocks import Blocks
from emcore.volumes import Volume, metadata, open_volume
from emcore.volumes.precomputed import name_part, read_info

FORMAT = 1  # It names how all stages write their columns; files of another format are not taken.
ARRAYS = ("vertices", "faces", "seam", "keys")


@dataclass(frozen=True)
class MeshWork(BoxWork):
    """The meshes of a box of a volume, as files of one format in a folder."""

    frame: Frame  # where the box lies, which counts as the whole volume
    ids: tuple[int, ...] | None
    error: float
    form: str
    out: Path  # the folder of the meshes

    @cached_property
    def wanted(self) -> np.ndarray | None:
        return None if self.ids is None else np.array(self.ids, np.uint64)

    @cached_property
    def stage_named(self) -> dict[str, Stage]:
        blocks = self.grid.blocks()
        asked = (FORMAT, self.content, self.grid.shape, self.grid.block, self.frame, self.ids)
        same = digest_of(*asked), digest_of(*asked, self.error, self.form, str(self.out))
        return {name: Stage(name, count, f"{name}-{digest}") for name, count, digest in (
            ("pieces", blocks, same[0]), ("index", 1, same[0]), ("objects", blocks, same[1]))}

    def stages(self) -> Sequence[Stage]:
        return list(self.stage_named.values())

    def run(self, stage: Stage, number: int) -> None:
        made = {"pieces": self.pieces, "index": self.index, "objects": self.objects}[stage.name](number)
        store.write(self.path(stage, number), made)

    def is_done(self, stage: Stage, number: int) -> bool:
        if not super().is_done(stage, number):
            return False
        if stage.name != "objects":
            return True
        ids, sizes = store.read(self.path(stage, number), "ids", "bytes")
        return all(size_of(self.out / name) == size for label, row in zip(ids.tolist(), sizes.tolist())
                   for name, size in zip(names(label, self.form), row))

    # ---- stages

    def pieces(self, number: int) -> dict[str, np.ndarray]:
        core = self.grid.box(number)
        there = self.within_volume(self.frame.window(core))
        found = list(pieces(open_volume(self.labels, kind="labels")[there], core, self.frame, self.wanted))
        empty = Piece(0, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint32), np.zeros(0, np.uint32),
                      np.zeros(0, np.uint64))
        columns = {name: np.concatenate([getattr(piece, name) for piece in (empty, *found)]) for name in ARRAYS}
        starts = {f"{name} starts": np.cumsum([0, *(len(getattr(piece, name)) for piece in found)]) for name in ARRAYS}
        sums = [checksum(piece[1:]) for piece in found]
        ids = np.array([piece.label for piece in found], np.uint64)
        return {"ids": ids, "sums": np.array(sums, np.uint32), **starts, **columns}

    def index(self, _: int) -> dict[str, np.ndarray]:
        """Every piece as (object, block, row), the objects rising, and the first object of each task."""
        ids, blocks, rows, faces = [], [], [], []
        stage = self.stage_named["pieces"]
        for number in range(stage.count):
            own, starts = store.read(self.path(stage, number), "ids", "faces starts")
            ids.append(own)
            blocks.append(np.full(len(own), number, np.uint32))
            rows.append(np.arange(len(own), dtype=np.uint32))
            faces.append(np.diff(starts))
        ids, blocks, rows, faces = map(np.concatenate, (ids, blocks, rows, faces))
        order = np.lexsort((blocks, ids))
        objects, starts = np.unique(ids[order], return_index=True)
        if self.wanted is not None and len(missing := np.setdiff1d(self.wanted, objects)):
            raise InputError(f"--ids must name labels of {self.labels}; it has no voxel of "
                             f"{', '.join(map(str, missing[:5].tolist()))} there")
        starts = np.append(starts, len(ids)).astype(np.int64)
        done = np.append(0, np.cumsum(faces[order]))[starts]
        count = self.stage_named["objects"].count
        cuts = np.searchsorted(done, done[-1] * np.arange(count + 1) / count) if len(objects) else np.zeros(count + 1)
        cuts[-1] = len(objects)
        return {"objects": objects, "starts": starts, "blocks": blocks[order], "rows": rows[order],
                "cuts": cuts.astype(np.int64)}

    def objects(self, number: int) -> dict[str, np.ndarray]:
        objects, starts, blocks, rows, cuts = store.read(
            self.path(self.stage_named["index"], 0), "objects", "starts", "blocks", "rows", "cuts")
        mine, sizes, counts, temporaries = objects[cuts[number] : cuts[number + 1]], [], [], []
        try:
            with reported(self.out):
                for place, label in enumerate(mine.tolist(), int(cuts[number])):
                    span = slice(starts[place], starts[place + 1])
                    whole = finished([self.piece(label, block, row) for block, row in zip(
                        blocks[span].tolist(), rows[span].tolist())], self.error)
                    counts.append((len(whole.vertices), len(whole.faces)))
                    row = []
                    for name in names(label, self.form):
                        path = self.out / name
                        temporaries.append((temporary_name(path, "partial"), path))
                        with open(temporaries[-1][0], "xb") as file:
                            for part in [manifest(label)] if row else encoded(whole, self.form):
                                file.write(part)
                            row.append(file.tell())
                    sizes.append(row)
                for temporary, path in temporaries:
                    publish(temporary, path)
        finally:
            for temporary, _ in temporaries:
                remove(temporary)
        return {"ids": mine, "bytes": np.array(sizes, np.int64).reshape(len(mine), len(names(0, self.form))),
                "counts": np.array(counts, np.int64).reshape(len(mine), 2)}

    def piece(self, label: int, block: int, row: int) -> Piece:
        path = self.path(self.stage_named["pieces"], block)
        spans = dict.fromkeys((f"{name} starts" for name in ARRAYS), (row, row + 2))
        own, total, *ends = store.read_rows(path, {"ids": (row, row + 1), "sums": (row, row + 1), **spans})
        arrays = store.read_rows(path, {name: (int(a), int(b)) for name, (a, b) in zip(ARRAYS, ends)})
        if own[0] != label or checksum(arrays) != total[0]:
            raise store.Damaged(path, "is damaged")
        return Piece(label, *arrays)

    def totals(self) -> tuple[int, int, int]:
        """How many objects, vertices and triangles were written."""
        stage = self.stage_named["objects"]
        counts = np.concatenate([store.read(self.path(stage, number), "counts")[0] for number in range(stage.count)])
        return len(counts), *counts.sum(0).tolist()


def checksum(arrays: Sequence[np.ndarray]) -> int:
    total = 0
    for values in arrays:
        total = zlib.crc32(np.ascontiguousarray(values).data.cast("B") if values.size else b"", total)
    return total


def size_of(path: Path) -> int:
    """The size of a file; -1 where there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


# ---- the command


def ids_of(text: str | None, option: str = "--ids") -> tuple[int, ...] | None:
    """The labels that 1,2,3 names."""
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,20}(,\d{1,20})*", text.replace(" ", "")):
        raise InputError(f"{option} are labels with commas between, such as 17,2093; got {text[:80]!r}")
    return tuple(checked_ids([int(part) for part in text.split(",")]).tolist())


def frame_of(volume: Volume, box: Box, resolution: Sequence[float] | None, beside: Path | None) -> Frame:
    """Where the voxels of a box lie in nm; of a precomputed folder `beside`, as viewers read its info."""
    unit = resolution or volume.resolution
    if unit is None:
        raise InputError(f"{volume.name} has no resolution: give it by --resolution Z Y X, in nm")
    unit = metadata.triple(list(unit), "--resolution", positive=True)
    offset = volume.offset
    if beside is not None:
        scale = read_info(beside)[1][0]
        if scale.shape != volume.shape or not np.allclose(scale.resolution, unit, rtol=1e-6):
            raise InputError(f"{beside} holds a volume of {scale.shape} voxels of {scale.resolution} nm, {volume.name} "
                             f"one of {volume.shape} voxels of {unit} nm: give the meshes a folder of their own")
        offset = tuple(start * size for start, size in zip(scale.start, unit))
    return Frame(tuple(span.stop - span.start for span in box), unit,
                 tuple(begin + span.start * size for begin, span, size in zip(offset, box, unit)))


def folder_for(out: Path, form: str) -> tuple[Path, Path | None]:
    """The folder of the mesh files, and the precomputed volume that it belongs to, if there is one."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; meshes need a folder")
    if form != "precomputed" or not (out / "info").is_file():
        return out, None
    try:
        info = json.loads((out / "info").read_text())
    except (OSError, ValueError):
        info = None
    if isinstance(info, dict) and info.get("@type") == LEGACY_INFO["@type"]:
        return out, None
    read_info(out)
    name = info.get("mesh", "mesh")
    check_name(name if isinstance(name, str) else "", f"mesh in {out / 'info'}")
    return out / name, out


def announce(folder: Path, volume: Path | None) -> None:
    """Says in the info of the mesh folder, and of the volume that it belongs to, that there are meshes."""
    write_text(folder / "info", json.dumps(LEGACY_INFO) + "\n")
    if volume is not None:
        name_part(volume, "mesh", folder.name)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m emcore mesh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python -m emcore mesh a_labels.h5 a.precomputed --error 20")
    parser.add_argument("labels", help="path, or path:dataset")
    parser.add_argument("out", type=Path, help="folder of the meshes; a precomputed volume gets them as its own")
    parser.add_argument("--ids", metavar="1,2,3", help="only these labels (default: all but 0)")
    parser.add_argument("--format", choices=FORMATS, default="precomputed",
                        help="precomputed (default) for Neuroglancer, or a file ID.ply or ID.obj for each object")
    parser.add_argument("--error", type=float, default=0.0, metavar="NM",
                        help="simpler meshes, no farther than this from any vertex (default 0: as they are)")
    add_arguments(parser, "meshes are closed where it ends", ", about 1 GB a worker); it changes no mesh")
    options = parser.parse_args(arguments)
    work = work_for(options)
    with reported(work.out):
        work.out.mkdir(parents=True, exist_ok=True)
        sweep_folder(work.out)
    engines.run(work, Blocks(engine="local", workers=options.workers))
    if options.format == "precomputed":
        announce(work.out, work.out.parent if work.out != options.out.absolute() else None)
    objects, vertices, faces = work.totals()
    shutil.rmtree(work.folder, ignore_errors=True)
    print(f"{options.out}: {objects} meshes, {vertices} vertices, {faces} triangles")
    return 0


def work_for(options: argparse.Namespace) -> MeshWork:
    """The work that a command asks for, checked."""
    check_arguments(options)
    out = options.out.absolute()
    volume = open_volume(options.labels, kind="labels")
    folder, beside = folder_for(out, options.format)
    box = box_of(options.box, volume)
    frame = frame_of(volume, box, options.resolution, beside)
    labels = path_of(options.labels)
    # Meshes that go into the labels' own folder are no change of the labels.
    told = f"{beside}:{read_info(beside)[1][0].key}" if str(beside) == labels else labels
    return MeshWork(out.with_name(out.name + ".blocks"), labels, box, grid_of(box, options.block),
                    content_of(told, volume, box), frame, ids_of(options.ids), checked_error(options.error),
                    options.format, folder)
