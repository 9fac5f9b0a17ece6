"""What a worker takes for a block stays below what is said before the work, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.affinities import make_affinities
from emcore.blocks.choice import WORKER, Task
from emcore.segment import encode_affinities
from emcore.segment.affinities import TABLE_ATTRIBUTE
from emcore.settings.decode import AffinityDecode
from emcore.synth import synthesize
from emcore.volumes import create_volume

SIDE = 128
WORK = """
import resource, sys
from pathlib import Path
from emcore.blocks.decoding import AffinityWork
from emcore.blocks.grid import Grid
from emcore.blocks.windows import Source
from emcore.blocks.work import run_inline
from emcore.settings.decode import AffinityDecode

settings = AffinityDecode(statistic=sys.argv[3], low=float(sys.argv[4]), high=float(sys.argv[5]))
run_inline(AffinityWork(Path(sys.argv[2]), Grid((128, 128, 256), (128,) * 3), Source(sys.argv[1], settings), "content"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """Affinities of two mirrored cubes of synthetic tissue by type."""
    folder = tmp_path_factory.mktemp("predictions")
    labels = synthesize((64, 64, 64), (40.0, 16.0, 16.0)).neuron_ids
    for axis in (0, 1, 2, 2):
        labels = np.concatenate([labels, np.flip(labels, axis)], axis)
    affs = make_affinities(labels)
    codes, table = encode_affinities(affs)
    for values, attributes in ((affs, {}), (codes, {TABLE_ATTRIBUTE: table.tolist()})):
        offsets = {"offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]}
        with create_volume(folder / f"{values.dtype}.h5", values.shape, values.dtype,
                           attributes=offsets | attributes) as out:
            out[...] = values
    return folder


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is told in other units")
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("statistic, low, high", [("mean", 1e-4, 0.9999), ("aff85_his256", 0.1, 0.999),
                                                  ("aff85_his256_all", 1e-4, 0.9999)])
def test_a_worker_takes_no_more_than_is_said(tmp_path, predictions, dtype, statistic, low, high):
    found = subprocess.run([sys.executable, "-c", WORK, predictions / f"{dtype}.h5", tmp_path, statistic, str(low),
                            str(high)], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert found.returncode == 0, found.stderr
    task = Task((SIDE, SIDE, 2 * SIDE), 3, np.dtype(dtype).itemsize, AffinityDecode(statistic=statistic))
    said = WORKER + max(task.in_block * SIDE**3, task.top)
    assert 0.7 * said < int(found.stdout) <= said, f"{int(found.stdout) / 1e6:.0f} MB, {said / 1e6:.0f} MB are said"
