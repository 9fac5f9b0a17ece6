"""Decoding in blocks against decoding at once: python -m bench.blocks [--size 512] [--labels FILE] [--gigavoxels 2].
What it takes of volumes that nobody can try: python -m bench.blocks --plan [Z,Y,X] (bench/blocks_plan.py).

Both ways go from a stored prediction to a labels file, as infer.py does it, in turns, each in a process of its own. A
process is watched from outside: its own peak, and the most that it and its workers hold together (PSS: shared pages
count once). Seconds of a stage end with its last file. With --gigavoxels a volume of so many voxels, mirrored copies of
the one of --size, is decoded in blocks alone; the same number of small copies, in the same grid, is decoded both ways.
--kills 2 decodes that volume once more, is killed twice on the way, and compares the labels of every block.
--climbs counts what enters the top of the octree for several settings, or with --end for the given ones alone
(bench/blocks_climb.py); with --gigavoxels it does so for copies. --prediction takes a stored prediction, of a net for
instance, in place of one that is made of labels; --size is then the side of the cube that is taken of it.
With --peers other systems decode in blocks beside it (bench/blocks_peers.py). With --recipes the tables [decode] of
recipes are carried out in several grids, and every voxel and every merge is compared.
"""

import argparse
import hashlib
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.affinities import load_labels, make_affinities
from bench.blocks_climb import every_setting, print_climbs
from bench.blocks_peers import compare_peers
from bench.blocks_plan import print_plan, shape_of, told_rates
from bench.compare import Row, print_header, print_row
from bench.watch import Watched, killed_after, watch
from emcore import config
from emcore.blocks.choice import Choice
from emcore.blocks.grid import Grid
from emcore.blocks.run import decode_in_blocks, work_of
from emcore.blocks.tables import read_segmentation
from emcore.blocks.windows import extent
from emcore.decode.labels import decode
from emcore.files import assembled
from emcore.segment import MergeTree, encode_affinities
from emcore.segment.affinities import TABLE_ATTRIBUTE
from emcore.settings import Settings
from emcore.settings.blocks import Blocks, bytes_of
from emcore.settings.decode import AffinityDecode
from emcore.volumes import create_volume, open_volume
from emcore.volumes.blocks import join_blocks, read_block, write_block

OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
RECORD = {"prediction": {"digest": "bench"}}
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = ("snemi/snemi_neurons", "snemi/snemi_neurons_multitask")  # dust and links; boundaries and dust
GRIDS = ((8, 8, 8), (6, 10, 7), (4, 16, 16))  # blocks in sixteenths of the volume's side


# ---- predictions


def write_prediction(path: Path, labels: np.ndarray) -> None:
    """8-bit affinities of labels, as infer.py stores them."""
    codes, table = encode_affinities(make_affinities(labels))
    with created(path, codes.shape[1:], table.tolist()) as out:
        out[...] = codes


def created(path: Path, shape: tuple[int, ...], table: list[float]):
    return create_volume(path, (3, *shape), "uint8", attributes={"offsets": OFFSETS, TABLE_ATTRIBUTE: table})


def write_tiled(path: Path, source: Path, counts: tuple[int, int, int], side: int) -> None:
    """Mirrored copies of the first side³ voxels of a prediction; each of the eight different ones is on disk once."""
    stored, folder, parts = open_volume(source), path.with_suffix(".blocks"), []
    cell = stored[:3, :side, :side, :side]
    folder.mkdir(exist_ok=True)
    for place in np.ndindex(*counts):
        turned = np.mod(place, 2)
        file = folder / f"{'_'.join(map(str, turned))}.h5"
        if not file.exists():
            copy = cell
            for axis in np.flatnonzero(turned).tolist():
                copy = mirrored(copy, axis)
            write_block(file, copy)
        box = slice(0, 3), *(slice(at * side, (at + 1) * side) for at in place)
        parts.append((box, f"{folder.name}/{file.name}"))
    with assembled(path) as temporary:
        join_blocks(temporary, "main", (3, *(count * side for count in counts)), cell.dtype, parts,
                    attributes={"offsets": OFFSETS, **{name: stored.attrs[name] for name in (TABLE_ATTRIBUTE,)
                                                       if name in stored.attrs}})


