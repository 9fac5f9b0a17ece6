"""A test volume as the viewer shows it: image, prediction, truth and labels on one grid, and the largest errors."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from emcore.errors import InputError
from emcore.metrics import Contingency, contingency
from emcore.metrics.evaluation import SCORES
from emcore.metrics.placement import overlap, whole_table
from emcore.png import colour_labels
from emcore.report import mistakes
from emcore.report.grids import Grid, choose_grid, pack, pack_grey, sample
from emcore.report.merges import packed_merges
from emcore.segment import connected_components
from emcore.segment.affinities import TABLE_ATTRIBUTE
from emcore.settings import Settings
from emcore.settings.data import result_name
from emcore.volumes import Volume, open_volume
from emcore.volumes.address import located

CHANNELS = 3  # so many channels of a prediction are shown
CREMI_SPECIAL = (2**64 - 2, 2**64 - 1)  # invalid and background


def make_view(settings: Settings, files: tuple[Path, Path], number: int, limit: int,
              tables: dict[int, Contingency]) -> dict[str, Any]:
    """What the page needs of data.test[number], with at most `limit` grid points a layer.

    files: its prediction and its labels, which need not be there. It reads what it shows; only its table of truth and
    labels is of all voxels, and is kept in `tables`.
    """
    test = settings.data.test[number]
    name = result_name(settings.data, number)
    prediction, labels = files
    notes: list[str] = []
    opened = open_all({"raw": located(settings.data.folder, test.image),
                       "prediction": prediction,
                       "truth": test.label and located(settings.data.folder, test.label),
                       "labels": f"{labels}:labels" if labels.exists() else None}, notes)
    view = {"name": name, "notes": notes, "layers": [], "mistakes": {"split": [], "merge": []}, "scored": False,
            "detected": any(SCORES[name].detects for name in settings.evaluate.scores if name in SCORES)}
    if not opened:
        return view
    frame = opened.get("raw") or next(iter(opened.values()))
    known = frame.resolution or settings.data.resolution
    resolution = known or (1.0, 1.0, 1.0)
    shifts = {kind: np.rint((np.array(volume.offset) - frame.offset) / resolution).astype(int)
              for kind, volume in opened.items()}
    box = [(0, length) for length in frame.shape[-3:]]
    if "truth" in opened:  # only there is something to compare
        inner = [(max(0, a), min(length, a + size))
                 for a, size, (_, length) in zip(shifts["truth"].tolist(), opened["truth"].shape, box)]
        box = inner if all(a < b for a, b in inner) else box
    grid = choose_grid(box, resolution, limit)
    view |= {"shape": grid.shape, "start": grid.start, "step": grid.step, "resolution": resolution,
             "unit": "nm" if known else "voxels", "whole": frame.shape[-3:]}
    ignored = (0, *settings.data.background, *settings.data.ignore)
    ids = {}
    for kind, volume in opened.items():
        if kind in ("truth", "labels"):
            values = sample(volume, None, shifts[kind], grid, average=False).astype(np.uint64)
            if kind == "truth":
                values[np.isin(values, np.array(ignored + CREMI_SPECIAL, np.uint64))] = 0
                if settings.evaluate.pieces:
                    values = connected_components(values > 0, settings.evaluate.pieces).astype(np.uint64)
            ids[kind] = values
        else:
            view["layers"] += grey_layers(kind, volume, shifts[kind], grid)
    table = None
    if len(ids) == 2:
        try:
            table = pieces_table(ids, view) if settings.evaluate.pieces else tables.get(number)
            if table is None:
                table = tables[number] = compared(opened["labels"], opened["truth"], ignored)
        except InputError as error:
            view["notes"].append(f"no errors are shown: {error}")
    add_labels(view, ids, table, settings.data.background)
    if "labels" in opened and grid.step == (1, 1, 1) and grid.shape == opened["labels"].shape:
        view["merges"] = merges_of(labels, opened["labels"], view["notes"])
    return view


def merges_of(path: Path, labels: Volume, notes: list[str]) -> dict[str, Any] | None:
    """The merge tree beside labels that the page shows whole."""
    settings = labels.attrs.get("decode")
    try:
        return packed_merges(path, settings.get("threshold") if isinstance(settings, dict) else None)
    except InputError as error:
        notes.append(f"the page cannot say why a voxel has its label: {error}")
        return None


def pieces_table(ids: dict[str, np.ndarray], view: dict[str, Any]) -> Contingency:
    """The table of a truth whose objects are the pieces of what the page shows."""
    if view["step"] != (1, 1, 1) or view["shape"] != view["whole"]:
        view["notes"].append("the truth is a mask: its pieces and the errors are those of the points shown here")
    table = contingency(ids["truth"], ids["labels"], (0,), (0,))
    return replace(table, counts=table.counts * int(np.prod(view["step"])))


def compared(labels: Volume, truth: Volume, ignored: tuple[int, ...]) -> Contingency:
    """The table of all voxels of labels and their truth."""
    special = CREMI_SPECIAL if truth.dtype == np.uint64 else ()
    return whole_table(labels, truth, overlap(labels, truth)).ignoring((*ignored, *special), (0,))


def open_all(references: dict[str, Any], notes: list[str]) -> dict[str, Volume]:
    """The volumes that can be opened; the others leave a note."""
    opened = {}
    for kind, reference in references.items():
        try:
            if reference is not None:
                opened[kind] = open_volume(reference, kind="labels" if kind in ("truth", "labels") else "image")
        except InputError as error:
            notes.append(f"{kind} is not shown: {error}")
    return opened


def grey_layers(kind: str, volume: Volume, shift: np.ndarray, grid: Grid) -> list[dict[str, Any]]:
    layers = []
    channels = [None] if volume.ndim == 3 else range(min(CHANNELS if kind == "prediction" else 1, volume.shape[0]))
    for channel in channels:
        values = sample(volume, channel, shift, grid, average=True)
        low, high = 0.0, 255.0
        if kind == "prediction" and TABLE_ATTRIBUTE in volume.attrs:
            values = np.interp(values, np.arange(256), volume.attrs[TABLE_ATTRIBUTE]).astype(np.float32)
            high = 1.0
        elif kind == "prediction" and volume.dtype != np.uint8:
            finite = values[np.isfinite(values)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
            if low >= 0 and high <= 1:
                low, high = 0.0, 1.0
        elif volume.dtype != np.uint8:
            low, high = np.nanpercentile(values, (0.5, 99.5)).tolist()
        offsets = volume.attrs.get("offsets")
        of = f" {channel}" if kind == "prediction" and channel is not None else ""
        if offsets is not None and channel is not None and channel < len(offsets):
            of = f" {channel}, edge ({', '.join(str(int(o)) for o in offsets[channel])})"
        layers.append({"kind": kind, "name": kind + of, "low": low, "high": high, **pack_grey(values, low, high)})
    return layers


def add_labels(view: dict[str, Any], ids: dict[str, np.ndarray], table: Contingency | None,
               background: tuple[int, ...]) -> None:
    """Adds the layers truth and labels, which ids belong together, and the largest errors."""
    partner: dict[str, dict[int, int]] = {"truth": {}, "labels": {}}
    if table is not None:
        view["scored"] = True
        truth, labels = table.truth[table.kept], table.labels[table.kept]
        partner["labels"] = mistakes.best_partner(labels, truth, table.n, np.unique(ids["labels"]))
        matched = np.array([*partner["labels"].values()], np.uint64)
        partner["truth"] = mistakes.best_partner(truth, labels, table.n, np.union1d(matched, ids["truth"]))
        view["mistakes"] = mistakes.find(table)
        if view["detected"]:
            view["mistakes"] |= mistakes.missed_and_invented(table, (0, CREMI_SPECIAL[1], *background))
    numbers = {}
    for kind, values in ids.items():
        found = np.union1d(np.zeros(1, np.uint64), values)
        compact = np.searchsorted(found, values).astype(np.uint16 if len(found) < 2**16 else np.uint32)
        numbers[kind] = {int(label): place for place, label in enumerate(found)}
        colours = found.copy()
        if kind == "labels":  # a segment and the object it matches best share a colour, so that both pictures compare
            for place, label in enumerate(found):
                other = partner["labels"].get(int(label))
                if other is not None and partner["truth"].get(other) == int(found[place]):
                    colours[place] = other
        view["layers"].append({"kind": kind, "name": kind, "ids": [str(label) for label in found.tolist()],
                               "colours": base64.b64encode(colour_labels(colours).tobytes()).decode(), **pack(compact)})
    if not view["scored"]:
        return
    # number of a truth object -> number of its largest segment, and the other way round; -1 where it is not on the grid
    for kind, other in (("truth", "labels"), ("labels", "truth")):
        view[f"main_of_{kind}"] = [numbers[other].get(partner[kind].get(label, -1), -1) for label in numbers[kind]]
    for kind, (own, other) in {"split": ("truth", "labels"), "merge": ("labels", "truth")}.items():
        for error in view["mistakes"][kind]:
            pieces = [piece for piece, _ in error["pieces"]]
            pair = (error["id"], pieces[1]) if kind == "split" else (pieces[1], error["id"])
            error["point"] = mistakes.place(ids["truth"], ids["labels"], *pair)
            error[own] = [numbers[own][error["id"]]] if error["id"] in numbers[own] else []
            error[other] = [numbers[other][piece] for piece in pieces if piece in numbers[other]]
    for kind, own, other in (("missed", "truth", "labels"), ("invented", "labels", "truth")):
        for error in view["mistakes"].get(kind, ()):
            pair = (error["id"], 0) if kind == "missed" else (0, error["id"])
            error["point"] = mistakes.place(ids["truth"], ids["labels"], *pair)
            error[own], error[other] = [numbers[own].get(error["id"], 0)], [0]
