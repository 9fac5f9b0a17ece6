"""A real SLURM on this machine: one node of two cores and four GPUs that nobody looks for, which jobs share.

`python -m tests.slurm_node` says how to reach it once it is up, and ends it with the end of its input (Ctrl-D) or at a
signal. It needs root, and Debian's slurm-wlm and munge. What it started ends with it: the jobs too, what these left
behind, and its folder. Its input ends when the process that started it ends, however that happens, so nothing stays.
"""

import ctypes
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
DAEMONS = ("munged", "slurmctld", "slurmd")
START_SECONDS = 120
ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl
# cred_expire is also how long a job waits that was queued again; a node may claim what the machine does not have
SETTINGS = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
MessageTimeout=60
OverTimeLimit=0
KillWait=5
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=100000 Gres=gpu:4 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE OverSubscribe=FORCE:8 State=UP
"""


def missing() -> str | None:
    """Why there can be no SLURM here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "only root on Linux can start a SLURM"
    absent = [name for name in (*DAEMONS, "sbatch", "scontrol") if shutil.which(name, path=PATH) is None]
    return f"needs {', '.join(absent)} (Debian: slurm-wlm and munge)" if absent else None


@contextmanager
def running() -> Iterator[str]:
    """The path of the configuration (SLURM_CONF) of a SLURM that ends with the block, or with this process."""
    keeper = subprocess.Popen([sys.executable, "-m", "tests.slurm_node"], cwd=ROOT, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        line = keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"SLURM did not start:\n{keeper.communicate()[1]}")
        yield line.strip().partition("SLURM_CONF=")[2]
    finally:
        keeper.communicate(timeout=120)  # closes its input


def free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        found = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def start(folder: Path, commands: list[list[str]]) -> None:
    for words in commands:
        with open(folder / f"{words[0]}.log", "a") as log:
            subprocess.Popen(words, env={**os.environ, "PATH": PATH}, stdin=subprocess.DEVNULL, stdout=log,
                             stderr=subprocess.STDOUT)


def wait_for_node(folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    words = ["sinfo", "--noheader", "--format=%t"]
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            if subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip() == "idle":
                return
        time.sleep(0.2)
    logs = "".join(f"{path.name}:\n{path.read_text()[-2000:]}\n" for path in sorted(folder.glob("*.log")))
    raise SystemExit(f"the node was not up within {START_SECONDS} s\n{logs}")


def reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_everything() -> None:
    """Kills the children of this process, which adopts theirs, until there are none."""
    for attempt in range(200):
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for process in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        reap()
        if not children and attempt:
            return
        time.sleep(0.05)


def main() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), lambda *_: sys.exit(0))
    host = socket.gethostname().partition(".")[0]
    with tempfile.TemporaryDirectory(prefix="emcore-slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        conf, key = folder / "slurm.conf", folder / "munge.key"
        os.environ["SLURM_CONF"] = str(conf)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        conf.write_text(SETTINGS.format(host=host, folder=folder, ports=free_ports(2)))
        for number in range(4):
            (folder / f"gpu{number}").symlink_to("/dev/null")  # SLURM wants a device for each
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-3]\n")
        try:
            start(folder, [
                ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
                 f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed",
                 f"--log-file={folder}/munged.log"],
                ["slurmctld", "-D"],
                ["slurmd", "-D"]])
            wait_for_node(folder)
            print(f"export SLURM_CONF={conf}", flush=True)
            while not (select.select([sys.stdin], [], [], 0.2)[0] and not os.read(0, 4096)):
                reap()
        finally:
            end_everything()


if __name__ == "__main__":
    main()
