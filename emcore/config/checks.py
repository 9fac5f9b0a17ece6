"""Limits of numbers in settings, for the __post_init__ of their dataclasses."""

from collections.abc import Callable
from typing import Any

from emcore.errors import InputError


class WrongSetting(InputError):
    """A value that its table refuses; the sentence begins with the name of the setting, which gets its place."""


def at_least(least: float, table: Any, *names: str) -> None:
    """Refuses settings below a limit; those that are not set are fine, and of a list every number counts."""
    _check(table, names, lambda number: number >= least, f"at least {least}")


def above(limit: float, table: Any, *names: str) -> None:
    _check(table, names, lambda number: number > limit, f"above {limit}")


def within(low: float, high: float, table: Any, *names: str) -> None:
    _check(table, names, lambda number: low <= number <= high, f"between {low} and {high}")


def parsed(table: Any, name: str, parse: Callable[[Any], Any]) -> None:
    """Refuses a setting that a parser refuses; of a list every entry counts."""
    value = getattr(table, name)
    for one in value if isinstance(value, tuple) else [value]:
        try:
            parse(one)
        except InputError as error:
            raise WrongSetting(f"{name}: {error}") from None


def _check(table: Any, names: tuple[str, ...], fits: Any, wanted: str) -> None:
    for name in names:
        value = getattr(table, name)
        for place, number in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            if number is not None and not fits(number):
                at = "" if place is None else f"[{place}]"
                raise WrongSetting(f"{name}{at} must be {wanted}; got {number}")
