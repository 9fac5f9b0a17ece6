"""[blocks]: decoding in blocks, where the volume does not fit into memory, and who carries it out."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from emcore.config.checks import WrongSetting, at_least, parsed
from emcore.errors import InputError

Triple = tuple[int, int, int]
Cluster = dict[str, Any]  # a table of dask_jobqueue, but for `jobs`
CLUSTERS = ("slurm", "pbs", "lsf", "sge", "oar", "moab", "htcondor")
UNITS = {"": 1, "b": 1, **{unit + end: base**power for power, unit in enumerate(("k", "m", "g", "t"), 1)
                   for end, base in (("", 1000), ("b", 1000), ("ib", 1024))}}


def bytes_of(text: int | str) -> int:
    """A number of bytes, or one with a unit: 2GB, 500 MB, 1.5GiB."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", str(text).strip() or "0")
    if match is None or match[2].lower() not in UNITS:
        raise InputError(f"memory is written like 2GB, 800MB or 2000000000; got {text!r}")
    return int(float(match[1]) * UNITS[match[2].lower()])


@dataclass(frozen=True)
class Blocks:
    size: Triple | None = None  # voxels of a block along z, y, x; by default chosen by the memory of a worker
    # who carries it out: processes of this machine, Dask, or processes that share files alone (torchrun, array jobs);
    # auto: Dask where an address or a table of a cluster is given, else what this process was started by
    engine: Literal["auto", "local", "dask", "share"] = "auto"
    workers: int = 0  # processes on this machine; 0: one per core
    memory: int | str = 0  # memory of a worker, in bytes or like 2GB; 0: an equal share of what is free
    address: str = ""  # address of a running Dask scheduler, such as tcp://host:8786
    slurm: Cluster | None = None  # SLURM: the number of `jobs`, and options of dask_jobqueue.SLURMCluster
    pbs: Cluster | None = None  # the same for PBS
    lsf: Cluster | None = None  # the same for LSF
    sge: Cluster | None = None  # the same for SGE
    oar: Cluster | None = None  # the same for OAR
    moab: Cluster | None = None  # the same for Moab
    htcondor: Cluster | None = None  # the same for HTCondor

    def __post_init__(self) -> None:
        at_least(1, self, "size")
        at_least(0, self, "workers")
        parsed(self, "memory", bytes_of)
        given = [f"blocks.{name}" for name in ("address", *CLUSTERS) if getattr(self, name) not in ("", None)]
        if given[1:]:
            raise WrongSetting(f"{given[1].removeprefix('blocks.')} is a second cluster beside {given[0]}: give one")
        if given and self.engine not in ("auto", "dask"):
            raise WrongSetting(f"engine = {self.engine} uses no cluster: leave out {given[0]}, or set it to dask")
        for name in CLUSTERS:
            jobs = (getattr(self, name) or {}).get("jobs", 1)
            if type(jobs) is not int or jobs < 1:
                raise WrongSetting(f"{name}.jobs must be a number of jobs, at least 1; got {jobs!r}")

    @property
    def cluster(self) -> str | None:
        """The kind of cluster whose table is given."""
        return next((name for name in CLUSTERS if getattr(self, name) is not None), None)