def mirrored(affs: np.ndarray, axis: int) -> np.ndarray:
    """Affinities (3, z, y, x) of the same tissue seen in a mirror: those along the axis lie at the other voxel."""
    flipped = np.flip(affs, axis + 1).copy()
    flipped[axis] = np.roll(flipped[axis], 1, axis)
    return flipped


def counts_for(voxels: float, side: int) -> tuple[int, int, int]:
    """How many copies along z, y and x make at least so many voxels."""
    counts = [1, 1, 1]
    while np.prod(counts) * side**3 < voxels:
        counts[counts.index(min(counts))] *= 2
    return tuple(counts)


# ---- the two ways


def at_once(prediction: str, out: str, settings: AffinityDecode) -> None:
    decode(open_volume(prediction), settings, Path(out))


def in_blocks(prediction: str, out: str, settings: AffinityDecode, block: tuple[int, int, int], workers: int) -> None:
    grid = Grid(open_volume(prediction).shape[1:], block)
    decode_in_blocks(Path(prediction), settings, Path(out), Choice(grid, workers, ""), Blocks(workers=workers), RECORD)


def stage_seconds(labels: Path, begun: float) -> dict[str, float]:
    """Seconds from the last file of the stage before to the last one of each stage."""
    work, ends = work_of(labels), {}
    for stage in work.stages():
        ends[stage.name] = max(work.path(stage, number).stat().st_mtime for number in range(stage.count))
    moments = [begun, *ends.values()]
    return {name: end - before for name, end, before in zip(ends, moments[1:], moments)}


def bytes_in(*paths: Path) -> int:
    return sum(file.stat().st_size for path in paths for file in ([path] if path.is_file() else path.rglob("*"))
               if file.is_file())


def differing(one: Path, other: Path) -> int:
    """Voxels in which two label volumes differ."""
    first, second = open_volume(one, "labels"), open_volume(other, "labels")
    return sum(int(np.count_nonzero(first[z:z + 16] != second[z:z + 16])) for z in range(0, first.shape[0], 16))


def merges_differ(ours: MergeTree, whole: MergeTree, end: float) -> bool:
    """Whether ours are not the whole's merges below the end: of which fragments, at which height, by which contact."""
    count = np.searchsorted(whole.height, end)
    return not all(np.array_equal(getattr(ours, name), getattr(whole, name)[:count])
                   for name in ("a", "b", "height", "key"))


