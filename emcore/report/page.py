"""One self-contained HTML page of a run: slice viewer, scores, curves, largest errors, config and environment."""

import csv
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from emcore import config
from emcore.errors import InputError
from emcore.files import write_text
from emcore.metrics.evaluation import BETTER
from emcore.reading import read_text, shown
from emcore.report.figures import plot
from emcore.report.html import filled, policy, read, table
from emcore.report.views import make_view
from emcore.results import STEP, files_of, name_of_stored
from emcore.settings import Settings

POINTS = 3_000_000  # grid points of all volumes together
PICTURE_BYTES = 13_000_000  # the limit of all packed grids; fewer points are taken until they fit
MOST_LOG_BYTES = 1 << 28


def write_report(folder: Path, results: Path | None, settings: Settings, found: dict[str, Any],
                 stored: Sequence[tuple[Path, Path]] = ()) -> Path:
    """folder/report.html; found: volume -> its scores, notes and curve. Without results it shows the training only.

    stored: predictions, each with its labels, that stand for the volumes of data.test instead of those in results; the
    page then stands beside the first of them and has its name.
    """
    log = read_log(folder / "log.csv")
    if results is None and not log:
        raise InputError(f"{folder} has nothing to show yet, neither log.csv with a row nor results_step=*: "
                         "run train.py or infer.py first")
    views = make_views(settings, stored or files_of(settings, results)) if results is not None else []
    notes = [(view["name"], note) for view in views for note in view.pop("notes")]
    notes += [(name, note) for name, scores in found.items()
              for note in (*scores.get("made", ()), *scores.get("notes", ()))]
    script, style = read("merges.js") + read("page.js"), read("page.css")
    parts = {
        "title": escape(settings.name),
        "subtitle": escape(subtitle(results, stored)),
        "policy": policy(style, script),
        "style": style,
        "script": script,
        "data": json.dumps(views, allow_nan=False).replace("<", "\\u003c"),
        "viewer": "" if any(view["layers"] for view in views) else "hidden",
        "scores": score_table(found),
        "notes": note_list(notes),
        "mistakes": "".join(mistake_tables(number, view, len(views) > 1) for number, view in enumerate(views))
                    or "<p>There are no labels and truth to compare.</p>",
        "thresholds": "".join(threshold_plot(name, scores["curve"]) for name, scores in found.items()
                              if scores.get("curve")),
        "training": (training_plots(log) or "<p>There is no log.csv.</p>") + best_table(folder),
        "config": escape(config.to_toml(settings)),
        "environment": environment_table(folder / "environment.json"),
    }
    out = stored[0][0].with_name(f"{name_of_stored(stored[0][0])}_report.html") if stored else folder / "report.html"
    write_text(out, filled("page.html", parts))
    return out


def subtitle(results: Path | None, stored: Sequence[tuple[Path, Path]]) -> str:
    if stored:
        return ", ".join(prediction.name for prediction, _ in stored)
    return results.name.replace(STEP, "results of step ") if results else "training only"


def make_views(settings: Settings, files: Sequence[tuple[Path, Path]]) -> list[dict[str, Any]]:
    limit, tables = POINTS // max(1, len(settings.data.test)), {}
    while True:
        views = [make_view(settings, paths, number, limit, tables) for number, paths in enumerate(files)]
        size = sum(len(layer["data"]) for view in views for layer in view["layers"])
        if size <= PICTURE_BYTES or limit <= 1000:
            return views
        limit = int(limit * 0.9 * PICTURE_BYTES / size)


