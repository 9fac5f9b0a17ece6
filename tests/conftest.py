"""The two suites: `pytest` leaves out the tests marked long; `pytest --long` runs them alone, or a share of them.

Processes that are given the same folder by --share divide the work among them: each takes the next file that no other
has taken, and the tests of the others' files do not happen here. Long tests are taken one by one, as one of them may
last as long as a whole file. The fixture `slurm` is a SLURM on this machine.
"""

import hashlib
from pathlib import Path

import pytest

from tests import slurm_node


def pytest_addoption(parser):
    parser.addoption("--long", nargs="?", type=float, const=1.0, default=None, metavar="SHARE",
                     help="run only the tests marked long; with a number below 1 about that share of them")
    parser.addoption("--long-seed", default="", metavar="TEXT", help="which share: every text draws another one")
    parser.addoption("--share", type=Path, metavar="FOLDER", help="take files, or long tests, as other processes do")


def pytest_collection_modifyitems(config, items):
    share, seed = config.getoption("--long"), config.getoption("--long-seed")
    chosen = [item for item in items if wanted(item, share, seed)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    # the long tests of SLURM in a file are one share: they come first, so that no process is left alone with them
    items[:] = sorted(chosen, key=lambda item: share is None or "slurm" not in item.fixturenames)


def wanted(item: pytest.Item, share: float | None, seed: str) -> bool:
    is_long = item.get_closest_marker("long") is not None
    if share is None or not is_long:
        return share is None and not is_long
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {item.nodeid}".encode()).digest()[:8], "big") / 2**64
    return drawn < share


OURS: dict[str, bool] = {}  # a file, or a long test -> whether this process has taken it


def share_of(item: pytest.Item) -> str:
    """What is taken as one: the file of a test, or a long test by itself. Those of a file that need SLURM share one."""
    alone = item.get_closest_marker("long") is not None and "slurm" not in item.fixturenames
    return hashlib.sha256(item.nodeid.encode()).hexdigest() if alone else item.path.name


def pytest_runtest_protocol(item, nextitem):
    """True, which leaves the test out, where another process has taken it or its file."""
    folder = item.config.getoption("--share")
    if folder is None:
        return None
    share = share_of(item)
    if share not in OURS:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / share).touch(exist_ok=False)
            OURS[share] = True
        except FileExistsError:
            OURS[share] = False
    if OURS[share]:
        return None
    item.session._setupstate.teardown_exact(nextitem)  # else the fixtures of the file would outlive it
    return True


@pytest.fixture(scope="session")
def slurm():
    """The configuration (SLURM_CONF) of a SLURM that starts with the first test that asks for it."""
    if reason := slurm_node.missing():
        pytest.skip(reason)
    with slurm_node.running() as configuration:
        yield configuration
