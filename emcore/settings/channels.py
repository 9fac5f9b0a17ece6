"""Channels named in a config."""

from emcore.errors import InputError


def channels_of(text: str, count: int, what: str) -> slice:
    """The channels that "a:b" or "a" names, among `count`; an empty choice is refused."""
    parts = [part.strip() for part in text.split(":")]
    try:
        numbers = [int(part) if part else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None and -count <= numbers[0] < count:
        first = numbers[0] % count
        return slice(first, first + 1)
    if len(numbers) == 2 and all(n is None or -count <= n <= count for n in numbers):
        chosen = range(count)[slice(*numbers)]
        if len(chosen):
            return slice(chosen.start, chosen.stop)
    raise InputError(f"{what} {text!r} names no channels of the {count} there are; write \"0:3\", \"-1:\" or \"2\"")
