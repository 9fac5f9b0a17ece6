"""Names of fragments, as decode.fragments takes them: watershed, faces, and seeds for floods of single sections."""

import math

from emcore.errors import InputError

FACES, LARGEST_SMOOTH = "faces", 8  # more passes blur over several voxels, and blocks would read far around them
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


def face_smoothing(name: str) -> int | None:
    """The passes of smoothing that "faces" (none) and "faces-2" stand for; None for fragments that are no faces."""
    kind, dash, text = str(name).partition("-")
    if kind != FACES:
        return None
    if dash and not (text.isascii() and text.isdigit() and int(text) <= LARGEST_SMOOTH):
        raise InputError(f"faces take a whole number of passes of smoothing, 0 to {LARGEST_SMOOTH}, after a dash; "
                         f"got {name!r}")
    return int(text) if dash else 0


def check_fragments(name: str) -> None:
    """Refuses a name that is neither "watershed" nor "faces" nor one of seeds."""
    if name == "watershed" or face_smoothing(name) is not None:
        return
    if name.partition("-")[0] not in SEEDS:
        raise InputError(f"unknown fragments {name!r}; there are watershed, {FACES}, {', '.join(SEEDS)}, all but the "
                         "first with a number after a dash if wanted")
    parse_seeds(name)


def floods_sections(name: str) -> bool:
    """Whether fragments are made section by section."""
    return name.partition("-")[0] in SEEDS
