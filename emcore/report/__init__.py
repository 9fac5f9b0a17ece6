"""Scores of a run and the page that shows them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emcore.errors import InputError
from emcore.reading import read_text

MOST_SCORES_BYTES = 1 << 28


def main(arguments: Sequence[str]) -> int:
    """python -m emcore report: writes the page of a run again, from what stands in its folder."""
    from emcore import config
    from emcore.report.page import write_report
    from emcore.settings import Settings

    parser = argparse.ArgumentParser(prog="python -m emcore report", description=(
        "Write RUN/report.html: pictures, curves, scores and settings of a run in one file. Run it where the training "
        "was started: relative paths of the config are looked up from there."))
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as outputs/demo")
    folder = parser.parse_args(arguments).run
    if not (folder / "config.toml").is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no config.toml; train.py makes one")
    numbers = [path.name.partition("=")[2] for path in folder.glob("results_step=*")]
    steps = [int(number) for number in numbers if number.isdigit()]
    results = folder / f"results_step={max(steps)}" if steps else None
    found = read_scores(results / "scores.json") if results else {}
    print(write_report(folder, results, config.load(Settings, folder / "config.toml"), found))
    return 0


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
            and isinstance(scores.get("notes", []), list)
            and all(isinstance(note, str) for note in scores.get("notes", []))
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
