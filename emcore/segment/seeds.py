"""Names of seeds for floods of single sections, as decode.fragments and seeded_slices take them."""

import math

from emcore.errors import InputError

SEEDS = {"maxima_distance": 0.5, "minima": math.inf, "hminima": 0.1, "grid": 10.0}  # and what "-value" sets


def parse_seeds(seeds: str) -> tuple[str, float]:
    """The kind of seeds that a name stands for, and its number."""
    name, dash, text = str(seeds).partition("-")
    try:
        value = float(text) if dash else SEEDS[name]
    except (KeyError, ValueError):
        value = math.nan
    if name not in SEEDS or math.isnan(value) or (name == "grid" and not (value >= 1 and value.is_integer())):
        raise InputError(f"seeds must be one of {', '.join(SEEDS)}, with a number after a dash if wanted; "
                         f"got {seeds!r}")
    return name, value


def check_fragments(name: str) -> None:
    """Refuses a name that is neither "watershed" nor one of seeds."""
    if name != "watershed" and name.partition("-")[0] not in SEEDS:
        raise InputError(f"unknown fragments {name!r}; there are watershed, {', '.join(SEEDS)}, the last four with a "
                         "number after a dash if wanted")
    if name != "watershed":
        parse_seeds(name)
