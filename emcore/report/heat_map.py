"""A table of numbers as an SVG picture: bright where they are low, the lowest framed."""

import os
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from emcore.errors import InputError
from emcore.files import write_text

CELL, LINE, LETTER, EDGE = (62, 30), 18, 7.5, 10  # pixels: width and height of a cell, a line, a letter, the margin
COLUMNS = 120  # the lowest are shown where there are more
COLOURS = np.array([(253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84)], np.float64)
GREY, BLACK, WHITE, FRAME = "#d0d0d0", "#181818", "#ffffff", "#dc1e1e"


def write_heat_map(path: str | os.PathLike, title: str, rows: Sequence[str], headings: Mapping[str, Sequence[str]],
                   values: np.ndarray) -> None:
    """Writes values (row, column) as SVG; headings: name -> the text above each column. Grey: not finite."""
    values = np.asarray(values, np.float64)
    count = len(next(iter(headings.values())))
    if values.shape != (len(rows), count) or not np.isfinite(values).any():
        raise InputError(f"a heat map needs at least one number, and names for each row and column; got {values.shape} "
                         f"and {len(rows)} and {count} names")
    ranks = np.where(np.isfinite(values), values, np.inf)
    if count > COLUMNS:
        shown = np.sort(np.argsort(ranks.min(0), kind="stable")[:COLUMNS])
        title += f", the best {COLUMNS} of {count} columns"
        headings = {name: [texts[k] for k in shown] for name, texts in headings.items()}
        values, ranks = values[:, shown], ranks[:, shown]
    best = np.unravel_index(ranks.argmin(), ranks.shape)
    low, span = ranks.min(), values[np.isfinite(values)].max() - ranks.min() or 1
    left = EDGE * 2 + LETTER * max(map(len, [*rows, *headings]))
    top = EDGE + LINE * (1 + len(headings)) + 6
    parts = [text(EDGE, EDGE + 12, title, weight="bold")]
    for line, (name, texts) in enumerate(headings.items(), start=1):
        y = EDGE + 12 + LINE * line
        parts.append(text(EDGE, y, name))
        parts += [text(left + CELL[0] * (k + 0.5), y, entry, anchor="middle") for k, entry in enumerate(texts)]
    for (row, column), value in np.ndenumerate(values):
        x, y = left + CELL[0] * column, top + CELL[1] * row
        colour, ink = shade((value - low) / span) if np.isfinite(value) else (GREY, BLACK)
        parts.append(f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{CELL[0] - 2}" height="{CELL[1] - 2}" fill="{colour}"'
                     + (f' stroke="{FRAME}" stroke-width="3"/>' if (row, column) == best else "/>"))
        if np.isfinite(value):
            parts.append(text(x + CELL[0] / 2, y + 20, f"{value:.4f}"[:6], ink, "middle"))
    parts += [text(EDGE, top + CELL[1] * k + 20, name) for k, name in enumerate(rows)]
    width = max(left + CELL[0] * values.shape[1], 2 * LETTER * len(title) / 1.7) + EDGE
    size = f'width="{width:g}" height="{top + CELL[1] * len(rows) + EDGE:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    ground = f'<title>{escape(title)}</title>\n<rect {size} fill="{WHITE}"/>'
    write_text(path, "\n".join([head, ground, *parts, "</svg>\n"]))


def shade(share: float) -> tuple[str, str]:
    """The colour of a share of 0 to 1, from yellow over green to dark blue, and that of letters on it."""
    place = share * (len(COLOURS) - 1)
    colour = [int(round(np.interp(place, range(len(COLOURS)), band))) for band in COLOURS.T]
    return "#{:02x}{:02x}{:02x}".format(*colour), BLACK if np.dot(colour, (0.3, 0.6, 0.1)) > 120 else WHITE


def text(x: float, y: float, words: str, ink: str = BLACK, anchor: str = "start", weight: str = "normal") -> str:
    return (f'<text x="{x:g}" y="{y:g}" fill="{ink}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{escape(words)}</text>")
