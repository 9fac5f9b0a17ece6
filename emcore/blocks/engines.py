"""Who carries out a work: every stage after the one before it, every task until its file is valid.

    run(work, settings.blocks)

    local   processes of this machine (local.py), or this process alone
    dask    workers of Dask, here or on a cluster (on_dask.py)
    share   processes that share nothing but the files (share.py): torchrun, jobs of an array
"""

from emcore.blocks import local, on_dask, share
from emcore.blocks.attempts import Alone, carry_out
from emcore.blocks.work import Work
from emcore.settings.blocks import Blocks
from emcore.threads import allotted_cores


def run(work: Work, settings: Blocks) -> None:
    """Carries out all stages by the engine that the settings name, or that this process was started for."""
    engine = engine_of(settings)
    if engine == "share":
        share.run(work, *share.place())
    elif engine == "dask":
        with on_dask.workers(work, settings) as pool:
            carry_out(work, pool)
    else:
        workers = settings.workers or allotted_cores()
        if workers == 1:
            carry_out(work, Alone(work))
            return
        with local.Processes(work, workers) as pool:
            carry_out(work, pool)


def engine_of(settings: Blocks) -> str:
    """local, dask or share."""
    if settings.engine != "auto":
        return settings.engine
    if settings.address or settings.cluster:
        return "dask"
    return "share" if share.place()[1] > 1 else "local"