def read_log(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Column -> (step, value) of the rows that have one."""
    columns: dict[str, list[tuple[float, float]]] = {}
    try:
        rows = csv.DictReader(io.StringIO(read_text(path, MOST_LOG_BYTES), newline=""))
        if "step" not in (rows.fieldnames or ["step"]):
            raise InputError(f"{path} has no column step; it has {', '.join(map(shown, rows.fieldnames[:10]))}")
        for row in rows:
            for name, value in row.items():
                if name not in (None, "step") and value:
                    columns.setdefault(name, []).append((number(row["step"]), number(value)))
    except FileNotFoundError:
        return {}
    except (OSError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as the log of a training: {error}") from None
    return columns


def number(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return float("nan")
    return value if abs(value) < 1e300 else float("nan")  # so that differences of two are finite


def score_table(found: dict[str, Any]) -> str:
    rows = [(name, row) for name, scores in found.items() for row in scores["scores"]]
    if not rows:
        return (f"<p>{'No volume has a truth, so nothing is scored.' if found else 'evaluate.py has not run yet.'}</p>")
    return table(("volume", "score", "value", "better", "convention"),
                 [(escape(name), escape(str(row["score"])),
                   "undefined" if row["value"] is None else f"{row['value']:.4g}",
                   BETTER.get(str(row["score"]), ""), escape(str(row["convention"]))) for name, row in rows],
                 "VOI in bits.")


def note_list(notes: list[tuple[str, str]]) -> str:
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(note)}</li>" for name, note in notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def mistake_tables(number: int, view: dict[str, Any], several: bool) -> str:
    """The errors of a volume, each with a button that shows it."""
    tables, name = [], f"{escape(view['name'])}: " if several else ""
    for kind, (what, piece) in {"split": ("truth object", "segments"), "merge": ("segment", "truth objects")}.items():
        rows = []
        for place, error in enumerate(view["mistakes"][kind]):
            size = error["voxels"]
            shares = ", ".join(f"{piece_id} ({percent(count / size)})" for piece_id, count in error["pieces"])
            more = error["members"] - len(error["pieces"])
            button = show_button(number, kind, place, error, f"{kind} of {what}")
            rows.append((button, str(error["id"]), f"{error['misplaced']:,}", f"{error['voxels']:,}",
                         shares + (f" and {more} more" if more else "")))
        if rows:
            caption = {"split": "splits: truth objects that lie in several segments",
                       "merge": "merges: segments that lie in several truth objects"}[kind]
            tables.append(table(("", what, "voxels astray", "of", f"{piece} (share)"), rows,
                                f'<span class="key {kind}"></span>{name}{caption}'))
    for kind, (what, caption) in {"missed": ("truth object", "missed: truth objects that no segment touches"),
                                  "invented": ("segment", "invented: segments where the truth has nothing")}.items():
        rows = [(show_button(number, kind, place, error, f"{kind} {what}"), str(error["id"]), f"{error['voxels']:,}")
                for place, error in enumerate(view["mistakes"].get(kind, ()))]
        if rows:
            tables.append(table(("", what, "voxels"), rows, f'<span class="key {kind}"></span>{name}{caption}'))
    if view["scored"] and not tables:
        missing = ", nothing missed and nothing invented" if view["detected"] else ""
        return f"<p>{escape(view['name'])}: no split and no merge{missing}.</p>"
    return "".join(tables)


def show_button(number: int, kind: str, place: int, error: dict[str, Any], what: str) -> str:
    """The button that moves the viewer to an error, where the page's points hit it."""
    if not error["point"]:
        return '<span title="too small for the voxels shown here">not shown</span>'
    return (f'<button data-volume="{number}" data-kind="{kind}" data-place="{place}" '
            f'aria-label="show {what} {error["id"]}">show</button>')


def percent(share: float) -> str:
    return "&lt;1%" if share < 0.005 else f"{share:.0%}"


def threshold_plot(name: str, curve: dict[str, Any]) -> str:
    lines = {title: list(zip(curve["threshold"], curve[key])) for key, title in
             (("voi_split", "VOI split"), ("voi_merge", "VOI merge"), ("rand_error", "Rand error")) if key in curve}
    marks = [(curve["chosen"], f"chosen: {curve['chosen']:.3g}")] if curve.get("chosen") is not None else []
    for criterion, best in (curve.get("best") or {}).items():
        if isinstance(best, dict) and best.get("threshold") is not None:
            marks.append((best["threshold"], f"best {criterion}: {best['value']:.4g} at {best['threshold']:.3g}"))
    return plot(lines, "threshold", f"{name}: scores of every threshold", marks, may_be_logarithmic=False)


def training_plots(log: dict[str, list]) -> str:
    """Losses in one figure, every other column in its own."""
    groups: dict[str, dict[str, list]] = {}
    for name, points in log.items():
        lines = groups.setdefault("loss" if name.startswith("loss") else name, {})
        if points not in lines.values():  # the only term of a loss is the loss
            lines[name] = points
    return "".join(plot(lines, "step", "learning rate" if title == "lr" else title, may_be_logarithmic=title != "lr")
                   for title, lines in groups.items())


def best_table(folder: Path) -> str:
    """The best checkpoints of a run that are still there, as train.py ranked them."""
    try:
        found = json.loads(read_text(folder / "best.json"))
        rows = [(escape(f"step_{int(step):09d}.pt"), f"{float(value):.6g}") for step, value in found["best"]
                if (folder / "checkpoints" / f"step_{int(step):09d}.pt").exists()]
        monitor = escape(str(found["monitor"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return ""
    return table(("checkpoint", monitor), rows, "best checkpoints, the best first; infer.py --checkpoint best takes it"
                 ) if rows else ""


def environment_table(path: Path) -> str:
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return "<p>environment.json is not there.</p>"
    rows = [(escape(str(name)), escape(" ".join(map(str, value)) if isinstance(value, list) else str(value)))
            for name, value in found.items()]
    return table(("", "value"), rows, "where it was trained")
