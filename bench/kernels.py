"""Kernels and peers in turns: python -m bench.kernels [--size 256] [--labels FILE] [--json FILE] [--only PART]."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from bench.affinities import load_labels, make_affinities
from bench.compare import Row, print_header, print_row, write_json

ELSEWHERE = ("partitions",)  # rows of python -m bench.metrics


def parts() -> list[str]:
    """The names of all bench/rows_NAME.py that belong here."""
    names = [path.stem.removeprefix("rows_") for path in sorted(Path(__file__).parent.glob("rows_*.py"))]
    return [name for name in names if name not in ELSEWHERE]


def rows(size: int, labels_path: str | None, names: list[str]) -> Iterator[Row]:
    """Every row of the named parts, all on the same labels and affinities."""
    labels = load_labels(labels_path, size)
    affs = make_affinities(labels)
    for name in names:
        yield from import_module(f"bench.rows_{name}").rows(size, labels, affs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="edge of the volume in voxels")
    parser.add_argument("--labels", help="HDF5 file with a dataset labels (z, y, x); synthetic tissue without")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--only", choices=parts(), help="one part alone")
    arguments = parser.parse_args()
    print_header()
    done = []
    for row in rows(arguments.size, arguments.labels, [arguments.only] if arguments.only else parts()):
        print_row(row)
        done.append(row)
    if arguments.json:
        write_json(done, arguments.json)


if __name__ == "__main__":
    main()
