"""Scores of a run and the page that shows them."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """python -m emcore report: writes the page of a run again, from what stands in its folder."""
    from emcore import config
    from emcore.errors import InputError
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
    found = {}
    if results and (results / "scores.json").exists():
        try:
            found = json.loads((results / "scores.json").read_text())
        except ValueError as error:
            raise InputError(f"{results / 'scores.json'} is not JSON ({error}): run evaluate.py again") from None
    print(write_report(folder, results, config.load(Settings, folder / "config.toml"), found))
    return 0
