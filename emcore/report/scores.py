"""scores.json, scores.csv and scores.txt of a folder of results: written, and read again for the page."""

import json
import re
from pathlib import Path
from typing import Any

from emcore.errors import InputError
from emcore.files import csv_text, write_text
from emcore.metrics.case import borders
from emcore.metrics.evaluation import SCORES
from emcore.metrics.partitions import CONVENTIONS
from emcore.reading import read_text
from emcore.settings.evaluate import Evaluate

MOST_SCORES_BYTES = 1 << 28
POOLED = re.compile(r"all \d+ volumes")  # the entry of all volumes of one evaluation together


def write_scores(results: Path, settings: Evaluate, found: dict[str, Any]) -> str:
    """The text of the scores found now; scores.json, .csv and .txt also keep those of other volumes in the folder."""
    every = with_others(results, found)
    write_text(results / "scores.json", json.dumps(every, indent=1, allow_nan=False) + "\n")
    rows = [[name, row["score"], row["value"], row["convention"]] for name, scores in every.items()
            for row in scores["scores"]]
    write_text(results / "scores.csv", csv_text([["volume", "score", "value", "convention"], *rows]))
    write_text(results / "scores.txt", printed(settings, every))
    return printed(settings, found)


def with_others(results: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The scores found now, and after them those of the volumes that were scored in this folder before."""
    others = {name: scores for name, scores in read_scores(results / "scores.json").items()
              if name not in found and not POOLED.fullmatch(name)}
    return {**found, **others}


def read_scores(path: Path) -> dict[str, Any]:
    """What evaluate.py found for each volume, as far as the page shows it; nothing where it has not run."""
    try:
        found = json.loads(read_text(path, MOST_SCORES_BYTES))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): run evaluate.py again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): run evaluate.py again") from None
    if not isinstance(found, dict) or not all(is_scored(scores) for scores in found.values()):
        raise InputError(f"{path} does not hold the scores of volumes as evaluate.py writes them: run it again")
    return found


def is_scored(scores: Any) -> bool:
    """Whether the scores, notes and curve of a volume have the form that the page shows."""
    return (isinstance(scores, dict) and isinstance(scores.get("scores"), list)
            and all(isinstance(row, dict) and {"score", "value", "convention"} <= row.keys()
                    and (row["value"] is None or is_number(row["value"])) for row in scores["scores"])
            and all(isinstance(scores.get(name, []), list) for name in ("made", "notes"))
            and all(isinstance(line, str) for line in (*scores.get("made", []), *scores.get("notes", [])))
            and (not scores.get("curve") or is_curve(scores["curve"])))


def is_curve(curve: Any) -> bool:
    return (isinstance(curve, dict) and "threshold" in curve
            and all(isinstance(curve[name], list) and all(map(is_number, curve[name]))
                    for name in ("threshold", "voi_split", "voi_merge", "rand_error") if name in curve)
            and (curve.get("chosen") is None or is_number(curve["chosen"]))
            and isinstance(curve.get("best") or {}, dict)
            and all(not isinstance(best, dict) or best.get("threshold") is None
                    or (is_number(best["threshold"]) and is_number(best.get("value")))
                    for best in (curve.get("best") or {}).values()))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1023


def threshold_lines(curve: dict[str, Any]) -> list[str]:
    """The threshold that was used beside the best ones, of which the curve knows."""
    lines, used = [], curve.get("used") or {}
    if curve.get("chosen") is not None:
        values = [f"{name} {value:.6g}" for name, value in used.items() if value is not None]
        lines.append(f"  {'threshold used':<24}{curve['chosen']:>14.6g}  {', '.join(values)} by merges alone")
    for name, best in (curve.get("best") or {}).items():
        if isinstance(best, dict) and best.get("threshold") is not None:
            lines.append(f"  {f'threshold best for {name}':<24}{best['threshold']:>14.6g}  {name} {best['value']:.6g} "
                         "by merges alone")
    return lines


def printed(settings: Evaluate, found: dict[str, Any]) -> str:
    """The scores as text, with what their conventions mean."""
    lines = []
    for name, scores in found.items():
        lines.append(name)
        for row in scores["scores"]:
            value = "undefined" if row["value"] is None else f"{row['value']:.6g}"
            lines.append(f"  {row['score']:<24}{value:>14}  {row['convention']}")
        lines += threshold_lines(scores.get("curve") or {})
        lines += [f"  note: {note}" for note in scores.get("notes", ())] + [""]
    if any(SCORES[name].looks_at == "neurons" for name in settings.scores):
        lines += ["VOI in bits. Rand with P, B and A the sums of squares over pairs, predicted and true objects,",
                  "+ leaving out label 0, c its voxels, N the scored and n all voxels:",
                  f"  {settings.convention}: {CONVENTIONS[settings.convention]}",
                  f"Voxels near borders of the truth that do not count: {borders(settings)}."]
    return "\n".join(lines) + "\n"
