"""Scores of a run and the page that shows them."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """python -m emcore report: writes the page of a run again, from what stands in its folder."""
    from emcore import results
    from emcore.progress import Working
    from emcore.report.page import write_report
    from emcore.report.scores import read_scores
    from emcore.settings.data import result_names

    parser = argparse.ArgumentParser(prog="python -m emcore report", description=(
        "Write RUN/report.html: pictures, curves, scores and settings of a run in one file. Run it where the training "
        "was started: relative paths of the config are looked up from there."))
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of the run, such as outputs/demo")
    folder = parser.parse_args(arguments).run
    settings = results.settings_of(folder)
    place = results.newest(settings) if any(folder.glob(f"{results.STEP}*")) else None
    found = read_scores(place / "scores.json") if place is not None else {}
    if place is not None:
        for number, (prediction, labels) in enumerate(results.files_of(settings, place)):
            has_labels = labels.exists() and settings.decode.kind != "none"
            _, made_by = results.check_scored(settings, number, labels if has_labels else None, prediction)
            name = result_names(settings.data)[number]
            results.check_shown(made_by, found.get(name), name)
    with Working("draw the page"):
        page = write_report(folder, place, settings, found)
    print(page)
    return 0
