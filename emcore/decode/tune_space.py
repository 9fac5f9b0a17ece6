"""The points of [tune.space]: every combination of lists, or seeded draws. A point is a AffinityDecode."""

import itertools
import math
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from emcore.errors import InputError
from emcore.segment.statistics import parse_statistic
from emcore.settings.decode import AffinityDecode, Link
from emcore.settings.tune import Space

BEFORE = ("bias", "temperature", "fragments", "low", "high", "statistic")  # what the merge tree depends on
AFTER = ("boundary", "dust_size", "dust_affinity", "remove_size", "link_iou", "link_one_sided", "link_affinity")
WHOLE = ("dust_size", "remove_size")
NAMES = ("statistic", "fragments")
UNLIMITED = ("bias", "temperature", *WHOLE)  # at the upper end; all else lies between 0 and 1
DRAWS = 1000  # until low is at most high


class Range(NamedTuple):
    """Numbers between two ends, drawn evenly or evenly in their logarithm."""

    low: float
    high: float
    logarithmic: bool = False


class Thresholds(NamedTuple):
    """Those that are listed, or every one between two ends."""

    low: float
    high: float
    listed: tuple[float, ...] = ()


def read_space(space: Space) -> dict[str, Range | list]:
    """What each setting of the space may be, without those that are left out and the threshold."""
    given = {field.name: getattr(space, field.name) for field in fields(space) if field.name != "threshold"}
    return {name: read_choices(name, value) for name, value in given.items() if value is not None}


def read_thresholds(space: Space) -> Thresholds:
    if space.threshold in ("every", None):
        return Thresholds(0.0, 1.0)
    choices = read_choices("threshold", space.threshold)
    if isinstance(choices, Range):
        return Thresholds(choices.low, choices.high)
    return Thresholds(min(choices), max(choices), tuple(sorted(set(choices))))


def read_choices(name: str, given: Any) -> Range | list:
    """The values that a setting may take, checked one by one."""
    where = f"tune.space.{name}"
    if isinstance(given, dict):
        return read_table(name, given)
    values = list(given) if isinstance(given, list | tuple) else [given]
    if name == "bias" and len(values) == 3 and not any(isinstance(value, list | tuple) for value in values):
        values = [values]
    if not values:
        raise InputError(f"{where} is an empty list: give at least one value, or leave it out")
    return [checked(name, value) for value in values]


def read_table(name: str, table: dict[str, Any]) -> Range | list:
    where = f"tune.space.{name}"
    unknown = set(table) - {"min", "max", "step", "log"}
    if unknown or not {"min", "max"} <= set(table) or name in (*NAMES, "bias"):
        wanted = "a list" if name in (*NAMES, "bias") else "a list, or a table of min, max and perhaps step or log"
        raise InputError(f"{where} must be {wanted}; got {table}")
    low, high = checked(name, table["min"]), checked(name, table["max"])
    step, logarithmic = table.get("step"), table.get("log", False)
    if low > high:
        raise InputError(f"{where} is an empty range: min {low} is above max {high}")
    if step is not None:
        if not is_number(step) or step <= 0 or logarithmic:
            raise InputError(f"{where}.step must be a number above 0, without log; got {table}")
        count = math.floor((high - low) / step + 1e-9) + 1
        return [checked(name, round(low + k * step, 12)) for k in range(count)]
    if logarithmic and low <= 0:
        raise InputError(f"{where} with log must begin above 0; got min {low}")
    return Range(low, high, bool(logarithmic))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def checked(name: str, value: Any) -> Any:
    """The value as [decode] takes it."""
    where = f"tune.space.{name}"
    if name == "statistic":
        parse_statistic(value)
        return str(value)
    if name == "fragments":
        return str(value)
    if name == "bias":
        if not isinstance(value, list | tuple) or len(value) != 3 or not all(is_number(number) for number in value):
            raise InputError(f"{where} must be a list of triples along z, y and x; got {value!r}")
        return tuple(float(number) for number in value)
    if not is_number(value):
        raise InputError(f"{where} must hold numbers; got {value!r}")
    lowest = 1e-6 if name == "temperature" else 0
    if value < lowest or (value > 1 and name not in UNLIMITED):
        limits = f"{lowest} or more" if name in UNLIMITED else "between 0 and 1"
        raise InputError(f"{where} must be {limits}; got {value}")
    return round(value) if name in WHOLE else float(value)


def every_point(base: AffinityDecode, choices: dict[str, Range | list]) -> list[AffinityDecode]:
    """All combinations; only of settings that a merge tree depends on, and only of lists."""
    for name, values in choices.items():
        if isinstance(values, Range):
            raise InputError(f"tune.space.{name} goes from {values.low} to {values.high} without a step, which cannot "
                             "be tried exhaustively: add step, or draw from it with --tune-random N")
        if name in AFTER:
            raise InputError(f"tune.space.{name} acts after the cut, so that no tree serves several thresholds: draw "
                             "from it with --tune-random N, or leave it out")
    points = [point_of(base, dict(zip(choices, values))) for values in itertools.product(*choices.values())]
    points = [point for point in dict.fromkeys(points) if point.low <= point.high]
    if not points:
        raise InputError("tune.space has no point: every low is above every high")
    return points


def drawn_points(base: AffinityDecode, choices: dict[str, Range | list], thresholds: Thresholds, seed: int,
                 count: int) -> list[AffinityDecode]:
    """`count` points, each a function of the seed and its number alone; the threshold is that of a full decoding."""
    return [draw(base, choices, thresholds, np.random.default_rng([seed, number])) for number in range(count)]


def draw(base: AffinityDecode, choices: dict[str, Range | list], thresholds: Thresholds,
         random: np.random.Generator) -> AffinityDecode:
    for _ in range(DRAWS):
        values = {name: drawn(name, values, random) for name, values in choices.items()}
        values["threshold"] = (thresholds.listed[random.integers(len(thresholds.listed))] if thresholds.listed
                               else round(random.uniform(thresholds.low, thresholds.high), 6))
        point = point_of(base, values)
        if point.low <= point.high:
            return point
    raise InputError(f"tune.space has hardly a point: in {DRAWS} draws low was above high")


def drawn(name: str, values: Range | list, random: np.random.Generator) -> Any:
    if isinstance(values, list):
        return values[random.integers(len(values))]
    if values.logarithmic:
        value = math.exp(random.uniform(math.log(values.low), math.log(values.high)))
    else:
        value = random.uniform(values.low, values.high)
    return round(value) if name in WHOLE else min(max(round(value, 9), values.low), values.high)


def point_of(base: AffinityDecode, values: dict[str, Any]) -> AffinityDecode:
    """base with some settings replaced; link_NAME stands for link.NAME."""
    link = {name.removeprefix("link_"): value for name, value in values.items() if name.startswith("link_")}
    plain = {name: value for name, value in values.items() if not name.startswith("link_")}
    if link:
        plain["link"] = replace(base.link or Link(), **link)
    return replace(base, **plain)


def tree_of(point: AffinityDecode) -> AffinityDecode:
    """The point reduced to what its merge tree depends on."""
    kept = {name: getattr(point, name) for name in (*BEFORE, "channels", "kind")}
    return AffinityDecode(**kept)
