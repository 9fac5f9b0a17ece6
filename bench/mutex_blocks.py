"""Mutex watershed at once and in blocks: python -m bench.mutex_blocks [--size 256] [--labels FILE] [--block 128].

Prints seconds of the processor and the largest process of each stage, each task in a process of its own, and compares
every voxel. Affinities of 12 offsets are drawn in 8 bits (bench/rows_mutex.py) into a folder that is removed again.
"""

import argparse
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.affinities import load_labels
from bench.rows_mutex import OFFSETS, draw
from emcore.blocks import store
from emcore.blocks.grid import Grid
from emcore.blocks.mutex_work import MutexWork
from emcore.blocks.windows import extent
from emcore.decode.labels import mutex
from emcore.settings.decode import MutexDecode
from emcore.volumes import create_volume, open_volume
from emcore.volumes.blocks import read_block


def in_child(task: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the processor and bytes of the largest memory that a task took, in a child of this process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            task()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit("a task failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--corner", type=int, nargs=3, default=(0, 0, 0))
    parser.add_argument("--labels", help="an HDF5 file with the dataset labels; without it they are grown")
    parser.add_argument("--strides", type=int, nargs=3, default=(1, 1, 1))
    asked = parser.parse_args()
    shape = (asked.size,) * 3
    settings = MutexDecode(strides=tuple(asked.strides))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prediction.h5"

        def prepare() -> None:
            labels = load_labels(asked.labels, asked.size, asked.corner)
            attributes = {"offsets": [list(offset) for offset in OFFSETS]}
            with create_volume(path, (len(OFFSETS), *shape), np.uint8, attributes=attributes) as out:
                for channel, affs in enumerate(draw(labels, OFFSETS)):
                    out[channel] = np.rint(255 * affs).astype(np.uint8)

        def whole() -> None:
            np.save(Path(folder) / "whole.npy", mutex(open_volume(path), settings))

        in_child(prepare)
        idle = in_child(lambda: None)[1]
        seconds, memory = in_child(whole)
        print(f"at once          {seconds:7.1f} s {memory / 1e6:7.0f} MB, "
              f"{(memory - idle) / np.prod(shape):.1f} bytes a voxel", flush=True)
        work, total = MutexWork(Path(folder) / "blocks", Grid(shape, (asked.block,) * 3), str(path), settings, ""), 0.0
        for stage in work.stages():
            taken = [in_child(lambda stage=stage, number=number: work.run(stage, number))
                     for number in range(stage.count)]
            total += sum(seconds for seconds, _ in taken)
            size = sum(work.path(stage, number).stat().st_size for number in range(stage.count))
            largest = max(memory for _, memory in taken)
            print(f"{stage.name:16} {sum(seconds for seconds, _ in taken):7.1f} s {largest / 1e6:7.0f} MB, "
                  f"{(largest - idle) / np.prod(work.grid.block):.1f} bytes a voxel of a block, "
                  f"{size / np.prod(shape):.2f} on disk for every voxel, {stage.count} tasks", flush=True)
        names, edges = 0, 0
        for number in range(work.grid.blocks()):
            own, = work.read("fragments", number, "names")
            joined, = work.read("seams", 0, f"old_{number}")
            names += len(own) - 1 - len(joined)
            edges += store.shapes(work.path(work.stage("graph"), number))["weight"][0]
        print(f"in blocks        {total:7.1f} s; {names} fragments and {edges} edges reach the last task")
        labels, wanted = work.stages()[-1], np.load(Path(folder) / "whole.npy", mmap_mode="r")
        same = all(np.array_equal(read_block(work.path(labels, number), extent(work.grid.box(number)), work.label_type),
                                  wanted[work.grid.box(number)]) for number in range(labels.count))
        print(f"the labels are {'the same in every voxel' if same else 'NOT the same'}: {wanted.max()} segments")


if __name__ == "__main__":
    main()
