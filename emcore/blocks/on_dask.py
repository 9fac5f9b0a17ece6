"""Workers of Dask: on this machine, of a scheduler that is there, or jobs that dask_jobqueue hands to a cluster.

Nothing but numbers of tasks and what came of them passes through the scheduler, and only as many at a time as keep the
workers busy. A worker that dies is Dask's to replace, and its tasks are asked first whether they are done.
"""

from typing import TYPE_CHECKING

from emcore.blocks.engines import TRIES

if TYPE_CHECKING:
    pass

NAMES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster", "oar": "OARCluster",
         "moab": "MoabCluster", "htcondor": "HTCondorCluster"}
AHEAD = 4  # tasks that are under way for a worker
LEAST_AHEAD = 64
JOBS_AGAIN = 60.0  # seconds between two looks whether jobs have ended
LOST = 60.0  # seconds without a scheduler after which it is not waited for any more
# one task a worker at a time: those that wait are not on a worker, so that its death is not theirs too
SCHEDULER = {"distributed.scheduler.worker-saturation": 1.0, "distributed.scheduler.allowed-failures": TRIES - 1}
