"""Curves as inline SVG in the colours of the page; they need no script."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 44  # margins
DRAWN = 1500  # points of a line
LETTER = 16  # width and height that the letter of a mark takes


def plot(lines: Mapping[str, Points], x_title: str, title: str, marks: Sequence[tuple[float, str]] = (),
         may_be_logarithmic: bool = True) -> str:
    """A figure with a line for every name, and lettered vertical marks; "" where there is no finite point.

    The texts of the marks stand in the legend, and their letters above the curves, in rows in which none meet.

    The y axis is logarithmic, if it may be, where all values are positive and span more than a factor of 20.
    """
    lines = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
             for name, points in lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    marks = [(x, text) for x, text in marks if math.isfinite(x)]
    xs = [x for points in lines.values() for x, _ in points] + [x for x, _ in marks]
    ys = [y for points in lines.values() for _, y in points]
    logarithmic = may_be_logarithmic and min(ys) > 0 and max(ys) > 20 * min(ys)
    height_of = math.log10 if logarithmic else float
    x_low, x_high = padded(min(xs), max(xs), 0)
    y_low, y_high = padded(height_of(min(ys)), height_of(max(ys)), 0.04)
    letters = [chr(ord("A") + number) for number in range(len(marks))]

    def x_at(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def y_at(y: float) -> float:
        return round(HEIGHT - BOTTOM - (height_of(y) - y_low) / (y_high - y_low) * (HEIGHT - top - BOTTOM), 1)

    rows = rows_of([x_at(x) for x, _ in marks])
    top = TOP + LETTER * (1 + max(rows, default=-1))
    parts = []
    for tick in ticks(x_low, x_high):
        parts.append(f'<text x="{x_at(tick)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in decades(y_low, y_high) if logarithmic else ticks(y_low, y_high):
        if y_low <= height_of(tick) <= y_high:
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(tick)}" y2="{y_at(tick)}"/>'
                         f'<text x="{LEFT - 8}" y="{y_at(tick) + 4}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) // 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>')
    for number, points in enumerate(lines.values()):
        thin = points[::math.ceil(len(points) / DRAWN)]
        path = " ".join(f"{x_at(x)},{y_at(y)}" for x, y in ([*thin, points[-1]] if thin[-1] != points[-1] else thin))
        parts.append(f'<polyline class="line{number % 4}" points="{path}"/>')
        if len(points) <= 30:
            parts += [f'<circle class="dot{number % 4}" cx="{x_at(x)}" cy="{y_at(y)}" r="3"/>' for x, y in points]
    for letter, row, (x, _) in zip(letters, rows, marks):
        foot = TOP + LETTER * row  # the foot of the letter
        parts.append(f'<line class="mark" x1="{x_at(x)}" x2="{x_at(x)}" y1="{foot + 3}" y2="{HEIGHT - BOTTOM}"/>'
                     f'<text x="{x_at(x)}" y="{foot}" text-anchor="middle">{letter}</text>')
    legend = "".join(f'<li><svg viewBox="0 0 20 8" aria-hidden="true"><polyline class="line{k % 4}" points="0,4 20,4"/>'
                     f"</svg>{escape(name)}</li>" for k, name in enumerate(lines))
    legend += "".join(f"<li><b>{letter}</b> {escape(text)}</li>" for letter, (_, text) in zip(letters, marks))
    return (f'<figure class="plot"><figcaption>{escape(title)}{" (logarithmic)" if logarithmic else ""}</figcaption>'
            f'<ul class="legend">{legend}</ul><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}: {escape(", ".join(lines))}">{"".join(parts)}</svg></figure>')


def rows_of(places: Sequence[float]) -> list[int]:
    """For each place along x the first row in which no letter is nearer than LETTER."""
    rows: list[int] = []
    for number, place in enumerate(places):
        taken = {rows[other] for other in range(number) if abs(places[other] - place) < LETTER}
        rows.append(next(row for row in range(number + 1) if row not in taken))
    return rows


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of every power of ten; low and high are logarithms."""
    powers = range(max(-300, math.floor(low)), min(300, math.ceil(high)) + 1)
    return [m * 10.0**power for power in powers for m in (1, 2, 5)]


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    room = (high - low) * share or (0 if high > low else abs(high) * 0.1 or 1)
    return low - room, high + room


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within low..high, about five."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
