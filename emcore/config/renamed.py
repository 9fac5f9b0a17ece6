"""Settings that have another name now; the old ones are taken until the next release, with one sentence on stderr."""

from typing import Any

# (class of the table, old name) -> new name
RENAMED = {
    ("AffinityDecode", "score"): "statistic",
    ("Space", "score"): "statistic",
    ("Sweep", "merges"): "statistics",
    ("Infer", "slab"): "tile",
}


def new_value(table: str, old: str, value: Any) -> Any:
    """What the value of an old setting means under its new name."""
    return [value, 0, 0] if (table, old) == ("Infer", "slab") and type(value) is int else value
