"""Reading through emcore beside tensorstore alone, in a folder and from a server that answers 20 ms late.

    python -m bench.volumes --megabytes 64 --rounds 9

Both read the same box in turns, each time of a volume that was just opened, so that nothing is kept. Printed are the
milliseconds in which emcore opens it, the megabytes a second of the fastest round (what else runs on the machine only
slows rounds down), and how many times as fast as tensorstore emcore reads.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from emcore.volumes import open_volume
from tests.served import served

SHARDS = {"@type": "neuroglancer_uint64_sharded_v1", "preshift_bits": 6, "hash": "identity", "minishard_bits": 4,
          "shard_bits": 2, "minishard_index_encoding": "gzip", "data_encoding": "raw"}
KINDS = {
    "jpeg": ("uint8", {"encoding": "jpeg", "jpeg_quality": 85}),
    "raw, sharded": ("uint8", {"encoding": "raw", "sharding": SHARDS}),
    "compressed_segmentation": ("uint64", {"encoding": "compressed_segmentation",
                                           "compressed_segmentation_block_size": [8, 8, 8]}),
}
DELAY = 0.02  # seconds before each answer of the server
LEAST = 0.9  # Reading must reach this part of the speed of tensorstore alone.


def write(path: Path, dtype: str, packing: dict, edge: int) -> None:
    import tensorstore

    z, y, x = np.ogrid[:edge, :edge, :edge]
    values = (120 + 60 * np.sin(z / 9) * np.cos(y / 11) * np.cos(x / 13)).astype(dtype)
    values = values // 30 + (z // 64) if dtype == "uint64" else values
    store = tensorstore.open({
        "driver": "neuroglancer_precomputed", "kvstore": f"file://{path}/", "create": True,
        "scale_metadata": {"size": [edge] * 3, "resolution": [8, 8, 8], "chunk_size": [64] * 3, **packing},
        "multiscale_metadata": {"type": "image", "data_type": dtype, "num_channels": 1}}).result()
    store[..., 0].write(np.transpose(values.astype(dtype))).result()


def by_emcore(place: str, box: tuple[slice, ...]) -> tuple[float, np.ndarray]:
    volume = open_volume(place, cache_bytes=0)
    return seconds(lambda: volume[box])


def by_tensorstore(place: str, box: tuple[slice, ...]) -> tuple[float, np.ndarray]:
    import tensorstore

    driver = {"driver": "http", "base_url": f"{place}/"} if place.startswith("http") else f"file://{place}/"
    store = tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": driver}).result()
    return seconds(lambda: store[..., 0].transpose([2, 1, 0])[box].read().result())


def seconds(read: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    found = read()
    return time.perf_counter() - start, found


def compared(place: str, box: tuple[slice, ...], rounds: int) -> tuple[float, float]:
    """Seconds of emcore and of tensorstore, the fastest of rounds in turns, after one that does not count."""
    ways = [partial(by_emcore, place, box), partial(by_tensorstore, place, box)]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        order = (0, 1) if number % 2 else (1, 0)
        results = {way: ways[way]() for way in order}
        assert np.array_equal(results[0][1], results[1][1])
        for way in order if number else ():
            times[way].append(results[way][0])
    return min(times[0]), min(times[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=64.0, help="voxels of each volume, in bytes of uint8")
    parser.add_argument("--rounds", type=int, default=9)
    settings = parser.parse_args()
    edge = max(64, round((settings.megabytes * 1e6) ** (1 / 3) / 64) * 64)
    slow = 0
    print(f"{'volume of ' + str(edge) + '^3':<28}{'where':<12}{'open':>9}{'emcore':>12}{'tensorstore':>13}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), delay=DELAY) as server:
        for name, (dtype, packing) in KINDS.items():
            path = Path(folder) / name.replace(", ", "_")
            write(path, dtype, packing, edge)
            box = (slice(5, edge - 3), slice(0, edge), slice(7, edge))
            for where, place in (("folder", str(path)), ("http, 20 ms", f"{server.address}/{path.name}")):
                ours, theirs = compared(place, box, settings.rounds)
                opened = min(seconds(lambda place=place: open_volume(place))[0] for _ in range(3))
                size = np.prod([span.stop - span.start for span in box]) * np.dtype(dtype).itemsize / 1e6
                print(f"{name:<28}{where:<12}{opened * 1000:>6.0f} ms{size / ours:>7.0f} MB/s{size / theirs:>8.0f} MB/s"
                      f"{theirs / ours:>8.2f}", flush=True)
                slow += theirs / ours < LEAST
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