class Bench:
    """The files of one run, in a folder of its own."""

    def __init__(self, folder: Path, settings: AffinityDecode, workers: int):
        self.folder, self.settings, self.workers = folder, settings, workers

    def prediction(self, labels: str | None, size: int, corner: tuple[int, ...]) -> Path:
        path = self.folder / f"{size}_at_{'_'.join(map(str, corner))}_prediction.h5"
        if not path.exists():
            write_prediction(path, load_labels(labels, size, corner))
        return path

    def blocks(self, prediction: Path, block: tuple[int, int, int]) -> tuple[Path, Watched]:
        """Decodes in blocks, from nothing."""
        out = self.folder / "blocks_labels.h5"
        remove_labels(out)
        return out, watch(in_blocks, str(prediction), str(out), self.settings, block, self.workers)

    def whole(self, prediction: Path) -> tuple[Path, Watched]:
        out = self.folder / "whole_labels.h5"
        out.unlink(missing_ok=True)
        return out, watch(at_once, str(prediction), str(out), self.settings)

    def compare(self, prediction: Path, block: tuple[int, int, int], repeats: int, goal: str) -> None:
        """Prints a row, then the stages of the last turn."""
        runs: dict[str, list[Watched]] = {"blocks": [], "whole": []}
        for _ in range(repeats):
            ours, run = self.blocks(prediction, block)
            runs["blocks"].append(run)
            stages = stage_seconds(ours, run.begun)
            peer, run = self.whole(prediction)
            runs["whole"].append(run)
        seconds = {way: statistics.median(run.seconds for run in done) for way, done in runs.items()}
        mib = {way: max(run.together for run in done) / 2**20 for way, done in runs.items()}
        shape, different = open_volume(prediction).shape[1:], differing(ours, peer)
        print_row(Row(f"{'x'.join(map(str, shape))}, blocks of {'x'.join(map(str, block))}", "ours, whole",
                      seconds["blocks"], seconds["whole"], seconds["whole"] / seconds["blocks"], mib["blocks"],
                      mib["whole"], goal, "the same labels" if different == 0 else f"{different} VOXELS DIFFER"))
        for way, done in runs.items():
            wall, cpu = sorted(run.seconds for run in done), statistics.median(run.cpu for run in done)
            print(f"    {way}: {wall[0]:.2f} to {wall[-1]:.2f} s, {cpu:.2f} s of cores, largest process "
                  f"{max(run.largest for run in done) / 2**20:.0f} MiB")
        print(f"    stages: {told(stages)}", *told_rates(ours, stages, runs["blocks"][-1].cpu), sep="\n")
        disk = bytes_in(ours, ours.with_suffix(".blocks")) / np.prod(shape), bytes_in(peer) / np.prod(shape)
        print(f"    disk: {disk[0]:.2f} bytes a voxel, whole {disk[1]:.2f}")
        if different:
            raise SystemExit("blocks and the whole give different labels")

    def recipe(self, name: str, prediction: Path) -> None:
        """Prints a row for every grid; fails where a voxel or a merge differs."""
        peer, whole = self.whole(prediction)
        tree, side = read_segmentation(peer).tree, open_volume(prediction).shape[1]
        end = self.settings.end or self.settings.threshold  # blocks keep no merges beyond it
        for block in (tuple(side * part // 16 for part in grid) for grid in GRIDS):
            ours, blocks = self.blocks(prediction, block)
            voxels, merges = differing(ours, peer), merges_differ(read_segmentation(ours).tree, tree, end)
            found = f"{voxels} VOXELS DIFFER" if voxels else "OTHER MERGES" if merges else "the same labels and merges"
            print_row(Row(f"{name}, {'x'.join(map(str, block))}", "ours, whole", blocks.seconds, whole.seconds,
                          whole.seconds / blocks.seconds, blocks.together / 2**20, whole.together / 2**20, "", found))
            if voxels or merges:
                raise SystemExit("blocks and the whole give different labels")

    def large(self, source: Path, side: int, voxels: float, block: int, kills: int) -> None:
        """A volume of copies in blocks alone, after small copies in the same grid both ways.

        kills: then once more, with so many kills on the way.
        """
        counts = counts_for(voxels, side)
        small = self.folder / "small_prediction.h5"
        write_tiled(small, source, counts, side // 8)
        self.compare(small, (max(1, block // 8),) * 3, 1, "")
        large = self.folder / "large_prediction.h5"
        write_tiled(large, source, counts, side)
        out, run = self.blocks(large, (block,) * 3)
        shape = open_volume(large).shape[1:]
        count = float(np.prod(shape))
        print(f"{'x'.join(map(str, shape))} ({count / 1e9:.2f} Gvoxel), blocks of {block}³, {self.workers} workers: "
              f"{run.seconds:.0f} s, {run.cpu:.0f} s of cores, {count / run.seconds / 1e6:.2f} Mvoxel/s; largest "
              f"process {run.largest / 1e9:.2f} GB, together {run.together / 1e9:.2f} GB; disk "
              f"{bytes_in(out, out.with_suffix('.blocks')) / count:.2f} bytes a voxel")
        stages = stage_seconds(out, run.begun)
        print(f"    stages: {told(stages)}", *told_rates(out, stages, run.cpu), sep="\n", flush=True)
        if kills:
            wanted = digests(out)
            remove_labels(out)
            arguments = in_blocks, str(large), str(out), self.settings, (block,) * 3, self.workers
            for _ in range(kills):
                killed_after(run.seconds / (kills + 1), *arguments)
            last, found = watch(*arguments), digests(out)
            print(f"    killed {kills} times after {run.seconds / (kills + 1):.0f} s each, then {last.seconds:.0f} s; "
                  f"largest process {last.largest / 1e9:.2f} GB; "
                  + (f"the same {len(found)} blocks of labels" if found == wanted else "OTHER LABELS"))
            if found != wanted:
                raise SystemExit("a run that was killed gives other labels")


def digests(labels: Path) -> list[str]:
    """A digest of the labels of every block."""
    work = work_of(labels)
    stage = work.stages()[-1]
    shapes = [extent(work.grid.box(number)) for number in range(stage.count)]
    return [hashlib.sha256(read_block(work.path(stage, number), shape, work.label_type)).hexdigest()
            for number, shape in enumerate(shapes)]


def remove_labels(labels: Path) -> None:
    """Removes labels and their blocks."""
    shutil.rmtree(labels.with_suffix(".blocks"), ignore_errors=True)
    labels.unlink(missing_ok=True)


def told(stages: dict[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="edge of the volume in voxels")
    parser.add_argument("--labels", help="HDF5 file with a dataset labels (z, y, x); synthetic tissue without")
    parser.add_argument("--prediction", type=Path, help="a stored prediction in place of one made of labels")
    parser.add_argument("--corner", type=int, nargs=3, default=(0, 0, 0), help="first voxel z y x of the labels taken")
    parser.add_argument("--block", type=int, help="edge of the blocks; half of the volume's without")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--statistic", default="mean")
    parser.add_argument("--low", type=float, default=0.1)
    parser.add_argument("--high", type=float, default=0.999)
    parser.add_argument("--end", type=float, default=0.0, help="decode.end; the threshold without")
    parser.add_argument("--climbs", action="store_true", help="count what enters the top of the octree instead")
    parser.add_argument("--gigavoxels", type=float, help="decode so many in blocks instead")
    parser.add_argument("--peers", action="store_true", help="decode in blocks beside other systems instead")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--recipes", action="store_true", help="decode as recipes do, in several grids, instead")
    parser.add_argument("--kills", type=int, default=0, help="with --gigavoxels: again, with so many kills on the way")
    parser.add_argument("--folder", type=Path, help="where files stand, and stay; a temporary one without")
    parser.add_argument("--plan", nargs="*", type=shape_of, metavar="Z,Y,X", help="what such volumes take, or a ladder")
    parser.add_argument("--memory", default="1TB", help="of the machine of a --plan")
    parser.add_argument("--voxels-per-gpu-second", type=float, help="of the prediction, for a --plan")
    arguments = parser.parse_args()
    if any(arguments.corner) and not arguments.labels:
        parser.error("--corner is of the file that --labels names")
    settings = AffinityDecode(statistic=arguments.statistic, low=arguments.low, high=arguments.high, end=arguments.end)
    if arguments.plan is not None:
        print_plan(arguments.plan, arguments.block or 512, settings, bytes_of(arguments.memory),
                   arguments.voxels_per_gpu_second)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, settings, arguments.workers)
        prediction = arguments.prediction or bench.prediction(arguments.labels, arguments.size, tuple(arguments.corner))
        block = arguments.block or arguments.size // 2
        if arguments.climbs:
            if arguments.gigavoxels:
                copies = folder / "copies_prediction.h5"
                write_tiled(copies, prediction, counts_for(arguments.gigavoxels * 1e9, arguments.size), arguments.size)
                prediction = copies
            print_climbs(folder, prediction, block, [settings] if arguments.end else every_setting())
            return
        print_header()
        if arguments.gigavoxels:
            bench.large(prediction, arguments.size, arguments.gigavoxels * 1e9, block, arguments.kills)
        elif arguments.peers:
            compare_peers(lambda: bench.blocks(prediction, (block,) * 3), bench.whole(prediction)[0],
                          load_labels(arguments.labels, arguments.size, arguments.corner), (block,) * 3,
                          arguments.repeats, arguments.workers, arguments.peer_python, folder)
        elif arguments.recipes:
            for recipe in RECIPES:
                bench.settings = config.load(Settings, CONFIGS / f"{recipe}.toml").decode
                bench.recipe(Path(recipe).name, prediction)
        else:
            bench.compare(prediction, (block,) * 3, arguments.repeats, ">= 0.8")


if __name__ == "__main__":
    main()
