"""Workers of Dask: on this machine, of a scheduler that is there, or jobs that dask_jobqueue hands to a cluster.

Nothing but numbers of tasks and what came of them passes through the scheduler, and only as many at a time as keep the
workers busy. Whose task is tried again when a worker dies is Dask's business; a task asks first whether it is done.
"""

import importlib.util
import logging
import math
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import emcore
from emcore.blocks.attempts import TRIES, Outcome, attempt, last_line, share_of
from emcore.blocks.work import Stage, Work
from emcore.errors import InputError, lacking
from emcore.settings.blocks import Blocks, bytes_of
from emcore.threads import allotted_cores

NAMES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster", "oar": "OARCluster",
         "moab": "MoabCluster", "htcondor": "HTCondorCluster"}
AHEAD = 4  # tasks that are under way for a worker
LEAST_AHEAD = 64
LOOK = 0.01  # seconds between two looks whether a task has ended
LOOK_AT_WORKERS = 5.0
JOBS_AGAIN = 60.0  # seconds between two looks whether jobs have ended, which are replaced
TOLD_AGAIN = 600.0  # seconds between two notes that no worker is there
# one task at a time is on a worker, so that its death is not the fault of others that wait there
SCHEDULER = {"distributed.scheduler.worker-saturation": 1.0, "distributed.scheduler.allowed-failures": TRIES - 1}

SLOTS: dict[int, int] = {}  # threads of this worker, numbered as they come


class Cluster:
    """Where workers come from, and what must be known of them."""

    def __init__(self, of_dask: Any, processes: int):
        self.of_dask, self.processes = of_dask, processes  # a cluster or an address; workers of one machine

    def tend(self, threads: int) -> None:
        """Does what must be done now and then; threads: those of all workers that are there."""

    def progressed(self) -> None:
        """Hears that a task was done."""


class Jobs(Cluster):
    """Jobs of a queue: those that end are replaced, and one that the queue refuses ends the run."""

    def __init__(self, kind: str, table: dict[str, Any]):
        table = dict(table)
        self.kind, self.jobs = kind, table.pop("jobs", 1)
        self.in_vain, self.refused, self.looked = 0, "", -math.inf  # in vain: handed in since a task was done
        super().__init__(self._made(table), 1)
        self.seen: set[str] = set()  # the names of all workers that ever came, however short they lived
        self.of_dask.scheduler.add_plugin(self._watch(), name="seen")
        if several := re.search(r"--nworkers (\d+)", self.of_dask.job_script()):
            self.processes = int(several[1])

    def tend(self, threads: int) -> None:
        if self.refused:
            raise InputError(f"the queue refuses a job of [blocks.{self.kind}]: {self.refused}")
        now = time.monotonic()
        if now - self.looked < JOBS_AGAIN:
            return
        self.looked = now
        known = self.of_dask.worker_spec
        if lost := self.lost():
            for job in lost:
                known.pop(job, None)
                self.seen -= {name for name in set(self.seen) if is_of(job, name)}  # the next job may have this name
            self.of_dask.scale(jobs=len(known))  # this takes them out of the queue; the next look hands in others
        elif self.in_vain < TRIES * self.jobs:
            self.of_dask.scale(jobs=self.jobs)
        elif not threads and not self.of_dask.workers:
            raise InputError(f"{self.in_vain} jobs of [blocks.{self.kind}] ended before a task was done: their logs "
                             "say why; blocks need less memory and time where blocks.size is smaller")

    def lost(self) -> list[str]:
        """The jobs that have had workers and have none any more."""
        there = {str(worker.name) for worker in list(self.of_dask.scheduler.workers.values())}
        return [job for job in self.of_dask.workers if any(is_of(job, name) for name in set(self.seen))
                and not any(is_of(job, name) for name in there)]

    def _watch(self) -> Any:
        """What the scheduler tells of every worker that comes."""
        from distributed import SchedulerPlugin

        seen = self.seen

        class Watch(SchedulerPlugin):
            def add_worker(self, scheduler: Any, worker: str) -> None:
                seen.add(str(scheduler.workers[worker].name))

        return Watch()

    def progressed(self) -> None:
        self.in_vain = 0

    def _made(self, table: dict[str, Any]) -> Any:
        import dask

        jobqueue = imported("dask_jobqueue")
        made_by = getattr(jobqueue, NAMES[self.kind])
        command = shlex.split(made_by.job_cls.submit_command)[0]
        if shutil.which(command) is None:
            raise InputError(f"[blocks.{self.kind}] hands jobs to a queue by the command {command}, which this machine "
                             "does not have: run this on a login node of the cluster")
        root = Path(emcore.__file__).resolve().parent.parent
        if (root / "pyproject.toml").exists():  # a checkout that is not installed
            usual = dask.config.get(f"jobqueue.{self.kind}.job-script-prologue", None) or []
            table["job_script_prologue"] = [f"export PYTHONPATH={shlex.quote(str(root))}${{PYTHONPATH:+:$PYTHONPATH}}",
                                            *table.get("job_script_prologue", usual)]
        try:
            return made_by(job_cls=self._job(made_by.job_cls), **table)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            raise InputError(f"[blocks.{self.kind}] makes no {NAMES[self.kind]} of dask_jobqueue: "
                             f"{' '.join(str(error).split())}") from None

    def _job(self, usual: type) -> type:
        """The class of a job, which also tells this object when it was handed in or refused."""
        from distributed.deploy.spec import ProcessInterface

        async def start(job: Any) -> None:
            self.in_vain += 1
            try:
                await usual.start(job)
            except Exception as error:  # raised, it would only be logged
                self.refused = " ".join(str(error).split()) or last_line(error)
                await ProcessInterface.start(job)

        return type(usual.__name__, (usual,), {"start": start})


