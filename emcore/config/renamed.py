"""Settings that are new, or have another name now.

The old ones are taken until the next release, with one sentence on stderr.
"""

from collections.abc import Iterable
from typing import Any

# (class of the table, old name) -> new name
RENAMED = {
    ("AffinityDecode", "score"): "statistic",
    ("Space", "score"): "statistic",
    ("Sweep", "merges"): "statistics",
    ("Infer", "slab"): "tile",
}

# settings with a default that tables of the last release do not have, though they hold all that there were then
ADDED = {("AffinityDecode", "end"), ("AffinityDecode", "learned"), ("PartnersDecode", "reach_nm"),
         ("ComponentsDecode", "peak")}

OLD_SLAB = 64  # sections, by default; a tile is chosen by default


def known_then(table: str, names: Iterable[str]) -> set[str]:
    """The settings among these that the last release had."""
    return {name for name in names if (table, name) not in ADDED}


def new_value(table: str, old: str, value: Any) -> Any:
    """What the value of an old setting means under its new name."""
    if (table, old) != ("Infer", "slab") or type(value) is not int:
        return value
    return None if value == OLD_SLAB else [value, 0, 0]
