"""The two suites: `pytest` leaves out the tests marked long; `pytest --long` runs them alone, or a share of them."""

import hashlib

import pytest


def pytest_addoption(parser):
    parser.addoption("--long", nargs="?", type=float, const=1.0, default=None, metavar="SHARE",
                     help="run only the tests marked long; with a number below 1 about that share of them")
    parser.addoption("--long-seed", default="", metavar="TEXT", help="which share: every text draws another one")


def pytest_collection_modifyitems(config, items):
    share, seed = config.getoption("--long"), config.getoption("--long-seed")
    chosen = [item for item in items if wanted(item, share, seed)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


def wanted(item: pytest.Item, share: float | None, seed: str) -> bool:
    is_long = item.get_closest_marker("long") is not None
    if share is None or not is_long:
        return share is None and not is_long
    drawn = int.from_bytes(hashlib.sha256(f"{seed} {item.nodeid}".encode()).digest()[:8], "big") / 2**64
    return drawn < share
