"""python -m emcore warm: compiles all that Numba compiles when it is first needed, so that no later command waits.

The code is kept in the cache of this user and never beside the package, so an installation may be read-only: each user
warms once. NUMBA_CACHE_DIR names another folder, where homes cannot be written.
"""

import argparse
import time
from importlib.util import find_spec

import numpy as np

from emcore.cache import code_folder


def scores() -> None:
    from emcore import metrics
    from emcore.metrics.assignment import best_matching

    ids = np.arange(1, 9).reshape(1, 2, 4)
    metrics.neuron_border_mask(ids, (40, 4, 4))
    metrics.clefts(ids == 2, ids == 7, (40, 4, 4))
    best_matching(np.array([0, 0, 1]), np.array([0, 1, 0]), np.ones(3))


def tissue() -> None:
    from emcore.synth import synthesize

    synthesize((24, 64, 64), synapses=4)


def targets() -> None:
    if find_spec("torch"):
        import emcore.data.loops  # noqa: F401  its kernels are compiled when it is imported


PARTS = {"scores": scores, "synthetic tissue": tissue, "targets of training": targets}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m emcore warm", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    print("compiling what is not compiled yet", flush=True)
    for name, compile_part in PARTS.items():
        start = time.monotonic()
        compile_part()
        print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)
    folder = code_folder()
    print(f"kept in {folder}" if folder else "kept nowhere: no folder of yours can be written; set NUMBA_CACHE_DIR")
    return 0
