"""infer.py in blocks on two hosts that share a folder: namespaces of this machine, joined by a cable of their own.

Each has its own network, name and processes, so that nobody sees whether a process of the other one lives. They end
with the test, or with the process that runs it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from emcore.blocks.alive import signs
from emcore.volumes import open_volume
from tests.scripts import environment
from tests.test_blocks_runs import (  # noqa: F401 (made, place, plain and undisturbed are fixtures)
    LABELS,
    RESULTS,
    ROOT,
    blocks_folder,
    check,
    count,
    made,
    place,
    plain,
    run,
    undisturbed,
)

PATIENCE = 300  # seconds for what takes a few on a machine with nothing else to do
ADDRESSES = "192.0.2.1", "192.0.2.2"  # set aside for examples: no network has them
DECODING = (str(ROOT / "infer.py"), "--cfg", "run.toml", "--from", str(RESULTS / "a_prediction.h5"))


class Host:
    """Processes with a name, a network and numbers of their own, as long as its first process lives."""

    def __init__(self, name):
        start = f"hostname {name} && ip link set lo up && echo ready && exec cat > /dev/null"
        self.first = subprocess.Popen(["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
                                       "sh", "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True)
        self.started = []
        if self.first.stdout.readline() != "ready\n":
            pytest.skip(f"this machine makes no namespaces: {self.first.stderr.read()}")
        with open(f"/proc/{self.first.pid}/task/{self.first.pid}/children") as file:
            self.number = file.read().strip()

    def run(self, *words):
        subprocess.run(self.entered(*words), check=True, timeout=PATIENCE)

    def python(self, *words, **variables):
        """A Python that is started on the host; what it says goes to a file."""
        with open(f"{len(os.listdir('.'))}.said", "x") as file:
            process = subprocess.Popen(self.entered(sys.executable, *words), env={**environment(), **variables},
                                       stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        process.said = file.name
        self.started.append(process)
        return process

    def entered(self, *words):
        return ["nsenter", "--target", self.number, "--net", "--uts", "--pid", "--mount", f"--wd={os.getcwd()}", *words]

    def end(self):
        self.first.kill()
        for process in (self.first, *self.started):
            process.wait(PATIENCE)


@pytest.fixture
def hosts(place):  # noqa: F811
    """Two hosts with a cable between them."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux can make namespaces")
    if absent := [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(absent)} (Debian: util-linux and iproute2)")
    with contextlib.ExitStack() as stack:
        two = []
        for name in ("one", "two"):
            two.append(Host(name))
            stack.callback(two[-1].end)
        cable = [f"em{os.getpid() % 10**7}{end}" for end in "ab"]
        made_it = subprocess.run(["ip", "link", "add", cable[0], "netns", two[0].number, "type", "veth", "peer", "name",
                                  cable[1], "netns", two[1].number], capture_output=True, text=True)
        if made_it.returncode:
            pytest.skip(f"this machine makes no virtual cable: {made_it.stderr}")
        for host, end, address in zip(two, cable, ADDRESSES):
            host.cable = end
            host.run("ip", "address", "add", f"{address}/30", "dev", end)
            host.run("ip", "link", "set", end, "up")
        yield two


def wait_until(true, what, *processes):
    """Returns what is true at last, unless a process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        for process in processes:
            assert process.poll() is None, said_by(process)
        time.sleep(0.02)
    return found


def said_by(process):
    with open(process.said) as file:
        return file.read()


def ended(process):
    process.wait(PATIENCE)
    said = said_by(process)
    assert process.returncode == 0, said
    assert "Traceback" not in said, said
    return said


def die(host, worker):
    worker.kill()


def fall_silent(host, worker):
    host.run("ip", "link", "set", host.cable, "down")


@pytest.mark.parametrize("event", [pytest.param(die, marks=pytest.mark.slow),
                                   pytest.param(fall_silent, marks=pytest.mark.long)])
def test_workers_of_dask_on_two_hosts_of_which_one_is_lost(hosts, place, undisturbed, event):  # noqa: F811
    pytest.importorskip("distributed")
    one, two = hosts
    file = place / "scheduler.json"
    scheduler = one.python("-m", "distributed.cli.dask_scheduler", "--host", ADDRESSES[0], "--port", "0",
                           "--scheduler-file", str(file), "--no-dashboard")
    workers = [host.python("-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--host", address,
                           "--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(place / address))
               for host, address in zip(hosts, ADDRESSES)]
    wait_until(lambda: all("Registered to" in said_by(worker) for worker in workers), "workers", scheduler, *workers)
    address = json.loads(file.read_text())["address"]
    assert address.startswith(f"tcp://{ADDRESSES[0]}:")
    driver = one.python(*DECODING, "blocks.size=[6,20,20]", f"blocks.address={address}")
    wait_until(lambda: count() >= 3, "files of blocks", driver)
    event(two, workers[1])
    ended(driver)
    assert open_volume(LABELS, "labels")[...].tobytes() == undisturbed[LABELS.name][0]


@pytest.mark.long
def test_jobs_of_an_array_on_two_hosts_of_which_one_is_lost(hosts, place, undisturbed):  # noqa: F811
    jobs = [host.python(*DECODING, "blocks.size=[12,20,20]", SLURM_ARRAY_TASK_ID=str(number),
                        SLURM_ARRAY_TASK_COUNT="2") for number, host in enumerate(hosts)]
    wait_until(lambda: any(words["host"] == "two" and words["number"] is not None
                           for _, words, _ in signs(blocks_folder())), "host two is at a block", *jobs)
    hosts[1].end()
    assert not LABELS.exists()
    told = run("infer.py", "--status")  # from a third one
    for host in ("one", "two"):
        assert f" of {host} is at " in told
    ended(jobs[0])  # after the silence that tells that the other one is dead
    check(undisturbed)