def is_of(job: str, worker: str) -> bool:
    """Whether a worker of this name belongs to a job."""
    return worker == job or worker.startswith(f"{job}-")


class Tasks:
    """A pool of tasks on the workers of a Dask client."""

    def __init__(self, work: Work, client: Any, cluster: Cluster):
        from distributed import as_completed

        self.work, self.client, self.cluster = work, client, cluster
        # what came of a task is fetched aside: with the last worker it may be lost, and is made again by the next one
        self.ended = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self.numbers: dict[Any, int] = {}  # the numbers of the tasks that are under way
        self.looked = -LOOK_AT_WORKERS
        self.seen = self.told = time.monotonic()  # a worker
        self.look()

    def submit(self, stage: Stage, number: int) -> None:
        with self.connected():
            future = self.client.submit(attempt_there, self.work, stage, number, self.cluster.processes, pure=False)
        self.numbers[future] = number
        self.ended.add(future)

    def next(self) -> Outcome:
        from distributed import KilledWorker
        from distributed.client import CancelledError

        while not self.ended.has_ready():
            self.look()
            time.sleep(LOOK)
        future, result = next(self.ended)
        number = self.numbers.pop(future)
        if isinstance(result, Outcome):
            self.cluster.progressed()
            return result
        error = result[1] if isinstance(result, tuple) else result
        if isinstance(error, KilledWorker):
            return Outcome(number, failed="the death of its worker, whose log says more", tries=TRIES)
        with self.connected():
            if isinstance(error, CancelledError):
                raise error
        return Outcome(number, failed=last_line(error))

    def look(self) -> None:
        """Looks after the workers now and then, and says that there are none."""
        now = time.monotonic()
        if now - self.looked < LOOK_AT_WORKERS:
            return
        self.looked = now
        with self.connected():
            threads = sum(self.client.nthreads().values())
        self.cluster.tend(threads)
        self.window = max(LEAST_AHEAD, AHEAD * threads)
        if threads:
            self.seen = self.told = now
        elif now - self.told > TOLD_AGAIN or now - self.seen < LOOK_AT_WORKERS:
            self.told = now
            print("note: no worker is there: waiting for one to come", file=sys.stderr, flush=True)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Turns the loss of the scheduler into a sentence."""
        from distributed.client import CancelledError

        try:
            if self.client.status not in ("running", "newly-created"):
                raise OSError("the connection was closed")
            yield
        except (OSError, CancelledError, RuntimeError) as error:
            raise InputError(f"the scheduler of Dask is lost ({last_line(error)}): what is done stays, and the same "
                             "command goes on with the rest") from None


@contextmanager
def workers(work: Work, settings: Blocks) -> Iterator[Tasks]:
    """The workers that the settings ask for, as long as they are needed."""
    imported("distributed")
    import dask
    from distributed import Client

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SCHEDULER))
        for name in ("distributed.client", "tornado.application"):  # what they would say is said by our sentences
            stack.enter_context(quiet(name))
        cluster = cluster_of(settings)
        if not settings.address:
            stack.enter_context(cluster.of_dask)
        try:
            client = stack.enter_context(Client(cluster.of_dask))
        except (OSError, ValueError) as error:
            raise InputError(f"no scheduler of Dask answers at {settings.address or 'this machine'}: "
                             f"{last_line(error)}") from None
        if importlib.util.find_spec("bokeh") and client.dashboard_link:
            print(f"dashboard: {client.dashboard_link}", flush=True)
        yield Tasks(work, client, cluster)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keeps a logger from writing anything."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def cluster_of(settings: Blocks) -> Cluster:
    """The workers of an address, of a table of a cluster, or else of this machine."""
    if settings.address:
        return Cluster(settings.address, 1)
    if settings.cluster:
        return Jobs(settings.cluster, getattr(settings, settings.cluster))
    from distributed import LocalCluster

    number = settings.workers or allotted_cores()
    try:
        made = LocalCluster(n_workers=number, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
                            memory_limit=bytes_of(settings.memory) or None, silence_logs=logging.CRITICAL)
    except (OSError, RuntimeError) as error:
        raise InputError(f"Dask cannot start {number} workers here: {last_line(error)}; a script that asks for "
                         "them does so below `if __name__ == \"__main__\":`") from None
    return Cluster(made, number)


def imported(name: str) -> Any:
    """A package of the extra, or how it is installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise lacking(f"blocks.engine = local needs no {name}; blocks.engine = dask", "dask") from None


def attempt_there(work: Work, stage: Stage, number: int, processes: int) -> Outcome:
    """Carries out a task on a worker, on the part of the machine's cores that is this worker's."""
    from distributed import get_worker

    worker = get_worker()
    threads = worker.state.nthreads
    slot = SLOTS.setdefault(threading.get_ident(), len(SLOTS)) % threads
    last = re.search(r"\d+$", str(worker.name))  # processes of a machine are numbered
    process = int(last[0]) % processes if last else 0
    return attempt(work, stage, number, share_of(stage, number, process * threads + slot, processes * threads))
