"""The page of `python -m emcore augment`: what each augmentation makes of one sample."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from emcore.png import colour_labels, overlay
from emcore.report.html import filled, picture, policy, read

TILE = 224  # pixels of a picture's longer side: six fit beside each other
STYLE = """
.row { display: flex; flex-wrap: wrap; gap: .7rem; }
.row figure { margin: 0; }
.row figcaption { color: var(--soft); font-size: .85rem; }
.row img { display: block; image-rendering: pixelated; }
"""
Sample = Mapping[str, np.ndarray]  # image (z, y, x), and perhaps label


def sheet_page(title: str, samples: Mapping[str, Sample], resolution: Sequence[float]) -> str:
    """HTML with a section for each sample under its name; the first is the one that all others were made of."""
    before = next(iter(samples.values()))
    style = read("page.css") + STYLE
    sections = [f"<section><h2>{escape(name)}</h2>{row(before, after, resolution)}</section>"
                for name, after in samples.items()]
    return filled("sheet.html", {"policy": policy(style), "title": escape(title), "style": style,
                                 "samples": "\n".join(sections)})


def row(before: Sample, after: Sample, resolution: Sequence[float]) -> str:
    """The pictures of one section and of one plane from the side."""
    z, y = places(before, after)
    low, high = float(before["image"].min()), float(before["image"].max())
    grey = np.round(np.clip((after["image"] - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    labels = np.maximum(after["label"], 0) if "label" in after else None
    tall = max(1, round(resolution[0] / resolution[2]))  # a section is that many rows from the side
    step = max(1, max(grey.shape[1:]) // TILE)
    larger = step * TILE / max(grey.shape[1:])
    found = []
    for axis, place, caption, lines in ((0, z, f"z {z}", 1), (1, y, f"from the side, y {y}", tall)):
        for kind, view in views(grey, labels, place, axis).items():
            view = view[::step, ::step]
            width, height = (round(length * larger) for length in (view.shape[1], view.shape[0] * lines))
            found.append(picture(view, width, height, f"{kind}, {caption}"))
    return f'<div class="row">{"".join(found)}</div>'


def places(before: Sample, after: Sample) -> tuple[int, int]:
    """The section and the row to show: those with most labels, or the most changed where little is."""
    change = sum(np.abs(after[key] - before[key]).astype(np.float32) for key in before)
    found = []
    for others in ((1, 2), (0, 2)):
        lines = change.mean(others)
        few = 0 < np.count_nonzero(lines > 0.01 * lines.max()) < len(lines) / 2
        labelled = (before["label"] > 0).mean(others) if "label" in before else np.zeros_like(lines)
        found.append(int(lines.argmax() if few else labelled.argmax() if np.ptp(labelled) else len(lines) // 2))
    return found[0], found[1]


def views(grey: np.ndarray, labels: np.ndarray | None, place: int, axis: int) -> dict[str, np.ndarray]:
    """The image, its labels, and both, at one place of an axis."""
    section = grey.take(place, axis)
    if labels is None:
        return {"image": section}
    ids = labels.take(place, axis)
    return {"image": section, "labels": colour_labels(ids), "both": overlay(section, ids)}
