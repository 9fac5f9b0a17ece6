"""Metrics and their peers: python -m bench.metrics [--size 512] [--labels FILE] [--json FILE]."""

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from bench import rows_partitions
from bench.compare import Row, print_header, print_row, write_json


def rows(size: int, labels: str | None) -> Iterator[Row]:
    """Partitions first, then every bench/metric_rows_*.py, in the order of their names."""
    yield from rows_partitions.rows(size, labels)
    for path in sorted(Path(__file__).parent.glob("metric_rows_*.py")):
        yield from import_module(f"bench.{path.stem}").rows()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="edge of the label volume in voxels")
    parser.add_argument("--labels", help="HDF5 file with a dataset labels; default: synthetic tissue")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    options = parser.parse_args()
    print_header()
    done = []
    for row in rows(options.size, options.labels):
        print_row(row)
        done.append(row)
    if options.json:
        write_json(done, options.json)
