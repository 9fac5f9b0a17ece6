"""A table of numbers as a picture: bright where they are low, the lowest framed, written in a small font of its own."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from emcore.errors import InputError
from emcore.png import write_png

# every glyph is five rows of three pixels, a row an octal digit
GLYPHS = """75557 26227 71747 71717 55711 74717 74757 71122 75757 75717 25755 65656 34443 65556 74647 74644 34553 55755
72227 11152 55655 44447 57755 65555 25552 65644 25573 65655 34216 72222 55557 55552 55775 55255 55222 71247 00002 00700
00007 02020 00024 07070 11244 12221 42224"""
FONT = dict(zip("0123456789abcdefghijklmnopqrstuvwxyz.-_:,=/()", GLYPHS.split()))
SCALE = 2  # pixels of a glyph's pixel
ADVANCE, LINE = 4 * SCALE, 8 * SCALE
CELL = (30, 64)
COLUMNS = 120  # the lowest are shown where there are more
COLOURS = np.array([(253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84)], np.float64)
GREY, BLACK, WHITE, FRAME = (208, 208, 208), (24, 24, 24), (255, 255, 255), (220, 30, 30)


def write_heat_map(path: str | os.PathLike, title: str, rows: Sequence[str], headings: Mapping[str, Sequence[str]],
                   values: np.ndarray) -> None:
    """Writes values (row, column) as a PNG; headings: name -> the text above each column. Grey: not finite."""
    values = np.asarray(values, np.float64)
    count = len(next(iter(headings.values())))
    if values.shape != (len(rows), count) or not np.isfinite(values).any():
        raise InputError(f"a heat map needs at least one number, and names for each row and column; got {values.shape} "
                         f"and {len(rows)} and {count} names")
    if count > COLUMNS:
        lowest = np.where(np.isfinite(values), values, np.inf).min(0)
        shown = np.sort(np.argsort(lowest, kind="stable")[:COLUMNS])
        title += f", the best {COLUMNS} of {count} columns"
        headings, values = {name: [texts[k] for k in shown] for name, texts in headings.items()}, values[:, shown]
    left = ADVANCE * (max(map(len, [*rows, *headings])) + 2)
    top = LINE * (2 + len(headings))
    width = max(left + CELL[1] * values.shape[1], ADVANCE * (len(title) + 1)) + ADVANCE
    image = np.full((top + CELL[0] * len(rows) + ADVANCE, width, 3), 255, np.uint8)
    write(image, title, ADVANCE, ADVANCE, BLACK)
    for line, (name, texts) in enumerate(headings.items(), start=2):
        write(image, name, LINE * line - LINE // 4, ADVANCE, BLACK)
        for number, text in enumerate(texts):
            write(image, text, LINE * line - LINE // 4, left + CELL[1] * number + ADVANCE, BLACK)
    low, high = np.nanmin(values[np.isfinite(values)]), np.nanmax(values[np.isfinite(values)])
    best = np.unravel_index(np.argmin(np.where(np.isfinite(values), values, np.inf)), values.shape)
    for row, name in enumerate(rows):
        y = top + CELL[0] * row
        write(image, name, y + 10, ADVANCE, BLACK)
        for column, value in enumerate(values[row]):
            x = left + CELL[1] * column
            colour = ramp((value - low) / (high - low or 1)) if math.isfinite(value) else GREY
            box = image[y : y + CELL[0] - 1, x : x + CELL[1] - 1]
            if (row, column) == best:
                box[:] = FRAME
                box = box[3:-3, 3:-3]
            box[:] = colour
            if math.isfinite(value):
                is_bright = np.dot(colour, (0.3, 0.6, 0.1)) > 120
                write(image, f"{value:.4f}"[:6], y + 10, x + ADVANCE, BLACK if is_bright else WHITE)
    write_png(path, image)


def ramp(share: float) -> tuple[int, ...]:
    """The colour of a share of 0 to 1: from yellow over green to dark blue."""
    place = share * (len(COLOURS) - 1)
    return tuple(int(round(np.interp(place, range(len(COLOURS)), band))) for band in COLOURS.T)


def write(image: np.ndarray, text: str, y: int, x: int, colour: tuple[int, ...]) -> None:
    """Draws text into the image, its upper left corner at y, x; what the font lacks stays blank."""
    for character in text.lower():
        rows = FONT.get(character, "00000")
        glyph = np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in rows], bool)
        glyph = glyph.repeat(SCALE, 0).repeat(SCALE, 1)
        image[y : y + glyph.shape[0], x : x + glyph.shape[1]][glyph] = colour
        x += ADVANCE
